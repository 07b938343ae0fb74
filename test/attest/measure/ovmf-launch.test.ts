import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { measureOvmf } from "../../../shim/attest/measure/ovmf-launch.ts";
import type { OvmfLauncher } from "../../../shim/attest/measure/processor-state.ts";
import { parseOvmf } from "../../../shim/attest/measure/ovmf.ts";
import { vcpuSignature } from "../../../shim/attest/measure/vcpu-type.ts";
import { ShimError } from "../../../shim/base/errors.ts";
import { fixture } from "../../support/amd-chain.ts";
import { makeOvmf } from "../../support/firmware.ts";
import { randomSource } from "../../support/random.ts";
import { filesOf, OVMF_CASES } from "./cases.ts";
import type { OvmfCase } from "./cases.ts";

const digests = JSON.parse(readFileSync(new URL("ovmf-digests.json", import.meta.url), "utf8")) as string[];

function digestOf(one: OvmfCase): string {
	const { ovmf, kernel, initramfs } = filesOf(one);
	const files = kernel === undefined ? undefined : { kernel, initramfs, commandLine: one.files?.commandLine ?? "" };
	const launch = {
		ovmf: parseOvmf(ovmf, "ovmf"),
		launcher: one.launcher,
		signature: vcpuSignature(one.type),
		features: BigInt(one.features),
		files,
	};
	return measureOvmf(launch, [one.vcpus]).get(one.vcpus)?.toString("hex") ?? "";
}

t.test("digests are those that sev-snp-measure has computed", async (t) => {
	t.equal(digests.length, OVMF_CASES.length);
	for (const [index, one] of OVMF_CASES.entries()) t.equal(digestOf(one), digests[index], JSON.stringify(one));
});

t.test("sev-snp-measure, where it is installed, computes the same now", async (t) => {
	const program = fileURLToPath(new URL("sev-snp-measure.py", import.meta.url));
	const there = spawnSync("python3", ["-c", "import sevsnpmeasure"]).status === 0;
	if (!there) return t.comment("not compared: the Python package sev-snp-measure is not installed (pip install sev-snp-measure)");
	const folder = t.testdir();
	const save = (name: string, bytes: Buffer | undefined): string => {
		if (bytes === undefined) return "";
		writeFileSync(join(folder, name), bytes);
		return join(folder, name);
	};
	const input = OVMF_CASES.map((one, index) => {
		const files = filesOf(one);
		return {
			ovmf: save(`${index}.ovmf`, files.ovmf),
			kernel: save(`${index}.kernel`, files.kernel),
			initramfs: save(`${index}.initramfs`, files.initramfs),
			cmdline: one.files?.commandLine ?? "",
			vcpus: one.vcpus,
			type: one.type,
			features: one.features,
			vmm: one.launcher,
		};
	});
	const { status, stdout, stderr } = spawnSync("python3", [program], { input: JSON.stringify(input), encoding: "utf8" });
	t.equal(status, 0, stderr);
	t.same(stdout.trim().split("\n"), OVMF_CASES.map(digestOf));
});

