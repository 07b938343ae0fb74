/**
 * Whether a VMM makes the SEV-SNP VM that it was asked for. It drops fields that it does not know without a word, and would start an ordinary VM: so
 * its features are read before, and what it stored after. Pure.
 */

import { ShimError } from "../base/errors.ts";
import type { VmInfo, VmmPingResponse } from "./api-types.ts";
import type { VmConfig } from "./config-types.ts";

/** What a program must have been built with (Cloud Hypervisor, docs/amd_sev_snp.md); without fw_cfg the kernel would not be measured. */
const FEATURES = ["sev_snp", "igvm", "fw_cfg"] as const;

/** The parts of a VM's configuration that keep it from its host. */
const GUARDED: readonly { readonly name: string; readonly of: (config: VmConfig) => unknown }[] = [
	{ name: "platform.sev_snp", of: ({ platform }) => platform?.sev_snp ?? false },
	{ name: "payload.igvm", of: ({ payload }) => payload.igvm },
	{ name: "payload.host_data", of: ({ payload }) => payload.host_data?.toLowerCase() },
	{ name: "payload.kernel", of: ({ payload }) => payload.kernel },
	{ name: "payload.initramfs", of: ({ payload }) => payload.initramfs },
	{ name: "payload.cmdline", of: ({ payload }) => payload.cmdline },
	{ name: "payload.firmware", of: ({ payload }) => payload.firmware },
	{ name: "payload.fw_cfg_config.kernel", of: ({ payload }) => payload.fw_cfg_config?.kernel },
	{ name: "payload.fw_cfg_config.cmdline", of: ({ payload }) => payload.fw_cfg_config?.cmdline },
	{ name: "payload.fw_cfg_config.initramfs", of: ({ payload }) => payload.fw_cfg_config?.initramfs },
	{ name: "cpus.boot_vcpus", of: ({ cpus }) => cpus?.boot_vcpus },
	{ name: "cpus.max_vcpus", of: ({ cpus }) => cpus?.max_vcpus },
	{ name: "memory.size", of: ({ memory }) => memory?.size },
	{ name: "memory.shared", of: ({ memory }) => memory?.shared ?? false },
	{ name: "memory.hotplug_size", of: ({ memory }) => memory?.hotplug_size ?? 0 },
	{ name: "serial.mode", of: ({ serial }) => serial?.mode },
	{ name: "console.mode", of: ({ console }) => console?.mode },
	{ name: "balloon", of: ({ balloon }) => balloon ?? undefined },
	{ name: "fs", of: ({ fs }) => fs?.length ?? 0 },
];

/**
 * Checks that the program can make such a VM.
 * @throws ShimError `confidential.vmm` that names the missing features
 */
export function checkSnpFeatures(program: string, { features, version }: VmmPingResponse): void {
	const missing = FEATURES.filter((feature) => features?.includes(feature) !== true);
	if (missing.length === 0) return;
	throw new ShimError(
		"confidential.vmm",
		`the hypervisor ${program} (version ${version}) was built without ${missing.join(", ")}: it would start an ordinary VM that its host can read`,
	);
}

/**
 * Checks that the VM is the one that was asked for.
 * @throws ShimError `confidential.vmm` that names the first part that is not
 */
export function checkReadBack(asked: VmConfig, { config }: VmInfo): void {
	for (const { name, of } of GUARDED) {
		const [wanted, found] = [of(asked), of(config)];
		if (wanted === found) continue;
		throw new ShimError(
			"confidential.vmm",
			`the hypervisor does not keep ${name}: asked for ${say(wanted)}, it has ${say(found)}; the VM is not used`,
			{ remedy: "use a Cloud Hypervisor that launches SEV-SNP guests on KVM (v53 or later)" },
		);
	}
}

function say(value: unknown): string {
	return value === undefined ? "nothing" : JSON.stringify(value);
}
