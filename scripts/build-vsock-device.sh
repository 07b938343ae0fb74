#!/usr/bin/env bash
# Builds vhost-device-vsock, QEMU's half of the hybrid vsock (ch-qemu only), from its registry.
#
#   scripts/build-vsock-device.sh          builds unless cached; prints the folder of the program
#   scripts/build-vsock-device.sh --path   prints the folder without building
#
# The folder is <cache>/vhost-device-vsock/<version>/bin.
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"

version=0.3.0
root="$(cache_dir)/vhost-device-vsock"
result="$root/$version"

if [ "${1:-}" = --path ]; then
  printf '%s\n' "$result/bin"
  exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1': build-vsock-device.sh takes --path or nothing"

if [ ! -x "$result/bin/vhost-device-vsock" ]; then
  require_tools "cargo=cargo gcc=gcc flock=util-linux"
  lock "$root/.lock" 1800
fi
if [ ! -x "$result/bin/vhost-device-vsock" ]; then
  rm -rf "$root"/.work.*
  work="$root/.work.$$"
  mkdir -p "$work"
  trap 'rm -rf "$work"' EXIT
  CARGO_TARGET_DIR="$work/target" cargo install --locked --root "$work/result" --version "$version" vhost-device-vsock >&2 ||
    fail "vhost-device-vsock $version did not build (cargo's messages are above). It needs the network and a Rust toolchain not older than its 'rust-version'"
  put_in_place "$work/result" "$result"
fi
printf '%s\n' "$result/bin"
