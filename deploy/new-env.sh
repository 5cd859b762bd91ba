#!/usr/bin/env bash
# Makes the file with the secrets that compose.yaml asks for, once: `deploy/new-env.sh [FILE]` (default: .env beside it).
set -euo pipefail
file=${1:-$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.env}

secret() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

secrets() {
  local name
  for name in MONGODB_ROOT_PASSWORD MONGODB_PASSWORD JWT_SECRET ADMIN_PASSWORD; do
    printf '%s=%s\n' "$name" "$(secret)"
  done
}

umask 077
if ! (set -o noclobber && secrets >"$file") 2>/dev/null; then
  echo "new-env.sh: $file is there already, or cannot be written; nothing is changed." >&2
  exit 1
fi
echo "The secrets are in $file, for you alone; ADMIN_PASSWORD is what the user admin signs in with." >&2
