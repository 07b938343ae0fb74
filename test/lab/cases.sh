# The cases of prove.sh, which sources this file. Each is a function case_NAME; prove.sh checks after each that nothing is left.
# shellcheck shell=bash disable=SC2154
all_cases="run exec signals stdin stdout terminal pause oom pod disks segments network configuration landlock parallel snpd_killed snpd_restarted vmm_killed vmm_ended faults confidential balloon pressure pool"
bulk_bytes=67108864

case_run() {
  run --rm $image r1 sh -c 'echo to stdout; echo to stderr >&2; uname -r; exit 42' >"$work/out" 2>"$work/err"
  same 'run: exit code' 42 $?
  like 'run: standard output, the guest'\''s kernel' '^to stdout [0-9.]+-snp$' "$(tr '\n' ' ' <"$work/out" | sed 's/ $//')"
  same 'run: standard error' 'to stderr' "$(cat "$work/err")"
}

case_exec() {
  local pid
  run --detach --null-io $image e1 sh -c 'echo first > /tmp/mark; sleep 1000'
  pid="$(vmms)"
  same 'exec: the VMM is the program that was named' "$(readlink -f "$CH_BIN")" "$(readlink "/proc/$pid/exe")"
  like 'exec: it has a KVM guest' 'anon_inode:kvm-vm' "$(ls -l "/proc/$pid/fd")"
  like 'exec: its threads are confined by seccomp' '^Seccomp:\s+2' "$(cat /proc/"$pid"/task/*/status)"
  printf 'typed\n' | enter e1 sh -c 'cat; cat /tmp/mark; echo bad >&2; exit 7' >"$work/out" 2>"$work/err"
  same 'exec: exit code' 7 $?
  same 'exec: streams' 'typed first bad' "$(cat "$work/out" "$work/err" | tr '\n' ' ' | sed 's/ $//')"
  same 'exec: user and folder' '1000 /usr' "$(enter --user 1000 --cwd /usr e1 sh -c 'echo $(id -u) $(pwd)')"
  like 'exec: a missing command is named' 'no-such-program' "$(enter e1 /bin/no-such-program 2>&1)"
  like 'exec: ps' '^[0-9]+' "$(ctr task ps e1)"
  like 'exec: metrics' '"memory"' "$(ctr task metrics --format json e1)"
  like 'exec: timeline' 'vm-boot' "$(node "$DIST/bin/snpctl" --state-dir "$state" timeline e1)"
  remove e1
}

case_signals() {
  attach $image s1 sh -c "trap 'echo got TERM; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
  ctr task kill --signal SIGTERM s1; wait $client
  same 'signals: TERM is handled, exit code' 9 $?
  same 'signals: what the handler said' 'ready got TERM ' "$(tr '\n' ' ' <"$work/out")"
  attach $image s2 sh -c "trap '' TERM; echo ready; while :; do sleep 1; done"
  ctr task kill --signal SIGKILL s2; wait $client
  same 'signals: KILL' 137 $?
}

case_stdin() {
  local zero=00000000000000000000000000000000
  openssl enc -aes-128-ctr -K $zero -iv $zero </dev/zero 2>/dev/null | head -c $bulk_bytes >"$work/k/noise"
  run --rm $image i1 cat <"$work/k/noise" >"$work/k/echo" 2>"$work/err"
  same 'stdin: exit code' 0 $?
  same 'stdin: bytes that come back' $bulk_bytes "$(stat -c %s "$work/k/echo")"
  same 'stdin: their hash' "$(sha256sum <"$work/k/noise")" "$(sha256sum <"$work/k/echo")"
  rm -f "$work/k/noise" "$work/k/echo"
}

case_stdout() {
  run --rm $image o1 sh -c "seq 1 9000000 | head -c $bulk_bytes; exit 5" 2>"$work/err" | sha256sum >"$work/out"
  same 'stdout: exit code' 5 "${PIPESTATUS[0]}"
  same 'stdout: hash' "$(seq 1 9000000 | head -c $bulk_bytes | sha256sum)" "$(cat "$work/out")"
}

