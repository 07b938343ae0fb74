#!/usr/bin/env bash
# Puts containerd's programs into the cache, for tests and the demo. Nothing is installed and no
# service is started.
#
#   scripts/fetch-containerd.sh 1.6   Debian 12's own package
#   scripts/fetch-containerd.sh 1.7   the package of Debian 13
#   scripts/fetch-containerd.sh 2     the 2.x package of Debian's unstable suite
#   scripts/fetch-containerd.sh 2.4   built from its Go module; needs Go
#
# Prints <cache>/containerd/<1.6|1.7|2|2.4>/bin, which holds containerd, ctr and containerd-shim-runc-v2.
# The real folder carries the real version (1.6.20, 2.1.9, ...); 1.6 and the others are links to it.
# apt checks the packages' signatures; the mirror is the one that this machine uses for Debian 12.
set -euo pipefail
export LC_ALL=C

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=lib.sh
. "$here/lib.sh"

line="${1:-}"
case "$line" in
  1.6 | 1.7 | 2 | 2.4) ;;
  *) fail "which containerd? Say scripts/fetch-containerd.sh 1.6, 1.7, 2 or 2.4" ;;
esac
root="$(cache_dir)/containerd"
programs="containerd ctr containerd-shim-runc-v2"

# Whether the folder $1 has every program.
complete() {
  local program
  for program in $programs; do [ -x "$1/bin/$program" ] || return 1; done
}

if complete "$root/$line"; then
  printf '%s\n' "$root/$line/bin"
  exit 0
fi

require_tools "apt-get=apt dpkg-deb=dpkg flock=util-linux"
# The version of the module that 2.4 stands for.
module_version=2.4.2
lock "$root/.lock" 900
rm -rf "$root"/.work.*
work="$root/.work.$$"
mkdir -p "$work/unpacked" "$work/result/bin"
trap 'rm -rf "$work"' EXIT
# apt fetches as an unprivileged user when it is started by root, and warns when it can't write.
apt_options=(-q -o APT::Sandbox::User=root)

# Gives apt a state of its own that knows only one other suite ($1): the machine's lists stay as they are.
use_suite() {
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  # The names in the format are apt's, not the shell's.
  # shellcheck disable=SC2016
  mirror="$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(SUITE) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' |
    awk '$NF == "Debian" && $2 == "main" && $4 == "bookworm" { print $1; exit }')"
  [ -n "$mirror" ] ||
    fail "apt knows no mirror of Debian 12 (bookworm, main): add one to /etc/apt/sources.list.d, run 'apt-get update' as root, run this again"
  [ -r "$keyring" ] ||
    fail "no $keyring. Run as root: apt-get update && apt-get install --no-install-recommends -y debian-archive-keyring"
  mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/apt/etc"
  : >"$work/apt/status"
  printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$1" >"$work/apt/etc/sources.list"
  apt_options+=(
    -o "Dir::State::lists=$work/apt/lists" -o "Dir::State::status=$work/apt/status"
    -o "Dir::Cache=$work/apt/cache" -o "Dir::Etc::sourcelist=$work/apt/etc/sources.list"
    -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- -o Dir::Etc::preferences=-
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false
    -o APT::Architecture=amd64 -o APT::Architectures=amd64
    # A mirror that lags behind serves a list whose validity has ended. An older 2.x does as well for a
    # test; who signed it is checked all the same.
    -o Acquire::Check-Valid-Until=false)
  apt-get "${apt_options[@]}" update >"$work/apt.log" 2>&1 || {
    cat "$work/apt.log" >&2
    fail "the package list of Debian's $1 could not be read from this machine's mirror: check the network and the mirror, run this again"
  }
}

# Fetches the package that apt_options select and unpacks it.
fetch() {
  (cd "$work" && apt-get "${apt_options[@]}" download containerd) >"$work/apt.log" 2>&1 || {
    cat "$work/apt.log" >&2
    fail "the containerd package could not be fetched. Run 'apt-get update' as root, check the network, run this again"
  }
  dpkg-deb --extract "$work"/containerd_*.deb "$work/unpacked"
}

# Builds the programs from their Go module, whose sums Go checks.
build() {
  local path=github.com/containerd/containerd/v2/cmd
  command -v go >/dev/null || fail "containerd 2.4 is in no Debian: install Go 1.24 or newer to build it from its module"
  mkdir -p "$work/unpacked/usr/bin"
  GOBIN="$work/unpacked/usr/bin" CGO_ENABLED=0 go install -trimpath \
    "$path/containerd@v$module_version" "$path/ctr@v$module_version" "$path/containerd-shim-runc-v2@v$module_version" \
    >"$work/go.log" 2>&1 || {
    cat "$work/go.log" >&2
    fail "containerd $module_version could not be built (messages above): check the network and GOPROXY, run this again"
  }
}

case "$line" in
  1.6)
    apt-cache show containerd >/dev/null 2>&1 ||
      fail "apt knows no package containerd. Run as root: apt-get update"
    ;;
  1.7) use_suite trixie ;;
  2) use_suite sid ;;
esac
if [ "$line" = 2.4 ]; then
  build
  version="$module_version"
else
  fetch
  version="$(dpkg-deb --field "$work"/containerd_*.deb Version | sed -e 's/^[0-9]*://' -e 's/[~+-].*//')"
fi
case "$version" in
  "$line".*) ;;
  *) fail "this machine's mirror has containerd $version where $line was expected: 1.6 needs Debian 12's package lists, 1.7 those of Debian 13, 2 those of unstable" ;;
esac
for program in $programs; do
  cp "$work/unpacked/usr/bin/$program" "$work/result/bin/$program" ||
    fail "containerd $version has no $program: its layout has changed, adapt $0"
done
complete "$root/$version" || put_in_place "$work/result" "$root/$version"
ln -sfn "$version" "$work/link"
mv -T "$work/link" "$root/$line"
printf '%s\n' "$root/$line/bin"
