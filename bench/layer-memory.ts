/** What pods of one image take of the node's memory: their VMs, and the image's pages, which they share. */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CaseContext, SLEEP, type TestPod } from "../test/conformance/context.ts";
import { CriBed } from "../test/support/cri/bed.ts";
import { SNP_HANDLER } from "../test/support/cri/containerd-config.ts";
import { buildImage, busyboxMembers } from "../test/support/image.ts";

const MIB = 2 ** 20;
const IMAGE_MIB = 64;
const PODS = 10;

/** Memory of the node, in MiB. */
export type NodeMemory = {
	readonly pods: number;
	/** Proportional set sizes of the VMMs and what belongs to them. */
	readonly vms: number;
	/** The image's disk in the page cache. */
	readonly image: number;
};

/** One pod against ten, each of which has read all of the image. */
export type MemoryResults = { readonly imageMib: number; readonly one: NodeMemory; readonly ten: NodeMemory; readonly tenToOne: number };

const round = (value: number): number => Math.round(value * 10) / 10;

/** Reads through the whole image, which the guest then verifies. */
async function readAll(pod: TestPod, image: string): Promise<void> {
	const container = await pod.run(SLEEP, { image: { image } });
	await container.output("cat /blob > /dev/null");
}

function measure(bed: CriBed, pods: number): NodeMemory {
	const vmms = bed.containerd.processes().filter(({ commandLine }) => /ch-qemu|qemu-system/.test(commandLine));
	const pssKib = vmms.map(({ pid }) => Number(/^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0));
	const folder = join(bed.containerd.rootDir, "images/rootfs");
	const disks = readdirSync(folder).filter((name) => name.startsWith("layers-"));
	const cached = disks.map((name) => Number(execFileSync("fincore", ["--bytes", "--noheadings", "--output", "RES", join(folder, name)])));
	const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
	return { pods, vms: round(sum(pssKib) / 1024), image: round(sum(cached) / MIB) };
}

/** Starts pods of one image, and measures after the first and after the last. */
export async function measureMemory(): Promise<MemoryResults> {
	const bed = await CriBed.start({ version: "2" });
	const context = new CaseContext(bed, SNP_HANDLER, true);
	try {
		const blob = { kind: "file", path: "blob", data: randomBytes(IMAGE_MIB * MIB) } as const;
		const image = await buildImage(bed.containerd.rootDir, {
			name: "docker.io/library/snp-memory:latest",
			members: busyboxMembers(),
			upper: [[blob]],
		});
		await bed.importImage(image);
		await readAll(await context.pod(), image.name);
		const one = measure(bed, 1);
		for (let pod = 2; pod <= PODS; pod++) await readAll(await context.pod(), image.name);
		const ten = measure(bed, PODS);
		return { imageMib: IMAGE_MIB, one, ten, tenToOne: round((ten.vms + ten.image) / (one.vms + one.image)) };
	} finally {
		await context.clean();
		await bed.stop();
	}
}
