#!/usr/bin/env bash
# Generates the protobuf codecs from proto/ into proto/gen/ (not committed): NAME.js and NAME.d.ts for
# each folder proto/NAME. Quick and safe to repeat: does nothing when inputs and generator are the
# same as last time.
#
#   scripts/gen-proto.sh           generates unless current
#   scripts/gen-proto.sh --check   ends with status 0 when current, else 1; generates nothing
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"
cd "$repository"

generator=node_modules/.bin/pbjs
# Each folder has a root of its own: with a common one, the second's google.protobuf would replace the first's.
# Only what the programs use is generated: messages with encode and decode, fields named as in the files.
generate() {
  "$generator" --target static-module --wrap esm --root "$1" --keep-case --no-create --no-verify --no-convert --no-delimited \
    --no-typeurl --no-service --dts --path proto --out "$2/$1.js" proto/"$1"/*.proto
}

[ -e "$generator" ] || fail "protobufjs-cli is not installed. Run: npm ci"
mapfile -t sources < <(find proto/containerd proto/agent -name '*.proto' | sort)
hash="$(declare -f generate | hash_inputs "$repository" "${sources[@]}" node_modules/protobufjs-cli/package.json node_modules/protobufjs/package.json)"
stamp=proto/gen/stamp
is_current() { [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ] && [ -f proto/gen/agent.js ] && [ -f proto/gen/containerd.js ]; }
if is_current; then exit 0; fi
[ "${1:-}" != --check ] || exit 1

mkdir -p proto/gen
lock proto/gen/.lock 300
if is_current; then exit 0; fi
staged="proto/gen/.staged"
rm -rf "$staged"
mkdir "$staged"
trap 'rm -rf "$staged"' EXIT
generate containerd "$staged"
generate agent "$staged"
# File by file: whoever reads one meanwhile sees the old or the new one, never half of it.
for file in "$staged"/*; do mv "$file" proto/gen/; done
printf '%s\n' "$hash" >"$stamp"
