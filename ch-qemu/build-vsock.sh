#!/usr/bin/env bash
# Builds ch-qemu-vsock, the vsock back end of ch-qemu.
#
#   ch-qemu/build-vsock.sh          builds unless cached; prints the result's folder
#   ch-qemu/build-vsock.sh --path   prints the folder without building
#
# The folder is <cache>/ch-qemu-vsock/<hash of inputs>/ and holds ch-qemu-vsock, a static binary; <cache>/ch-qemu-vsock/current links to the last one built.
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=../scripts/lib.sh
. "$repository/scripts/lib.sh"

program=ch-qemu-vsock
mapfile -t sources < <(cd "$repository" && find ch-qemu/vsock -type f -not -path '*/target/*' -not -name '.*' | sort)
hash="$(rustc -vV | hash_inputs "$repository" "${sources[@]}")"
root="$(cache_dir)/$program"
result="$root/$hash"

if [ "${1:-}" = --path ]; then
  printf '%s\n' "$result"
  exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1': build-vsock.sh takes --path or nothing"

if [ ! -d "$result" ]; then
  require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux"
  lock "$root/.lock" 600
fi
if [ ! -d "$result" ]; then
  rm -rf "$root"/.work.*
  work="$root/.work.$$"
  mkdir -p "$work/result"
  trap 'rm -rf "$work"' EXIT
  target=x86_64-unknown-linux-gnu
  CARGO_TARGET_DIR="$work/target" RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --manifest-path "$repository/ch-qemu/vsock/Cargo.toml" --release --locked --target "$target" >&2 ||
    fail "ch-qemu-vsock did not compile (cargo's messages are above)"
  assert_static "$work/target/$target/release/$program"
  cp "$work/target/$target/release/$program" "$work/result/$program"
  put_in_place "$work/result" "$result"
  ln -sfn "$hash" "$root/.current.$$"
  mv -T "$root/.current.$$" "$root/current"
fi
printf '%s\n' "$result"
