/** Images in layers: what they make together, one disk for all pods, every byte checked by the guest, and what a user of Kubernetes sees of a changed one. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { messageOf } from "../../shim/base/errors.ts";
import { CaseContext, SLEEP, type ContainerOptions, type TestPod } from "../conformance/context.ts";
import { tar, type Member } from "../support/archive.ts";
import { CriBed } from "../support/cri/bed.ts";
import { SNP_HANDLER } from "../support/cri/containerd-config.ts";
import { flip } from "../support/damage.ts";
import { buildImage, busyboxMembers, type ImageRecipe, type TestImage } from "../support/image.ts";
import { Leftovers } from "../support/leftovers.ts";
import { distBinDir, isContainerdVersion, requireBuilt } from "../support/paths.ts";
import { randomBytes, randomSource } from "../support/random.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;
const SEED = 20_261_125;
const MANY_LAYERS = 60;
const MANY_IMAGES = 10;
const SECTOR = 512;
const FLIPPED = 0x10;
const FIRST_PARTITION = 2048 * SECTOR;
const DESCRIPTION = 32_768;
/** Header and entries of a partition table. */
const TABLE_BYTES = 33 * SECTOR;
/** Reads every file, and every folder to its end. */
const READ_ALL =
	"set -eo pipefail; find / -xdev -type f > /dev/null; cat /bin/busybox /etc/passwd /etc/group /data/noise /more/noise | sha256sum";

const file = (path: string, text: string): Member => ({ kind: "file", path, data: Buffer.from(text) });
const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

/** What a disk of layers has, topmost first. */
interface DiskLayer {
	readonly diffId: string;
	readonly rootHash: string;
	readonly dataBytes: number;
	readonly treeBytes: number;
}

/** What the tests of a disk of layers work with. */
class Place {
	readonly bed: CriBed;

	constructor(bed: CriBed) {
		this.bed = bed;
	}

	async image(recipe: Omit<ImageRecipe, "compression">): Promise<TestImage> {
		const image = await buildImage(this.bed.containerd.rootDir, { ...recipe, compression: "gzip" });
		await this.bed.importImage(image);
		return image;
	}

	/** The disks of layers in the shim's cache, the newest first. */
	disks(): string[] {
		const folder = join(this.bed.containerd.rootDir, "images/rootfs");
		const paths = readdirSync(folder).map((name) => join(folder, name));
		const disks = paths.filter((path) => path.includes("/layers-"));
		return disks.sort((a, b) => statSync(b).birthtimeMs - statSync(a).birthtimeMs);
	}
}

/** The description that the host keeps on a disk (docs/contracts.md, "Layers"). */
function layersOf(disk: string): readonly DiskLayer[] {
	const bytes = readFileSync(disk);
	const length = bytes.readUInt32LE(DESCRIPTION);
	return (JSON.parse(bytes.toString("utf8", DESCRIPTION + 4, DESCRIPTION + 4 + length)) as { layers: DiskLayer[] }).layers;
}

/** A container's termination message as kubelet has it mounted. */
function terminationMessage(pod: TestPod, name: string): { readonly path: string; readonly options: ContainerOptions } {
	const folder = join(pod.dir, "containers", name);
	mkdirSync(folder, { recursive: true });
	const path = join(folder, "0a1b2c3d");
	writeFileSync(path, "", { mode: 0o666 });
	return { path, options: { name, mounts: [{ container_path: "/dev/termination-log", host_path: path }] } };
}

async function manyLayers(t: Test, context: CaseContext, place: Place): Promise<void> {
	const upper = Array.from({ length: MANY_LAYERS - 1 }, (_, index) => [
		{ kind: "folder", path: "made/" } as const,
		file(`made/layer${index + 1}`, "x"),
		file("made/top", String(index + 1)),
		file(`made/.wh.layer${index}`, ""),
	]);
	const { name } = await place.image({ name: "docker.io/library/snp-many-layers:latest", members: busyboxMembers(), upper });
	const image = { image: { image: name } };
	const pod = await context.pod();
	const first = await pod.output("ls /made; cat /made/top; echo new > /made/top; cat /made/top", image);
	t.equal(first, `layer${MANY_LAYERS - 1}\ntop\n${MANY_LAYERS - 1}new`);
	const [disk = ""] = place.disks();
	t.equal(layersOf(disk).length, MANY_LAYERS);
	const made = statSync(disk).ino;
	t.equal(await pod.output("cat /made/top", image), String(MANY_LAYERS - 1));
	t.equal(statSync(disk).ino, made, "its disk is made once");
	t.notMatch(await context.bed.containerd.logs(), /layers are flattened/);
}

