/** Writes an IGVM file that is sound and starts nothing, for test/lab: `node --import tsx test/lab/igvm.ts FILE`. */
import { writeFileSync } from "node:fs";
import { directives } from "../attest/measure/igvm-cases.ts";
import { igvmPlatform, igvmPolicy, makeIgvm } from "../support/firmware.ts";

const SEED = 23;
const GUEST_POLICY = 0x30000n;
const [file] = process.argv.slice(2);
if (file === undefined) {
	console.error("usage: igvm.ts FILE");
	process.exit(2);
}
writeFileSync(file, makeIgvm([igvmPlatform(), igvmPolicy(GUEST_POLICY), ...directives(SEED)]));
