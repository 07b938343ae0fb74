/** What `snpctl measure` is called with: options, and from them the launch that is measured. */

import { createHash, createPrivateKey, createPublicKey } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { parseArgs } from "node:util";

import { recognise } from "../attest/foreign.ts";
import { guestPolicyOf, measureIgvmFile, measureIgvmOnKvm } from "../attest/measure/igvm-launch.ts";
import { parseIgvm } from "../attest/measure/igvm.ts";
import type { Igvm } from "../attest/measure/igvm.ts";
import type { KernelFiles } from "../attest/measure/kernel-hashes.ts";
import { measureOvmf } from "../attest/measure/ovmf-launch.ts";
import { parseOvmf } from "../attest/measure/ovmf.ts";
import type { ReferenceValues } from "../attest/measure/reference.ts";
import { VCPU_TYPES, vcpuSignature } from "../attest/measure/vcpu-type.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { readInput } from "./read-input.ts";

export const MEASURE_USAGE = `usage: snpctl measure --igvm FILE [--vmm cloud-hypervisor|igvm] --vcpus LIST [--kernel FILE --cmdline TEXT [--initramfs FILE]]
       snpctl measure --ovmf FILE [--vmm qemu|ec2|gce] --vcpus LIST --vcpu-type TYPE [--kernel FILE --cmdline TEXT [--initramfs FILE]]
       snpctl measure verify FILE --key PUBLIC
Computes SEV-SNP launch digests (MEASUREMENT of a report) from what a guest is started with.
  --igvm FILE            the IGVM file. cloud-hypervisor (default): as Cloud Hypervisor launches it on KVM; igvm: as the file itself says
  --ovmf FILE            the OVMF image
  --vcpus LIST           numbers of processors, as 1, 1-16 or 1,2,8; one digest for each (not for igvm, whose processors are in the file)
  --vcpu-type TYPE       ${VCPU_TYPES.join(", ")}, or the signature (CPUID 1 EAX) as 0x...
  --guest-features HEX   SEV_FEATURES for an OVMF (default: 0x1, SNP alone)
  --kernel FILE, --initramfs FILE, --cmdline TEXT
                         what is loaded through fw_cfg and measured by its hash
ID block (one number of processors):
  --id-block             also make an ID block and sign it
  --id-key FILE          private key on P-384 (PEM) that signs it
  --author-key FILE      private key on P-384 (PEM) that signs the ID key
  --guest-policy HEX     the guest policy in it (default: the IGVM file's, else 0x30000)
  --family-id HEX, --image-id HEX, --guest-svn N
  --output FILE          also write the IGVM file with the ID block in it, as Cloud Hypervisor takes it
reference values:
  --reference            write all digests and the hashes of what they come from, signed, to standard output
  --sign FILE            private key on P-384 (PEM) that signs them
  verify FILE --key FILE check such a file with the public key (PEM), and print it
output:
  --json
exit code: 0, or 1 for wrong use, input that can't be launched, or a wrong signature`;

const OPTIONS = {
	igvm: { type: "string" },
	ovmf: { type: "string" },
	vmm: { type: "string" },
	vcpus: { type: "string" },
	"vcpu-type": { type: "string" },
	"guest-features": { type: "string" },
	kernel: { type: "string" },
	initramfs: { type: "string" },
	cmdline: { type: "string" },
	"id-block": { type: "boolean" },
	"id-key": { type: "string" },
	"author-key": { type: "string" },
	"guest-policy": { type: "string" },
	"family-id": { type: "string" },
	"image-id": { type: "string" },
	"guest-svn": { type: "string" },
	output: { type: "string" },
	reference: { type: "boolean" },
	sign: { type: "string" },
	key: { type: "string" },
	json: { type: "boolean" },
	help: { type: "boolean", short: "h" },
} as const;

/** The options, as they were given. */
export type MeasureValues = ReturnType<typeof readMeasureArguments>["values"];

/** Digests by number of processors, with what they come from. */
export interface Measured {
	readonly digests: ReadonlyMap<number, Buffer>;
	readonly launcher: ReferenceValues["launcher"];
	readonly inputs: ReferenceValues["inputs"];
	readonly igvm: Igvm | undefined;
	/** The IGVM file itself. */
	readonly igvmBytes: Buffer | undefined;
	/** The guest policy that an IGVM file is launched with. */
	readonly guestPolicy: bigint | undefined;
}

/** Larger files than these are not what is meant. */
export const MAX_FIRMWARE_BYTES = 256 * 1024 * 1024;
const MAX_KERNEL_BYTES = 1024 * 1024 * 1024;
const MAX_KEY_BYTES = 64 * 1024;
const MAX_VCPUS = 4096;

/** @throws ShimError `call.invalid` with the usage */
export function readMeasureArguments(args: readonly string[]) {
	try {
		return parseArgs({ args: [...args], allowPositionals: true, options: OPTIONS });
	} catch (error) {
		throw measureUsage(messageOf(error));
	}
}

export function measureUsage(problem: string): ShimError {
	return new ShimError("call.invalid", problem, { remedy: MEASURE_USAGE });
}

/** Reads the files and computes the digests. @throws ShimError */
export async function measureLaunch(values: MeasureValues): Promise<Measured> {
	if ((values.igvm === undefined) === (values.ovmf === undefined)) throw measureUsage("measure needs --igvm or --ovmf");
	return values.igvm === undefined ? await measureFirmware(values, values.ovmf ?? "") : await measureFile(values, values.igvm);
}

