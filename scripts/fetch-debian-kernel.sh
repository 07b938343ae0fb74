#!/usr/bin/env bash
# Puts Debian's cloud kernel into the cache, for the bench to boot beside the guest's own. Nothing is installed.
#
#   scripts/fetch-debian-kernel.sh   prints <cache>/debian-kernel/<version>, which holds
#     vmlinuz      the kernel as Debian packages it
#     modules/     what a guest of this project needs of it and is not built in, uncompressed; names sort in the order of loading
#
# The version is the newest of the guest kernel's series (6.12) that apt knows; one that is in the cache already is taken as it is.
# apt checks the package's signature.
set -euo pipefail
export LC_ALL=C

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=lib.sh
. "$here/lib.sh"

series=6.12
# The guest's vsock, disks, network and balloon, and its file systems; modprobe names what they need themselves.
modules="vmw_vsock_virtio_transport virtio_blk virtio_net virtio_balloon virtio-rng overlay erofs dm-verity btrfs"
root="$(cache_dir)/debian-kernel"

mkdir -p "$root"
found="$(find "$root" -mindepth 1 -maxdepth 1 -name "$series.*" | sort -V | tail -n 1)"
if [ -n "$found" ]; then
  printf '%s\n' "$found"
  exit 0
fi

require_tools "apt-get=apt apt-cache=apt dpkg-deb=dpkg depmod=kmod modprobe=kmod xz=xz-utils flock=util-linux"
lock "$root/.lock" 600
rm -rf "$root"/.work.*
work="$root/.work.$$"
mkdir -p "$work/unpacked" "$work/result/modules"
trap 'rm -rf "$work"' EXIT

# The packages that name the newest kernel: of a release that has had another one before, and of one that began with it.
package="$(apt-cache depends "linux-image-$series-cloud-amd64" linux-image-cloud-amd64 2>/dev/null |
  sed -n "s/^ *Depends: \(linux-image-$series\.[^ ]*-cloud-amd64\)$/\1/p" | head -n 1)"
[ -n "$package" ] ||
  fail "apt knows no linux-image-$series-cloud-amd64. Run as root: apt-get update; Debian 12 has it in its security suite"
# apt fetches as an unprivileged user when it is started by root, and warns when it can't write.
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package") >"$work/apt.log" 2>&1 || {
  cat "$work/apt.log" >&2
  fail "the package $package could not be fetched. Run 'apt-get update' as root, check the network, run this again"
}
dpkg-deb --extract "$work/$package"_*.deb "$work/unpacked"
version="${package#linux-image-}"
cp "$work/unpacked/boot/vmlinuz-$version" "$work/result/vmlinuz"
# Releases differ in where the folder of modules is.
base="$work/unpacked"
[ -d "$base/lib/modules" ] || base="$work/unpacked/usr"
depmod --basedir "$base" "$version"
count=0
# shellcheck disable=SC2086 # names, separated by spaces
modprobe --dirname "$base" --set-version "$version" --show-depends --all $modules | awk '$1 == "insmod" && !seen[$2]++ {print $2}' >"$work/files"
while read -r file; do
  count=$((count + 1))
  name="$(basename "$file")"
  target="$work/result/modules/$(printf '%02d' $count)-${name%.xz}"
  case "$name" in
    *.xz) xz --decompress --stdout "$file" >"$target" ;;
    *) cp "$file" "$target" ;;
  esac
done <"$work/files"
[ "$count" -gt 0 ] || fail "$package has no modules where depmod looks for them: its layout has changed, adapt $0"
put_in_place "$work/result" "$root/$version"
printf '%s\n' "$root/$version"
