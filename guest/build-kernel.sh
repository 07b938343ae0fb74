#!/usr/bin/env bash
# Builds the guest kernel out of Debian's linux-source package and kernel/fragment.config.
#
#   guest/build-kernel.sh          builds unless cached; prints the result's folder
#   guest/build-kernel.sh --path   prints the folder without building
#
# The folder is <cache>/guest-kernel/<hash of inputs>/ and holds
#   vmlinux     stripped ELF with a PVH note: `-kernel` of QEMU, `payload.kernel` of Cloud Hypervisor
#   bzImage     the same kernel for firmware that wants an EFI or Linux boot image
#   config      the final .config
#   System.map  which function an address of vmlinux is in
# Equal inputs give equal bytes: names, times and versions of the builder stay out of the images.
# Environment: JOBS (default: all processors), GUEST_KERNEL_SOURCE (default: the package's archive).
set -euo pipefail
export LC_ALL=C

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=../scripts/lib.sh
. "$here/../scripts/lib.sh"

fragment="$here/kernel/fragment.config"
source_archive="${GUEST_KERNEL_SOURCE:-/usr/src/linux-source-6.12.tar.xz}"
jobs="${JOBS:-$(nproc)}"
# Compiler steps of one full build, for the percentage only.
expected_steps=1600
# The longest build that counts as working, in seconds: 2 busy cores need about 10 minutes.
build_limit_s=3600

# Unpacks what an x86 build reads into the folder $1. Drivers that the fragment can never reach
# stay packed, but their Kconfig files are read.
unpack() {
  tar -xJf "$source_archive" -C "$1" --strip-components=1 --wildcards \
    --exclude='*/Documentation/*.rst' --exclude='*/Documentation/devicetree' \
    --exclude='*/arch/[!x]*/*.[chS]' --exclude='*/arch/*/boot/dts' \
    --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' \
    --exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' \
    --exclude='*/drivers/staging/*.[ch]' --exclude='*/sound/*.[ch]' \
    --exclude='*/tools/perf' --exclude='*/tools/testing'
}

# Configures the source in $1. An option that was asked for and is not there is an error: the guest
# would boot and fail much later, in a pod.
configure() {
  KCONFIG_ALLCONFIG="$fragment" make -s -C "$1" allnoconfig >&2 &&
    bash "$here/kernel/check-config.sh" "$fragment" "$1/.config"
}

# Compiles in $1 with fixed names and times, so that equal inputs give equal bytes.
compile() {
  export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026' SOURCE_DATE_EPOCH=1767225600
  export KBUILD_BUILD_USER=build KBUILD_BUILD_HOST=build KBUILD_BUILD_VERSION=1
  make -C "$1" -j"$jobs" vmlinux bzImage
}

# Puts the results from the source folder $1 into $2. The PVH entry is a note of type 18 (0x12)
# with the owner "Xen".
collect() {
  objcopy --strip-all --remove-section=.comment "$1/vmlinux" "$2/vmlinux" &&
    readelf --notes --wide "$2/vmlinux" | grep -Eq 'Xen .*0x0*12' &&
    cp "$1/arch/x86/boot/bzImage" "$2/bzImage" &&
    cp "$1/.config" "$2/config" &&
    cp "$1/System.map" "$2/System.map" &&
    chmod 644 "$2/vmlinux" "$2/bzImage" "$2/config" "$2/System.map"
}

# Reads make's output, keeps it in the file $1 and prints a line about every 10 seconds.
show_progress() {
  local line steps=0 last=$SECONDS percent
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$1"
    case "$line" in '  CC '* | '  AS '*) steps=$((steps + 1)) ;; esac
    if [ $((SECONDS - last)) -ge 10 ]; then
      last=$SECONDS
      percent=$((steps * 100 / expected_steps))
      [ "$percent" -lt 99 ] || percent=99
      note "guest kernel: $percent % ($steps objects, $SECONDS s)"
    fi
  done
}

require_tools "gcc=gcc make=make flex=flex bison=bison bc=bc lz4=lz4 xz=xz-utils flock=util-linux
  /usr/include/gelf.h=libelf-dev /usr/include/openssl/opensslv.h=libssl-dev"
[ -r "$source_archive" ] ||
  fail "no kernel source at $source_archive. Run as root: apt-get update && apt-get install --no-install-recommends -y linux-source-6.12"

# The recipe is the text of the functions above as bash prints it: comments do not count.
hash="$({ gcc --version | head -n 1; ld --version | head -n 1; declare -f unpack configure compile collect; } |
  hash_inputs "$here" kernel/fragment.config "$source_archive")"
root="$(cache_dir)/guest-kernel"
result="$root/$hash"

if [ "${1:-}" = --path ]; then
  printf '%s\n' "$result"
  exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1': build-kernel.sh takes --path or nothing"

if [ ! -d "$result" ]; then
  lock "$root/.lock" "$build_limit_s"
fi
if [ ! -d "$result" ]; then
  # Under the lock nobody else works here: what lies around is from a builder that was killed.
  rm -rf "$root"/.work.*
  work="$root/.work.$$"
  log="$root/build-$hash.log"
  mkdir -p "$work/source" "$work/result"
  trap 'rm -rf "$work"' EXIT
  : >"$log"
  note "guest kernel: unpacking $source_archive"
  unpack "$work/source" ||
    fail "$source_archive could not be unpacked: is the disk full (needs 3 GB in $root), or the archive damaged (apt-get install --reinstall linux-source-6.12)?"
  configure "$work/source" ||
    fail "the configuration lost options (named above): add what they depend on to $fragment, or take them out"
  note "guest kernel: compiling with $jobs jobs (2 cores: 4 to 10 minutes)"
  if ! timeout "$build_limit_s" bash -c "$(declare -p jobs); $(declare -f compile); compile \"\$1\"" compile "$work/source" \
    2>&1 {lock_fd}>&- | show_progress "$log"; then
    tail -n 20 "$log" >&2
    fail "the kernel did not compile; the whole output is in $log. Often the disk is full (needs 3 GB in $root) or memory is short (lower JOBS, now $jobs)"
  fi
  collect "$work/source" "$work/result" ||
    fail "the built kernel lacks its PVH note or a file: see $log"
  put_in_place "$work/result" "$result"
  rm -f "$log"
  note "guest kernel: done in $SECONDS s"
fi
printf '%s\n' "$result"
