#!/usr/bin/env bash
# Builds the keeper, the program that containerd starts.
#
#   scripts/build-keeper.sh          builds unless cached; prints the result's folder
#   scripts/build-keeper.sh --path   prints the folder without building
#
# The folder is <cache>/keeper/<hash of inputs>/ and holds containerd-shim-snp-v2, a static binary.
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"

require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux"
make() { static_program "$repository" containerd-shim-snp-keeper containerd-shim-snp-v2 "$1"; }
mapfile -t sources < <(rust_sources "$repository" native/keeper)
build_once keeper "$(rust_hash "$repository" "${sources[@]}")" make "$@"
