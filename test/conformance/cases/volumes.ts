/** Volumes as kubelet lays them out: folders of configuration, emptyDirs, parts of volumes, files and folders of the node. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmodSync, linkSync, mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { publishKeys } from "../../support/kubelet.ts";
import { isDaemon } from "../../support/leftovers.ts";
import { eventually } from "../../support/retry.ts";
import { SLEEP, withVolumes, type ConformanceCase } from "../context.ts";

const WAIT_MS = 30_000;
const MIB = 1024 * 1024;
const GROUP = 2000;

/** Reads two keys of one version again and again; says what never may be. A first failure may be a version that was replaced meanwhile. */
const READERS = `
while :; do
  d=$(readlink /config/..data) || echo "no ..data" >> /tmp/wrong
  a=$(cat /config/$d/a 2>/dev/null); b=$(cat /config/$d/b 2>/dev/null)
  [ "$a" = "$b" ] || [ "$(readlink /config/..data)" != "$d" ] || echo "mix $a $b" >> /tmp/wrong
  cat /config/a >/dev/null 2>&1 || cat /config/a >/dev/null 2>&1 || echo "no a" >> /tmp/wrong
  echo x >> /tmp/rounds
done`;

const CONFIGURATION: readonly ConformanceCase[] = [
	{
		id: "config-live",
		name: "a configMap follows its changes and deletions; readers never see a mix, nor a missing key",
		check: withVolumes(async (pod, volumes) => {
			const host_path = volumes.configuration("configmap", "config", { a: "0", b: "0", gone: "0" });
			const container = await pod.sleeper({ mounts: [{ container_path: "/config", host_path, readonly: true }] });
			await container.output(`touch /tmp/wrong; (${READERS}) >/dev/null 2>&1 </dev/null &`);
			assert.equal(await container.output("cat /config/gone"), "0");
			for (let round = 1; round <= 5; round++) {
				publishKeys(host_path, { a: `${round}`, b: `${round}` });
				await eventually(`version ${round}`, WAIT_MS, async () =>
					(await container.output("cat /config/a")) === `${round}` ? true : undefined,
				);
			}
			assert.equal(await container.output("ls /config"), "a\nb");
			assert.equal(await container.output("ls -A /config | wc -l"), "4");
			assert.equal(await container.output("cat /tmp/wrong; test -s /tmp/rounds"), "");
		}),
	},
	{
		id: "config-daemon-killed",
		name: "a configMap follows its changes after our daemon was killed",
		check: withVolumes(async (pod, volumes, context) => {
			const host_path = volumes.configuration("configmap", "config", { a: "0", gone: "0" });
			const container = await pod.sleeper({ mounts: [{ container_path: "/config", host_path, readonly: true }] });
			for (const daemon of context.bed.containerd.processes().filter(isDaemon)) process.kill(daemon.pid, "SIGKILL");
			publishKeys(host_path, { a: "1" });
			await eventually("the change", WAIT_MS, async () => ((await container.output("cat /config/*")) === "1" ? true : undefined));
		}),
	},
	{
		id: "secret-group",
		name: "a secret has its modes, and the group that fsGroup gave it",
		check: withVolumes(async (pod, volumes) => {
			const host_path = volumes.configuration(
				"secret",
				"keys",
				{ ours: { text: "s3cret", mode: 0o440 }, root: { text: "x", mode: 0o400 } },
				GROUP,
			);
			const container = await pod.sleeper({
				mounts: [{ container_path: "/keys", host_path, readonly: true }],
				security: { run_as_user: { value: 1000 }, supplemental_groups: [GROUP] },
			});
			assert.equal(await container.output("cat /keys/ours; stat -L -c ' %a %g' /keys/ours"), `s3cret 440 ${GROUP}`);
			assert.match((await container.sh("cat /keys/root")).stderr, /denied/);
			assert.match((await container.sh("echo x > /keys/new")).stderr, /read-only/i);
		}),
	},
	{
		id: "sub-path-config",
		name: "a file and a folder of a configMap are mounted by subPath",
		check: withVolumes(async (pod, volumes) => {
			const folder = volumes.configuration("configmap", "config", { key: "file", "deep/key": "folder" });
			const mounts = [
				{ container_path: "/etc/key", host_path: await volumes.part("config", join(folder, "..data/key"), "file"), readonly: true },
				{ container_path: "/deep", host_path: await volumes.part("config", join(folder, "..data/deep"), "folder"), readonly: true },
			];
			assert.equal(await pod.output("cat /etc/key; cat /deep/key", { mounts }), "filefolder");
		}),
	},
];

