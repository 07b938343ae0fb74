#!/usr/bin/env bash
# Proves the built shim with a VMM of the caller's choice: one private containerd, every behaviour that a pod's owner sees.
# test/lab/run.sh starts this on a machine where that VMM can run a guest; it can also be run by hand, as root.
#
#   CH_BIN       the VMM                                    DIST       folder with bin/, lib/ and share/ as `npm run build` leaves it
#   IMAGE_TAR    OCI image that test/lab/image.ts wrote     CASES      names of the cases to run; all when empty
#   IGVM         an IGVM file for SEV-SNP, as test/lab/igvm.ts writes it
#   LOGS         existing folder that gets the logs (optional)
#
# Needs containerd 1.7 or 2, ctr, mkfs.erofs, openssl, curl, pgrep, node. Prints one line per check; ends with 0 when all held.
set -u
: "${CH_BIN:?name the VMM}" "${DIST:?name the folder of the built programs}" "${IMAGE_TAR:?name the image}" "${IGVM:?name an IGVM file}"
image=docker.io/library/snp-busybox:latest
runtime=io.containerd.snp.v2
work="/run/snp-lab.$$"
state="$work/s"
passed=0 failed=0
mkdir -p "$work/k" "$work/fifo"
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
export CONTAINERD_SHIM_SNP_CONFIG="$work/config.toml" PATH="$DIST/bin:$PATH"

uptime_s() { cut -d' ' -f1 /proc/uptime; }
since() { awk "BEGIN{print $(uptime_s)-$1}"; }
began="$(uptime_s)"
say() { printf '[%7.1f] %s\n' "$(since "$began")" "$*"; }
verdict() { # held? name seen expected
  if [ "$1" = yes ]; then passed=$((passed + 1)); say "ok    $2: $(head -c 140 <<<"$3" | tr '\n' '|')"; return; fi
  failed=$((failed + 1)); say "FAIL  $2"; printf '  expected: %s\n  seen:     %s\n' "$(head -c 800 <<<"$4")" "$(head -c 2000 <<<"$3")"
}
same() { verdict "$([ "$2" == "$3" ] && echo yes)" "$1" "$3" "$2"; }                     # name expected seen
like() { verdict "$(grep -Eq -- "$2" <<<"$3" && echo yes)" "$1" "$(grep -E -m1 -- "$2" <<<"$3" || echo "$3")" "/$2/"; } # name pattern seen
until_true() { # seconds command...
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
ctr() { command ctr --address "$work/c.sock" "$@"; }
run() { ctr run --runtime $runtime --fifo-dir "$work/fifo" "$@"; }
enter() { ctr task exec --fifo-dir "$work/fifo" --exec-id "e$RANDOM$RANDOM" "$@"; }
status() { ctr task ls | awk -v id="$1" '$1 == id {print $3}'; }
vmms() { pgrep -f "^$CH_BIN --api-socket"; }
remove() { ctr task rm --force "$1" >/dev/null 2>&1; ctr container rm "$1" >/dev/null; }

configure() { # [kernel [initramfs [VMM [Landlock]]]]: the usual ones when left out
  cat >"$work/config.toml" <<TOML
state_dir = "$state"
[hypervisor]
path = "${3:-$CH_BIN}"
landlock = ${4:-false}
[guest]
kernel = "${1:-$DIST/share/vmlinux}"
image = "${2:-$DIST/share/initramfs}"
[storage]
cache_dir = "$work/k/images"
[timeouts]
boot_ms = 180000
agent_call_ms = 120000
vmm_call_ms = 120000
stdio_drain_ms = 20000
[log]
level = "debug"
[debug]
console = true
TOML
}

snapshot() { # what a pod could leave behind, one thing per line
  pgrep -af "^$CH_BIN --api-socket" | sed 's/^/process: /'
  pgrep -af containerd-shim-snp-v2 | sed 's/^/process: /'
  sed 's/^[0-9]* [0-9]* [^ ]* //; s/^/mount: /' /proc/self/mountinfo | cut -d' ' -f1-3
  ls -1 /sys/class/net | sed 's/^/link: /'
  ls -1 /sys/block/loop*/loop/backing_file 2>/dev/null | sed 's/^/loop device: /'
  find /sys/fs/cgroup -type d 2>/dev/null | sed 's/^/cgroup: /'
  find "$state" -mindepth 1 ! -path "$state/snpd.*" ! -path "$state/k" ! -path "$state/p" ! -path "$state/e" ! -path "$state/w" 2>/dev/null | sed 's/^/state: /'
  find "$work/state/io.containerd.runtime.v2.task/default" -mindepth 1 -maxdepth 1 2>/dev/null | sed 's/^/bundle: /'
  awk -v own="$state/" 'index($8, own) == 1 && $8 !~ /snpd\.sock/ && $4 == "00010000" {print "listening socket: " $8}' /proc/net/unix
  ctr task ls -q | sed 's/^/task: /'
  ctr container ls -q | sed 's/^/container: /'
}
left() { comm -13 "$work/before" <(snapshot | sort) | grep -v '^cgroup: .*/default$'; }
nothing_left() { # after each case; a release may end a moment after the last answer
  is_clean() { [ -z "$(left)" ]; }
  until_true 20 is_clean
  same "$1: nothing is left" '' "$(left)"
}

# A container that says `ready`; its output is in $work/out, its client's pid in $client.
attach() {
  run --rm "$@" >"$work/out" 2>"$work/err" </dev/null & client=$!
  is_ready() { grep -q ready "$work/out" || ! kill -0 $client 2>/dev/null; }
  until_true 240 is_ready
}

. "$(dirname "${BASH_SOURCE[0]}")/cases.sh"

configure
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/k/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$work/c.sock"
[ttrpc]
  address = "$work/c.sock.ttrpc"
[timeouts]
  "io.containerd.timeout.shim.load" = "60s"
  "io.containerd.timeout.shim.cleanup" = "60s"
TOML
containerd --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 & containerd=$!
snpds() { pgrep -f "snpd --state-dir $state"; }
tidy() {
  local pids; pids="$(vmms) $(snpds) $containerd"
  disown -a
  kill -9 $pids 2>/dev/null
  if [ -n "${LOGS:-}" ]; then cp "$work/containerd.log" "$LOGS/"; cp "$state/snpd.log" "$LOGS/" 2>/dev/null; fi
  awk -v own="$work/" 'index($2, own) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount --lazy
  rm -rf "$work"
}
trap tidy EXIT
until_true 60 ctr version >/dev/null 2>&1 || { tail -n 20 "$work/containerd.log"; echo "containerd does not answer"; exit 1; }
say "$("$CH_BIN" --version 2>/dev/null | sed -n 1p), kernel $(uname -r), node $(node --version), containerd $(ctr version | awk '/Server/ {s = 1} s && /Version/ {print $2; exit}')"
ctr image import --platform linux/amd64 "$IMAGE_TAR" || exit 1
# snpd is started here as a unit of the system would; a case has the keeper start it.
mkdir -p "$state" && chmod 700 "$state"
setsid node "$DIST/bin/snpd" --state-dir "$state" </dev/null >>"$state/snpd.log" 2>&1 & disown
until_true 120 grep -q 'snpd serves' "$state/snpd.log" || { cat "$state/snpd.log"; echo "snpd does not start"; exit 1; }
snapshot | sort >"$work/before"
for name in ${CASES:-$all_cases}; do
  "case_$name"
  nothing_left "$name"
done
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
