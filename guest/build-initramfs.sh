#!/usr/bin/env bash
# Builds the guest's initramfs: the agent as /init, and nothing else.
#
#   guest/build-initramfs.sh          builds unless cached; prints the result's folder
#   guest/build-initramfs.sh --path   prints the folder without building
#
# The folder is <cache>/guest-initramfs/<hash of inputs>/ and holds
#   initramfs   uncompressed newc cpio archive
#   snp-agent   the agent in it, for tests without a VM
# Equal inputs give equal bytes.
set -euo pipefail
export LC_ALL=C

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(dirname "$here")"
# shellcheck source=../scripts/lib.sh
. "$repository/scripts/lib.sh"

library_folder="${LIBSECCOMP_LIB_PATH:-/usr/lib/x86_64-linux-gnu}"
require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux $library_folder/libseccomp.a=libseccomp-dev $library_folder/libc.a=libc6-dev"
command -v node >/dev/null || fail "node is missing: install Node.js 20 or newer"

# Both libraries end up in the agent.
mapfile -t sources < <(rust_sources "$repository" guest/agent proto/agent)
hash="$({ rustc -vV; declare -f cargo_static; } | hash_inputs "$repository" "${sources[@]}" \
  guest/cpio.mjs guest/make-initramfs.mjs "$library_folder/libseccomp.a" "$library_folder/libc.a")"
root="$(cache_dir)/guest-initramfs"
result="$root/$hash"

if [ "${1:-}" = --path ]; then
  printf '%s\n' "$result"
  exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1': build-initramfs.sh takes --path or nothing"

if [ ! -d "$result" ]; then
  lock "$root/.lock" 1800
fi
if [ ! -d "$result" ]; then
  rm -rf "$root"/.work.*
  work="$root/.work.$$"
  mkdir -p "$work"
  trap 'rm -rf "$work"' EXIT
  note "guest initramfs: building the agent"
  agent="$(cargo_static "$repository" snp-agent snp-agent)" ||
    fail "the agent did not compile (cargo's messages are above). When they speak of Cargo.lock: run 'cargo metadata' once and commit Cargo.lock"
  assert_static "$agent"
  cp "$agent" "$work/snp-agent"
  node "$here/make-initramfs.mjs" "$work/snp-agent" "$work/initramfs"
  put_in_place "$work" "$result"
  note "guest initramfs: $(($(stat -c %s "$result/initramfs") / 1024)) KiB, done in $SECONDS s"
fi
printf '%s\n' "$result"
