#!/usr/bin/env bash
# Builds the guest's initramfs: the agent as /init, and nothing else.
#
#   guest/build-initramfs.sh          builds unless cached; prints the result's folder
#   guest/build-initramfs.sh --path   prints the folder without building
#   guest/build-initramfs.sh --inputs prints what it is built from, a file a line
#   guest/build-initramfs.sh --sample ... the same for the image of sample mode, which is INSECURE: its attestation
#                                     is signed with a published key. No other image has that code.
#
# The folder is <cache>/guest-initramfs/<hash of inputs>/ (sample-insecure-<hash> with --sample) and holds
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

kind="" features=()
if [ "${1:-}" = --sample ]; then
  kind=sample-insecure- features=(--features sample)
  shift
fi

make() {
  note "guest initramfs: building the agent${kind:+ (${kind%-})}"
  static_program "$repository" snp-agent snp-agent "$1" "${features[@]}"
  node "$here/make-initramfs.mjs" "$1/snp-agent" "$1/initramfs"
  note "guest initramfs: $(($(stat -c %s "$1/initramfs") / 1024)) KiB, done in $SECONDS s"
}

mapfile -t sources < <(rust_sources "$repository" guest/agent native/policy proto/agent shim/policy/rules.rego)
# Both libraries end up in the agent.
inputs=("${sources[@]}" guest/cpio.mjs guest/make-initramfs.mjs "$library_folder/libseccomp.a" "$library_folder/libc.a")
if [ "$*" = --inputs ]; then
  printf '%s\n' "${inputs[@]}"
  exit 0
fi
hash="$(rust_hash "$repository" "${inputs[@]}")"
build_once guest-initramfs "$kind$hash" make "$@"