case_terminal() {
  # script(1) gives ctr a terminal; the bytes for it come from a pipe that stays open.
  mkfifo "$work/keys"
  local command="ctr --address $work/c.sock run --runtime $runtime --fifo-dir $work/fifo --rm --tty $image t1 sh -c \"trap 'echo interrupted; exit 6' INT; tty -s && echo is a tty; stty size; echo ready; while :; do sleep 0.1; done\""
  script --quiet --return --command "stty rows 33 cols 99; $command" /dev/null <"$work/keys" >"$work/out" 2>&1 & client=$!
  exec 7>"$work/keys"
  until_true 240 grep -q ready "$work/out"
  (printf '\003' >&7) 2>/dev/null # in a process of its own: the reader may be gone
  wait $client
  same 'terminal: exit code after an interrupt' 6 $?
  exec 7>&-
  like 'terminal: is one' '^is a tty' "$(tr -d '\r' <"$work/out")"
  like 'terminal: interrupted' 'interrupted' "$(cat "$work/out")"
  rm -f "$work/keys"
}

case_pause() {
  local before
  run --detach --null-io $image p1 sh -c 'while :; do echo >> /tmp/count; sleep 0.05; done'
  ctr task pause p1
  same 'pause: status' PAUSED "$(status p1)"
  ctr task resume p1
  before="$(enter p1 sh -c 'wc -l < /tmp/count')"
  goes_on() { [ "$(enter p1 sh -c 'wc -l < /tmp/count')" -gt "$before" ]; }
  until_true 60 goes_on
  same 'pause: it goes on after resume' 0 $?
  remove p1
}

case_oom() {
  run --rm --memory-limit 33554432 $image m1 tail /dev/zero >/dev/null 2>"$work/err"
  same 'oom: exit code' 137 $?
}

case_pod() { # the first container has no process; the others' disks are plugged into the running VM
  local part=io.kubernetes.cri.container-type pod=io.kubernetes.cri.sandbox-id
  run --detach --null-io --annotation $part=sandbox --annotation $pod=b1 $image b1 sleep 1000
  for n in 2 3; do run --detach --null-io --annotation $part=container --annotation $pod=b1 $image b$n sleep 1000; done
  same 'pod: both containers are in one guest' "$(enter b2 cat /proc/sys/kernel/random/boot_id)" "$(enter b3 cat /proc/sys/kernel/random/boot_id)"
  same 'pod: one VMM' 1 "$(vmms | wc -l)"
  remove b2
  same 'pod: the other containers go on' 'RUNNING RUNNING' "$(status b1) $(status b3)"
  remove b3
  remove b1
}

case_disks() { # places of disks that left are taken again
  local part=io.kubernetes.cri.container-type pod=io.kubernetes.cri.sandbox-id n round
  run --detach --null-io --annotation $part=sandbox --annotation $pod=d0 $image d0 sleep 1000
  for round in 1 2; do
    for n in 1 2 3 4 5; do run --detach --null-io --annotation $part=container --annotation $pod=d0 $image d$n sh -c "echo $n > /mark; sleep 1000"; done
    same "disks: round $round, each container has its own files" '1 2 3 4 5 ' "$(for n in 1 2 3 4 5; do enter d$n cat /mark; done | tr '\n' ' ')"
    for n in 2 1 4 5 3; do remove d$n; done
  done
  same 'disks: the pod goes on' RUNNING "$(status d0)"
  remove d0
}

case_segments() { # more disks than a PCI bus has slots: each root file system is another one
  local part=io.kubernetes.cri.container-type pod=io.kubernetes.cri.sandbox-id count=30 n
  mkdir "$work/k/image"
  ctr image mount $image "$work/k/image" >/dev/null
  for n in $(seq $count); do cp -a "$work/k/image" "$work/k/root$n"; echo "$n" >"$work/k/root$n/mark"; done
  ctr image unmount --rm "$work/k/image" >/dev/null
  run --detach --null-io --annotation $part=sandbox --annotation $pod=x0 $image x0 sleep 1000
  for n in $(seq $count); do run --detach --null-io --rootfs --env PATH=/bin --annotation $part=container --annotation $pod=x0 "$work/k/root$n" x$n sleep 1000; done
  same 'segments: each container has its own files' "$(seq $count | tr '\n' ' ')" "$(for n in $(seq $count); do enter x$n cat /mark; done | tr '\n' ' ')"
  like 'segments: a disk is on another bus than the first' 'pci[0-9a-f]*[1-9a-f]:' "$(enter x1 sh -c 'ls -l /sys/class/block')"
  for n in $(seq $count) 0; do remove x$n; done
  rm -rf "$work"/k/image "$work"/k/root*
}

