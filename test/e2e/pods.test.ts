/** Pods of several containers, which share one keeper and one VM: each container comes and goes for itself. */
import { closeSync, constants, mkdirSync, openSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { makeFifo } from "../../shim/host/filesystem.ts";
import { SNP_RUNTIME } from "../support/ctr.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { buildScript } from "../support/guest.ts";
import { distBinDir } from "../support/paths.ts";
import { run } from "../support/process.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;

/** Starts a container of a pod. @param snapshotter as `ctr run` takes it */
async function startInPod({ ctr }: Bed, pod: string, id: string, snapshotter?: string): Promise<void> {
	const kind = id === pod ? "sandbox" : "container";
	const annotations = [`io.kubernetes.cri.container-type=${kind}`, `io.kubernetes.cri.sandbox-id=${pod}`];
	const flags = annotations.flatMap((annotation) => ["--annotation", annotation]);
	const options = snapshotter === undefined ? { flags } : { flags, snapshotter };
	await ctr.detach(id, ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"], options);
}

/** Starts a pod of two containers. @returns their ids; the first gave the pod its own. */
async function startPair(bed: Bed, label: string): Promise<[first: string, second: string]> {
	const pod = bed.ctr.newId(label);
	const second = bed.ctr.newId(label);
	for (const id of [pod, second]) await startInPod(bed, pod, id);
	return [pod, second];
}

/** Waits until somebody opens a FIFO to read from it, who then waits until it is closed here. */
async function waitForReader(fifo: string): Promise<number> {
	return await eventually(`a reader of ${fifo}`, WAIT_MS, () => {
		try {
			return openSync(fifo, constants.O_WRONLY | constants.O_NONBLOCK);
		} catch {
			return undefined;
		}
	});
}

/** Runs work on pods whose images wait, once there is a FIFO at `gate`, until that is opened to write to it and closed. */
async function withGate({ containerd, ctr }: Bed, work: (gate: string) => Promise<void>): Promise<void> {
	const gate = join(containerd.rootDir, "gate");
	const mkfs = await buildScript(containerd.rootDir, "mkfs-gated", `[ ! -e ${gate} ] || read word < ${gate}\nexec mkfs.erofs "$@"`);
	const dropIns = `${containerd.configFile}.d`;
	mkdirSync(dropIns);
	// A cache of its own: what converts for a cache is known from its first pod on.
	const cache = join(containerd.rootDir, ctr.newId("cache"));
	writeFileSync(join(dropIns, "mkfs.toml"), `[storage]\nmkfs_erofs = ${JSON.stringify(mkfs)}\ncache_dir = ${JSON.stringify(cache)}\n`);
	try {
		await work(gate);
	} finally {
		await rm(gate, { force: true });
		await rm(dropIns, { recursive: true });
	}
}

/** Runs the shim's binary as containerd does when a shim's connection has closed, which it also does after an ordinary Delete. */
async function cleanUpAfter({ containerd }: Bed, id: string): Promise<void> {
	const bundle = join(containerd.rootDir, "state/io.containerd.runtime.v2.task", containerd.namespace, id);
	const flags = ["-namespace", containerd.namespace, "-address", containerd.address, "-id", id, "-bundle", bundle];
	const environment = `CONTAINERD_SHIM_SNP_CONFIG=${containerd.configFile}`;
	await run(containerd.inside("env", environment, join(distBinDir, "containerd-shim-snp-v2"), ...flags, "delete"));
}

function virtualMachines({ containerd }: Bed): number {
	return containerd.processes().filter((info) => info.commandLine.includes("qemu-system-x86_64")).length;
}

const cases: Case[] = [
	{
		name: "the removal of the container that gave the pod its id leaves the others running",
		check: async (t, bed) => {
			const { ctr } = bed;
			const [first, second] = await startPair(bed, "pair");
			t.equal(virtualMachines(bed), 1, "one VM for both");
			await ctr.remove(first);
			await cleanUpAfter(bed, first);
			const exec = await ctr.exec(second, ["echo", "alive"]);
			t.strictSame([exec.stdout, exec.stderr, exec.code], ["alive\n", "", 0]);
			t.strictSame(
				(await ctr.tasks()).map(({ id, status }) => [id, status]),
				[[second, "RUNNING"]],
			);
			await ctr.remove(second);
		},
	},
	{
		name: "the removal of a further container leaves the first one running",
		check: async (t, bed) => {
			const { ctr } = bed;
			const [first, second] = await startPair(bed, "further");
			await ctr.remove(second);
			await cleanUpAfter(bed, second);
			// The pod's first container has no process of its own in the VM: its task says whether it lives.
			t.strictSame(
				(await ctr.tasks()).map(({ status }) => status),
				["RUNNING"],
			);
			await ctr.remove(first);
		},
	},
	{
		name: "a container comes and goes while the image of another is made",
		check: async (t, bed) => {
			const { ctr } = bed;
			await withGate(bed, async (gate) => {
				const [first, second] = await startPair(bed, "meanwhile");
				const [slow, quick] = [ctr.newId("slow"), ctr.newId("quick")];
				makeFifo(gate, 0o600);
				// A root filesystem that is nobody else's is converted for it alone.
				const starting = startInPod(bed, first, slow, "native");
				starting.catch(() => undefined);
				const held = await waitForReader(gate);
				try {
					await ctr.remove(second);
					await startInPod(bed, first, quick);
					t.strictSame((await ctr.tasks()).map(({ id }) => id).sort(), [first, quick].sort());
				} finally {
					closeSync(held);
				}
				await starting;
				t.equal((await ctr.exec(slow, ["echo", "made"])).stdout, "made\n");
				for (const id of [slow, quick, first]) await ctr.remove(id);
			});
		},
	},
	{
		name: "a pod that is removed while the image of a container is made leaves nothing of it",
		check: async (t, bed) => {
			const { ctr, containerd } = bed;
			await withGate(bed, async (gate) => {
				const [first, second] = await startPair(bed, "cut-off");
				const slow = ctr.newId("slow");
				makeFifo(gate, 0o600);
				const starting = startInPod(bed, first, slow, "native").then(
					() => "started",
					(error: unknown) => String(error),
				);
				const held = await waitForReader(gate);
				try {
					const keeper = containerd.processes().find((info) => /containerd-shim-snp-v2/.test(info.commandLine));
					process.kill(keeper?.pid ?? 0, "SIGKILL");
					t.match(await starting, /ttrpc|closed|shim/i);
					await eventually("the end of the VM", WAIT_MS, () => (virtualMachines(bed) === 0 ? true : undefined));
				} finally {
					closeSync(held);
				}
				for (const id of [slow, second, first]) await ctr.removeLeftover(id);
			});
		},
	},
	{
		name: "a running container that containerd gives up goes alone, and with the last one the VM",
		check: async (t, bed) => {
			const { ctr } = bed;
			const [first, second] = await startPair(bed, "given-up");
			await cleanUpAfter(bed, first);
			t.equal((await ctr.exec(second, ["echo", "alive"])).stdout, "alive\n");
			await cleanUpAfter(bed, second);
			await eventually("the end of the VM", WAIT_MS, () => (virtualMachines(bed) === 0 ? true : undefined));
			for (const id of [first, second]) await ctr.removeLeftover(id);
		},
	},
	{
		name: "kill -9 of the keeper ends every container of its pod, and the VM",
		check: async (t, bed) => {
			const { ctr, containerd } = bed;
			const ids = await startPair(bed, "orphans");
			const keeper = containerd.processes().find((info) => /containerd-shim-snp-v2/.test(info.commandLine));
			process.kill(keeper?.pid ?? 0, "SIGKILL");
			await eventually("the end of both tasks", WAIT_MS, async () => {
				const running = (await ctr.tasks()).filter((task) => task.status === "RUNNING");
				return running.length === 0 ? true : undefined;
			});
			await eventually("the end of the VM", WAIT_MS, () => (virtualMachines(bed) === 0 ? true : undefined));
			for (const id of ids) await ctr.removeLeftover(id);
			t.strictSame(await ctr.tasks(), []);
		},
	},
];

if ((process.env["SNP_E2E_RUNTIME"] ?? SNP_RUNTIME) === SNP_RUNTIME) await runCases(cases, { withControl: false });
