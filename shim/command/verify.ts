/** `snpctl verify`: from a report to the commit that its guest was built from, and to the policy and the images that the guest obeys. Offline. */

import { createHash } from "node:crypto";
import { stdout } from "node:process";
import { parseArgs } from "node:util";

import * as v from "valibot";

import { outputHash, MAX_MANIFEST_BYTES, parseManifest } from "../attest/guest-manifest.ts";
import type { GuestManifest } from "../attest/guest-manifest.ts";
import { lateBinding } from "../attest/late-binding.ts";
import { measureIgvmByHashes } from "../attest/measure/igvm-launch.ts";
import { parseIgvm } from "../attest/measure/igvm.ts";
import { sampleMeasurement } from "../attest/measure/sample.ts";
import { checkProvenance } from "../attest/provenance.ts";
import type { PolicyFacts, Provenance } from "../attest/provenance.ts";
import { isSampleReport, SAMPLE_WARNING, verifySample } from "../attest/sample-report.ts";
import { verifyFurther } from "../attest/verify.ts";
import type { Verdict } from "../attest/verify.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { decodeInitdata, initdataDigest, parseInitdata, POLICY_ENTRY } from "../policy/initdata.ts";
import { layersOf } from "../policy/policy-layers.ts";
import { ATTEST_OPTIONS, evidenceOf, exitCode, expectationsOf } from "./attest.ts";
import { MAX_FIRMWARE_BYTES, vcpuCounts } from "./measure-input.ts";
import { readInput } from "./read-input.ts";
import { renderVerdict } from "./render-verdict.ts";

export const VERIFY_USAGE = `usage: snpctl verify REPORT --manifest FILE --initdata FILE (--igvm FILE --certificates FILE | --sample) [options]
Follows a report to where its guest comes from: measurement to manifest to commit, HOST_DATA to the pod's policy, that to the images' layers.
  --manifest FILE   guest-manifest.json, as it was built with the guest
  --initdata FILE   the pod's initdata: the annotation's value, or its TOML
  --igvm FILE       the IGVM file that the guest was started from
  --vcpus LIST      numbers of processors that it may have, as 1-16 or 2 (default: 1-64)
  --cmdline TEXT    the guest kernel's command line (default: the manifest's, that of the default configuration)
  --opened FILE     what the guest's /layers answered: each root hash must be one of the policy's
  --late-bound      the guest was started before its pod was known, and took the policy later; needs --initdata and --report-data
  --sample          takes a report of sample mode. It proves nothing: INSECURE
  and every option of snpctl attest verify (snpctl attest --help): --certificates, --report-data, --at, --min-tcb, --policy, --json, ...
exit code: 0 verified; 1 wrong use or unreadable input; 2 the report can't be relied on; 3 it is genuine, but not what was expected`;

const OPTIONS = {
	...ATTEST_OPTIONS,
	manifest: { type: "string" },
	initdata: { type: "string" },
	igvm: { type: "string" },
	vcpus: { type: "string" },
	cmdline: { type: "string" },
	opened: { type: "string" },
	sample: { type: "boolean" },
} as const;

const KERNEL = "bzImage";
const SAMPLE_KERNEL = "vmlinux";
const INITRAMFS = "initramfs";
const SAMPLE_INITRAMFS = "initramfs-sample-insecure";
const MAX_INPUT_BYTES = 8 * 1024 * 1024;
const ALL_VCPUS = "1-64";
/** What can be asked of a report of sample mode: it has no processor, chip, versions or certificates behind it. */
const OF_SAMPLES: ReadonlySet<string> = new Set([
	...["manifest", "initdata", "host-data", "report-data", "cmdline", "opened", "sample", "late-bound", "json"],
]);
/** What a guest answers at `/layers` (docs/contracts.md). */
const openedSchema = v.object({ containers: v.array(v.object({ container: v.string(), layers: v.array(v.string()) })) });

type Values = ReturnType<typeof readArguments>["values"];

/**
 * Runs `snpctl verify`.
 * @param args what follows the word verify
 * @returns the exit code
 * @throws ShimError for wrong use and unreadable input
 */
export async function verify(args: readonly string[]): Promise<number> {
	const { values, positionals } = readArguments(args);
	if (values.help === true) return print(VERIFY_USAGE);
	const [path, ...rest] = positionals;
	if (path === undefined || rest.length > 0) throw usage("verify takes one REPORT");
	if (values.manifest === undefined) throw usage("verify needs --manifest");
	const sample = values.sample === true;
	const foreign = sample ? Object.keys(values).find((name) => !OF_SAMPLES.has(name)) : undefined;
	if (foreign !== undefined) throw usage(`--${foreign} asks what a report of sample mode can't answer: leave it out, or --sample`);
	const verdict = await verdictOn(path, values, values.manifest);
	if (values.json === true) print(JSON.stringify({ report: path, platform: sample ? "sample-INSECURE" : "snp", ...verdict }, undefined, 2));
	else print(`${renderVerdict(path, verdict)}${sample ? `\n\n${SAMPLE_WARNING}` : ""}`);
	return exitCode(verdict);
}

