#!/usr/bin/env bash
# The mongod of compose.yaml, as its container's only process: `mongod.sh DATA KEYFILE [OPTIONS OF MONGOD...]`.
# A replica set with access control asks for a key that its members share. This one has no other member, so the key is
# nobody else's business: it is made at the first start and stays in the volume.
set -euo pipefail
data=$1 key=$2
shift 2

if [[ ! -s $key ]]; then
  # One that was cut short may not be written to any more.
  rm -f -- "$key.new"
  (umask 077 && head -c 512 /dev/urandom | base64 -w 0 >"$key.new")
  chmod 400 "$key.new"
  mv -- "$key.new" "$key"
fi
# The last: mongod would keep old versions of a queue's dead index keys for five minutes, which nobody reads.
exec mongod --dbpath "$data" --keyFile "$key" --replSet roundhouse --nounixsocket \
  --setParameter minSnapshotHistoryWindowInSeconds=0 "$@"
