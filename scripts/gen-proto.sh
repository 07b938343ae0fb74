#!/usr/bin/env bash
# Generates the protobuf codecs from proto/ into proto/gen/ (not committed). Quick and safe to repeat: does nothing when the output is newer than its inputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

newest_input=$(find proto/containerd proto/agent scripts/gen-proto.sh node_modules/protobufjs-cli/package.json -type f -newer proto/gen/stamp 2>/dev/null | head -n 1 || true)
if [[ -f proto/gen/stamp && -z "$newest_input" ]]; then
  exit 0
fi

mkdir -p proto/gen
generate() { # NAME: proto/NAME/*.proto -> proto/gen/NAME.js and NAME.d.ts
  node_modules/.bin/pbjs -t static-module -w esm --root "$1" --keep-case --no-create --no-verify --no-convert --no-delimited \
    --no-typeurl --no-service --dts -p proto -o "proto/gen/$1.js" proto/"$1"/*.proto
}
generate containerd
generate agent
touch proto/gen/stamp
