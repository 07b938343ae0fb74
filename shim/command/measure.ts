/** `snpctl measure`: launch digests, ID blocks, and signed reference values. No part of it asks snpd or the network. */

import { writeFile } from "node:fs/promises";
import { stdout } from "node:process";

import { checkIgvmIdBlock, signIdBlock } from "../attest/measure/id-block.ts";
import type { IdBlock } from "../attest/measure/id-block.ts";
import { DEFAULT_GUEST_POLICY } from "../attest/measure/igvm-launch.ts";
import { addIdBlock } from "../attest/measure/igvm-write.ts";
import { signReference, verifyReference } from "../attest/measure/reference.ts";
import type { ReferenceValues } from "../attest/measure/reference.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { MEASURE_USAGE, measureLaunch, measureUsage, readKey, readMeasureArguments, wide } from "./measure-input.ts";
import type { Measured, MeasureValues } from "./measure-input.ts";
import { readInput } from "./read-input.ts";
import { renderFields } from "./render-verdict.ts";

/** Reference values are a few hundred bytes for each number of processors. */
export const MAX_REFERENCE_BYTES = 4 * 1024 * 1024;

const ID_BYTES = 16;
/** Where an ID block holds the guest policy. */
const POLICY_OFFSET = 88;

/**
 * Runs `snpctl measure`.
 * @param args what follows the word measure
 * @returns the exit code
 * @throws ShimError for wrong use and input that can't be launched
 */
export async function measure(args: readonly string[]): Promise<number> {
	const { values, positionals } = readMeasureArguments(args);
	if (values.help === true) return print(MEASURE_USAGE);
	const [verb, path, ...rest] = positionals;
	if (verb === "verify" && path !== undefined && rest.length === 0) return await verifyFile(path, values);
	if (verb === "verify") throw measureUsage("measure verify takes one FILE");
	if (verb !== undefined) throw measureUsage(`measure takes options only, not ${verb}`);
	if (values.key !== undefined) throw measureUsage("--key belongs to measure verify");
	if ((values.reference === true) !== (values.sign !== undefined)) throw measureUsage("--reference and --sign go together");
	if (values["id-block"] !== true) refuseIdOptions(values);
	const measured = await measureLaunch(values);
	if (values.sign !== undefined) return print(signReference(referenceOf(measured), await readKey(values.sign, "private")).trimEnd());
	const idBlock = values["id-block"] === true ? await makeIdBlock(measured, values) : undefined;
	if (idBlock !== undefined && values.output !== undefined) await writeIgvm(measured, idBlock, values.output);
	return print(values.json === true ? JSON.stringify(describe(measured, idBlock), undefined, 2) : render(measured, idBlock));
}

function referenceOf({ launcher, inputs, digests }: Measured): ReferenceValues {
	return { launcher, inputs, measurements: [...digests].map(([vcpus, digest]) => ({ vcpus, measurement: digest.toString("hex") })) };
}

async function verifyFile(path: string, values: MeasureValues): Promise<number> {
	const extra = Object.keys(values).find((name) => name !== "key" && name !== "json");
	if (extra !== undefined) throw measureUsage(`measure verify does not take --${extra}`);
	if (values.key === undefined) throw measureUsage("measure verify needs --key");
	const text = (await readInput(path, "the reference values", MAX_REFERENCE_BYTES)).toString("utf8");
	const reference = verifyReference(text, await readKey(values.key, "public"), path);
	if (values.json === true) return print(JSON.stringify(reference, undefined, 2));
	const { measurements, ...origin } = reference;
	return print([`VERIFIED: ${path} is signed by the key`, renderFields(origin), ...measurements.map(line)].join("\n"));
}

const line = ({ vcpus, measurement }: { readonly vcpus: number; readonly measurement: string }): string => `${vcpus}\t${measurement}`;

function refuseIdOptions(values: MeasureValues): void {
	for (const name of ["id-key", "author-key", "guest-policy", "family-id", "image-id", "guest-svn", "output"] as const) {
		if (values[name] !== undefined) throw measureUsage(`--${name} belongs to --id-block`);
	}
}

