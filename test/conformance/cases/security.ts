/** Who the processes of a container are and what they may do. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildImage, busyboxMembers } from "../../support/image.ts";
import type { ConformanceCase } from "../context.ts";

/** A field of /proc/self/status, read by a child of the container's shell. */
const field = (name: string): string => `awk '/^${name}:/ {print $2}' /proc/self/status`;
const CAP_NET_RAW = 13n;
const CAP_SYS_ADMIN = 21n;
const CAP_CHOWN = 0n;
const has = (mask: string, bit: bigint): boolean => ((BigInt(`0x${mask}`) >> bit) & 1n) === 1n;

export const SECURITY: readonly ConformanceCase[] = [
	{
		id: "user",
		name: "a container runs as the user and group that it names",
		check: async (context) => {
			const pod = await context.pod();
			const security = { run_as_user: { value: 1234 }, run_as_group: { value: 4321 } };
			assert.equal(await pod.output("id -u; id -g", { security }), "1234\n4321");
		},
	},
	{
		id: "user-name",
		name: "a user named by name is found in the image",
		check: async (context) => {
			const pod = await context.pod();
			assert.equal(await pod.output("id -u; id -g; echo $HOME", { security: { run_as_username: "guest" } }), "1000\n1001\n/home");
		},
	},
	{
		id: "user-of-image",
		name: "the user of the image holds, with its group",
		check: async (context) => {
			const image = await buildImage(context.bed.containerd.rootDir, {
				name: "registry.invalid/snp-user:1",
				members: busyboxMembers(),
				user: "guest",
			});
			await context.bed.importImage(image);
			const pod = await context.pod();
			assert.equal(await pod.output("id -u; id -g", { image: { image: image.name } }), "1000\n1001");
		},
	},
	{
		id: "groups",
		name: "supplemental groups (an fsGroup among them) are set",
		check: async (context) => {
			const pod = await context.pod();
			const security = { run_as_user: { value: 1234 }, supplemental_groups: [2000, 3000] };
			assert.equal(await pod.output("id -G | tr ' ' '\\n' | grep -c -e 2000 -e 3000", { security }), "2");
		},
	},
	{
		id: "capabilities-default",
		name: "without a word a container has the usual capabilities and no more",
		check: async (context) => {
			const pod = await context.pod();
			const mask = await pod.output(field("CapEff"));
			assert.deepEqual([has(mask, CAP_CHOWN), has(mask, CAP_NET_RAW), has(mask, CAP_SYS_ADMIN)], [true, true, false]);
		},
	},
	{
		id: "capabilities-add",
		name: "an added capability is there and works",
		check: async (context) => {
			const pod = await context.pod();
			const security = { capabilities: { add_capabilities: ["SYS_ADMIN"] } };
			assert.ok(has(await pod.output(field("CapEff"), { security }), CAP_SYS_ADMIN));
			await pod.output("hostname changed && test $(hostname) = changed", { security });
		},
	},
	{
		id: "capabilities-drop-all",
		name: "with all capabilities dropped none is left, not even in the bounding set",
		check: async (context) => {
			const pod = await context.pod();
			const security = { capabilities: { drop_capabilities: ["ALL"] } };
			assert.equal(await pod.output(`${field("CapEff")}; ${field("CapBnd")}`, { security }), "0000000000000000\n0000000000000000");
		},
	},
	{
		id: "capabilities-drop-all-add",
		name: "one capability is left when all are dropped and it is added",
		check: async (context) => {
			const pod = await context.pod();
			const security = { capabilities: { drop_capabilities: ["ALL"], add_capabilities: ["CHOWN"] } };
			assert.equal(await pod.output(field("CapBnd"), { security }), "0000000000000001");
		},
	},
	{
		id: "capabilities-user",
		name: "a plain user has no effective capabilities",
		check: async (context) => {
			const pod = await context.pod();
			assert.equal(await pod.output(field("CapEff"), { security: { run_as_user: { value: 1000 } } }), "0000000000000000");
		},
	},
	{
		id: "capabilities-exec",
		name: "a command in a container has the container's capabilities",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ security: { capabilities: { drop_capabilities: ["ALL"] } } });
			assert.equal(await container.output(field("CapEff")), "0000000000000000");
		},
	},
	{
		id: "privileged",
		name: "a privileged container has every capability and may mount",
		check: async (context) => {
			const pod = await context.pod({ linux: { security_context: { privileged: true } } });
			const container = await pod.sleeper({ security: { privileged: true } });
			assert.ok(has(await container.output(field("CapEff")), CAP_SYS_ADMIN));
			await container.output("mount -t tmpfs none /home");
		},
	},
	{
		id: "no-new-privs",
		name: "no_new_privs is set, for commands too, and is not set without a word",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ security: { no_new_privs: true } });
			assert.equal(await container.output(field("NoNewPrivs")), "1");
			assert.equal(await pod.output(field("NoNewPrivs")), "0");
		},
	},
	{
		id: "seccomp-default",
		name: "the runtime's seccomp profile is on when it is asked for, for commands too",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ security: { seccomp: { profile_type: "RuntimeDefault" } } });
			assert.equal(await container.output(field("Seccomp")), "2");
			assert.notEqual((await container.sh("unshare -m true")).exitCode, 0);
		},
	},
	{
		id: "seccomp-unconfined",
		name: "without a seccomp profile there is no filter",
		check: async (context) => {
			const pod = await context.pod();
			assert.equal(await pod.output(field("Seccomp"), { security: { seccomp: { profile_type: "Unconfined" } } }), "0");
		},
	},
	{
		id: "seccomp-localhost",
		name: "a seccomp profile of the node is applied: a call that it denies fails",
		check: async (context) => {
			const pod = await context.pod();
			const profile = join(pod.dir, "profile.json");
			const syscalls = [{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 1 }];
			writeFileSync(profile, JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW", architectures: ["SCMP_ARCH_X86_64"], syscalls }));
			const container = await pod.sleeper({ security: { seccomp: { profile_type: "Localhost", localhost_ref: profile } } });
			const denied = await container.sh("touch /tmp/file && mkdir /tmp/folder");
			assert.notEqual(denied.exitCode, 0);
			assert.match(denied.stderr, /folder.*not permitted/i);
		},
	},
	{
		id: "root-readonly",
		name: "a read-only root refuses writes; /dev/shm takes them",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ security: { readonly_rootfs: true } });
			const refused = await container.sh("touch /tmp/new");
			assert.match(refused.stderr, /read-only/i);
			await container.output("touch /dev/shm/new");
		},
	},
	{
		id: "root-writable",
		name: "a writable root takes files, links and folders, and runs what is put into it",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await container.output("mkdir -p /opt/a/b && cp /bin/busybox /opt/a/b/ && ln -s a/b /opt/link && rm /bin/ls");
			assert.equal(await container.output("/opt/link/busybox echo runs"), "runs");
		},
	},
	{
		id: "masked-paths",
		name: "masked files are empty, masked folders too",
		check: async (context) => {
			const pod = await context.pod();
			const security = { masked_paths: ["/proc/version", "/proc/tty"] };
			assert.equal(await pod.output("cat /proc/version | wc -c; ls /proc/tty | wc -l", { security }), "0\n0");
		},
	},
	{
		id: "readonly-paths",
		name: "read-only paths refuse writes",
		check: async (context) => {
			const pod = await context.pod();
			const security = { readonly_paths: ["/proc/sys"] };
			const { stderr } = await pod.result(["sh", "-c", "echo x > /proc/sys/kernel/domainname"], { security });
			assert.match(stderr, /read-only/i);
		},
	},
	{
		id: "proc-sys-readonly",
		name: "/sys is read-only for a plain container",
		check: async (context) => {
			const pod = await context.pod();
			assert.match(await pod.output("awk '$2 == \"/sys\" {print $4}' /proc/mounts"), /^ro/);
		},
	},
	{
		id: "sysctls",
		name: "kernel parameters of the pod hold in all its containers",
		check: async (context) => {
			const pod = await context.pod({
				linux: { sysctls: { "kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 60000" } },
			});
			const script = "cat /proc/sys/kernel/shm_rmid_forced; cat /proc/sys/net/ipv4/ip_local_port_range";
			for (const _ of [1, 2]) assert.match(await pod.output(script), /^1\n1024\s+60000$/);
		},
	},
	{
		id: "sysctl-unknown",
		name: "an unknown kernel parameter fails the pod or its container and is named",
		check: async (context) => {
			const attempt = async (): Promise<void> => {
				const pod = await context.pod({ linux: { sysctls: { "kernel.shm_no_such_thing": "1" } } });
				await pod.sleeper();
			};
			await assert.rejects(attempt, /shm_no_such_thing/);
		},
	},
	{
		id: "devices-usual",
		name: "the usual devices are there and work",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await container.output(
				"echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; test -c /dev/tty; test -L /dev/stdout",
			);
			assert.notEqual((await container.sh("echo x > /dev/full")).exitCode, 0);
		},
	},
	{
		id: "devices-mknod",
		name: "a container can't open a disk through a node that it makes itself",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const made = await container.sh("mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk");
			assert.notEqual(made.exitCode, 0);
		},
	},
	{
		id: "device-of-node",
		name: "a device of the node is passed",
		check: async (context) => {
			const pod = await context.pod();
			const devices = [{ container_path: "/dev/control", host_path: "/dev/loop-control", permissions: "rw" }];
			assert.equal(await pod.output("test -c /dev/control && echo there", { devices }), "there");
		},
	},
	{
		id: "device-known",
		name: "a device that every kernel has is passed",
		check: async (context) => {
			const pod = await context.pod();
			const devices = [{ container_path: "/dev/spare", host_path: "/dev/zero", permissions: "rw" }];
			assert.equal(await pod.output("head -c 3 /dev/spare | wc -c", { devices }), "3");
		},
	},
];
