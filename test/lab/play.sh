#!/usr/bin/env bash
# Runs one of the repository's own programs on a real Cloud Hypervisor instead of the stand-in. CH_BIN, LAB_RUN and LAB_TIMEOUT are those of
# run.sh, and bounds a test as well; the other machine needs iproute2 and util-linux besides, containerd and the CNI plug-ins go along.
#
#   test/lab/play.sh scripts/demo.ts pod
#   test/lab/play.sh test/conformance/main.ts --help
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
[ $# -gt 0 ] || { echo "usage: $0 PROGRAM.ts [ARGUMENT...]" >&2; exit 2; }
program="$(printf '%q ' "$@")"
cache="${CONTAINERD_SHIM_SNP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/containerd-shim-snp}"
if [ -z "${CH_BIN:-}" ]; then
  echo "test/lab: skipped: CH_BIN does not name a cloud-hypervisor program"
  exit 0
fi
[ -x "$CH_BIN" ] || { echo "test/lab: $CH_BIN is not a program. Set CH_BIN to a cloud-hypervisor binary" >&2; exit 1; }
for built in "$repository/dist/bin/snpd" "$cache/containerd/2/bin/containerd" /usr/lib/cni/bridge; do
  [ -e "$built" ] || { echo "test/lab: $built is missing. Run: npm run setup && npm run build" >&2; exit 1; }
done
if [ -z "${LAB_RUN:-}" ]; then
  [ -c /dev/kvm ] || { echo "test/lab: this machine has no /dev/kvm. Set LAB_RUN to a program that runs commands on one that has" >&2; exit 1; }
  cd "$repository" && SNP_TEST_VMM="$(readlink -f "$CH_BIN")" exec node --import tsx "$@"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/repository/dist" "$work/cache/containerd/2" "$work/logs"
cp -r "$repository"/{scripts,test,native,shim,package.json,tsconfig.json} "$work/repository/"
cp -rL "$repository"/dist/{bin,lib,share,package.json} "$work/repository/dist/"
cp -rL "$cache/containerd/2/bin" "$work/cache/containerd/2/"
cp -r "$repository/node_modules/" "$work/repository/"
mkdir -p "$work/repository/build/Release" && cp "$repository"/build/Release/*.node "$work/repository/build/Release/"
mkdir "$work/programs" && cp -L "$(node -p process.execPath)" /bin/busybox "$work/programs/"
node_path="$(node -p process.execPath)"
"$LAB_RUN" --timeout "${LAB_TIMEOUT:-1800}" --out "$work/logs" --extra "$work/repository:repository" --extra "$work/cache:cache" \
  --extra "$work/programs:programs" --extra /usr/lib/cni:cni -- \
  "mkdir -p \$(dirname $node_path) /usr/lib/cni; [ -e $node_path ] || ln -s /lab/programs/node $node_path; ln -sf /lab/programs/busybox /bin/busybox
   [ -e /usr/lib/cni/bridge ] || ln -s /lab/cni/* /usr/lib/cni/; modprobe -a bridge veth sch_ingress cls_u32 act_mirred loop fuse
   cd /lab/repository && TAP_TIMEOUT=0 CONTAINERD_SHIM_SNP_CACHE=/lab/cache SNP_TEST_VMM=\$(readlink -f \$(command -v cloud-hypervisor)) $node_path --import tsx $program"
