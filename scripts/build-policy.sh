#!/usr/bin/env bash
# Builds snp-policy, the program that says what a pod's policy decides.
#
#   scripts/build-policy.sh          builds unless cached; prints the result's folder
#   scripts/build-policy.sh --path   prints the folder without building
#
# The folder is <cache>/policy/<hash of inputs>/ and holds snp-policy, a static binary.
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"

require_tools "cargo=cargo gcc=gcc readelf=binutils flock=util-linux"
make() { static_program "$repository" snp-policy snp-policy "$1"; }
mapfile -t sources < <(rust_sources "$repository" native/policy)
build_once policy "$(rust_hash "$repository" "${sources[@]}")" make "$@"
