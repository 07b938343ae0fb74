/** What is looked at before a VM is launched: the guest's files, and for a confidential pod whether what it is launched from, and on, can make one. */

import { createHash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { access, open, readFile, stat } from "node:fs/promises";
import { pipeline } from "node:stream/promises";

import { decodeGuestPolicy, guestPolicyProblem } from "../attest/guest-policy.ts";
import { guestPolicyOf, measureIgvmOnKvm } from "../attest/measure/igvm-launch.ts";
import { parseIgvm } from "../attest/measure/igvm.ts";
import type { Igvm } from "../attest/measure/igvm.ts";
import { sampleMeasurement } from "../attest/measure/sample.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { snpLacking } from "../host/snp.ts";
import type { SnpPlaces } from "../host/snp.ts";
import type { CallOptions } from "../vmm/client.ts";
import type { VmConfig } from "../vmm/config-types.ts";
import { checkReadBack, checkSnpFeatures } from "../vmm/snp.ts";
import type { Vmm } from "../vmm/vmm.ts";
import type { PodPlan } from "./plan.ts";

/** Firmware, not a disk: Cloud Hypervisor reads it whole as well. */
const MAX_IGVM_BYTES = 64 * 1024 * 1024;

const BOOT_MAGIC = "HdrS";
const BOOT_MAGIC_AT = 0x202;

/**
 * Checks what a plan is launched from.
 * @returns the plan; in sample mode with what stands for the launch's measurement
 * @throws ShimError `guest.file-missing` that names the file and its configuration key, `confidential.kernel`, `confidential.igvm`
 */
export async function readyPlan(plan: PodPlan): Promise<PodPlan> {
	const { confidential } = plan;
	await checkGuestFiles(plan);
	if (confidential === undefined) return plan;
	if (confidential.mode === "snp") {
		await checkKernel(plan.kernel);
		await checkIgvm(confidential.igvm, plan);
		return plan;
	}
	const [kernel, initramfs] = await Promise.all([plan.kernel, plan.image].map(sha256Of));
	const measurement = sampleMeasurement({ kernel: kernel ?? "", initramfs: initramfs ?? "", commandLine: plan.kernelParameters });
	const parameters = [plan.kernelParameters, `snp.sample_host_data=${confidential.hostData}`, `snp.sample_measurement=${measurement}`];
	return { ...plan, kernelParameters: parameters.join(" ") };
}

/** Checks that the files of a plan are there. */
async function checkGuestFiles(plan: PodPlan): Promise<void> {
	const mode = plan.confidential?.mode;
	const files = [
		{ path: plan.kernel, key: mode === "snp" ? "confidential.kernel" : "guest.kernel", what: "kernel" },
		{ path: plan.image, key: mode === "sample" ? "confidential.sample_image" : "guest.image", what: "image" },
	];
	const check = async ({ path, key, what }: (typeof files)[number]): Promise<void> => {
		try {
			await access(path, constants.R_OK);
		} catch (error) {
			throw new ShimError("guest.file-missing", `the guest ${what} ${path} can't be read: ${messageOf(error)}`, {
				remedy: `install it, or set ${key}`,
				cause: error,
			});
		}
	};
	await Promise.all(files.map(check));
}

/** Cloud Hypervisor cuts what it passes through fw_cfg at the end of the setup code (Linux, Documentation/arch/x86/boot.rst), whatever the file is. */
async function checkKernel(path: string): Promise<void> {
	const head = Buffer.alloc(BOOT_MAGIC_AT + BOOT_MAGIC.length);
	const file = await open(path);
	try {
		await file.read(head, 0, head.length, 0);
	} finally {
		await file.close();
	}
	if (head.subarray(BOOT_MAGIC_AT).toString("latin1") === BOOT_MAGIC) return;
	throw new ShimError("confidential.kernel", `the kernel ${path} is no bzImage: the first code of a confidential VM could not load it`);
}

/** A file that is cut, opens the guest, or is for another launch is refused here: the processor would only say that the launch failed. */
async function checkIgvm(path: string, plan: PodPlan): Promise<void> {
	const igvm = await readIgvm(path);
	const raw = guestPolicyOf(igvm);
	const { bits } = decodeGuestPolicy(raw);
	const problem =
		guestPolicyProblem(raw) ??
		(bits.debug
			? "its guest policy lets the host debug the guest"
			: bits.migrationAgent
				? "its guest policy allows a migration agent"
				: undefined);
	if (problem !== undefined) throw new ShimError("confidential.igvm", `the IGVM file ${path} can't start a confidential pod: ${problem}`);
	await checkIdBlock(path, igvm, plan);
}

async function readIgvm(path: string): Promise<Igvm> {
	let bytes: Buffer;
	try {
		const { size } = await stat(path);
		if (size > MAX_IGVM_BYTES) throw new Error(`it has ${size} bytes, ${MAX_IGVM_BYTES} at most are taken`);
		bytes = await readFile(path);
	} catch (error) {
		throw new ShimError("confidential.igvm", `the IGVM file ${path} can't be read: ${messageOf(error)}`, { cause: error });
	}
	try {
		return parseIgvm(bytes, `the IGVM file ${path}`);
	} catch (error) {
		throw new ShimError("confidential.igvm", messageOf(error), { cause: error });
	}
}

/** The processor starts a guest with an ID block only if its measurement is the block's. */
async function checkIdBlock(path: string, igvm: Igvm, plan: PodPlan): Promise<void> {
	const block = igvm.directives.find((directive) => directive.kind === "id-block")?.block;
	if (block === undefined) return;
	const [kernel, initramfs] = await Promise.all([readFile(plan.kernel), readFile(plan.image)]);
	const digests = measureIgvmOnKvm(igvm, { kernel, initramfs, commandLine: plan.kernelParameters }, [plan.vcpus]);
	const measurement = digests.get(plan.vcpus);
	if (measurement?.equals(block.measurement) === true) return;
	throw new ShimError(
		"confidential.igvm",
		`the ID block in the IGVM file ${path} is for the measurement ${block.measurement.toString("hex")}; this pod's is ${measurement?.toString("hex")}`,
		{
			remedy: `make a block for this kernel, initramfs and command line and ${plan.vcpus} processors (snpctl measure --id-block); {vcpus} in confidential.igvm names one file for each number`,
		},
	);
}

/**
 * Checks that the VMM and this machine can start SEV-SNP guests.
 * @throws ShimError `confidential.vmm`, `confidential.host`
 */
export async function requireSnp(vmm: Vmm, program: string, places: SnpPlaces, call: CallOptions): Promise<void> {
	checkSnpFeatures(program, await vmm.client.ping(call));
	const lacking = await snpLacking(places);
	if (lacking === undefined) return;
	throw new ShimError("confidential.host", `this node can't start a confidential VM: ${lacking.text}`, { remedy: lacking.remedy });
}

/**
 * Checks that the VMM holds the VM that it was asked for.
 * @throws ShimError `confidential.vmm`
 */
export async function requireReadBack(vmm: Vmm, asked: VmConfig, call: CallOptions): Promise<void> {
	checkReadBack(asked, await vmm.client.info(call));
}

async function sha256Of(path: string): Promise<string> {
	const hash = createHash("sha256");
	await pipeline(createReadStream(path), hash);
	return hash.digest("hex");
}
