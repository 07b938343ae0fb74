/** Bad input and faults: the text at ctr's output names the thing and the remedy, and nothing is left behind. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Test } from "tap";
import { DEFAULT_STATE_DIR } from "../../shim/base/names.ts";
import { SNP_RUNTIME, type ContainerOptions } from "../support/ctr.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { buildInitramfs, buildScript } from "../support/guest.ts";
import { buildForeignImage } from "../support/image.ts";
import { isDaemon } from "../support/leftovers.ts";
import type { ProcessInfo } from "../support/procfs.ts";
import { run, type Finished } from "../support/process.ts";
import { distBinDir } from "../support/paths.ts";
import { eventually } from "../support/retry.ts";
import { readTimeline } from "../support/timeline.ts";
import type { ShimConfig } from "../support/shim-config.ts";

const WAIT_MS = 60_000;
/** For a guest's answer: long enough for one in emulation that works. */
const SHORT_ANSWER_MS = 8_000;
const SHORT_BOOT_TIMEOUT_MS = 4_000;
const FAILING_CALLS = 10;
const NEVER_ANSWERS = "while :; do /bin/busybox sleep 1000; done";

/** Runs a container under a changed configuration that must be refused with all of the texts. */
async function refused(
	t: Test,
	bed: Bed,
	label: string,
	changes: ShimConfig,
	texts: readonly RegExp[],
	options: ContainerOptions = {},
): Promise<Finished> {
	await bed.containerd.configure(changes);
	try {
		const finished = await bed.ctr.run(bed.ctr.newId(label), ["true"], { timeoutMs: WAIT_MS, ...options });
		t.not(finished.code, 0, "the run fails");
		for (const text of texts) t.match(finished.stderr, text);
		return finished;
	} finally {
		await bed.containerd.configure({});
	}
}

/** Runs a container that must work: the fault before it has no lasting effect. */
async function worksAgain(t: Test, bed: Bed): Promise<void> {
	const finished = await bed.ctr.run(bed.ctr.newId("after"), ["echo", "fine"]);
	t.equal(finished.stdout, "fine\n", finished.stderr);
}

/** Kills the first process whose command line matches, as soon as it is there. */
async function killWhenSeen(bed: Bed, pattern: RegExp): Promise<void> {
	const victim = await eventually(`a process like ${pattern}`, WAIT_MS, () =>
		bed.containerd.processes().find((info) => pattern.test(info.commandLine)),
	);
	process.kill(victim.pid, "SIGKILL");
}