/** An image of three layers that have no file in common: READ_ALL reads all of each. */
async function threeLayers(place: Place): Promise<ContainerOptions> {
	const random = randomSource(SEED);
	const noise = (folder: string, bytes: number): Member[] => [
		{ kind: "folder", path: `${folder}/` },
		{ kind: "file", path: `${folder}/noise`, data: randomBytes(random, bytes) },
	];
	const upper = [noise("data", 600_000), noise("more", 300_000)];
	const { name } = await place.image({ name: "docker.io/library/snp-changed:latest", members: busyboxMembers(), upper });
	return { image: { image: name } };
}

/** Random places, of every kind, and what has to be named when the byte there is changed. */
function places(disk: string): { readonly at: number; readonly what: string; readonly named: readonly string[] }[] {
	const random = randomSource(SEED + 1);
	const table = (start: number, what: string) =>
		Array.from({ length: 2 }, () => ({ at: start + random(TABLE_BYTES), what, named: ["partition table"] }));
	let start = FIRST_PARTITION;
	const ofLayers = layersOf(disk).flatMap(({ diffId, rootHash, dataBytes, treeBytes }, index) => {
		const named = [rootHash, diffId];
		const found = [
			{ at: start + random(dataBytes), what: `data of layer ${index + 1}`, named },
			{ at: start + random(dataBytes), what: `data of layer ${index + 1}`, named },
			{ at: start + dataBytes + random(treeBytes), what: `hash tree of layer ${index + 1}`, named },
		];
		start += dataBytes + treeBytes;
		return found;
	});
	return [...ofLayers, ...table(SECTOR, "partition table"), ...table(statSync(disk).size - TABLE_BYTES, "backup of the partition table")];
}

/** Runs a container that reads everything: what a user is told of its failure, by its error or its termination message; empty when it succeeds. */
async function failureOf(pod: TestPod, name: string, image: ContainerOptions): Promise<string> {
	const { path, options } = terminationMessage(pod, name);
	const container = await pod.create(["sh", "-c", READ_ALL], { security: {}, ...options, ...image });
	try {
		await container.start();
		const { exit_code } = await container.exited();
		return exit_code === 0 ? "" : `exit code ${exit_code}: ${readFileSync(path, "utf8")}`;
	} catch (error) {
		return messageOf(error);
	} finally {
		// The next one opens the layers anew.
		await container.remove();
	}
}

async function changedBytes(t: Test, context: CaseContext, place: Place): Promise<void> {
	const image = await threeLayers(place);
	const pod = await context.pod();
	t.equal(await failureOf(pod, "sound", image), "");
	const [disk = ""] = place.disks();
	for (const [index, { at, what, named }] of places(disk).entries()) {
		flip(disk, at, FLIPPED);
		const failure = await failureOf(pod, `changed${index}`, image);
		for (const text of named) t.ok(failure.includes(text), `byte ${at} (${what}): ${failure}`);
		// The node has looked at its file, and gives it to nobody any more.
		await eventually("the removal of the damaged disk", WAIT_MS, () => !existsSync(disk) || undefined);
		t.equal(await failureOf(pod, `sound${index}`, image), "", "the pod's next container gets a sound disk");
	}
	t.match(await context.bed.containerd.logs(), /damaged images were removed/);
}

async function changedWhileRunning(t: Test, context: CaseContext, place: Place): Promise<void> {
	const image = await threeLayers(place);
	const pod = await context.pod();
	const { path, options } = terminationMessage(pod, "running");
	const script = "until [ -e /go ]; do sleep 0.1; done; cat /data/noise > /dev/null || exit 3";
	const container = await pod.run(["sh", "-c", script], { ...options, ...image });
	const [disk = ""] = place.disks();
	const [top, data] = layersOf(disk);
	if (top === undefined || data === undefined) throw new Error("there are three layers");
	flip(disk, FIRST_PARTITION + top.dataBytes + top.treeBytes + Math.floor(data.dataBytes / 2), FLIPPED);
	t.not((await container.sh("cat /data/noise > /dev/null")).exitCode, 0, "the changed block is not read");
	await t.rejects(container.exec(["/none"]), { message: new RegExp(data.diffId) }, "what fails later names the layer");
	await container.output("touch /go");
	t.equal((await container.exited()).exit_code, 3);
	const message = readFileSync(path, "utf8");
	t.match(message, new RegExp(`layer 2 of .*${data.rootHash}.*${data.diffId}.* does not verify`), "kubectl describe pod shows it");
	const other = await pod.result(["sh", "-c", "exit 5"], terminationMessage(pod, "other").options);
	t.equal(other.status.exit_code, 5);
	t.equal(readFileSync(terminationMessage(pod, "third").path, "utf8"), "");
}

