import { createPrivateKey } from "node:crypto";
import { readFileSync } from "node:fs";
import t from "tap";
import { amdKeyDigest } from "../../../shim/attest/amd-ecdsa.ts";
import { crc32 } from "../../../shim/attest/measure/crc32.ts";
import { guestPolicyOf, measureIgvmFile, measureIgvmOnKvm } from "../../../shim/attest/measure/igvm-launch.ts";
import { checkIgvmIdBlock, signIdBlock } from "../../../shim/attest/measure/id-block.ts";
import { addIdBlock } from "../../../shim/attest/measure/igvm-write.ts";
import { parseIgvm } from "../../../shim/attest/measure/igvm.ts";
import { measureOvmf } from "../../../shim/attest/measure/ovmf-launch.ts";
import { parseOvmf } from "../../../shim/attest/measure/ovmf.ts";
import { kvmProcessorFrom, ovmfProcessor } from "../../../shim/attest/measure/processor-state.ts";
import { readVmsa, vmsaPage } from "../../../shim/attest/measure/vmsa.ts";
import { vcpuSignature } from "../../../shim/attest/measure/vcpu-type.ts";
import { ShimError } from "../../../shim/base/errors.ts";
import { fixture } from "../../support/amd-chain.ts";
import {
	igvmArea,
	igvmInsert,
	igvmPage,
	igvmParameter,
	igvmPlatform,
	igvmPolicy,
	igvmProcessor,
	makeIgvm,
	makeOvmf,
	PAGE,
} from "../../support/firmware.ts";
import type { IgvmHeader, Section } from "../../support/firmware.ts";
import { randomBytes, randomSource } from "../../support/random.ts";
import { directives, IGVM_FILES, randomVmsa } from "./igvm-cases.ts";

const random = randomSource(77);
const vmsa = randomVmsa(random);
const kernel = randomBytes(random, 5000);
const files = { kernel, initramfs: randomBytes(random, 100), commandLine: " console=hvc0 " };
const read = (...headers: readonly IgvmHeader[]) => parseIgvm(makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...headers]), "file");
const onKvm = (headers: readonly IgvmHeader[], input: typeof files | undefined, count = 1): string =>
	measureIgvmOnKvm(read(...headers), input, [count])
		.get(count)
		?.toString("hex") ?? "";

t.test("the file's own digest is what the crate igvm 0.5.0 has computed (measurement::generate_snp_measurement)", async (t) => {
	const digests = JSON.parse(readFileSync(new URL("igvm-digests.json", import.meta.url), "utf8")) as string[];
	t.equal(digests.length, IGVM_FILES.length);
	for (const [index, { name, file }] of IGVM_FILES.entries())
		t.equal(measureIgvmFile(parseIgvm(file, name)).toString("hex"), digests[index], name);
	t.equal(crc32(Buffer.from("12345"), Buffer.from("6789")), 0xcbf43926, "the check value of CRC-32");
});

t.test(
	"under Cloud Hypervisor: the same pages as QEMU gives for an OVMF have the digest that sev-snp-measure confirms for it",
	async (t) => {
		const sections: readonly Section[] = [
			[0x1000, 0x3000, 1],
			[0x5000, 0x1000, 2],
			[0x6000, 0x1000, 3],
			[0x8000, 0x2000, 1],
			[0x10000, 0x1000, 0x10],
		];
		const image = makeOvmf({ seed: 30, sections, hashTable: 0x10c00 });
		const ovmf = parseOvmf(image, "ovmf");
		const signature = vcpuSignature("EPYC-Milan");
		const trimmed = { ...files, commandLine: files.commandLine.trim() };
		const first = vmsaPage(ovmfProcessor("qemu", 0, ovmf.resetAddress, signature, 1n));
		const second = vmsaPage(ovmfProcessor("qemu", 1, ovmf.resetAddress, signature, 1n));
		const pages: IgvmHeader[] = [
			...Array.from({ length: image.length / PAGE }, (_, index) =>
				igvmPage(ovmf.address + index * PAGE, image.subarray(index * PAGE, (index + 1) * PAGE)),
			),
			...[0x1000, 0x2000, 0x3000].map((address) => igvmPage(address)),
			igvmPage(0x5000, undefined, { type: 1 }),
			igvmPage(0x6000, Buffer.alloc(PAGE), { type: 2 }),
			igvmPage(0x8000),
			igvmPage(0x9000),
		];
		const processors = [igvmProcessor(0, first), igvmProcessor(1, second)];
		for (const count of [1, 2]) {
			const expected = measureOvmf({ ovmf, launcher: "qemu", signature, features: 1n, files: trimmed }, [count])
				.get(count)
				?.toString("hex");
			t.equal(onKvm([...pages, ...processors], files, count), expected, "the page of hashes comes last when the file has none");
			t.equal(onKvm([...pages, igvmPage(0x10000), ...processors], files, count), expected, "and in its place when it has one");
			t.equal(onKvm([...pages, igvmPage(0x10000, Buffer.alloc(PAGE)), ...processors], files, count), expected);
			t.equal(
				onKvm([...pages, igvmPage(0x10000, undefined, { flags: 2 }), ...processors], files, count),
				expected,
				"also an unmeasured one",
			);
		}
		const without = measureOvmf(
			{
				ovmf: parseOvmf(makeOvmf({ seed: 30, sections: sections.slice(0, 4), hashTable: 0x10c00 }), "ovmf"),
				launcher: "qemu",
				signature,
				features: 1n,
				files: undefined,
			},
			[1],
		);
		const plain = makeOvmf({ seed: 30, sections: sections.slice(0, 4), hashTable: 0x10c00 });
		const plainPages = pages.map((page, index) =>
			index < plain.length / PAGE ? igvmPage(ovmf.address + index * PAGE, plain.subarray(index * PAGE, (index + 1) * PAGE)) : page,
		);
		t.equal(onKvm([...plainPages, ...processors], undefined), without.get(1)?.toString("hex"));
	},
);