async function makeIdBlock({ digests, guestPolicy }: Measured, values: MeasureValues): Promise<IdBlock> {
	const [digest, ...more] = digests.values();
	if (digest === undefined || more.length > 0) throw measureUsage("an ID block is for one number of processors: give one as --vcpus");
	if (values["id-key"] === undefined) throw measureUsage("--id-block needs --id-key");
	const svn = values["guest-svn"] ?? "0";
	if (!/^\d{1,10}$/u.test(svn) || Number(svn) > 0xffff_ffff) throw measureUsage(`--guest-svn ${svn} is no number of 32 bits`);
	const policy = values["guest-policy"];
	return signIdBlock(
		{
			measurement: digest,
			familyId: identifier("family-id", values["family-id"]),
			imageId: identifier("image-id", values["image-id"]),
			guestSvn: Number(svn),
			guestPolicy: policy === undefined ? (guestPolicy ?? DEFAULT_GUEST_POLICY) : wide("guest-policy", policy),
		},
		await readKey(values["id-key"], "private"),
		values["author-key"] === undefined ? undefined : await readKey(values["author-key"], "private"),
	);
}

/** Writes the IGVM file with the ID block in it. */
async function writeIgvm({ igvm, igvmBytes, guestPolicy, launcher }: Measured, idBlock: IdBlock, path: string): Promise<void> {
	if (igvm === undefined || igvmBytes === undefined || launcher !== "cloud-hypervisor")
		throw measureUsage("--output needs --igvm, and Cloud Hypervisor as the VMM");
	const policy = idBlock.block.readBigUInt64LE(POLICY_OFFSET);
	if (policy !== guestPolicy)
		throw measureUsage(
			`the file is launched with the guest policy 0x${(guestPolicy ?? 0n).toString(16)}: an ID block for another one can't be put into it`,
		);
	const whole = addIdBlock(igvmBytes, idBlock, igvm.source);
	try {
		await writeFile(path, whole, { flag: "wx" });
	} catch (error) {
		const text = errnoOf(error) === "EEXIST" ? "exists already" : `can't be written: ${messageOf(error)}`;
		throw new ShimError("call.invalid", `${path} ${text}`, { remedy: "name a new file in a folder that can be written" });
	}
}

function identifier(option: string, text = "00".repeat(ID_BYTES)): Buffer {
	if (!/^[0-9a-fA-F]{32}$/u.test(text)) throw measureUsage(`--${option} must have ${2 * ID_BYTES} hexadecimal digits`);
	return Buffer.from(text, "hex");
}

/** What is printed: as JSON, or line by line. */
function describe(measured: Measured, idBlock: IdBlock | undefined) {
	return {
		...referenceOf(measured),
		...(measured.guestPolicy === undefined ? {} : { guestPolicy: `0x${measured.guestPolicy.toString(16)}` }),
		...(idBlock === undefined ? {} : { idBlock: describeIdBlock(idBlock) }),
		...fileIdBlock(measured),
	};
}

function describeIdBlock({ block, authentication, idKeyDigest, authorKeyDigest }: IdBlock) {
	return {
		block: block.toString("base64"),
		authentication: authentication.toString("base64"),
		idKeyDigest: idKeyDigest.toString("hex"),
		authorKeyDigest: authorKeyDigest?.toString("hex"),
	};
}

/** The ID block that an IGVM file brings: it fits at most one number of processors. */
function fileIdBlock({ igvm, digests, guestPolicy }: Measured) {
	const directive = igvm?.directives.find((one) => one.kind === "id-block");
	if (directive === undefined) return {};
	const checks = [...digests].map(([vcpus, measurement]) => ({
		vcpus,
		...checkIgvmIdBlock(directive.block, { measurement, guestPolicy: guestPolicy ?? DEFAULT_GUEST_POLICY }),
	}));
	const [first] = checks;
	const fitting = checks.find(({ problem }) => problem === undefined);
	return {
		fileIdBlock: {
			fits: fitting === undefined ? `no launch: ${first?.problem ?? ""}` : `${fitting.vcpus} processors`,
			idKeyDigest: first?.idKeyDigest?.toString("hex"),
			authorKeyDigest: first?.authorKeyDigest?.toString("hex"),
		},
	};
}

function render(measured: Measured, idBlock: IdBlock | undefined): string {
	const { measurements } = referenceOf(measured);
	const [only] = measurements;
	const extra = { ...(idBlock === undefined ? {} : { idBlock: describeIdBlock(idBlock) }), ...fileIdBlock(measured) };
	const digests = measurements.length === 1 && only !== undefined ? [only.measurement] : measurements.map(line);
	return [...digests, ...(Object.keys(extra).length === 0 ? [] : [renderFields(extra)])].join("\n");
}

function print(text: string): number {
	stdout.write(`${text}\n`);
	return 0;
}