const cases: Case[] = [
	{
		name: "a misspelt key is named, with the file and the right key",
		check: async (t, bed) => {
			await refused(t, bed, "key", { append: '[log]\nlevle = "info"' }, [/levle/, /level/, new RegExp(bed.containerd.configFile)]);
		},
	},
	{
		name: "a value of the wrong kind is named, with what is allowed",
		check: async (t, bed) => {
			await refused(t, bed, "value", { append: '[log]\nlevel = "loud"' }, [/log\.level/, /debug/]);
		},
	},
	{
		name: "a configuration file that is no TOML is named, with the line",
		check: async (t, bed) => {
			await refused(t, bed, "toml", { append: "this is no TOML" }, [new RegExp(bed.containerd.configFile), /line|\d+:\d+/]);
			t.notOk(existsSync(bed.containerd.seen(DEFAULT_STATE_DIR)), "its state_dir is found nevertheless");
		},
	},
	{
		name: "a missing kernel is named, with its key",
		check: async (t, bed) => {
			await refused(t, bed, "kernel", { kernel: "/nowhere/vmlinux" }, [/\/nowhere\/vmlinux/, /guest\.kernel/]);
		},
	},
	{
		name: "a missing guest image is named, with its key",
		check: async (t, bed) => {
			await refused(t, bed, "image", { image: "/nowhere/initramfs" }, [/\/nowhere\/initramfs/, /guest\.image/]);
		},
	},
	{
		name: "a missing hypervisor is named, with its key",
		check: async (t, bed) => {
			await refused(t, bed, "hypervisor", { hypervisor: "/nowhere/cloud-hypervisor" }, [/\/nowhere\/cloud-hypervisor/, /hypervisor\.path/]);
		},
	},
	{
		name: "a hypervisor that ends at once: its own words arrive, such as those about /dev/kvm",
		check: async (t, bed) => {
			const words = "Failed to open hypervisor interface (is /dev/kvm available?)";
			const hypervisor = await buildScript(bed.containerd.rootDir, "no-kvm", `echo '${words}' >&2\nexit 1`);
			await refused(t, bed, "nokvm", { hypervisor }, [/\/dev\/kvm/, /no-kvm/]);
		},
	},
	{
		name: "a guest that never answers meets the boot time-out, whose key is named",
		check: async (t, bed) => {
			const image = await buildInitramfs(bed.containerd.rootDir, "silent", NEVER_ANSWERS);
			const finished = await refused(t, bed, "silent", { image, bootTimeoutMs: SHORT_BOOT_TIMEOUT_MS }, [/timeouts\.boot_ms/]);
			t.ok(finished.durationMs >= SHORT_BOOT_TIMEOUT_MS, "not before its time");
		},
	},
	{
		name: "a VMM that is killed as soon as it shows is reported at once",
		check: async (t, bed) => {
			const image = await buildInitramfs(bed.containerd.rootDir, "silent-early", NEVER_ANSWERS);
			const [finished] = await Promise.all([
				refused(t, bed, "early", { image, bootTimeoutMs: 10 * WAIT_MS }, [
					/hypervisor|VMM|VM of pod/i,
					/ended|killed|exited|closed|SIGKILL/i,
				]),
				killWhenSeen(bed, /qemu-system-x86_64|ch-qemu.* --api-socket/),
			]);
			t.ok(finished.durationMs < WAIT_MS);
			await worksAgain(t, bed);
		},
	},
	{
		name: "a VMM that is killed while the guest boots is reported at once, not at the time-out",
		check: async (t, bed) => {
			const image = await buildInitramfs(bed.containerd.rootDir, "silent-late", NEVER_ANSWERS);
			const id = bed.ctr.newId("late");
			await bed.containerd.configure({ image, bootTimeoutMs: 10 * WAIT_MS });
			const child = bed.ctr.attach(id, ["true"], { flags: ["--rm"] });
			try {
				// Far beyond the deadlines here: waiting for the time-out would fail the test.
				await eventually("the end of vm.boot", WAIT_MS, async () =>
					(await readTimeline(bed.containerd, id)).find((step) => step.step === "vm-boot"),
				);
				await killWhenSeen(bed, /ch-qemu.* --api-socket/);
				const finished = await child.finished(WAIT_MS);
				t.not(finished.code, 0);
				t.match(finished.stderr, new RegExp(`pod ${id}`));
				t.match(finished.stderr, /ended|killed|exited|SIGKILL/i);
			} finally {
				child.kill();
				await bed.containerd.configure({});
			}
			await worksAgain(t, bed);
		},
	},
	{
		name: "a guest whose first process fails is reported at once",
		check: async (t, bed) => {
			const image = await buildInitramfs(bed.containerd.rootDir, "panics", "exit 1");
			await refused(t, bed, "panic", { image, bootTimeoutMs: 10 * WAIT_MS }, [/hypervisor|VMM|guest/i]);
		},
	},
	{
		name: "a program for another architecture is named",
		check: async (t, bed) => {
			const image = await buildForeignImage(bed.containerd.rootDir);
			await bed.ctr.importImage(image);
			const finished = await bed.ctr.run(bed.ctr.newId("foreign"), ["/bin/hello"], { image });
			t.not(finished.code, 0);
			t.match(finished.stderr, /\/bin\/hello/);
			t.match(finished.stderr, /architecture|exec format/i);
		},
	},
	{
		name: "a folder for images that can't hold files is named, with its key",
		check: async (t, bed) => {
			await refused(t, bed, "cache", { cacheDir: "/proc/x" }, [/\/proc/, /storage\.cache_dir/]);
			await worksAgain(t, bed);
		},
	},
	{
		name: "an image that is never made holds up neither the boot time-out nor the pod's end",
		check: async (t, bed) => {
			// What it leaves behind keeps the pipe open whose end tells that a converter is gone, like one that hangs in the kernel.
			const mkfs = await buildScript(bed.containerd.rootDir, "mkfs-never", "setsid sleep 1003 &\nwait");
			const dropIns = `${bed.containerd.configFile}.d`;
			mkdirSync(dropIns);
			writeFileSync(join(dropIns, "mkfs.toml"), `[storage]\nmkfs_erofs = ${JSON.stringify(mkfs)}\ncache_dir = "${dropIns}/cache"\n`);
			try {
				await refused(t, bed, "never", { bootTimeoutMs: SHORT_BOOT_TIMEOUT_MS }, [/timeouts\.boot_ms/, /rootfs-image/], {
					// A root filesystem that is nobody else's: its conversion is waited for.
					snapshotter: "native",
				});
				t.notOk(
					bed.containerd.processes().some((info) => / --api-socket /.test(info.commandLine)),
					"the VMM is gone",
				);
			} finally {
				await rm(dropIns, { recursive: true });
				for (const info of bed.containerd.processes()) if (info.commandLine === "sleep 1003") process.kill(info.pid, "SIGKILL");
			}
			await worksAgain(t, bed);
		},
	},
	{
		name: "a guest that stands still keeps no container: SIGKILL ends its VM",
		check: async (t, bed) => {
			const dropIns = `${bed.containerd.configFile}.d`;
			mkdirSync(dropIns);
			writeFileSync(join(dropIns, "answer.toml"), `[timeouts]\nagent_call_ms = ${SHORT_ANSWER_MS}\n`);
			try {
				const id = bed.ctr.newId("still");
				await bed.ctr.detach(id, ["sleep", "1000"]);
				const guest = bed.containerd.processes().find((info) => /qemu-system-x86_64/.test(info.commandLine));
				process.kill(guest?.pid ?? 0, "SIGSTOP");
				await bed.ctr.callOk(["task", "kill", "--signal", "SIGKILL", id]);
				await eventually("the end of the task", WAIT_MS, async () => ((await bed.ctr.status(id)) === "STOPPED" ? true : undefined));
				await bed.ctr.remove(id);
			} finally {
				await rm(dropIns, { recursive: true });
			}
			await worksAgain(t, bed);
		},
	},
	{
		name: "a full tmpfs under the state folder is named; with room again all is well",
		check: async (t, bed) => {
			const { containerd, ctr } = bed;
			const filler = containerd.seen(join(containerd.stateDir, "filler"));
			const live = ctr.newId("live");
			await ctr.detach(live, ["sleep", "1000"]);
			const daemon = (): ProcessInfo | undefined => containerd.processes().find((info) => isDaemon(info) && info.state !== "Z");
			const failing = async (): Promise<void> => {
				const finished = await ctr.run(ctr.newId("full"), ["true"]);
				t.not(finished.code, 0);
				t.match(finished.stderr, /no space|full/i);
				t.match(finished.stderr, /free space|tmpfs/i);
				t.match(finished.stderr, new RegExp(containerd.stateDir));
			};
			fillUp(filler);
			try {
				const first = daemon()?.pid;
				for (let count = 0; count < FAILING_CALLS; count++) await failing();
				t.equal(daemon()?.pid, first, "snpd lives on without its log");
				process.kill(first ?? 0, "SIGKILL");
				// The next one takes up the container that runs, and fails as the first one did.
				for (let count = 0; count < FAILING_CALLS; count++) await failing();
				t.not(daemon()?.pid, first);
				t.equal(await ctr.status(live), "RUNNING");
			} finally {
				await rm(filler);
			}
			t.equal((await ctr.exec(live, ["echo", "alive"])).stdout, "alive\n");
			await ctr.remove(live);
			await worksAgain(t, bed);
			t.match(readFileSync(containerd.seen(join(containerd.stateDir, "snpd.log")), "utf8"), /lines of this log could not be written/);
		},
	},
	{
		name: "a bundle with broken JSON is named",
		check: async (t, bed) => {
			const wrapper = await buildScript(
				bed.containerd.rootDir,
				"containerd-shim-broken-v2",
				`case "$*" in *start) printf '{"ociVersion":' > config.json ;; esac\nexec ${join(distBinDir, "containerd-shim-snp-v2")} "$@"`,
			);
			const id = bed.ctr.newId("broken");
			const finished = await bed.ctr.call([
				"run",
				"--rm",
				"--runtime",
				wrapper,
				"--fifo-dir",
				bed.containerd.fifoDir,
				bed.image.name,
				id,
				"true",
			]);
			t.not(finished.code, 0);
			t.match(finished.stderr, /config\.json/);
			await bed.ctr.removeLeftover(id);
		},
	},
	{
		name: "start and delete without a call in between, as after a crash of containerd, leave nothing",
		check: async (t, bed) => {
			const { containerd } = bed;
			const id = bed.ctr.newId("uncalled");
			const bundle = join(containerd.rootDir, "bundle-uncalled");
			mkdirSync(bundle);
			writeFileSync(
				join(bundle, "config.json"),
				JSON.stringify({ ociVersion: "1.0.2", process: { args: ["true"], cwd: "/" }, root: { path: "rootfs" } }),
			);
			const start = await run(shimArgv(bed, id, bundle, "start"));
			t.strictSame([start.stderr, start.code], ["", 0], start.stdout);
			const removal = await run(shimArgv(bed, id, bundle, "-bundle", bundle, "delete"));
			t.equal(removal.code, 0, removal.stderr);
		},
	},
	{
		name: "a second start of the shim for a live id leaves the container as it is",
		check: async (t, bed) => {
			const { containerd, ctr } = bed;
			const id = ctr.newId("live");
			await ctr.detach(id, ["sleep", "1000"]);
			const bundle = join(containerd.rootDir, "state/io.containerd.runtime.v2.task", containerd.namespace, id);
			t.ok(existsSync(join(bundle, "config.json")));
			const second = await run(shimArgv(bed, id, bundle, "start"));
			t.equal(second.stderr, "", "nothing on standard error, which containerd would take for the address");
			if (second.code === 0) t.match(second.stdout, new RegExp(containerd.podKey(id)), "the live keeper's address");
			else t.match(second.stdout, new RegExp(id), "the live id is named");
			t.equal((await ctr.exec(id, ["echo", "alive"])).stdout, "alive\n");
			await ctr.remove(id);
		},
	},
];

