/** What a shim costs a node: processor time of a pod's life, and the memory that its processes keep. */
import { readFileSync } from "node:fs";
import { cgroupPath, HostCgroup } from "../shim/host/cgroups.ts";
import { CaseContext, SLEEP } from "../test/conformance/context.ts";
import type { CriBed } from "../test/support/cri/bed.ts";
import { RUNC_HANDLER, SNP_HANDLER } from "../test/support/cri/containerd-config.ts";

/** The processes of a shim that live as long as its pods, or longer; no pod's own are among them. */
const SHIM_PROCESSES: Readonly<Record<string, RegExp>> = {
	[SNP_HANDLER]: /\/snpd --state-dir |\/containerd-shim-snp-v2 /,
	[RUNC_HANDLER]: /\/containerd-shim-runc-v2 /,
};

const NANOS_PER_MS = 1e6;
/** USER_HZ: ticks of /proc (proc(5)). */
const TICKS_PER_MS = 0.1;
const KIB_PER_MIB = 1024;

/** The numbers of pods at which memory is looked at. */
export const POD_COUNTS: readonly number[] = [10, 50];

/**
 * Counts the processor time of everything that containerd starts and that no pod's group takes: shims, what they run, the daemon, CNI's plugins. containerd's
 * own is left out.
 */
export class CpuCount {
	readonly #group: HostCgroup;
	readonly #daemon: number;

	private constructor(group: HostCgroup, daemon: number) {
		this.#group = group;
		this.#daemon = daemon;
	}

	/** Begins to count. The group goes with containerd's others when the bed stops. */
	static async begin({ containerd }: CriBed): Promise<CpuCount> {
		const daemon = containerd.processes().find((info) => containerd.isContainerd(info));
		if (daemon === undefined) throw new Error("containerd is not running");
		const group = new HostCgroup(cgroupPath(`/${containerd.cgroupMark}/shims`));
		for (const pid of [containerd.init.pid, daemon.pid]) await group.join(pid);
		return new CpuCount(group, daemon.pid);
	}

	/** Milliseconds so far. */
	read(): number {
		const stat = readFileSync(`/proc/${this.#daemon}/stat`, "latin1");
		const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
		const ownMs = (Number(fields[11]) + Number(fields[12])) / TICKS_PER_MS;
		return this.#group.usage().cpuNanos / NANOS_PER_MS - ownMs;
	}
}

/** The memory of a runtime's shims in MiB: each page counts for each process by its share of it (PSS, proc(5)). */
function memoryMib(bed: CriBed, handler: string): number {
	const own = SHIM_PROCESSES[handler];
	const kib = bed.containerd
		.processes()
		.filter((info) => own?.test(info.commandLine) === true)
		.map(({ pid }) => Number(/^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "latin1"))?.[1] ?? 0));
	return kib.reduce((sum, one) => sum + one, 0) / KIB_PER_MIB;
}

/** Starts pods of one container each, and removes them. @returns MiB per pod at each of `POD_COUNTS` */
export async function measureMemory(bed: CriBed, handler: string): Promise<number[]> {
	const context = new CaseContext(bed, handler, handler === SNP_HANDLER);
	try {
		const perPod: number[] = [];
		for (let pods = 1; pods <= Math.max(...POD_COUNTS); pods++) {
			await (await context.pod()).run(SLEEP);
			if (POD_COUNTS.includes(pods)) perPod.push(memoryMib(bed, handler) / pods);
		}
		return perPod;
	} finally {
		await context.clean();
	}
}