async function elsewhere(t: Test, context: CaseContext, place: Place): Promise<void> {
	const archive = tar(busyboxMembers());
	const here = join(context.bed.containerd.rootDir, "here");
	mkdirSync(join(here, "staging"), { recursive: true });
	writeFileSync(join(here, "layer.tar"), archive);
	execFileSync("gzip", ["--keep", join(here, "layer.tar")]);
	execFileSync("zstd", ["--quiet", "--keep", join(here, "layer.tar")]);
	const program = join(distBinDir, "snp-layers");
	const order = ["convert", "--diff-id", `sha256:${sha256(archive)}`];
	execFileSync(program, [
		...order,
		"--input",
		join(here, "layer.tar.gz"),
		"--output",
		join(here, "layer"),
		"--staging",
		join(here, "staging"),
	]);
	const members: Member[] = [
		...busyboxMembers(),
		{ kind: "file", path: "bin/snp-layers", data: readFileSync(program), mode: 0o755 },
		{ kind: "file", path: "layer.zst", data: readFileSync(join(here, "layer.tar.zst")) },
	];
	const { name } = await place.image({ name: "docker.io/library/snp-converter:latest", members });
	const pod = await context.pod();
	const script = `date -s 2001-02-03 > /dev/null && touch /layer.zst && mkdir -p /far/away && snp-layers ${order.join(" ")} --input /layer.zst \
		--output /far/layer --staging /far/away > /dev/null && date +%Y && sha256sum < /far/layer`;
	const told = await pod.output(script, {
		image: { image: name },
		security: { capabilities: { add_capabilities: ["SYS_TIME"] } },
	});
	t.equal(told, `2001\n${sha256(readFileSync(join(here, "layer")))}  -`);
}

async function manyImages(t: Test, context: CaseContext, place: Place): Promise<void> {
	const images: TestImage[] = [];
	for (let number = 0; number < MANY_IMAGES; number++) {
		const upper = [[file("number", String(number))]];
		images.push(await place.image({ name: `docker.io/library/snp-of-many-${number}:latest`, members: busyboxMembers(), upper }));
	}
	const pods = [await context.pod(), await context.pod()];
	const containers = await Promise.all(
		pods.map(async (pod) => {
			const started = [];
			for (const { name } of images) started.push(await pod.run(SLEEP, { image: { image: name } }));
			return started;
		}),
	);
	for (const [index, container] of containers.flat().entries())
		t.equal(await container.output("cat /number"), String(index % MANY_IMAGES), `container ${index} has its image`);
}

const cases: Readonly<Record<string, (t: Test, context: CaseContext, place: Place) => Promise<void>>> = {
	[`a container of ${MANY_LAYERS} layers sees what they make together, and its disk is made once`]: manyLayers,
	"one changed byte on the host: the container does not run or the read fails, the layer is named, and the node makes the disk again":
		changedBytes,
	"a byte that is changed under a running container: its exec and its termination message name the layer": changedWhileRunning,
	"another machine, in another year, from another compression, makes the same layer": elsewhere,
	[`two pods with ${MANY_IMAGES} containers of different images each`]: manyImages,
};

requireBuilt();
const only = process.env["SNP_E2E_CASE"] ?? "";
const versions = (process.env["SNP_E2E_CONTAINERD"] ?? "2").split(",").filter(isContainerdVersion);
for (const version of versions) {
	const bed = await CriBed.start({ version });
	t.teardown(async () => await bed.stop());
	const leftovers = await Leftovers.watch(bed.containerd);
	const place = new Place(bed);
	for (const [name, check] of Object.entries(cases).filter(([name]) => name.includes(only))) {
		await t.test(`containerd ${version}: ${name}`, async (t) => {
			const context = new CaseContext(bed, SNP_HANDLER, true);
			try {
				await check(t, context, place);
			} catch (error) {
				t.comment(await bed.containerd.logs());
				throw error;
			} finally {
				await context.clean();
			}
			t.strictSame(await leftovers.settle(), [], "nothing is left behind");
		});
	}
}
