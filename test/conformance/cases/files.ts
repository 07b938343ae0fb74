/** Files that the node gives to containers. */
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually } from "../../support/retry.ts";
import type { ConformanceCase, TestPod } from "../context.ts";

const WAIT_MS = 30_000;

/** A file of the node that a container mounts. */
function hostFile(pod: TestPod, name: string, content: string, mode = 0o644): string {
	const path = join(pod.dir, name);
	writeFileSync(path, content);
	chmodSync(path, mode);
	return path;
}

export const FILES: readonly ConformanceCase[] = [
	{
		id: "resolv-conf",
		name: "/etc/resolv.conf has the pod's servers, search domains and options",
		check: async (context) => {
			const pod = await context.pod({ dns_config: { servers: ["10.96.0.10"], searches: ["a.local", "b.local"], options: ["ndots:5"] } });
			const text = await pod.output("cat /etc/resolv.conf");
			assert.match(text, /^nameserver 10\.96\.0\.10$/m);
			assert.match(text, /^search a\.local b\.local$/m);
			assert.match(text, /^options ndots:5$/m);
		},
	},
	{
		id: "hosts-file",
		name: "a hosts file of the node is the container's, and the container may change its own",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = hostFile(pod, "etc-hosts", "127.0.0.1 localhost\n10.1.2.3 friend\n");
			const container = await pod.sleeper({ mounts: [{ container_path: "/etc/hosts", host_path }] });
			assert.match(await container.output("cat /etc/hosts"), /^10\.1\.2\.3 friend$/m);
			await container.output("echo 10.1.2.4 other >> /etc/hosts && grep other /etc/hosts");
		},
	},
	{
		id: "termination-message",
		name: "what a container writes into its termination message file is on the node when its end is known",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = hostFile(pod, "message", "", 0o666);
			const { status } = await pod.result(["sh", "-c", "echo why it ended > /dev/termination-log; exit 1"], {
				mounts: [{ container_path: "/dev/termination-log", host_path }],
			});
			assert.equal(status.exit_code, 1);
			assert.equal(readFileSync(host_path, "utf8"), "why it ended\n");
		},
	},
	{
		id: "termination-message-user",
		name: "a plain user may write the termination message, also with a read-only root",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = hostFile(pod, "message", "", 0o666);
			await pod.output("echo by a user > /var/message", {
				mounts: [{ container_path: "/var/message", host_path }],
				security: { run_as_user: { value: 1000 }, readonly_rootfs: true },
			});
			assert.equal(readFileSync(host_path, "utf8"), "by a user\n");
		},
	},
	{
		id: "file-readonly",
		name: "a file that is mounted read-only is read and not written, with its mode",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = hostFile(pod, "secret", "s3cret", 0o440);
			const container = await pod.sleeper({ mounts: [{ container_path: "/etc/secret", host_path, readonly: true }] });
			assert.equal(await container.output("cat /etc/secret; stat -c %a /etc/secret"), "s3cret440");
			assert.match((await container.sh("echo x > /etc/secret")).stderr, /read-only/i);
		},
	},
	{
		id: "folder-read",
		name: "a folder of the node is read by a container",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(join(host_path, "deep"), { recursive: true });
			writeFileSync(join(host_path, "deep/file"), "content");
			assert.equal(
				await pod.output("cat /data/deep/file", { mounts: [{ container_path: "/data", host_path, readonly: true }] }),
				"content",
			);
		},
	},
	{
		id: "folder-write",
		name: "what a container writes into a folder of the node is on the node",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			await pod.output("echo written > /data/file", { mounts: [{ container_path: "/data", host_path }] });
			assert.equal(readFileSync(join(host_path, "file"), "utf8"), "written\n");
		},
	},
	{
		id: "folder-shared",
		name: "containers of a pod share a folder of the node",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			const mounts = [{ container_path: "/data", host_path }];
			await pod.output("echo common > /data/file", { mounts });
			assert.equal(await pod.output("cat /data/file", { mounts }), "common");
		},
	},
	{
		id: "folder-live",
		name: "a file that the node changes in a folder is seen changed by a running container",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			writeFileSync(join(host_path, "file"), "old");
			const container = await pod.sleeper({ mounts: [{ container_path: "/data", host_path, readonly: true }] });
			assert.equal(await container.output("cat /data/file"), "old");
			writeFileSync(join(host_path, "file"), "new");
			await eventually("the change", WAIT_MS, async () => ((await container.output("cat /data/file")) === "new" ? true : undefined));
		},
	},
];
