/** Whether this machine can start SEV-SNP guests. */

import { constants } from "node:fs";
import { access, readFile } from "node:fs/promises";

import { messageOf } from "../base/errors.ts";

/** Where Linux says so: KVM's parameter (Linux 6.11, arch/x86/kvm/svm/sev.c), and the device of the security processor. */
export interface SnpPlaces {
	readonly parameter: string;
	readonly device: string;
}

export const SNP_PLACES: SnpPlaces = { parameter: "/sys/module/kvm_amd/parameters/sev_snp", device: "/dev/sev" };

/** What this machine lacks, and what to do; undefined when it can. */
export async function snpLacking({
	parameter,
	device,
}: SnpPlaces): Promise<{ readonly text: string; readonly remedy: string } | undefined> {
	const setUp = "turn on SNP, the RMP table and SVM in the firmware, and boot Linux 6.11 or later with kvm_amd (docs/confidential.md)";
	let value: string;
	try {
		value = (await readFile(parameter, "latin1")).trim();
	} catch (error) {
		return { text: `${parameter} can't be read (${messageOf(error)}): KVM here knows no SEV-SNP`, remedy: setUp };
	}
	if (value !== "Y" && value !== "1") return { text: `${parameter} is ${JSON.stringify(value)}: SEV-SNP is off`, remedy: setUp };
	try {
		await access(device, constants.R_OK | constants.W_OK);
	} catch (error) {
		return {
			text: `${device} can't be opened (${messageOf(error)})`,
			remedy: "load the module ccp, and see what the kernel's log says of it",
		};
	}
	return undefined;
}