function readArguments(args: readonly string[]) {
	try {
		return parseArgs({ args: [...args], allowPositionals: true, options: OPTIONS });
	} catch (error) {
		throw usage(messageOf(error));
	}
}

function usage(problem: string): ShimError {
	return new ShimError("call.invalid", problem, { remedy: VERIFY_USAGE });
}

async function verdictOn(path: string, values: Values, manifestName: string): Promise<Verdict> {
	const manifest = parseManifest((await readInput(manifestName, "the manifest", MAX_MANIFEST_BYTES)).toString("utf8"), manifestName);
	const initdata = values.initdata === undefined ? undefined : await readInitdata(values.initdata);
	if (initdata !== undefined && values["host-data"] !== undefined)
		throw usage("give --initdata or --host-data, not both: HOST_DATA is the initdata's digest");
	const evidence = await evidenceOf(path, values);
	const expectations = await expectationsOf({
		...values,
		...(initdata === undefined ? {} : { "host-data": initdata.hostData }),
	});
	const late = values["late-bound"] === true ? lateBinding(expectations, evidence.lateBound) : undefined;
	if (expectations.hostData === undefined)
		throw usage("verify needs --initdata (or --host-data): without it nothing says which policy the guest obeys");
	const sample = values.sample === true;
	if (!sample && isSampleReport(evidence.report))
		throw new ShimError("attest.report", `${path} is a report of sample mode: ${SAMPLE_WARNING}`, {
			remedy: "--sample takes it for a trial",
		});
	const facts: Provenance = {
		manifest,
		manifestName,
		kernel: sample ? SAMPLE_KERNEL : KERNEL,
		initramfs: sample ? SAMPLE_INITRAMFS : INITRAMFS,
		measurements: sample ? sampleMeasurements(manifest, manifestName, values) : await measurementsOf(manifest, manifestName, values),
		policy: initdata?.policy,
		opened: values.opened === undefined ? undefined : await readOpened(values.opened),
	};
	const further = (list: Parameters<typeof checkProvenance>[0]): void => checkProvenance(list, evidence.report, facts);
	return sample ? verifySample(evidence.report, expectations, further, late) : verifyFurther(evidence, expectations, further, late);
}

async function measurementsOf(manifest: GuestManifest, name: string, values: Values): Promise<Map<string, string>> {
	if (values.igvm === undefined) throw usage("verify needs --igvm: the measurement begins with that file");
	const igvm = parseIgvm(await readInput(values.igvm, "the IGVM file", MAX_FIRMWARE_BYTES), values.igvm);
	const hashes = {
		kernel: outputHash(manifest.kernel, KERNEL, name),
		initramfs: outputHash(manifest.initramfs, INITRAMFS, name),
		commandLine: values.cmdline ?? manifest.commandLine,
	};
	const digests = measureIgvmByHashes(igvm, hashes, vcpuCounts(values.vcpus ?? ALL_VCPUS));
	return new Map([...digests].map(([count, digest]) => [count === 1 ? "1 processor" : `${count} processors`, digest.toString("hex")]));
}

function sampleMeasurements(manifest: GuestManifest, name: string, values: Values): Map<string, string> {
	const hash = (part: "kernel" | "initramfs", output: string): string => outputHash(manifest[part], output, name).toString("hex");
	const launch = {
		kernel: hash("kernel", SAMPLE_KERNEL),
		initramfs: hash("initramfs", SAMPLE_INITRAMFS),
		commandLine: values.cmdline ?? manifest.commandLine,
	};
	return new Map([["sample mode", sampleMeasurement(launch)]]);
}

/** Initdata as the annotation has it, or as TOML. */
async function readInitdata(path: string): Promise<{ readonly hostData: string; readonly policy: PolicyFacts }> {
	const bytes = await readInput(path, "the initdata", MAX_INPUT_BYTES);
	const isToml = /^\s*(?:#|[A-Za-z_]+\s*=|\[)/u.test(bytes.subarray(0, 256).toString("latin1"));
	const parts = isToml ? parseInitdata(bytes) : undefined;
	const { data, hostData } =
		parts === undefined
			? decodeInitdata(bytes.toString("latin1").trim())
			: { data: parts.data, hostData: initdataDigest(bytes, parts.algorithm) };
	const policy = data[POLICY_ENTRY];
	if (policy === undefined) throw new ShimError("confidential.initdata", `the initdata ${path} has no ${POLICY_ENTRY}`);
	return { hostData, policy: { sha256: createHash("sha256").update(policy).digest("hex"), layers: layersOf(policy) } };
}

async function readOpened(path: string): Promise<string[]> {
	const text = (await readInput(path, "the opened layers", MAX_INPUT_BYTES)).toString("utf8");
	const answer = v.safeParse(v.pipe(v.string(), v.parseJson(), openedSchema), text);
	if (!answer.success) throw new ShimError("attest.report", `${path} is not what a guest answers at /layers: ${answer.issues[0].message}`);
	return [...new Set(answer.output.containers.flatMap(({ layers }) => layers))];
}

function print(text: string): number {
	stdout.write(`${text}\n`);
	return 0;
}
