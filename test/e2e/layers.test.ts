/** Images in layers, one disk for all of them; a guest whose agent takes no layers gets one file system instead. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import type { Member } from "../support/archive.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { buildImage, busyboxMembers, type TestImage } from "../support/image.ts";

const LAYERS = 60;
const file = (path: string, text: string): Member => ({ kind: "file", path, data: Buffer.from(text) });

/** Busybox, and above it layers that each replace a file and delete one of the layer below. */
async function build({ containerd, ctr }: Bed, name: string, layers: number): Promise<TestImage> {
	const upper = Array.from({ length: layers - 1 }, (_, index) => [
		{ kind: "folder", path: "made/" } as const,
		file(`made/layer${index + 1}`, "x"),
		file("made/top", String(index + 1)),
		file(`made/.wh.layer${index}`, ""),
	]);
	const image = await buildImage(containerd.rootDir, { name, members: busyboxMembers(), upper, compression: "gzip" });
	await ctr.importImage(image);
	return image;
}

/** The disks of layers in the shim's cache. */
function disks({ containerd }: Bed): string[] {
	const folder = join(containerd.rootDir, "images/rootfs");
	return readdirSync(folder)
		.filter((name) => name.startsWith("layers-"))
		.map((name) => join(folder, name));
}

const manyLayers: Case = {
	name: `a container of ${LAYERS} layers sees what they make together, and its disk is made once`,
	vmOnly: true,
	check: async (t: Test, bed) => {
		const image = await build(bed, "docker.io/library/snp-many-layers:latest", LAYERS);
		const command = ["sh", "-c", "ls /made; cat /made/top; echo new > /made/top; cat /made/top; grep -c dm- /proc/self/mountinfo || true"];
		const first = await bed.ctr.run(bed.ctr.newId("layers"), command, { image });
		t.match(first, { code: 0, stdout: `layer${LAYERS - 1}\ntop\n${LAYERS - 1}new\n` }, first.stderr);
		const [disk] = disks(bed);
		const made = statSync(disk ?? "").ino;
		t.match(await bed.ctr.run(bed.ctr.newId("layers"), ["cat", "/made/top"], { image }), { code: 0, stdout: String(LAYERS - 1) });
		t.equal(statSync(disk ?? "").ino, made);
		t.notMatch(await bed.containerd.logs(), /layers are flattened/);
	},
};

await runCases([manyLayers], { withControl: false, config: { layers: true } });