/** The command line by which containerd runs the shim's binary in a bundle. */
function shimArgv({ containerd }: Bed, id: string, bundle: string, ...command: readonly string[]): string[] {
	const environment = [`CONTAINERD_SHIM_SNP_CONFIG=${containerd.configFile}`, `TTRPC_ADDRESS=${containerd.address}.ttrpc`];
	const flags = [
		"-namespace",
		containerd.namespace,
		"-address",
		containerd.address,
		"-publish-binary",
		join(containerd.ctrPath, "../containerd"),
	];
	return containerd.inside(
		"env",
		"-C",
		bundle,
		...environment,
		join(distBinDir, "containerd-shim-snp-v2"),
		...flags,
		"-id",
		id,
		...command,
	);
}

/** Writes zeros until the file system has no room for a single further byte. */
function fillUp(file: string): void {
	const chunks = [1024 * 1024, 4096, 1];
	for (const bytes of chunks) {
		for (let rounds = 0; rounds < 1024; rounds++) {
			try {
				writeFileSync(file, Buffer.alloc(bytes), { flag: "a" });
			} catch {
				break;
			}
		}
	}
}

if ((process.env["SNP_E2E_RUNTIME"] ?? SNP_RUNTIME) === SNP_RUNTIME) await runCases(cases, { withControl: false });