const HOST_PATHS: readonly ConformanceCase[] = [
	{
		id: "host-path-folder",
		name: "a folder of the node comes with modes, links and second names",
		check: withVolumes(async (pod) => {
			const host_path = join(pod.dir, "data");
			mkdirSync(join(host_path, "deep"), { recursive: true });
			writeFileSync(join(host_path, "deep/tool"), "#!/bin/sh\necho run\n");
			chmodSync(join(host_path, "deep/tool"), 0o750);
			linkSync(join(host_path, "deep/tool"), join(host_path, "second"));
			symlinkSync("deep/tool", join(host_path, "link"));
			const server = createServer();
			await new Promise<void>((resolve) => server.listen(join(host_path, "socket"), resolve));
			try {
				const mounts = [{ container_path: "/data", host_path }];
				const script = "/data/link; stat -c %a /data/deep/tool; [ /data/second -ef /data/deep/tool ] && echo same";
				assert.equal(await pod.output(script, { mounts }), "run\n750\nsame");
			} finally {
				await new Promise((resolve) => server.close(resolve));
			}
		}),
	},
	{
		id: "host-path-file",
		name: "a large file of the node comes whole",
		check: withVolumes(async (pod) => {
			const data = Buffer.alloc(5 * MIB + 1, "0123456789abcdef!");
			const host_path = join(pod.dir, "large");
			writeFileSync(host_path, data);
			const mounts = [{ container_path: "/large", host_path, readonly: true }];
			assert.equal(await pod.output("sha256sum < /large | cut -c -64", { mounts }), createHash("sha256").update(data).digest("hex"));
		}),
	},
	{
		id: "host-path-part",
		name: "a subPath of a folder of the node is mounted",
		check: withVolumes(async (pod, volumes) => {
			const folder = join(pod.dir, "data");
			mkdirSync(join(folder, "sub"), { recursive: true });
			writeFileSync(join(folder, "sub/file"), "part");
			const host_path = await volumes.part("data", join(folder, "sub"), "folder");
			assert.equal(await pod.output("cat /part/file", { mounts: [{ container_path: "/part", host_path }] }), "part");
		}),
	},
	{
		id: "volume-nested",
		name: "a volume is mounted inside another one",
		check: withVolumes(async (pod, volumes) => {
			const outer = join(pod.dir, "outer");
			mkdirSync(join(outer, "inner"), { recursive: true });
			writeFileSync(join(outer, "inner/hidden"), "");
			const mounts = [
				{ container_path: "/outer/inner", host_path: volumes.emptyDir("inner") },
				{ container_path: "/outer", host_path: outer, readonly: true },
			];
			assert.equal(
				await pod.output("echo in > /outer/inner/file; ls /outer /outer/inner", { mounts }),
				"/outer:\ninner\n\n/outer/inner:\nfile",
			);
		}),
	},
	{
		id: "volume-vanished",
		name: "a folder that goes before the container starts fails the start, by name, and is no trouble when it is back",
		check: withVolumes(async (pod) => {
			const host_path = join(pod.dir, "vanishing");
			mkdirSync(host_path);
			const mounts = [{ container_path: "/data", host_path }];
			const container = await pod.create(SLEEP, { mounts });
			rmSync(host_path, { recursive: true });
			await assert.rejects(container.start(), /vanishing/);
			mkdirSync(host_path);
			writeFileSync(join(host_path, "file"), "back");
			assert.equal(await pod.output("cat /data/file", { mounts }), "back");
		}),
	},
	{
		id: "volume-too-large",
		name: "a folder that is too large to be copied into a VM is refused with its size and the key",
		check: withVolumes(async (pod, _volumes, context) => {
			const host_path = join(pod.dir, "huge");
			mkdirSync(host_path);
			writeFileSync(join(host_path, "sparse"), "");
			truncateSync(join(host_path, "sparse"), 70 * MIB);
			const made = pod.output("echo runs", { mounts: [{ container_path: "/data", host_path }] });
			if (context.isVm) await assert.rejects(made, /huge.*70\.0 MiB.*storage\.copy_max_mib/s);
			else assert.equal(await made, "runs");
			assert.equal(await pod.output("echo alive"), "alive");
		}),
	},
	{
		id: "socket-of-node",
		name: "a socket of the node is mounted",
		check: withVolumes(async (pod) => {
			const host_path = join(pod.dir, "s.sock");
			const server = createServer();
			await new Promise<void>((resolve) => server.listen(host_path, resolve));
			try {
				await pod.output("test -S /run/s.sock", { mounts: [{ container_path: "/run/s.sock", host_path }] });
			} finally {
				await new Promise((resolve) => server.close(resolve));
			}
		}),
	},
];

export const VOLUMES: readonly ConformanceCase[] = [...CONFIGURATION, ...HOST_PATHS];