t.test("an ID block is put into a file without changing anything else", async (t) => {
	for (const version of [1, 2] as const) {
		const file = makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(50)], version);
		const before = parseIgvm(file, "before");
		const measurement = measureIgvmOnKvm(before, files, [2]).get(2) ?? Buffer.alloc(48);
		const fields = { measurement, familyId: Buffer.alloc(16, 1), imageId: Buffer.alloc(16, 2), guestSvn: 9, guestPolicy: 0x30000n };
		const [idKey, authorKey] = [createPrivateKey(fixture("id.test-key.pem")), createPrivateKey(fixture("author.test-key.pem"))];
		for (const author of [undefined, authorKey]) {
			const whole = addIdBlock(file, signIdBlock(fields, idKey, author), "file");
			const after = parseIgvm(whole, "after");
			t.same(after.directives.slice(0, -1), before.directives);
			t.same(measureIgvmOnKvm(after, files, [2]).get(2), measurement);
			const directive = after.directives.at(-1);
			if (directive?.kind !== "id-block") throw new Error("the ID block is not the last directive");
			t.match(directive.block, {
				guestSvn: 9,
				version: 1,
				familyId: fields.familyId,
				imageId: fields.imageId,
				authorKeyEnabled: author !== undefined,
			});
			t.match(checkIgvmIdBlock(directive.block, { measurement, guestPolicy: 0x30000n }), {
				problem: undefined,
				idKeyDigest: amdKeyDigest(idKey),
				authorKeyDigest: author === undefined ? undefined : amdKeyDigest(author),
			});
			t.match(checkIgvmIdBlock(directive.block, { measurement, guestPolicy: 0xb0000n }).problem, /did not sign/u);
			t.match(
				checkIgvmIdBlock(directive.block, { measurement: Buffer.alloc(48), guestPolicy: 0x30000n }).problem,
				/it is for the measurement/u,
			);
			t.throws(() => addIdBlock(whole, signIdBlock(fields, idKey), "file"), {
				reason: "measure.input",
				message: /has an ID block already/u,
			});
		}
	}
});

