/** A guest's boot alone, without containerd and snpd, beside one with the kernel of a distribution. */
import { GuestVm, type GuestKind } from "../../test/support/guest-vm.ts";
import { debianGuest, type DebianGuest } from "../debian-guest.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";

/** The column of the comparison. */
export const DEBIAN = "Debian's kernel";

/** From the VMM's order to boot until the agent has answered, in milliseconds. */
async function bootOnce(kind: GuestKind): Promise<number> {
	const releases: (() => unknown)[] = [];
	try {
		const { booted } = await GuestVm.bootBare({ teardown: (release) => releases.unshift(release) }, [], kind);
		return booted.answeredMs - booted.askedMs;
	} finally {
		for (const release of releases) await release();
	}
}

/** Undefined, and said, when Debian's kernel can't be had. */
async function tryDebian(bench: Bench): Promise<DebianGuest | undefined> {
	try {
		return await debianGuest(bench.bed.containerd.rootDir);
	} catch (error) {
		bench.progress(`skipped beside Debian's kernel: ${error instanceof Error ? error.message : String(error)}`);
		return undefined;
	}
}

async function run(bench: Bench) {
	const samples = new Samples();
	const debian = await tryDebian(bench);
	const kinds = new Map<string, GuestKind>([[OURS.name, {}]]);
	if (debian !== undefined) {
		bench.progress(`beside ${debian.version}`);
		kinds.set(DEBIAN, debian.kind);
	}
	const runs = bench.runs(10, 3);
	// The first turn fills the caches of files: it is not counted.
	for (let turn = 0; turn <= runs; turn++) {
		for (const [name, kind] of kinds) {
			const ms = await bootOnce(kind);
			if (turn > 0) samples.add("boot.ready", name, ms);
		}
		if (turn > 0) bench.progress(`${turn} of ${runs}`);
	}
	return { figures: [samples.figure("boot.ready", "from the VMM's order to boot until the agent answers")] };
}

/** The guest's kernel and agent. */
export const boot: Scenario = {
	name: "boot",
	what: "boot of a guest alone, by turns with the same agent on Debian's cloud kernel and the modules that pods need",
	vm: "ch-qemu",
	bare: true,
	run,
};
