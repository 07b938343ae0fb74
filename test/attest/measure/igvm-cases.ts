/** IGVM files whose launch digests an independent program has computed, made from seeds. */

import { createPrivateKey } from "node:crypto";
import { signIdBlock } from "../../../shim/attest/measure/id-block.ts";
import { addIdBlock } from "../../../shim/attest/measure/igvm-write.ts";
import { fixture } from "../../support/amd-chain.ts";
import {
	igvmArea,
	igvmInsert,
	igvmPage,
	igvmParameter,
	igvmPlatform,
	igvmPolicy,
	igvmProcessor,
	igvmRequiredMemory,
	makeIgvm,
	PAGE,
} from "../../support/firmware.ts";
import type { IgvmHeader } from "../../support/firmware.ts";
import { randomBytes, randomSource } from "../../support/random.ts";

/** A VMSA with random contents where the specification allows them, SNP active. */
export function randomVmsa(random: (below: number) => number): Buffer {
	const vmsa = Buffer.alloc(PAGE);
	randomBytes(random, 0x400).copy(vmsa);
	for (const limit of [0x64, 0x84]) vmsa.writeUInt32LE(random(0x10000), limit);
	vmsa.writeBigUInt64LE(1n, 0x3b0);
	return vmsa;
}

/** The directives of a file: pages of all kinds, parameter areas, processors. */
export function directives(seed: number): IgvmHeader[] {
	const random = randomSource(seed);
	const page = (): Buffer => randomBytes(random, PAGE);
	return [
		igvmRequiredMemory(0, 0x100000),
		...Array.from({ length: 3 + random(5) }, (_, index) => igvmPage(0xffc0_0000 + index * PAGE, page())),
		igvmPage(0x1000),
		igvmPage(0x2000, page(), { flags: 2 }),
		igvmPage(0x3000, undefined, { type: 1 }),
		igvmPage(0x4000, Buffer.alloc(PAGE), { type: 2 }),
		igvmPage(0x5000, page(), { mask: 2 }),
		igvmArea(0, 2 * PAGE),
		igvmArea(7, PAGE),
		igvmParameter(0x307, 0),
		igvmParameter(0x30c, 7),
		igvmParameter(0x30e, 0, 0x100),
		igvmInsert(0, 0x6000),
		igvmPage(0x9000, page()),
		igvmInsert(7, 0x8000),
		igvmProcessor(0, randomVmsa(random)),
	];
}

/** A file with an ID block that was put into it. */
function withIdBlock(file: Buffer): Buffer {
	const fields = {
		measurement: Buffer.alloc(48, 1),
		familyId: Buffer.alloc(16),
		imageId: Buffer.alloc(16),
		guestSvn: 0,
		guestPolicy: 0x30000n,
	};
	return addIdBlock(
		file,
		signIdBlock(fields, createPrivateKey(fixture("id.test-key.pem")), createPrivateKey(fixture("author.test-key.pem"))),
		"file",
	);
}

/** Files whose digests the crate `igvm` has computed. */
export const IGVM_FILES: readonly { readonly name: string; readonly file: Buffer }[] = [
	...[11, 12, 13].map((seed) => ({ name: `seed ${seed}`, file: makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(seed)]) })),
	{ name: "version 2", file: makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(14)], 2) },
	{
		name: "two platforms",
		file: makeIgvm([igvmPlatform(0, 2), igvmPlatform(2, 1), igvmPolicy(0x30000n, 2), igvmPolicy(0xb0000n), ...directives(15)]),
	},
	{ name: "an ID block", file: withIdBlock(makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(16)])) },
	{ name: "an ID block, version 2", file: withIdBlock(makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(17)], 2)) },
];