t.test("each input is measured", async (t) => {
	const base = [igvmPage(0xffc0_0000, kernel.subarray(0, PAGE)), igvmPage(0x10000, randomBytes(random, PAGE)), igvmProcessor(0, vmsa)];
	const seen = new Set<string>();
	const fresh = (what: string, digest: string): void => {
		t.notOk(seen.has(digest), what);
		seen.add(digest);
	};
	fresh("all", onKvm(base, files));
	fresh("no kernel", onKvm(base, undefined));
	fresh("another kernel", onKvm(base, { ...files, kernel: Buffer.concat([kernel, Buffer.from([0])]) }));
	fresh("another initramfs", onKvm(base, { ...files, initramfs: Buffer.alloc(0) }));
	fresh("another command line", onKvm(base, { ...files, commandLine: "console=hvc1" }));
	fresh("two processors", onKvm(base, files, 2));
	fresh("another order", onKvm([...base].toReversed(), files));
	fresh("a page less", onKvm(base.slice(1), files));
	fresh("another address", onKvm([igvmPage(0xffc0_1000, kernel.subarray(0, PAGE)), ...base.slice(1)], files));
	const other = Buffer.from(vmsa);
	other.writeUInt8(other.readUInt8(0x178) ^ 1, 0x178);
	fresh("another instruction pointer", onKvm([...base.slice(0, 2), igvmProcessor(0, other)], files));
	t.equal(onKvm(base, { ...files, commandLine: "console=hvc0" }), onKvm(base, files), "the command line is trimmed");
	const elsewhere = [igvmPage(0x20000, vmsa), ...base];
	t.not(
		onKvm(elsewhere, files),
		onKvm([igvmPage(0x20000, vmsa, { flags: 2 }), ...base], files),
		"unmeasured contents are another page type",
	);
	t.equal(
		onKvm([igvmPage(0x20000, kernel.subarray(0, PAGE), { flags: 2 }), ...base], files),
		onKvm([igvmPage(0x20000, vmsa, { flags: 2 }), ...base], files),
	);
	t.equal(
		onKvm([igvmArea(1, PAGE), igvmParameter(0x307, 1), igvmInsert(1, 0x20000), ...base], files),
		onKvm([igvmPage(0x20000, vmsa, { flags: 2 }), ...base], files),
		"a parameter area is an unmeasured page",
	);
});

t.test("KVM makes VMSAs from the registers that it takes over", async (t) => {
	const { segments, registers } = readVmsa(vmsaPage(kvmProcessorFrom(vmsa, 1n)));
	const given = readVmsa(vmsa);
	t.equal(registers.efer, given.registers.efer | 0x1000n);
	t.equal(registers.cr4, given.registers.cr4 | 0x40n);
	t.equal(registers.cr0, given.registers.cr0 & ~0x6000_0000n);
	t.equal(registers.rflags, given.registers.rflags | 2n);
	for (const name of ["rip", "rsp", "rax", "r15", "cr3"] as const) t.equal(registers[name], given.registers[name], name);
	t.same(
		[registers.dr6, registers.dr7, registers.xcr0, registers.pat],
		[0xffff_0ff0n, 0x400n, 1n, 0x0007_0406_0007_0406n],
		"as KVM resets them",
	);
	t.equal(segments.cs.base, given.segments.cs.base);
	t.equal(segments.gdtr.limit, given.segments.gdtr.limit);
	t.same([segments.gdtr.selector, segments.gdtr.attributes], [0, 0]);
	const wide = Buffer.from(vmsa);
	wide.writeUInt32LE(0x10000, 0x64);
	t.throws(() => kvmProcessorFrom(wide, 1n), { reason: "measure.input", message: /0x10000 in gdtr/u });
});

t.test("the guest policy is the file's, or Cloud Hypervisor's own", async (t) => {
	t.equal(guestPolicyOf(parseIgvm(makeIgvm([igvmPlatform(), igvmPolicy(0xb0000n), igvmProcessor(0, vmsa)]), "file")), 0xb0000n);
	t.equal(guestPolicyOf(parseIgvm(makeIgvm([igvmPlatform(), igvmProcessor(0, vmsa)]), "file")), 0x30000n);
	t.equal(guestPolicyOf(parseIgvm(makeIgvm([igvmPlatform(), igvmPolicy(0n), igvmProcessor(0, vmsa)]), "file")), 0x30000n);
});

