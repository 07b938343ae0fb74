/** How long memory that a guest has freed takes until the host has it again. */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { PrivateContainerd } from "../../test/support/containerd.ts";
import { Ctr } from "../../test/support/ctr.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import { timed, type Bench, type Scenario } from "../scenario.ts";

const MIB = 2 ** 20;
const FREED_MIB = 400;
/** Kernel and hypervisor keep a part of what they once needed. */
const KEPT_MIB = 100;
const WAIT_MS = 60_000;
const PAUSE_MS = 20;
const PAGE_BYTES = 4096;
const MS_PER_SECOND = 1000;

/** What of the VM's processes is in memory, in MiB (proc(5), statm: resident pages second). */
function residentMib(containerd: PrivateContainerd): number {
	const vmms = containerd.processes().filter(({ commandLine }) => /(^|\/)(qemu-system|cloud-hypervisor)/.test(commandLine));
	if (vmms.length === 0) throw new Error("there is no VM");
	const pages = vmms.map(({ pid }) => Number(readFileSync(`/proc/${pid}/statm`, "latin1").split(" ")[1]));
	return (pages.reduce((sum, one) => sum + one, 0) * PAGE_BYTES) / MIB;
}

/** Fills memory in a container and frees it. @returns seconds until it is back, and how much that was in MiB */
async function reclaimOnce(ctr: Ctr, containerd: PrivateContainerd): Promise<{ readonly seconds: number; readonly mib: number }> {
	const id = ctr.newId("reclaim");
	const inside = async (script: string): Promise<void> => {
		const { code, stderr } = await ctr.exec(id, ["sh", "-ec", script]);
		if (code !== 0) throw new Error(`${script}: exit code ${code}: ${stderr}`);
	};
	await ctr.detach(id, ["sleep", "1000"], { flags: ["--privileged", "--memory-limit", String((FREED_MIB + 200) * MIB)] });
	const before = residentMib(containerd);
	await inside(
		`mkdir /m; mount -t tmpfs -o size=${FREED_MIB + 100}m none /m; dd if=/dev/zero of=/m/f bs=1M count=${FREED_MIB} 2>/dev/null`,
	);
	const full = residentMib(containerd);
	if (full < before + FREED_MIB - KEPT_MIB) throw new Error(`${FREED_MIB} MiB were written, and the VM grew from ${before} to ${full} MiB`);
	await inside("rm /m/f");
	const [, ms] = await timed(async () => {
		const endMs = performance.now() + WAIT_MS;
		while (residentMib(containerd) >= before + KEPT_MIB) {
			if (performance.now() > endMs) throw new Error(`the VM still has ${residentMib(containerd)} MiB after ${WAIT_MS / MS_PER_SECOND} s`);
			await delay(PAUSE_MS);
		}
	});
	const mib = full - residentMib(containerd);
	await ctr.remove(id);
	return { seconds: ms / MS_PER_SECOND, mib };
}

async function run(bench: Bench) {
	const samples = new Samples();
	const { containerd, image } = bench.bed;
	const ctr = new Ctr(containerd, OURS.type, image);
	for (let round = 1; round <= bench.runs(3, 1); round++) {
		const { seconds, mib } = await reclaimOnce(ctr, containerd);
		samples.add("reclaim.seconds", OURS.name, seconds);
		samples.add("reclaim.mib", OURS.name, mib);
		bench.progress(`${mib.toFixed(0)} MiB in ${seconds.toFixed(1)} s`);
		await bench.givenBack();
	}
	return {
		figures: [
			samples.figure("reclaim.seconds", `from the removal of a file of ${FREED_MIB} MiB until the host has its memory again`, "s"),
			samples.figure("reclaim.mib", "how much that was", "MiB", "more"),
		],
	};
}

/** Free page reporting. */
export const reclaim: Scenario = {
	name: "reclaim",
	what: `memory that a guest has freed, all but ${KEPT_MIB} MiB of it, until the host has it again`,
	vm: "ch-qemu",
	run,
};