# A pod's namespace with two interfaces as CNI plug-ins leave it; what is at their other ends is in the namespace snp-lab-node.
lay_network() {
  local name
  for name in snp-lab-node snp-lab-pod; do ip netns add $name; ip -n $name link set lo up; done
  plug eth0 1400 10.88.0 fd88:
  plug net1 1500 10.89.0 fd89:
  ip -n snp-lab-pod route add default via 10.88.0.1
  ip -n snp-lab-node addr add 10.99.0.1/32 dev lo
  ip -n snp-lab-pod route add 10.99.0.0/16 via 10.89.0.1
}
plug() { # name MTU network of version 4 and of version 6
  ip -n snp-lab-pod link add "$1" mtu "$2" type veth peer name "$1" netns snp-lab-node
  ip -n snp-lab-node link set "$1" mtu "$2" up
  ip -n snp-lab-pod link set "$1" up
  ip -n snp-lab-node addr add "$3.1/24" dev "$1"; ip -n snp-lab-node addr add "$4:1/64" dev "$1" nodad
  ip -n snp-lab-pod addr add "$3.2/24" dev "$1"; ip -n snp-lab-pod addr add "$4:2/64" dev "$1" nodad
}
remove_network() {
  ip netns delete snp-lab-pod; ip netns delete snp-lab-node
  umount /run/netns # iproute2 makes this folder a mount and leaves it
}
fetch() { ip netns exec "$1" curl --silent --show-error --globoff --max-time 30 "http://$2/" 2>&1; } # namespace host:port
network_state() { for what in link addr route '-6 route'; do ip -n snp-lab-pod $what; done | sed 's/ state [A-Z]*\|NO-CARRIER,\|,LOWER_UP\| linkdown\| tentative//g'; tc -n snp-lab-pod qdisc; }

case_network() {
  local before host server='mkdir /www; echo from the pod > /www/index.html; exec httpd -f -p 8080 -h /www'
  lay_network
  before="$(network_state)"
  run --detach --null-io --with-ns network:/run/netns/snp-lab-pod $image n1 sh -c "$server"
  serves() { [ "$(fetch snp-lab-node 10.88.0.2:8080)" = 'from the pod' ]; }
  until_true 60 serves
  for host in 10.88.0.2 10.89.0.2 '[fd88::2]' '[fd89::2]'; do same "network: the pod serves at $host" 'from the pod' "$(fetch snp-lab-node "$host:8080")"; done
  for host in 10.88.0.1 10.89.0.1 10.99.0.1 fd88::1 fd89::1; do like "network: the pod reaches $host" '1 packets received' "$(enter n1 ping -c 1 -W 10 $host 2>&1)"; done
  same 'network: MTUs' '1400 1500' "$(enter n1 sh -c 'echo $(cat /sys/class/net/eth0/mtu /sys/class/net/net1/mtu)')"
  same 'network: hardware addresses' "$(for name in eth0 net1; do ip netns exec snp-lab-pod cat /sys/class/net/$name/address; done)" "$(enter n1 cat /sys/class/net/eth0/address /sys/class/net/net1/address)"
  for host in 127.0.0.1 '[::1]'; do same "network: port-forward by $host" 'from the pod' "$(fetch snp-lab-pod "$host:8080")"; done
  plug net2 1500 10.90.0 fd90:
  serves() { [ "$(fetch snp-lab-node 10.90.0.2:8080)" = 'from the pod' ]; }
  until_true 60 serves
  same 'network: an interface that came later serves' 'from the pod' "$(fetch snp-lab-node 10.90.0.2:8080)"
  ip -n snp-lab-pod link delete net2
  is_unplugged() { ! enter n1 test -e /sys/class/net/net2; }
  until_true 60 is_unplugged
  same 'network: it goes from the VM as well' 'eth0 lo net1' "$(enter n1 sh -c 'echo $(ls /sys/class/net)')"
  remove n1
  same 'network: nothing of the namespace has changed' '' "$(diff <(echo "$before") <(network_state))"
  run --detach --null-io --with-ns network:/run/netns/snp-lab-pod $image n2 sh -c "$server"
  serves() { [ "$(fetch snp-lab-node 10.88.0.2:8080)" = 'from the pod' ]; }
  until_true 60 serves
  same 'network: the namespace serves again' 'from the pod' "$(fetch snp-lab-node 10.88.0.2:8080)"
  remove n2
  remove_network
}

