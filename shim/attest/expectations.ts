/** What is expected of a report, and the check of that form: a JSON file (`--policy`) or single options of snpctl. */

import * as v from "valibot";

import { ShimError } from "../base/errors.ts";
import { GUEST_POLICY_NAMES } from "./guest-policy.ts";
import type { GuestPolicyBit } from "./guest-policy.ts";
import { PLATFORM_NAMES } from "./platform-info.ts";
import type { PlatformBit } from "./platform-info.ts";
import { PRODUCT_LINES } from "./product.ts";

/** Bytes as hexadecimal digits, upper or lower case, with or without 0x. @param length in bytes */
function hexBytes(length: number) {
	return v.pipe(
		v.string(`must be a text of ${2 * length} hexadecimal digits`),
		v.trim(),
		v.regex(new RegExp(`^(?:0x)?[0-9a-fA-F]{${2 * length}}$`, "u"), `must have ${2 * length} hexadecimal digits (${length} bytes)`),
		v.transform((text) => Buffer.from(text.replace(/^0x/u, ""), "hex")),
	);
}

/** REPORT_DATA; fewer bytes are filled up with zeros, as guests do it. */
const reportData = v.pipe(
	v.string("must be a text of hexadecimal digits"),
	v.trim(),
	v.regex(/^(?:0x)?(?:[0-9a-fA-F]{2}){1,64}$/u, "must have 2 to 128 hexadecimal digits (at most 64 bytes)"),
	v.transform((text) => {
		const bytes = Buffer.alloc(64);
		Buffer.from(text.replace(/^0x/u, ""), "hex").copy(bytes);
		return bytes;
	}),
);

const oneOrMore = <T extends v.GenericSchema>(schema: T) =>
	v.pipe(v.array(schema), v.minLength(1, "must name at least one"), v.maxLength(4096));
const level = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(255));
const tcbSchema = v.strictObject({
	fmc: v.optional(level),
	bootloader: v.optional(level),
	tee: v.optional(level),
	snp: v.optional(level),
	microcode: v.optional(level),
});
const mask = v.pipe(
	v.string(),
	v.regex(/^0x[0-9a-fA-F]{1,16}$/u, "must be a number like 0x3"),
	v.transform((text) => BigInt(text)),
);
const versionText = (parts: number) =>
	v.pipe(
		v.string(),
		v.regex(
			new RegExp(`^\\d{1,3}(?:\\.\\d{1,3}){${parts - 1}}$`, "u"),
			`must be a version of ${parts} numbers, like ${[1, 55, 21].slice(0, parts).join(".")}`,
		),
		v.transform((text) => text.split(".").map(Number)),
	);

const bitSchema = v.union([v.boolean(), v.literal("any")], 'must be true, false or "any"');
const bits = <T extends string>(names: readonly T[]) =>
	v.strictObject(
		Object.fromEntries(names.map((name) => [name, v.optional(bitSchema)])) as Record<T, v.OptionalSchema<typeof bitSchema, undefined>>,
	);

/** The names of the TCB versions of a report that a minimum is held against. */
export const TCB_KINDS = ["reported", "committed", "launch"] as const;

/** The form of the file. Every key may be left out; what is left out is not checked, except that debugging and a migration agent are refused. */
export const expectationsSchema = v.strictObject({
	measurements: v.optional(oneOrMore(hexBytes(48))),
	hostData: v.optional(oneOrMore(hexBytes(32))),
	reportData: v.optional(reportData),
	familyId: v.optional(hexBytes(16)),
	imageId: v.optional(hexBytes(16)),
	minimumGuestSvn: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(0xffff_ffff))),
	idKeyDigests: v.optional(oneOrMore(hexBytes(48))),
	authorKeyDigests: v.optional(oneOrMore(hexBytes(48))),
	vmpl: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(3))),
	products: v.optional(oneOrMore(v.picklist(PRODUCT_LINES))),
	signingKeys: v.optional(oneOrMore(v.picklist(["vcek", "vlek"]))),
	chipIds: v.optional(oneOrMore(hexBytes(64))),
	providers: v.optional(oneOrMore(v.pipe(v.string(), v.minLength(1)))),
	minimumReportVersion: v.optional(v.pipe(v.number(), v.integer(), v.minValue(2), v.maxValue(5))),
	minimumTcb: v.optional(
		v.strictObject({
			all: v.optional(tcbSchema),
			Milan: v.optional(tcbSchema),
			Genoa: v.optional(tcbSchema),
			Turin: v.optional(tcbSchema),
		}),
	),
	minimumTcbOf: v.optional(oneOrMore(v.picklist(TCB_KINDS))),
	minimumFirmware: v.optional(versionText(3)),
	guestPolicy: v.optional(bits<GuestPolicyBit>(GUEST_POLICY_NAMES)),
	minimumAbi: v.optional(versionText(2)),
	platform: v.optional(bits<PlatformBit>(PLATFORM_NAMES)),
	launchMitigations: v.optional(mask),
	currentMitigations: v.optional(mask),
});

/** What is expected, as it is compared. */
export type Expectations = v.InferOutput<typeof expectationsSchema>;

/** What is expected, as it is written. */
export type ExpectationsInput = v.InferInput<typeof expectationsSchema>;

const MAX_ISSUES = 3;

/**
 * Checks expectations.
 * @param source names them in errors
 * @throws ShimError `attest.policy` with the field and what is allowed
 */
export function checkExpectationsForm(value: unknown, source: string): Expectations {
	const result = v.safeParse(expectationsSchema, value);
	if (result.success) return result.output;
	const texts = result.issues.slice(0, MAX_ISSUES).map((issue) => {
		const path = v.getDotPath(issue);
		const unknown = issue.type === "strict_object" && issue.expected === "never";
		return `${path ?? "it"} ${unknown ? "is no field that is known" : issue.message}`;
	});
	throw new ShimError("attest.policy", `${source}: ${texts.join("; ")}`);
}

/** Reads a policy file's text. @throws ShimError `attest.policy` */
export function parseExpectations(text: string, source: string): Record<string, unknown> {
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw new ShimError("attest.policy", `${source} is no JSON`, { cause: error });
	}
	if (typeof value !== "object" || value === null || Array.isArray(value))
		throw new ShimError("attest.policy", `${source} must hold one JSON object`);
	checkExpectationsForm(value, source);
	return value as Record<string, unknown>;
}
