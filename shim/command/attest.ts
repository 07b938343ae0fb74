/** `snpctl attest`: verifies attestation reports, and shows them. No part of it asks snpd or the network. */

import { stdout } from "node:process";
import { parseArgs } from "node:util";

import { MAX_EVIDENCE_BYTES, readCertificates, readReport, readRevocationList } from "../attest/evidence-input.ts";
import type { GivenReport, InputFile } from "../attest/evidence-input.ts";
import { checkExpectationsForm, parseExpectations } from "../attest/expectations.ts";
import type { Expectations, ExpectationsInput } from "../attest/expectations.ts";
import { lateBinding } from "../attest/late-binding.ts";
import { verifyReference } from "../attest/measure/reference.ts";
import { reportFields } from "../attest/report-fields.ts";
import { TCB_PARTS } from "../attest/tcb.ts";
import type { TcbPart } from "../attest/tcb.ts";
import type { EvidenceInput } from "../attest/chain.ts";
import { verifyReport } from "../attest/verify.ts";
import type { Verdict } from "../attest/verify.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { readKey } from "./measure-input.ts";
import { MAX_REFERENCE_BYTES } from "./measure.ts";
import { readInput } from "./read-input.ts";
import { renderFields, renderVerdict } from "./render-verdict.ts";

/** Exit codes besides 0 (verified) and 1 (wrong use, unreadable input). */
const EXIT = { notGenuine: 2, notExpected: 3 } as const;

export const ATTEST_USAGE = `usage: snpctl attest show REPORT
       snpctl attest verify REPORT --certificates FILE [options]
REPORT is an SEV-SNP attestation report as a guest gets it (1184 bytes: outblob of configfs-tsm), or the evidence that our guests answer at /aa/evidence.
evidence:
  --certificates FILE      the VCEK or VLEK certificate, with or without its chain: DER, PEM, or a certificate table (auxblob); may be repeated.
                           AMD's own certificates (ARK, ASK, ASVK of Milan, Genoa and Turin) are built in
  --crl FILE               a revocation list of AMD (DER, PEM); may be repeated. Without one, revocation is not checked
  --trust-root FILE        a root certificate to trust besides AMD's; may be repeated
  --at TIME                the time at which certificates must be valid, as 2026-01-31 or 2026-01-31T12:00:00Z (default: now)
expectations (what is not asked for is not checked):
  --measurement HEX        the launch digest (48 bytes); may be repeated: one of them
  --reference FILE         signed reference values (snpctl measure --reference): one of their launch digests
  --reference-key FILE     the public key (PEM) of who made them
  --host-data HEX          HOST_DATA (32 bytes)
  --report-data HEX        REPORT_DATA (up to 64 bytes, filled up with zeros)
  --id-key-digest HEX      the digest of the ID key (48 bytes); may be repeated
  --author-key-digest HEX  the digest of the author key (48 bytes); may be repeated
  --vmpl N                 the privilege level that asked for the report (0 to 3)
  --min-tcb LIST           least security versions, as bootloader=3,tee=0,snp=8,microcode=115 (fmc on Turin), of the reported, committed and launch TCB
  --allow-debug            a guest that may be debugged by its host is refused unless this is given
  --late-bound             the guest was started before its pod was known, and took the policy later: --host-data is that of the pod's initdata all
                           the same, --report-data the question, and --measurement or --reference is needed (docs/attestation.md)
  --policy FILE            all of these and more as JSON (docs/attestation.md); options go before it
output:
  --json                   all checks as JSON
exit code: 0 verified; 1 wrong use or unreadable input; 2 the report can't be relied on; 3 it is genuine, but not what was expected`;

/** What `attest verify` takes. */
export const ATTEST_OPTIONS = {
	certificates: { type: "string", multiple: true },
	crl: { type: "string", multiple: true },
	"trust-root": { type: "string", multiple: true },
	at: { type: "string" },
	measurement: { type: "string", multiple: true },
	reference: { type: "string" },
	"reference-key": { type: "string" },
	"host-data": { type: "string" },
	"report-data": { type: "string" },
	"id-key-digest": { type: "string", multiple: true },
	"author-key-digest": { type: "string", multiple: true },
	vmpl: { type: "string" },
	"min-tcb": { type: "string" },
	"allow-debug": { type: "boolean" },
	"late-bound": { type: "boolean" },
	policy: { type: "string" },
	json: { type: "boolean" },
	help: { type: "boolean", short: "h" },
} as const;

/** The options, as they were given. */
export type AttestValues = ReturnType<typeof readArguments>["values"];

/**
 * Runs `snpctl attest`.
 * @param args what follows the word attest
 * @returns the exit code
 * @throws ShimError for wrong use and unreadable input
 */
export async function attest(args: readonly string[]): Promise<number> {
	const { values, positionals } = readArguments(args);
	if (values.help === true) return print(ATTEST_USAGE);
	const [verb, path, ...rest] = positionals;
	if (verb !== "show" && verb !== "verify") throw usage(verb === undefined ? "attest needs a verb" : `attest has no verb ${verb}`);
	if (path === undefined) throw usage(`attest ${verb} needs a REPORT`);
	if (rest.length > 0) throw usage(`attest ${verb} takes one REPORT`);
	return verb === "show" ? await show(path, values) : await verify(path, values);
}

function readArguments(args: readonly string[]) {
	try {
		return parseArgs({ args: [...args], allowPositionals: true, options: ATTEST_OPTIONS });
	} catch (error) {
		throw usage(messageOf(error));
	}
}

function usage(problem: string): ShimError {
	return new ShimError("call.invalid", problem, { remedy: ATTEST_USAGE });
}