case_configuration() { # a configMap as kubelet lays it out and replaces it
  local folder="$work/pods/lab/volumes/kubernetes.io~configmap/config" version
  publish() { # version: its key `key` says it, and its only other key is named after it
    local old; old="$(readlink "$folder/..data")"
    mkdir -p "$folder/..$1"
    echo "$1" >"$folder/..$1/key"; echo >"$folder/..$1/only-$1"
    ln -s "..$1" "$folder/..data_tmp"; mv -T "$folder/..data_tmp" "$folder/..data"
    ln -sf ..data/key "$folder/key"; ln -s "..data/only-$1" "$folder/only-$1"
    if [ -n "$old" ]; then rm "$folder/only-${old#..}"; rm -r "${folder:?}/$old"; fi
  }
  shown() { enter g1 sh -c 'echo $(cat /config/key) $(ls /config)'; }
  is_shown() { [ "$(shown)" = "$version key only-$version" ]; }
  publish 1
  run --detach --null-io --mount "type=bind,src=$folder,dst=/config,options=rbind:ro" $image g1 sleep 1000
  for version in 1 2 3; do
    [ $version = 1 ] || publish $version
    until_true 60 is_shown
    same "configuration: version $version, nothing of an older one" "$version key only-$version" "$(shown)"
  done
  remove g1
  rm -r "$work/pods"
}

case_landlock() { # the second container's disk is reached by the rules alone; kernels before 6.2 lack a right that the VMM asks for
  local part=io.kubernetes.cri.container-type pod=io.kubernetes.cri.sandbox-id release
  configure '' '' '' true
  release="$(uname -r)"
  if [ "$(printf '%s\n' 6.2 "$release" | sort -V | head -n 1)" != 6.2 ]; then
    like "landlock: refused on $release" 'refused vm.create.*landlock' "$(run --rm $image l1 true 2>&1)"
    remove l1 2>/dev/null
  else
    run --detach --null-io --annotation $part=sandbox --annotation $pod=l1 $image l1 sleep 1000
    run --detach --null-io --annotation $part=container --annotation $pod=l1 $image l2 sleep 1000
    same 'landlock: both containers run' 'RUNNING RUNNING' "$(status l1) $(status l2)"
    remove l2
    remove l1
  fi
  configure
}

case_parallel() {
  local n clients=()
  for n in 1 2 3; do run --rm $image q$n sh -c "echo I am $n; exit $n" >"$work/out$n" 2>&1 & clients[n]=$!; done
  for n in 1 2 3; do wait "${clients[n]}"; same "parallel: container $n" "$n I am $n" "$? $(cat "$work/out$n")"; done
  rm -f "$work"/out?
}

case_snpd_killed() {
  run --rm $image k1 sh -c 'n=1; while [ $n -le 150 ]; do echo line $n; n=$((n+1)); sleep 0.1; done; exit 4' >"$work/out" 2>"$work/err" </dev/null & client=$!
  until_true 240 grep -q 'line 10$' "$work/out"
  kill -9 $(snpds)
  same 'snpd killed: exec works after it, exit code' 'from exec 3' "$(enter k1 sh -c 'echo -n "from exec "; exit 3' 2>&1; echo $?)"
  wait $client
  same 'snpd killed: exit code' 4 $?
  same 'snpd killed: no line is missing' "$(seq -f 'line %g' 150 | sha256sum)" "$(sha256sum <"$work/out")"
}

