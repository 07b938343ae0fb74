/** Processor types by QEMU's names, and their signatures (CPUID Fn0000_0001_EAX): AMD document 25481, "CPUID Specification". */

import { ShimError } from "../../base/errors.ts";

/** Family, model and stepping of the types that QEMU has. A suffix (`-v4`, `-IBPB`) changes none of them. */
const TYPES: Readonly<Record<string, readonly [family: number, model: number, stepping: number]>> = {
	EPYC: [23, 1, 2],
	"EPYC-Rome": [23, 49, 0],
	"EPYC-Milan": [25, 1, 1],
	"EPYC-Genoa": [25, 17, 0],
	"EPYC-Turin": [26, 0, 0],
};

/** The names, for help and errors. */
export const VCPU_TYPES = Object.keys(TYPES);

/**
 * The signature of a type: a name of VCPU_TYPES, with or without a version (`EPYC-Milan-v2`), or the number itself (`0xa00f11`).
 * @throws ShimError `measure.input`
 */
export function vcpuSignature(type: string): number {
	if (/^0x[0-9a-fA-F]{1,8}$/u.test(type)) return Number(type);
	const known = TYPES[type.replace(/-(?:v\d{1,2}|IBPB)$/u, "")];
	if (known === undefined) {
		throw new ShimError("measure.input", `the processor type ${type} is not known`, {
			remedy: `give one of ${VCPU_TYPES.join(", ")}, or CPUID 1's EAX as 0x...`,
		});
	}
	const [family, model, stepping] = known;
	const [low, extended] = family > 0xf ? [0xf, family - 0xf] : [family, 0];
	return (extended << 20) | ((model >> 4) << 16) | (low << 8) | ((model & 0xf) << 4) | stepping;
}
