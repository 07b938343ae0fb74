/** What a VM is started from: checked before QEMU is, so that the errors are the API's and not QEMU's. */
import { closeSync, openSync, readSync } from "node:fs";
import { osErrorText, VmmError } from "./api-error.ts";
import type { VmConfig } from "./vm-config.ts";

/** The real VMM panics: it answers that its other half is gone, and ends with code 1. */
export class VmmPanic extends Error {
	constructor(message: string) {
		super(message);
		this.name = "VmmPanic";
	}
}

const HEAD_BYTES = 0x206;

/** Checks kernel, initramfs and IGVM file. Throws the VMM's errors, or {@link VmmPanic} where the real VMM panics. */
export function checkPayload({ payload, platform }: VmConfig): void {
	if (platform?.sev_snp === true && payload?.igvm === undefined) throw new VmmPanic("SEV-SNP is not supported by this machine");
	if (payload?.igvm !== undefined) {
		const refuse = (...chain: string[]): never => {
			throw new VmmError(500, "Cannot load the igvm into memory", ...chain);
		};
		const head = headOf(payload.igvm, (text) => refuse("failed to read igvm file", text));
		if (head.subarray(0, 4).toString("latin1") !== "IGVM") refuse("invalid igvm file", "invalid fixed header");
		if (platform?.sev_snp === true) throw new VmmPanic("SEV-SNP is not supported by this machine");
		refuse("ch-qemu runs no IGVM files: give a kernel");
	}
	if (payload?.kernel === undefined) {
		throw new VmmError(
			500,
			payload?.firmware === undefined ? "Payload configuration is not bootable" : "ch-qemu boots a kernel only, no firmware",
			"give payload.kernel",
		);
	}
	const kernel = headOf(payload.kernel, (text) => {
		throw new VmmError(500, "Cannot open kernel file", text);
	});
	const elf = kernel.subarray(0, 4).toString("latin1") === "\x7fELF";
	const bzImage = kernel.subarray(0x202, 0x206).toString("latin1") === "HdrS";
	if (!elf && !bzImage)
		throw new VmmError(500, "Cannot load the kernel into memory", `${payload.kernel} is neither an ELF file nor a bzImage`);
	if (payload.initramfs !== undefined) {
		headOf(payload.initramfs, (text) => {
			throw new VmmError(500, "Cannot open initramfs file", text);
		});
	}
}

function headOf(path: string, refuse: (text: string) => never): Buffer {
	try {
		const fd = openSync(path, "r");
		const head = Buffer.alloc(HEAD_BYTES);
		readSync(fd, head, 0, HEAD_BYTES, 0);
		closeSync(fd);
		return head;
	} catch (error) {
		return refuse(osErrorText(error));
	}
}