case_snpd_restarted() { # the keeper starts snpd
  kill -9 $(snpds)
  same 'snpd started by a keeper: run' 'cold 0' "$(run --rm $image c1 echo -n 'cold ' 2>&1; echo $?)"
  same 'snpd started by a keeper: one runs' 1 "$(snpds | wc -l)"
}

case_vmm_killed() {
  attach $image v1 sh -c 'echo ready; sleep 1000'
  kill -9 "$(vmms)"; wait $client
  same 'VMM killed, client attached: exit code' 137 $?
  ctr events >"$work/events" & local events=$!
  is_subscribed() { ctr namespace label default subscribed=$RANDOM; grep -q /namespaces/update "$work/events"; }
  until_true 60 is_subscribed
  run --detach --null-io $image v2 sleep 1000
  kill -9 "$(vmms)"
  is_stopped() { [ "$(status v2)" = STOPPED ]; }
  until_true 60 is_stopped
  same 'VMM killed, nobody attached: status' STOPPED "$(status v2)"
  like 'VMM killed, nobody attached: exec is refused' 'stopped' "$(enter v2 true 2>&1)"
  like 'VMM killed, nobody attached: task rm tells the exit code' '137' "$(ctr task rm v2 2>&1)"
  kill $events
  like 'VMM killed, nobody attached: event' '/tasks/exit.*"exit_status":137' "$(cat "$work/events")"
  ctr container rm v2
  ctr namespace label default subscribed=
}

case_vmm_ended() { # ends that have exit code 0 are no less the pod's death
  attach $image w1 sh -c 'echo ready; sleep 1000'
  curl --silent --show-error --max-time 60 --unix-socket "$(echo "$state"/p/*/api.sock)" -X PUT http://localhost/api/v1/vm.shutdown; wait $client
  same 'vm.shutdown by somebody else: exit code' 137 $?
  attach $image w2 sh -c 'echo ready; sleep 1000'
  kill -TERM "$(vmms)"; wait $client
  same 'SIGTERM of the VMM: exit code' 137 $?
}

case_faults() {
  configure /etc/passwd
  like 'faults: a file that is no kernel' 'refused vm.boot' "$(run --rm $image f1 true 2>&1)"
  remove f1 2>/dev/null
  configure '' "$IMAGE_TAR"
  like 'faults: a file that is no initramfs' 'ended before its agent answered' "$(run --rm $image f2 true 2>&1)"
  remove f2 2>/dev/null
  printf '#!/bin/sh\necho no such luck >&2\nexit 3\n' >"$work/vmm"; chmod +x "$work/vmm"
  configure '' '' "$work/vmm"
  like 'faults: a VMM that ends at once' 'exit code 3.*no such luck' "$(run --rm $image f3 true 2>&1)"
  remove f3 2>/dev/null
  configure
}

case_confidential() { # a node without SEV-SNP, and a VMM that may be built for it
  local initdata=io.katacontainers.config.hypervisor.cc_init_data snp=/sys/module/kvm_amd/parameters/sev_snp wanted
  if grep -qs '^[Y1]' $snp; then say 'confidential: not tried: this machine has SEV-SNP, and nobody named an IGVM file'; return; fi
  initdata="$initdata=$(printf 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"policy.rego" = "package agent_policy"\n' | gzip -9n | base64 -w0)"
  wanted='was built without.*sev_snp.*an ordinary VM'
  "$CH_BIN" --version -v 2>/dev/null | grep -q sev_snp && wanted='this node can.t start a confidential VM: .*SEV-SNP'
  like 'confidential: initdata without a confidential runtime class' 'this runtime class is not confidential' "$(run --rm --annotation "$initdata" $image g1 true 2>&1)"
  mkdir -p "$work/config.toml.d"
  printf '[confidential]\nmode = "snp"\nigvm = "%s"\nkernel = "%s"\n[storage]\nlayers = true\n[debug]\nconsole = false\n' "$IGVM" "$DIST/share/bzImage" >"$work/config.toml.d/snp.toml"
  like 'confidential: what can not be is said, and no other VM takes its place' "$wanted" "$(run --rm --annotation "$initdata" $image g2 true 2>&1)"
  head -c 100 "$IGVM" >"$work/cut.igvm"
  sed -i "s#^igvm.*#igvm = \"$work/cut.igvm\"#" "$work/config.toml.d/snp.toml"
  like 'confidential: a cut IGVM file' 'cut.igvm: it says that it has [0-9]+ bytes, and has 100' "$(run --rm --annotation "$initdata" $image g3 true 2>&1)"
  rm -r "$work/config.toml.d" "$work/cut.igvm"
}

