/** Pods of several containers, which share one keeper and one VM: each container comes and goes for itself. */
import { join } from "node:path";
import { SNP_RUNTIME } from "../support/ctr.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { distBinDir } from "../support/paths.ts";
import { run } from "../support/process.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;

/** Starts a pod of two containers. @returns their ids; the first gave the pod its own. */
async function startPair({ ctr }: Bed, label: string): Promise<[first: string, second: string]> {
	const pod = ctr.newId(label);
	const second = ctr.newId(label);
	for (const [id, kind] of [
		[pod, "sandbox"],
		[second, "container"],
	] as const) {
		const annotations = [`io.kubernetes.cri.container-type=${kind}`, `io.kubernetes.cri.sandbox-id=${pod}`];
		await ctr.detach(id, ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"], {
			flags: annotations.flatMap((annotation) => ["--annotation", annotation]),
		});
	}
	return [pod, second];
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
		name: "a running container that containerd gives up goes alone, and with the last one the VM",
		check: async (t, bed) => {
			const { ctr } = bed;
			const [first, second] = await startPair(bed, "given-up");
			await cleanUpAfter(bed, first);
			t.equal((await ctr.exec(second, ["echo", "alive"])).stdout, "alive\n");
			await cleanUpAfter(bed, second);
			t.equal(virtualMachines(bed), 0);
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