async function show(path: string, values: AttestValues): Promise<number> {
	const misplaced = Object.keys(values).find((name) => name !== "json");
	if (misplaced !== undefined) throw usage(`attest show does not take --${misplaced}`);
	const fields = reportFields(readReport(await input(path, "the report"), { table: false }).report);
	return print(values.json === true ? JSON.stringify(fields, undefined, 2) : renderFields(fields));
}

async function verify(path: string, values: AttestValues): Promise<number> {
	const [evidence, expectations] = [await evidenceOf(path, values), await expectationsOf(values)];
	const late = values["late-bound"] === true ? lateBinding(expectations, evidence.lateBound) : undefined;
	if (late !== undefined && expectations.measurements === undefined)
		throw usage("--late-bound needs --measurement or --reference: what was bound is the guest's word");
	const verdict = verifyReport(evidence, expectations, late);
	print(values.json === true ? JSON.stringify({ report: path, ...verdict }, undefined, 2) : renderVerdict(path, verdict));
	return exitCode(verdict);
}

/** 0, or why not. */
export function exitCode({ failure }: Verdict): number {
	if (failure === undefined) return 0;
	return failure.kind === "evidence" ? EXIT.notGenuine : EXIT.notExpected;
}

/** The report and what it is verified with. @throws ShimError */
export async function evidenceOf(path: string, values: AttestValues): Promise<EvidenceInput & Pick<GivenReport, "lateBound">> {
	// The table behind a report comes from its host: what was given by name goes before it.
	const { report, certificates, lateBound } = readReport(await input(path, "the report"), { table: values.certificates === undefined });
	const read = async <T>(paths: readonly string[] | undefined, what: string, parse: (file: InputFile) => T): Promise<T[]> =>
		Promise.all((paths ?? []).map(async (one) => parse(await input(one, what))));
	const given = (await read(values.certificates, "the certificates", readCertificates)).flat();
	return {
		report,
		lateBound,
		certificates: given.length > 0 ? given : certificates,
		trustedRoots: (await read(values["trust-root"], "the root certificate", readCertificates)).flat(),
		revocationLists: await read(values.crl, "the revocation list", readRevocationList),
		at: timeOf(values.at),
	};
}

async function input(path: string, what: string): Promise<InputFile> {
	return { name: path, bytes: await readInput(path, what, MAX_EVIDENCE_BYTES) };
}

function timeOf(text: string | undefined): Date {
	if (text === undefined) return new Date();
	const time = /^\d{4}-\d\d-\d\d(?:T\d\d:\d\d:\d\dZ)?$/u.test(text) ? new Date(text) : new Date(Number.NaN);
	// A 31st of February would be a day in March.
	if (Number.isNaN(time.getTime()) || !time.toISOString().startsWith(text.slice(0, 10)))
		throw usage(`--at ${text} is no time like 2026-01-31 or 2026-01-31T12:00:00Z`);
	return time;
}

/** What is expected. @throws ShimError */
export async function expectationsOf(values: AttestValues): Promise<Expectations> {
	const file =
		values.policy === undefined ? {} : parseExpectations((await input(values.policy, "the policy")).bytes.toString("utf8"), values.policy);
	const measurements = await measurementsOf(values);
	const options: ExpectationsInput = {
		...(measurements === undefined ? {} : { measurements }),
		...(values["host-data"] === undefined ? {} : { hostData: [values["host-data"]] }),
		...(values["report-data"] === undefined ? {} : { reportData: values["report-data"] }),
		...(values["id-key-digest"] === undefined ? {} : { idKeyDigests: values["id-key-digest"] }),
		...(values["author-key-digest"] === undefined ? {} : { authorKeyDigests: values["author-key-digest"] }),
		...(values.vmpl === undefined ? {} : { vmpl: numberOf("vmpl", values.vmpl) }),
		...(values["min-tcb"] === undefined ? {} : { minimumTcb: { all: tcbOf(values["min-tcb"]) } }),
	};
	checkExpectationsForm(options, "the options");
	const merged: Record<string, unknown> = { ...file, ...options };
	if (values["allow-debug"] === true) merged["guestPolicy"] = { ...(file["guestPolicy"] as object | undefined), debug: "any" };
	return checkExpectationsForm(merged, values.policy ?? "the options");
}

/** The launch digests that are expected: those named, or those of signed reference values. */
async function measurementsOf({ measurement, reference, "reference-key": key }: AttestValues): Promise<string[] | undefined> {
	if ((reference === undefined) !== (key === undefined)) throw usage("--reference and --reference-key go together");
	if (reference === undefined || key === undefined) return measurement;
	if (measurement !== undefined) throw usage("give --measurement or --reference, not both");
	const text = (await readInput(reference, "the reference values", MAX_REFERENCE_BYTES)).toString("utf8");
	return verifyReference(text, await readKey(key, "public"), reference).measurements.map((one) => one.measurement);
}

function numberOf(option: string, text: string): number {
	if (!/^\d{1,10}$/u.test(text)) throw usage(`--${option} ${text} is no number`);
	return Number(text);
}

function tcbOf(text: string): Partial<Record<TcbPart, number>> {
	const parts: Partial<Record<TcbPart, number>> = {};
	for (const entry of text.split(",")) {
		const [name, value] = entry.split("=", 2);
		const part = TCB_PARTS.find((known) => known === name);
		if (part === undefined || value === undefined)
			throw usage(`--min-tcb: ${entry} is not of the form PART=NUMBER with one of ${TCB_PARTS.join(", ")}`);
		if (parts[part] !== undefined) throw usage(`--min-tcb ${text} names ${part} twice`);
		parts[part] = numberOf("min-tcb", value);
	}
	return parts;
}

function print(text: string): number {
	stdout.write(`${text}\n`);
	return 0;
}