case_balloon() { # what a guest frees, and what the balloon takes and gives back
  local pid before freed size=$((856 << 20))
  rss() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status"; }
  api() { curl --silent --show-error --max-time 60 --unix-socket "$(echo "$state"/p/*/api.sock)" -X "$1" "http://localhost/api/v1/$2" "${@:3}"; }
  actual() { api GET vm.info | grep -o '"memory_actual_size":[0-9]*' | cut -d: -f2; }
  run --detach --null-io --privileged --memory-limit $((600 << 20)) $image a1 sleep 1000
  pid="$(vmms)"
  before=$(rss)
  enter a1 sh -c 'mkdir /m; mount -t tmpfs -o size=500m none /m; dd if=/dev/zero of=/m/f bs=1M count=400 2>/dev/null'
  like 'balloon: the guest has touched its memory' '^more' "$([ "$(rss)" -gt $((before + 300)) ] && echo more; echo "$before MiB, then $(rss) MiB")"
  enter a1 rm /m/f
  freed="$(uptime_s)"
  is_back() { [ "$(rss)" -lt $((before + 100)) ]; }
  until_true 60 is_back
  same "balloon: what it freed comes back by itself ($before MiB, then $(rss) MiB, after $(since "$freed") s)" 0 $?
  api PUT vm.resize -H 'Content-Type: application/json' -d "{\"desired_balloon\":$((128 << 20))}"
  is_blown() { [ "$(actual)" = $((size - (128 << 20))) ]; }
  until_true 120 is_blown
  same 'balloon: the guest gives it 128 MiB' $((size - (128 << 20))) "$(actual)"
  api PUT vm.resize -H 'Content-Type: application/json' -d '{"desired_balloon":0}'
  is_whole() { [ "$(actual)" = $size ]; }
  until_true 120 is_whole
  same 'balloon: and has it again' $size "$(actual)"
  same 'balloon: it goes on' RUNNING "$(status a1)"
  remove a1
}

top() { node "$DIST/bin/snpctl" --state-dir "$state" --json top | node -p "const { vms } = JSON.parse(require('fs').readFileSync(0)); vms.reduce((sum, vm) => sum + vm.$1, 0)"; } # the sum of a key over all VMs

case_pressure() { # a control group above idle pods runs short: they give up their caches, and have their memory again when they need it
  local group=/sys/fs/cgroup/default size=$((128 << 20)) used n
  used() { echo $(($(cat $group/memory.current) - $(awk '$1 == "inactive_file" {print $2}' $group/memory.stat))); }
  echo +memory >/sys/fs/cgroup/cgroup.subtree_control
  mkdir -p $group
  echo $((8192 << 20)) >$group/memory.max
  for n in 1 2; do run --detach --null-io --privileged --memory-limit $size $image h$n sleep 1000; done
  for n in 1 2; do enter h$n sh -c 'dd if=/dev/zero of=/cached bs=1M count=120 2>/dev/null; sync'; done
  used=$(used)
  # Short, and not so short that busy pods would give as well.
  echo $((used + (35 << 20))) >$group/memory.max
  has_shrunk() { [ "$(top balloonBytes)" -gt 0 ] && [ "$(used)" -lt $((used - (25 << 20))) ]; }
  until_true 120 has_shrunk
  same "pressure: idle pods give memory to the group ($((used >> 20)) MiB, then $(($(used) >> 20)) MiB, balloons of $(($(top balloonBytes) >> 20)) MiB)" 0 $?
  kill -9 $(snpds)
  knows() { [ "$(top balloonBytes 2>/dev/null || echo 0)" -gt 0 ]; }
  until_true 60 knows
  same 'pressure: a new snpd knows the balloons' 0 $?
  echo $((8192 << 20)) >$group/memory.max
  for n in 1 2; do
    same "pressure: pod $n uses more than it has beside its balloon" 0 "$(enter h$n sh -c 'mkdir /m; mount -t tmpfs -o size=200m none /m; dd if=/dev/zero of=/m/f bs=1M count=110 2>/dev/null; echo $?')"
  done
  is_whole() { [ "$(top balloonBytes)" = 0 ]; }
  until_true 120 is_whole
  same 'pressure: the balloons are gone' 0 $?
  same 'pressure: none has ended' 'RUNNING RUNNING' "$(status h1) $(status h2)"
  for n in 1 2; do remove h$n; done
  echo max >$group/memory.max
}

