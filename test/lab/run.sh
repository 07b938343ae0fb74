#!/usr/bin/env bash
# Proves the built shim on a real Cloud Hypervisor. Nothing of it is in this repository: name a binary, and where it can run a guest.
#
#   CH_BIN    the cloud-hypervisor program; without it nothing is tested, and that is said
#   LAB_RUN   a program that runs a command as root on a machine with KVM, containerd 1.7 or 2, mkfs.erofs, openssl, curl and script(1):
#               $LAB_RUN --timeout SECONDS --out FOLDER --extra SOURCE:NAME ... -- COMMAND
#             every SOURCE is found as /lab/NAME there, CH_BIN is on PATH as cloud-hypervisor, what COMMAND leaves in /out comes back
#             in FOLDER, and its exit code is passed on. Without LAB_RUN the cases run on this machine.
#   LAB_TIMEOUT  seconds that all may take there; 1800 when not set
#   LAB_LOGS     a folder that gets snpd's and containerd's logs
#
#   test/lab/run.sh [CASE...]    names are in cases.sh
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -z "${CH_BIN:-}" ]; then
  echo "test/lab: skipped: CH_BIN does not name a cloud-hypervisor program"
  exit 0
fi
[ -x "$CH_BIN" ] || { echo "test/lab: $CH_BIN is not a program. Set CH_BIN to a cloud-hypervisor binary" >&2; exit 1; }
[ -x "$repository/dist/bin/containerd-shim-snp-v2" ] || { echo "test/lab: nothing is built. Run: npm run build" >&2; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
logs="$(realpath -m "${LAB_LOGS:-$work/logs}")"
mkdir -p "$work/dist/bin" "$logs"
# node goes along: the other machine may have none. Programs find it by PATH or at the path in their first line.
cp -L "$repository"/dist/bin/{containerd-shim-snp-v2,snpd,snpctl,snp-layers} "$(node -p process.execPath)" "$work/dist/bin/"
cp -rL "$repository"/dist/{lib,share,package.json} "$work/dist/"
image="$(cd "$repository" && node --import tsx test/lab/image.ts "$work")"
(cd "$repository" && node --import tsx test/lab/igvm.ts "$work/dist/share/sound.igvm")

if [ -z "${LAB_RUN:-}" ]; then
  [ -c /dev/kvm ] || { echo "test/lab: this machine has no /dev/kvm. Set LAB_RUN to a program that runs commands on one that has" >&2; exit 1; }
  CH_BIN="$(readlink -f "$CH_BIN")" DIST="$work/dist" IMAGE_TAR="$image" IGVM="$work/dist/share/sound.igvm" LOGS="$logs" CASES="$*" bash "$repository/test/lab/prove.sh"
  exit
fi
node_path="$(node -p process.execPath)"
"$LAB_RUN" --timeout "${LAB_TIMEOUT:-1800}" --out "$logs" --extra "$work/dist:dist" --extra "$image:image.tar" --extra "$repository/test/lab:prove" -- \
  "[ -e $node_path ] || ln -s /lab/dist/bin/node $node_path; CH_BIN=\$(readlink -f \$(command -v cloud-hypervisor)) DIST=/lab/dist IMAGE_TAR=/lab/image.tar IGVM=/lab/dist/share/sound.igvm LOGS=/out CASES='$*' bash /lab/prove/prove.sh"