t.test("what Cloud Hypervisor can't launch is refused", async (t) => {
	const start = igvmProcessor(0, vmsa);
	const refused: readonly (readonly [readonly IgvmHeader[], typeof files | undefined, RegExp])[] = [
		[[igvmPage(0x1000)], undefined, /no VMSA of the first processor/u],
		[[igvmPage(0x1000), igvmPage(0x1000), start], undefined, /0x1000 is given twice/u],
		[[igvmPage(0x1000, undefined, { type: 3 }), start], undefined, /kind that Cloud Hypervisor does not take/u],
		[[igvmPage(0x1000, undefined, { flags: 4 }), start], undefined, /kind that Cloud Hypervisor does not take/u],
		[[igvmParameter(0x30a, 0), start], undefined, /MMIO ranges/u],
		[[{ type: 0x30d, body: Buffer.alloc(16) }, start], undefined, /error range/u],
		[[{ type: 0x3f0, body: Buffer.alloc(16) }, start], undefined, /0x3f0/u],
		[[igvmArea(0, 2 * PAGE), igvmInsert(0, 0xf000), start], files, /where the kernel's hashes belong/u],
		[[igvmPage(0x10000, Buffer.alloc(PAGE), { type: 2 }), start], files, /is the CPUID page/u],
		[[start], { ...files, kernel: Buffer.alloc(4095) }, /no kernel/u],
		[[start], { ...files, commandLine: "a\nb" }, /printable ASCII/u],
		[[start], { ...files, commandLine: "x".repeat(0x10000) }, /65535 at most/u],
	];
	for (const [headers, input, message] of refused)
		t.throws(() => onKvm(headers, input), { reason: "measure.input", message }, String(message));
});

t.test("a malformed file is refused by name", async (t) => {
	const sound = makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(40)]);
	const resealed = (change: (file: Buffer) => void): Buffer => {
		const file = Buffer.from(sound);
		change(file);
		file.writeUInt32LE(0, 20);
		file.writeUInt32LE(crc32(file.subarray(0, 24), file.subarray(24, 24 + file.readUInt32LE(12))), 20);
		return file;
	};
	const wrong: readonly (readonly [Buffer, RegExp])[] = [
		[Buffer.alloc(0), /no IGVM file/u],
		[Buffer.from("IGVM"), /no IGVM file/u],
		[sound.subarray(0, sound.length - 1), /says that it has/u],
		[resealed((file) => file.writeUInt32LE(3, 4)), /format version is 3/u],
		[resealed((file) => file.writeUInt32LE(12, 8)), /headers lead out/u],
		[Buffer.from(sound).fill(1, 40, 41), /checksum is wrong/u],
		[makeIgvm([igvmPlatform(3), igvmProcessor(0, vmsa)]), /no platform SEV-SNP/u],
		[makeIgvm([igvmPlatform(), igvmPage(0x1001)]), /is not that of a page/u],
		[makeIgvm([igvmPlatform(), igvmPage(0x1000, undefined, { type: 9 })]), /unknown type 9/u],
		[makeIgvm([igvmPlatform(), igvmPage(0, undefined, { flags: 1 })]), /pages of 2 MiB/u],
		[makeIgvm([igvmPlatform(), igvmProcessor(0, vmsa), igvmPolicy(1n)]), /behind those that must follow it/u],
		[makeIgvm([igvmPlatform(), { type: 0x302, body: Buffer.alloc(16) }]), /has 16 bytes, not 24/u],
		[makeIgvm([igvmPlatform(), igvmInsert(0, 0)]), /without having been declared/u],
		[makeIgvm([igvmPlatform(), igvmArea(0, PAGE), igvmArea(0, PAGE)]), /declared twice/u],
		[makeIgvm([igvmPlatform(), igvmArea(0, PAGE), igvmInsert(0, 0), igvmInsert(0, PAGE)]), /inserted twice/u],
		[makeIgvm([igvmPlatform(), igvmArea(0, 100)]), /parameter area of 100 bytes/u],
		[
			makeIgvm([igvmPlatform(), { type: 0x304, body: Buffer.concat([Buffer.alloc(8), Buffer.from([1, 0, 0, 0]), Buffer.alloc(8)]) }]),
			/VMSA has no data/u,
		],
	];
	for (const [file, message] of wrong) t.throws(() => parseIgvm(file, "file"), { reason: "measure.input", message }, String(message));
	const far = makeIgvm([igvmPlatform(), igvmPage(0x1000, vmsa)]);
	t.throws(() => parseIgvm(far.subarray(0, far.length - 100), "file"), { reason: "measure.input", message: /says that it has/u });
});

t.test("damaged files give errors that say so, and nothing else", async (t) => {
	const random = randomSource(41);
	const sound = makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(41)]);
	const headers = 24 + sound.readUInt32LE(12);
	for (let round = 0; round < 1000; round++) {
		const file = Buffer.from(sound.subarray(0, round % 5 === 0 ? random(sound.length) : sound.length));
		for (let change = 0; change <= random(3) && file.length > 0; change++) file[random(Math.min(file.length, headers))] = random(256);
		if (round % 2 === 0 && file.length > headers) {
			file.writeUInt32LE(0, 20);
			const size = file.readUInt32LE(12);
			file.writeUInt32LE(crc32(file.subarray(0, 24), file.subarray(24, 24 + size)), 20);
		}
		try {
			const igvm = parseIgvm(file, "file");
			measureIgvmFile(igvm);
			measureIgvmOnKvm(igvm, undefined, [1]);
		} catch (error) {
			if (!(error instanceof ShimError) || error.reason !== "measure.input") throw error;
		}
	}
	t.pass();
});
