#!/usr/bin/env bash
# Builds the native addon, build/Release/snp_native.node, with the node-gyp that npm brings along and
# the headers of the node that runs. Does nothing when sources, node and compiler are the same as
# last time. Needs node_modules.
#
#   scripts/build-native.sh           builds unless current
#   scripts/build-native.sh --check   ends with status 0 when it is current, else 1; builds nothing
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"
cd "$repository"

addon=build/Release/snp_native.node
require_tools "make=make g++=g++ python3=python3 flock=util-linux"
command -v node >/dev/null || fail "node is missing: install Node.js 20 or newer"
[ -d node_modules/node-addon-api ] || fail "node_modules is not complete. Run: npm ci"

mapfile -t sources < <(find binding.gyp native/src node_modules/node-addon-api/package.json \
  -type f \( -name '*.cc' -o -name '*.h' -o -name '*.gyp' -o -name package.json \) | sort)
hash="$({ node -p 'process.version + process.execPath'; g++ --version | head -n 1; } | hash_inputs "$repository" "${sources[@]}")"
stamp=build/Release/snp_native.hash
is_current() { [ -f "$addon" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; }
if is_current; then exit 0; fi
[ "${1:-}" != --check ] || exit 1

# The folder that node-gyp calls nodedir: include/node/node.h lies in it.
node_folder="${SNP_NODE_DIR:-$(node -p 'require("node:path").resolve(process.execPath, "../..")')}"
[ -f "$node_folder/include/node/node.h" ] ||
  fail "no Node.js headers in $node_folder/include/node. Install Node.js from nodejs.org's archive or a package that brings them (Debian: libnode-dev), or name the folder above include/node in SNP_NODE_DIR"
npm_folder="$(dirname "$(dirname "$(readlink -f "$(command -v npm)")")")"
gyp="$npm_folder/node_modules/node-gyp/bin/node-gyp.js"
[ -f "$gyp" ] || gyp="$(npm root -g 2>/dev/null)/npm/node_modules/node-gyp/bin/node-gyp.js"
[ -f "$gyp" ] || fail "npm brings no node-gyp along (looked in $npm_folder). Install npm 9 or newer: npm install -g npm"

mkdir -p build
lock build/.lock 600
if is_current; then exit 0; fi
# configure and build, not rebuild: that would remove the folder under whoever runs the old addon.
node "$gyp" configure build --loglevel=warn --release --nodedir="$node_folder" -j 2 >&2 {lock_fd}>&- ||
  fail "the native addon did not compile (messages above). It needs a C++20 compiler: on Debian 12 'apt-get install g++ make python3'"
[ -f "$addon" ] || fail "node-gyp left no $addon: see binding.gyp's target_name"
printf '%s\n' "$hash" >"$stamp"
