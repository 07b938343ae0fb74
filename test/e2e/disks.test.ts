/** Pods of many images: the disks of a VM are not bounded by the slots of one PCI bus, and one image is one disk. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { VmmClient, VmmApiError } from "../../shim/vmm/index.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { SNP_RUNTIME } from "../support/ctr.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { buildImage, busyboxPath, type TestImage } from "../support/image.ts";
import { isDaemon } from "../support/leftovers.ts";
import { eventually } from "../support/retry.ts";
import { readFile } from "node:fs/promises";

const WAIT_MS = 60_000;
const IMAGES = 40;
/** Slots of two PCI segments at most. */
const SLOTS_MAX = 64;
const SLEEP: readonly string[] = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];

/** A small image that differs from the others by one file. */
async function buildNumbered({ containerd, ctr }: Bed, number: number): Promise<TestImage> {
	const image = await buildImage(containerd.rootDir, {
		name: `docker.io/library/snp-numbered-${number}:latest`,
		members: [
			...["bin/", "dev/", "etc/", "proc/", "run/", "sys/", "tmp/"].map((path) => ({ kind: "folder", path }) as const),
			{ kind: "file", path: "bin/busybox", data: await readFile(busyboxPath()), mode: 0o755 },
			...["sh", "sleep", "cat", "ls", "grep"].map((name) => ({ kind: "link", path: `bin/${name}`, target: "busybox" }) as const),
			{ kind: "file", path: "number", data: Buffer.from(`${number}\n`) },
		],
	});
	await ctr.importImage(image);
	return image;
}

/** A pod whose sandbox runs nothing, and what starts containers in it. */
class ManyPod {
	readonly id: string;
	readonly #bed: Bed;

	private constructor(bed: Bed, id: string) {
		this.#bed = bed;
		this.id = id;
	}

	static async start(bed: Bed): Promise<ManyPod> {
		const pod = new ManyPod(bed, bed.ctr.newId("many"));
		await pod.#detach(pod.id, "sandbox", bed.image);
		return pod;
	}

	async add(image: TestImage, id = this.#bed.ctr.newId("one")): Promise<string> {
		await this.#detach(id, "container", image);
		return id;
	}

	async #detach(id: string, kind: string, image: TestImage): Promise<void> {
		const annotations = [`io.kubernetes.cri.container-type=${kind}`, `io.kubernetes.cri.sandbox-id=${this.id}`];
		await this.#bed.ctr.detach(id, SLEEP, { image, flags: annotations.flatMap((annotation) => ["--annotation", annotation]) });
	}
}

const output = async ({ ctr }: Bed, id: string, ...command: string[]): Promise<string> => {
	const { stdout, stderr, code } = await ctr.exec(id, command);
	return code === 0 ? stdout.trim() : `exit code ${code}: ${stderr}`;
};

/** How many disks of images the VM has, as a container of it sees them: the read-only ones, which the scratch disk isn't. */
const disksSeenBy = async (bed: Bed, id: string): Promise<number> =>
	(await output(bed, id, "sh", "-c", "grep -l 1 /sys/block/vd*/ro")).split(/\s+/).length;

async function killDaemon({ containerd }: Bed): Promise<void> {
	const daemon = await eventually("snpd", WAIT_MS, () => containerd.processes().find((info) => isDaemon(info) && info.state !== "Z"));
	process.kill(daemon.pid, "SIGKILL");
}

/** Takes every slot that the pod's VM has left, behind the back of the shim. */
async function fillSlots({ containerd }: Bed): Promise<void> {
	const pods = containerd.seen(join(containerd.stateDir, "p"));
	const client = new VmmClient(join(pods, readdirSync(pods)[0] ?? "", "api.sock"));
	try {
		for (const pci_segment of [0, 1]) {
			for (let n = 0; n < SLOTS_MAX; n++) {
				try {
					await client.addDisk({
						id: `filler${pci_segment}-${n}`,
						path: containerd.configFile,
						readonly: true,
						image_type: "Raw",
						pci_segment,
					});
				} catch (error) {
					if (error instanceof ShimError && error.cause instanceof VmmApiError) break;
					throw error;
				}
			}
		}
	} finally {
		client.close();
	}
}

const cases: Case[] = [
	{
		name: "containers of one image share a disk, which goes with the last of them, also when snpd was killed meanwhile",
		check: async (t, bed) => {
			const { ctr } = bed;
			const [image, other] = [await buildNumbered(bed, 1), await buildNumbered(bed, 2)];
			const pod = await ManyPod.start(bed);
			const watcher = await pod.add(other);
			const first = await pod.add(image);
			const second = await pod.add(image);
			t.equal(await disksSeenBy(bed, watcher), 2, "one for each image");
			await killDaemon(bed);
			await ctr.remove(first);
			t.equal(await output(bed, second, "cat", "/number"), "1");
			t.equal(await disksSeenBy(bed, watcher), 2);
			const third = await pod.add(image);
			t.equal(await disksSeenBy(bed, watcher), 2, "the disk of an earlier snpd is shared, too");
			await ctr.remove(second);
			t.equal(await output(bed, third, "cat", "/number"), "1");
			await killDaemon(bed);
			await ctr.remove(third);
			await eventually("the end of the disk", WAIT_MS, async () => ((await disksSeenBy(bed, watcher)) === 1 ? true : undefined));
			const fourth = await pod.add(image);
			t.equal(await output(bed, fourth, "cat", "/number"), "1");
			t.equal(await disksSeenBy(bed, watcher), 2);
			for (const id of [fourth, watcher, pod.id]) await ctr.remove(id);
		},
	},
	{
		name: "forty containers of forty images run in one VM; one for which no slot is left is refused by name",
		check: async (t, bed) => {
			const { ctr } = bed;
			const pod = await ManyPod.start(bed);
			const ids: string[] = [];
			for (let number = 1; number <= IMAGES; number++) ids.push(await pod.add(await buildNumbered(bed, number)));
			t.equal(await disksSeenBy(bed, ids[0] ?? ""), IMAGES);
			for (const at of [0, IMAGES / 2, IMAGES - 1]) t.equal(await output(bed, ids[at] ?? "", "cat", "/number"), String(at + 1));
			const last = ids.pop() ?? "";
			await ctr.remove(last);
			await eventually("the end of the disk", WAIT_MS, async () =>
				(await disksSeenBy(bed, ids[0] ?? "")) === IMAGES - 1 ? true : undefined,
			);
			await fillSlots(bed);
			const refused = ctr.newId("refused");
			await t.rejects(pod.add(await buildNumbered(bed, IMAGES), refused), {
				message: /has no PCI slot for the disk of container refused-\d+: its 2 PCI segments are full[^]*guest\.pci_segments/,
			});
			await ctr.removeLeftover(refused);
			t.equal(await output(bed, await pod.add(await buildNumbered(bed, 1)), "cat", "/number"), "1", "one that shares needs no slot");
			for (const { id } of (await ctr.tasks()).filter(({ id }) => id !== pod.id)) await ctr.remove(id);
			await ctr.remove(pod.id);
		},
	},
];

// containerd has no part in it: one version of it is enough.
process.env["SNP_E2E_CONTAINERD"] ??= "2";
if ((process.env["SNP_E2E_RUNTIME"] ?? SNP_RUNTIME) === SNP_RUNTIME) await runCases(cases, { withControl: false });
