/** What the containers of a pod share and what they don't. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { ConformanceCase } from "../context.ts";

const SHARED_PID = { namespace_options: { pid: "POD" } } as const;

export const NAMESPACES: readonly ConformanceCase[] = [
	{
		id: "hostname",
		name: "every container has the pod's host name, in the kernel and in /etc/hostname",
		check: async (context) => {
			const pod = await context.pod({ hostname: "my-pod" });
			for (const _ of [1, 2]) assert.equal(await pod.output("hostname; cat /etc/hostname"), "my-pod\nmy-pod");
		},
	},
	{
		id: "pid-separate",
		name: "with PID namespaces of their own containers see only themselves",
		check: async (context) => {
			const pod = await context.pod();
			await pod.run(["sleep", "5555"]);
			assert.equal(await pod.output("ps | grep -c 'sleep 555[5]' || true; test $$ = 1 && echo first"), "0\nfirst");
		},
	},
	{
		id: "pid-shared",
		name: "with a shared PID namespace containers see and signal each other",
		check: async (context) => {
			const pod = await context.pod({ linux: { security_context: SHARED_PID } });
			const first = await pod.run(["sleep", "5555"], { security: SHARED_PID });
			const second = await pod.sleeper({ security: SHARED_PID });
			assert.match(await second.output("ps"), /sleep 5555/);
			assert.notEqual(await second.output("cat /proc/1/cmdline | tr '\\0' ' '"), "sleep 5555 ");
			await second.output("kill -9 $(ps | awk '/sleep 555[5]/ {print $1}')");
			assert.equal((await first.exited()).exit_code, 137);
		},
	},
	{
		id: "pid-shared-restart",
		name: "a shared PID namespace outlives the first container in it",
		check: async (context) => {
			const pod = await context.pod({ linux: { security_context: SHARED_PID } });
			const first = await pod.sleeper({ security: SHARED_PID });
			const second = await pod.sleeper({ security: SHARED_PID });
			await first.stop(0);
			await first.remove();
			assert.equal(await second.output("echo alive"), "alive");
			const third = await pod.run(["sleep", "5555"], { security: SHARED_PID });
			assert.match(await second.output("ps"), /sleep 5555/);
			assert.equal((await third.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "pid-target",
		name: "a debug container sees the processes of its target",
		check: async (context) => {
			const pod = await context.pod();
			const target = await pod.run(["sleep", "5555"]);
			const debug = await pod.sleeper({ security: { namespace_options: { pid: "TARGET", target_id: target.id } } });
			assert.match(await debug.output("ps"), /sleep 5555/);
		},
	},
	{
		id: "ipc-shared",
		name: "containers of a pod share /dev/shm and its content",
		check: async (context) => {
			const pod = await context.pod();
			const [first, second] = [await pod.sleeper(), await pod.sleeper()];
			await first.output("echo common > /dev/shm/note");
			assert.equal(await second.output("cat /dev/shm/note"), "common");
			assert.equal(await first.output("readlink /proc/self/ns/ipc"), await second.output("readlink /proc/self/ns/ipc"));
		},
	},
	{
		id: "shm-size",
		name: "/dev/shm has 64 MiB, no more",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			assert.equal(await container.output("df -k /dev/shm | awk 'END {print $2}'"), "65536");
			assert.notEqual((await container.sh("head -c 70000000 /dev/zero > /dev/shm/large")).exitCode, 0);
		},
	},
	{
		id: "shm-separate-pods",
		name: "pods don't share /dev/shm",
		check: async (context) => {
			const [a, b] = [await (await context.pod()).sleeper(), await (await context.pod()).sleeper()];
			await a.output("echo mine > /dev/shm/note");
			assert.equal(await b.output("ls /dev/shm"), "");
		},
	},
	{
		id: "localhost",
		name: "containers of a pod talk over localhost",
		check: async (context) => {
			const pod = await context.pod();
			const server = await pod.run(["sh", "-c", "while :; do echo served | nc -l -p 8080 127.0.0.1; done"]);
			const client = await pod.sleeper();
			assert.equal(await client.output("for i in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 8080 </dev/null && break; sleep 0.3; done"), "served");
			assert.equal((await server.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "network-address",
		name: "the pod's address is that of its interface",
		check: async (context) => {
			const pod = await context.pod();
			const address = (await context.bed.client.podStatus(pod.id)).network?.ip ?? "none";
			assert.match(await pod.output("ip -4 addr show eth0"), new RegExp(`inet ${address.replaceAll(".", "\\.")}/16 `));
		},
	},
	{
		id: "network-gateway",
		name: "a container reaches the bridge that its pod is plugged into",
		check: async (context) => {
			const pod = await context.pod();
			await pod.output("ping -c 1 -W 5 10.88.0.1");
		},
	},
	{
		id: "network-pod-to-pod",
		name: "a container reaches a container of another pod by its address",
		check: async (context) => {
			const [a, b] = [await context.pod(), await context.pod()];
			await a.run(["sh", "-c", "while :; do echo from a | nc -l -p 8080; done"]);
			const address = (await context.bed.client.podStatus(a.id)).network?.ip ?? "none";
			const client = await b.sleeper();
			assert.equal(
				await client.output(`for i in 1 2 3 4 5 6 7 8 9; do nc -w 5 ${address} 8080 </dev/null && break; sleep 0.3; done`),
				"from a",
			);
		},
	},
	{
		id: "mounts-private",
		name: "what one container mounts the others don't see",
		check: async (context) => {
			const pod = await context.pod();
			const admin = { capabilities: { add_capabilities: ["SYS_ADMIN"] }, seccomp: { profile_type: "Unconfined" } } as const;
			const [first, second] = [await pod.sleeper({ security: admin }), await pod.sleeper()];
			await first.output("mount -t tmpfs none /home && touch /home/mark");
			assert.equal(await second.output("ls /home"), "");
		},
	},
	{
		id: "kernel",
		name: "a pod under a VM has a kernel of its own, the others share the node's",
		check: async (context) => {
			const pod = await context.pod();
			const own = await pod.output("cat /proc/sys/kernel/random/boot_id");
			const node = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
			assert.equal(own === node, !context.isVm);
		},
	},
	{
		id: "host-network",
		name: "a pod with the node's network sees the node's interfaces",
		check: async (context) => {
			const pod = await context.pod({ hostname: "", linux: { security_context: { namespace_options: { network: "NODE" } } } });
			assert.match(await pod.output("ip link", { security: { namespace_options: { network: "NODE" } } }), /snp-cni0/);
		},
	},
	{
		id: "host-pid",
		name: "a pod with the node's PID namespace sees the node's processes",
		check: async (context) => {
			const pod = await context.pod({ linux: { security_context: { namespace_options: { pid: "NODE" } } } });
			assert.match(await pod.output("ps", { security: { namespace_options: { pid: "NODE" } } }), /containerd/);
		},
	},
	{
		id: "host-ipc",
		name: "a pod with the node's IPC namespace",
		check: async (context) => {
			const pod = await context.pod({ linux: { security_context: { namespace_options: { ipc: "NODE" } } } });
			const namespace = await pod.output("readlink /proc/self/ns/ipc", { security: { namespace_options: { ipc: "NODE" } } });
			assert.match(namespace, /^ipc:/);
		},
	},
];
