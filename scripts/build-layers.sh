#!/usr/bin/env bash
# Builds snp-layers, the program that makes images and disks of layers.
#
#   scripts/build-layers.sh          builds unless cached; prints the result's folder
#   scripts/build-layers.sh --path   prints the folder without building
#
# The folder is <cache>/layers/<hash of inputs>/ and holds snp-layers, a static binary.
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"

program=snp-layers
require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux"
mapfile -t sources < <(rust_sources "$repository" native/layers)
hash="$({ rustc -vV; declare -f cargo_static; } | hash_inputs "$repository" "${sources[@]}")"
root="$(cache_dir)/layers"
result="$root/$hash"

if [ "${1:-}" = --path ]; then
  printf '%s\n' "$result"
  exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1': build-layers.sh takes --path or nothing"

if [ ! -d "$result" ]; then
  lock "$root/.lock" 1800
fi
if [ ! -d "$result" ]; then
  rm -rf "$root"/.work.*
  work="$root/.work.$$"
  mkdir -p "$work"
  trap 'rm -rf "$work"' EXIT
  built="$(cargo_static "$repository" containerd-shim-snp-layers "$program")" ||
    fail "snp-layers did not compile (cargo's messages are above). When they speak of Cargo.lock: run 'cargo metadata' once and commit Cargo.lock"
  assert_static "$built"
  cp "$built" "$work/$program"
  put_in_place "$work" "$result"
fi
printf '%s\n' "$result"
