#!/usr/bin/env bash
# Makes a checkout ready for `npm run demo` and `npm test`, on Debian 12 with Node.js 20, npm, a C++
# compiler and cargo. Safe to repeat: what is done already is skipped. Everything large goes into the
# cache folder (CONTAINERD_SHIM_SNP_CACHE, see docs/contracts.md); nothing is started or enabled.
#
#   scripts/setup.sh              everything
#   scripts/setup.sh --no-apt     never calls apt-get: names the missing packages and ends
set -euo pipefail
export LC_ALL=C

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=lib.sh
. "$repository/scripts/lib.sh"
cd "$repository"

may_install=yes
case "${1:-}" in
  '') ;;
  --no-apt) may_install=no ;;
  *) fail "unknown argument '$1': setup.sh takes --no-apt or nothing" ;;
esac

# What each group is for: compiling; the guest kernel; the agent; running VMs; images and containers
# in tests; reading the unstable suite.
packages=(
  g++ make python3 libc6-dev binutils util-linux
  linux-source-6.12 flex bison bc libelf-dev libssl-dev lz4 xz-utils
  libseccomp-dev
  qemu-system-x86
  erofs-utils cryptsetup-bin zstd e2fsprogs busybox-static runc iproute2 procps containernetworking-plugins
  debian-archive-keyring
)
# Dependencies of the Rust programs use the 2024 edition.
least_cargo_minor=85

step_count=13
step_number=0

# step NAME CHECK WORK: skips WORK when CHECK succeeds; both are functions of this file.
step() {
  local started=$SECONDS
  step_number=$((step_number + 1))
  if "$2"; then
    note "[$step_number/$step_count] $1 ... cached"
    return
  fi
  note "[$step_number/$step_count] $1 ..."
  # Not `$3 || ...`: that would switch `set -e` off inside.
  "$3"
  note "[$step_number/$step_count] $1 ... done in $((SECONDS - started)) s"
}

never() { return 1; }

check_tools() {
  local tool
  for tool in node npm; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install Node.js 20 or newer with npm"
  done
  node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 10) ? 0 : 1)' ||
    fail "Node.js $(node --version) is too old: install 20.10 or newer"
  command -v cargo >/dev/null || fail "cargo is missing: install a stable Rust toolchain, 1.$least_cargo_minor or newer"
  local minor
  minor="$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')"
  [ "${minor:-0}" -ge "$least_cargo_minor" ] ||
    fail "$(cargo --version) is too old (Debian 12's own is): install a stable Rust toolchain, 1.$least_cargo_minor or newer, with rustup"
}

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [ "$(dpkg-query --show --showformat '${db:Status-Abbrev}' "$package" 2>/dev/null | cut -c1-2)" = ii ] || printf '%s\n' "$package"
  done
}
have_packages() { [ -z "$(missing_packages)" ]; }
install_packages() {
  local missing command
  mapfile -t missing < <(missing_packages)
  command="apt-get update && apt-get install --no-install-recommends -y ${missing[*]}"
  command -v apt-get >/dev/null || fail "this is no Debian: install the equivalents of ${missing[*]}"
  if [ "$may_install" = no ] || [ "$(id -u)" != 0 ]; then
    fail "missing Debian packages. Run as root: $command"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q update >&2 || fail "apt-get update failed (messages above): check the network and /etc/apt/sources.list.d"
  apt-get -q install --no-install-recommends -y "${missing[@]}" >&2 ||
    fail "apt-get could not install a package (messages above). linux-source-6.12 is in Debian 12's security suite: is that among the sources?"
}

have_npm_packages() { node scripts/npm-current.mjs . ; }
install_npm_packages() { npm ci --no-audit --no-fund >&2 || fail "npm ci failed (messages above): check the network, and that package-lock.json fits package.json"; }

have_codecs() { scripts/gen-proto.sh --check; }
generate_codecs() { scripts/gen-proto.sh >&2; }
have_addon() { scripts/build-native.sh --check; }
build_addon() { scripts/build-native.sh >&2; }

have_keeper() { [ -d "$(scripts/build-keeper.sh --path)" ]; }
build_keeper() { scripts/build-keeper.sh >/dev/null; }

have_layers() { [ -d "$(scripts/build-layers.sh --path)" ]; }
build_layers() { scripts/build-layers.sh >/dev/null; }

have_policy() { [ -d "$(scripts/build-policy.sh --path)" ]; }
build_policy() { scripts/build-policy.sh >/dev/null; }

have_vsock_back_end() { [ -d "$(bash ch-qemu/build-vsock.sh --path)" ]; }
build_vsock_back_end() { bash ch-qemu/build-vsock.sh >/dev/null; }

have_kernel() { [ -d "$(guest/build-kernel.sh --path)" ]; }
build_kernel() { guest/build-kernel.sh >/dev/null; }

have_initramfs() { [ -d "$(guest/build-initramfs.sh --path)" ]; }
build_initramfs() { guest/build-initramfs.sh >/dev/null; }

have_sample() { [ -d "$(guest/build-initramfs.sh --sample --path)" ]; }
build_sample() { guest/build-initramfs.sh --sample >/dev/null; }

have_containerd() { [ -x "$(cache_dir)/containerd/1.6/bin/containerd" ] && [ -x "$(cache_dir)/containerd/2/bin/containerd" ]; }
fetch_containerd() {
  scripts/fetch-containerd.sh 1.6 >/dev/null
  scripts/fetch-containerd.sh 2 >/dev/null
}

build_dist() { node scripts/build.mjs >&2 || fail "the build is not complete: the lines with FAILED above say what is wrong"; }

check_tools
step "Debian packages" have_packages install_packages
step "npm packages" have_npm_packages install_npm_packages
step "protobuf codecs" have_codecs generate_codecs
step "native addon" have_addon build_addon
step "keeper" have_keeper build_keeper
step "layer converter" have_layers build_layers
step "policy engine" have_policy build_policy
step "vsock for VMs under QEMU" have_vsock_back_end build_vsock_back_end
step "guest kernel" have_kernel build_kernel
step "guest initramfs" have_initramfs build_initramfs
step "guest initramfs of sample mode" have_sample build_sample
step "containerd 1.6 and 2.x for tests" have_containerd fetch_containerd
step "programs in dist" never build_dist
note "ready in $SECONDS s; the cache is $(cache_dir)"