case_pool() { # a pod gets a VM that has booted before: its network and its disks are plugged in
  local first second cold warm
  ready() { # [name that it must not have]: name and process of a VM that waits
    node "$DIST/bin/snpctl" --state-dir "$state" --json pool | node -p \
      'JSON.parse(require("fs").readFileSync(0)).vms.filter((vm) => vm.state === "ready" && vm.name !== process.argv[1]).map((vm) => `${vm.name} ${vm.vmmPid}`).join()' "$@"
  }
  is_ready() { [ -n "$(ready "$@" 2>/dev/null)" ]; }
  cold="$(uptime_s)"
  run --detach --null-io $image u0 sleep 1000
  cold="$(since "$cold")"
  mkdir -p "$work/config.toml.d"
  printf '[pool]\nsize = 1\n' >"$work/config.toml.d/pool.toml"
  until_true 120 is_ready
  first="$(ready)"
  like 'pool: a VM waits' '^[^ ]+ [0-9]+$' "$first"
  kill -9 $(snpds)
  until_true 120 is_ready
  same 'pool: a new snpd takes it up' "$first" "$(ready)"
  lay_network
  warm="$(uptime_s)"
  run --detach --null-io --with-ns network:/run/netns/snp-lab-pod $image u1 sh -c 'mkdir /www; echo from the pool > /www/index.html; exec httpd -f -p 8080 -h /www'
  warm="$(since "$warm")"
  like "pool: the pod has it (started in $warm s, one without in $cold s)" 'pool-take' "$(node "$DIST/bin/snpctl" --state-dir "$state" timeline u1)"
  like 'pool: the same process, in the control group of the pod' '/default/u1$' "$(cat /proc/"${first#* }"/cgroup)"
  serves() { [ "$(fetch snp-lab-node 10.88.0.2:8080)" = 'from the pool' ]; }
  until_true 60 serves
  same 'pool: the pod serves' 'from the pool' "$(fetch snp-lab-node 10.88.0.2:8080)"
  kill -9 $(snpds)
  same 'pool: the pod outlives snpd' 'on 0' "$(enter u1 echo -n 'on ' 2>&1; echo $?)"
  until_true 120 is_ready "${first% *}"
  second="$(ready)"
  like 'pool: another VM takes its place' '^[^ ]+ [0-9]+$' "$second"
  remove u1
  remove_network
  same 'pool: the VM goes with its pod' '' "$(ls -d /proc/"${first#* }" 2>/dev/null)"
  kill -9 "${second#* }"
  until_true 120 is_ready "${second% *}"
  like 'pool: one that dies is replaced' '^[^ ]+ [0-9]+$' "$(ready "${second% *}")"
  # With what the VM that waits holds too little is left of the budget, without it enough.
  second="$(ready "${second% *}")"
  printf '[memory]\nbudget_mib = %s\n' $((($(top residentBytes) >> 20) + $(awk '/^VmRSS/ {print int($2 / 1024)}' /proc/"${second#* }"/status) + 10)) >>"$work/config.toml.d/pool.toml"
  kill -9 $(snpds)
  is_alone() { [ "$(vmms | wc -l)" = 1 ]; }
  until_true 60 is_alone
  same 'pool: where memory is short its VMs go first, and no pod gives' '1 0 RUNNING' "$(vmms | wc -l) $(top balloonBytes) $(status u0)"
  remove u0
  rm -r "$work/config.toml.d"
  is_empty() { [ -z "$(vmms)" ]; }
  until_true 60 is_empty
  same 'pool: it ends with its configuration' '' "$(vmms)"
}