async function measureFile(values: MeasureValues, path: string): Promise<Measured> {
	const launcher = values.vmm ?? "cloud-hypervisor";
	if (launcher !== "cloud-hypervisor" && launcher !== "igvm")
		throw measureUsage(`--vmm ${launcher} does not launch an IGVM file: cloud-hypervisor, igvm`);
	refuse(values, ["vcpu-type", "guest-features"], "with --igvm: the file says it");
	const bytes = await readInput(path, "the IGVM file", MAX_FIRMWARE_BYTES);
	const igvm = parseIgvm(bytes, path);
	const inputs = { igvm: sha256(bytes) };
	if (launcher === "igvm") {
		refuse(values, ["vcpus", "kernel", "initramfs", "cmdline"], "with --vmm igvm: all is in the file");
		const processors = igvm.directives.filter(({ kind }) => kind === "processor").length;
		return {
			digests: new Map([[Math.max(processors, 1), measureIgvmFile(igvm)]]),
			launcher,
			inputs,
			igvm,
			igvmBytes: bytes,
			guestPolicy: igvm.guestPolicy,
		};
	}
	const files = await readKernelFiles(values);
	const digests = measureIgvmOnKvm(igvm, files, vcpuCounts(values.vcpus));
	return { digests, launcher, inputs: { ...inputs, ...hashesOf(files) }, igvm, igvmBytes: bytes, guestPolicy: guestPolicyOf(igvm) };
}

async function measureFirmware(values: MeasureValues, path: string): Promise<Measured> {
	const launcher = values.vmm ?? "qemu";
	if (launcher !== "qemu" && launcher !== "ec2" && launcher !== "gce")
		throw measureUsage(`--vmm ${launcher} does not launch an OVMF: qemu, ec2, gce`);
	const type = values["vcpu-type"];
	if (type === undefined) throw measureUsage("--ovmf needs --vcpu-type");
	const counts = vcpuCounts(values.vcpus);
	const features = values["guest-features"] ?? "0x1";
	const image = await readInput(path, "the OVMF image", MAX_FIRMWARE_BYTES);
	const files = await readKernelFiles(values);
	const ovmf = parseOvmf(image, path);
	const digests = measureOvmf(
		{ ovmf, launcher, signature: vcpuSignature(type), features: wide("guest-features", features), files },
		counts,
	);
	const inputs = { ovmf: sha256(image), vcpuType: type, guestFeatures: features, ...hashesOf(files) };
	return { digests, launcher, inputs, igvm: undefined, igvmBytes: undefined, guestPolicy: undefined };
}

function refuse(values: MeasureValues, names: readonly (keyof MeasureValues)[], why: string): void {
	const given = names.find((name) => values[name] !== undefined);
	if (given !== undefined) throw measureUsage(`--${given} can't be given ${why}`);
}

async function readKernelFiles(values: MeasureValues): Promise<KernelFiles | undefined> {
	if (values.kernel === undefined) {
		refuse(values, ["initramfs", "cmdline"], "without --kernel");
		return undefined;
	}
	if (values.cmdline === undefined) throw measureUsage("--kernel needs --cmdline, which may be empty");
	return {
		kernel: await readInput(values.kernel, "the kernel", MAX_KERNEL_BYTES),
		initramfs: values.initramfs === undefined ? Buffer.alloc(0) : await readInput(values.initramfs, "the initramfs", MAX_KERNEL_BYTES),
		commandLine: values.cmdline,
	};
}

function hashesOf(files: KernelFiles | undefined): { kernel?: string; initramfs?: string; commandLine?: string } {
	if (files === undefined) return {};
	return { kernel: sha256(files.kernel), initramfs: sha256(files.initramfs), commandLine: files.commandLine };
}

function sha256(data: Buffer): string {
	return createHash("sha256").update(data).digest("hex");
}

/** `1-4,8` as 1, 2, 3, 4, 8. */
export function vcpuCounts(list: string | undefined): number[] {
	if (list === undefined) throw measureUsage("measure needs --vcpus");
	const counts = list.split(",").flatMap((entry) => {
		const match = /^(\d{1,5})(?:-(\d{1,5}))?$/u.exec(entry);
		const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])];
		if (match === null || first < 1 || last < first || last > MAX_VCPUS)
			throw measureUsage(`--vcpus ${list} is no list like 1, 1-16 or 1,2,8 of numbers up to ${MAX_VCPUS}`);
		return Array.from({ length: last - first + 1 }, (_, index) => first + index);
	});
	return [...new Set(counts)];
}

/** A 64-bit number like 0x30000. */
export function wide(option: string, text: string): bigint {
	if (!/^0x[0-9a-fA-F]{1,16}$/u.test(text)) throw measureUsage(`--${option} ${text} is no number like 0x1`);
	return BigInt(text);
}

/** Reads a key in PEM. @throws ShimError `attest.key` that says what the file is when it holds none */
export async function readKey(path: string, type: "private" | "public"): Promise<KeyObject> {
	const bytes = await readInput(path, "the key", MAX_KEY_BYTES);
	try {
		return type === "private" ? createPrivateKey(bytes) : createPublicKey(bytes);
	} catch (error) {
		const what = recognise(bytes)?.what ?? "of no kind that is known";
		throw new ShimError("attest.key", `${path} is ${what}, not a ${type} key in PEM that can be read without a password`, { cause: error });
	}
}
