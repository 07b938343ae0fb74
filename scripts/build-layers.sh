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

require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux"
make() { static_program "$repository" containerd-shim-snp-layers snp-layers "$1"; }
mapfile -t sources < <(rust_sources "$repository" native/layers)
build_once layers "$(rust_hash "$repository" "${sources[@]}")" make "$@"