t.test("published digests of two real images", async (t) => {
	const empty = { kernel: Buffer.alloc(0), initramfs: Buffer.alloc(0), commandLine: "" };
	const verbose = { ...empty, commandLine: "console=ttyS0 loglevel=7" };
	const table: readonly (readonly [image: string, vcpus: number, features: bigint, files: typeof empty | undefined, digest: string])[] = [
		["amdsev", 1, 0x1n, empty, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"],
		["amdsev", 1, 0x21n, empty, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"],
		["amdsev", 1, 0x1n, verbose, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"],
		["amdsev", 1, 0x21n, verbose, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"],
		["amdsev", 1, 0x1n, undefined, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"],
		["amdsev", 1, 0x21n, undefined, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"],
		["amdsev", 4, 0x1n, empty, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"],
		["amdsev", 4, 0x21n, empty, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"],
		["x64", 1, 0x1n, undefined, "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"],
		["x64", 1, 0x21n, undefined, "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"],
	];
	for (const [image, vcpus, features, files, digest] of table) {
		const launch = {
			ovmf: parseOvmf(fixture(`ovmf-${image}-suffix.bin`), image),
			launcher: "qemu" as OvmfLauncher,
			signature: vcpuSignature("EPYC-v4"),
			features,
			files,
		};
		t.equal(measureOvmf(launch, [vcpus]).get(vcpus)?.toString("hex"), digest, `${image}, ${vcpus}, ${features}, ${files?.commandLine}`);
	}
	const launch = {
		ovmf: parseOvmf(fixture("ovmf-x64-suffix.bin"), "x64"),
		launcher: "qemu" as OvmfLauncher,
		signature: 0,
		features: 1n,
		files: empty,
	};
	t.throws(() => measureOvmf(launch, [1]), { reason: "measure.input", message: /no place for its hash/u });
});

t.test("several numbers of processors at once are what each is alone", async (t) => {
	const [one] = OVMF_CASES;
	if (one === undefined) throw new Error("no case");
	const launch = { ovmf: parseOvmf(makeOvmf(one.ovmf), "ovmf"), launcher: one.launcher, signature: 1, features: 1n, files: undefined };
	const all = measureOvmf(launch, [1, 2, 3]);
	for (const count of [1, 2, 3]) t.same(all.get(count), measureOvmf(launch, [count]).get(count));
	t.equal(new Set([...all.values()].map((digest) => digest.toString("hex"))).size, 3);
});

t.test("an image that can't be launched is refused by name", async (t) => {
	const sound = makeOvmf({ seed: 9 });
	const changed = (change: (image: Buffer) => void): Buffer => {
		const image = Buffer.from(sound);
		change(image);
		return image;
	};
	const metadata = sound.length - 2048;
	const wrong: readonly (readonly [Buffer, RegExp])[] = [
		[Buffer.alloc(0), /0 bytes/u],
		[sound.subarray(1), /not a multiple of 4096/u],
		[Buffer.alloc(8192), /no table of GUIDs/u],
		[changed((image) => image.writeUInt16LE(0xffff, image.length - 50)), /damaged table/u],
		[changed((image) => image.writeUInt16LE(3, image.length - 50 - 18)), /damaged table/u],
		[changed((image) => image.writeUInt32LE(0xffff_ffff, image.length - 50 - 22)), /no SEV metadata where it says/u],
		[changed((image) => image.writeUInt32LE(2, metadata + 8)), /version 2/u],
		[changed((image) => image.writeUInt32LE(200, metadata + 12)), /cut SEV metadata/u],
		[changed((image) => image.writeUInt32LE(99, metadata + 16 + 8)), /unknown type 99/u],
		[changed((image) => image.writeUInt32LE(5, metadata + 16)), /not whole pages/u],
		[changed((image) => image.writeUInt32LE(0x7fff_f000, metadata + 20)), /not whole pages/u],
	];
	for (const [image, message] of wrong) t.throws(() => parseOvmf(image, "image"), { reason: "measure.input", message });
	t.throws(() => vcpuSignature("Xeon"), { reason: "measure.input", message: /Xeon is not known/u, remedy: /EPYC-Milan/u });
	t.equal(vcpuSignature("0xa00f11"), vcpuSignature("EPYC-Milan"));
});

t.test("damaged images give errors that say so, and nothing else", async (t) => {
	const random = randomSource(205);
	const sound = makeOvmf({ seed: 10, pages: 2 });
	for (let round = 0; round < 3000; round++) {
		const image = Buffer.from(sound);
		for (let change = 0; change < 3; change++) image[image.length - 1 - random(2200)] = random(256);
		try {
			parseOvmf(image, "image");
		} catch (error) {
			if (!(error instanceof ShimError) || error.reason !== "measure.input") throw error;
		}
	}
	t.pass();
});
