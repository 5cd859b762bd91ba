#!/usr/bin/env bash
# Makes the secrets that compose.yaml asks for and FILE lacks: `deploy/new-env.sh [FILE]` (default: .env beside it).
set -euo pipefail
file=${1:-$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.env}

secret() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

# In whichever way docker compose reads it; an empty one is none, also in quotes.
has() {
  grep -Eq "^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*[=:][[:space:]]*([^[:space:]\"']|\"[^\"]|'[^'])" "$file"
}

missing() {
  local name
  for name in MONGODB_ROOT_PASSWORD MONGODB_PASSWORD JWT_SECRET ADMIN_PASSWORD; do
    has "$name" || printf '%s=%s\n' "$name" "$(secret)"
  done
}

umask 077
if ! { : >>"$file" && chmod 600 -- "$file"; } 2>/dev/null; then
  echo "new-env.sh: $file cannot be written; nothing is changed." >&2
  exit 1
fi
secrets=$(missing)
if [[ -z $secrets ]]; then
  echo "All secrets are in $file already; nothing is changed." >&2
  exit
fi
# After a last line without an end, too.
[[ -z $(tail -c 1 -- "$file") ]] || secrets=$'\n'$secrets
printf '%s\n' "$secrets" >>"$file"
echo "The secrets are in $file, for you alone; ADMIN_PASSWORD is what the user admin signs in with." >&2
