/** Runs the conformance cases on containerds and runtimes, and judges the results against the list of known differences. */
import { readFileSync } from "node:fs";
import { CriBed } from "../support/cri/bed.ts";
import { RUNC_HANDLER, SNP_HANDLER, SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { Leftovers } from "../support/leftovers.ts";
import { isFirstGeneration, type ContainerdVersion } from "../support/paths.ts";
import type { ShimConfig } from "../support/shim-config.ts";
import { CaseContext, type ConformanceCase } from "./context.ts";

const CASE_TIMEOUT_MS = 180_000;

/** Pods may grow while they run. */
const GROWTH = { maxVcpus: 2, hotplugMemoryMib: 512 };

/** How one case went under one runtime on one containerd. */
export type Outcome = {
	readonly caseId: string;
	readonly version: ContainerdVersion;
	readonly handler: string;
	readonly durationMs: number;
	/** Why it failed; undefined when it passed. */
	readonly failure: string | undefined;
};

/** A difference that is known: a case that runc passes and we don't, on all containerds and with all our handlers or on the named ones. */
export type Difference = {
	readonly case: string;
	readonly reason: string;
	/** A regular expression that the failure's text matches: another failure of the case is not the known one. */
	readonly failure: string;
	readonly containerd?: readonly string[];
	readonly handlers?: readonly string[];
};

/** What a run of the suite is told. */
export type SuiteOptions = {
	readonly versions: readonly ContainerdVersion[];
	readonly handlers: readonly string[];
	readonly cases: readonly ConformanceCase[];
	/** Changes to the shim's configuration. */
	readonly config?: ShimConfig;
	/** Hears of each outcome as it comes. */
	readonly onOutcome: (outcome: Outcome) => void;
};

/** The handlers that are compared: ours last. */
export const HANDLERS: readonly string[] = [RUNC_HANDLER, SNP_HANDLER, SNP_SANDBOX_HANDLER];
const OURS: readonly string[] = [SNP_HANDLER, SNP_SANDBOX_HANDLER];

/** containerd 1.x has no Sandbox API. */
function isServed(handler: string, version: ContainerdVersion): boolean {
	return handler !== SNP_SANDBOX_HANDLER || !isFirstGeneration(version);
}

/** Reads the list of known differences. */
export function readDifferences(): readonly Difference[] {
	return JSON.parse(readFileSync(new URL("differences.json", import.meta.url), "utf8")) as Difference[];
}

/** Runs every case on every containerd under every handler: the handlers of one case run one after the other on one containerd. */
export async function runSuite(options: SuiteOptions): Promise<Outcome[]> {
	const outcomes: Outcome[] = [];
	for (const version of options.versions) {
		const bed = await CriBed.start({ version, config: { ...GROWTH, ...options.config } });
		try {
			const leftovers = await Leftovers.watch(bed.containerd);
			for (const one of options.cases) {
				for (const handler of options.handlers.filter((name) => isServed(name, version))) {
					const outcome = await runCase(one, bed, handler, leftovers);
					outcomes.push(outcome);
					options.onOutcome(outcome);
				}
			}
		} finally {
			await bed.stop();
		}
	}
	return outcomes;
}

async function runCase(one: ConformanceCase, bed: CriBed, handler: string, leftovers: Leftovers): Promise<Outcome> {
	const context = new CaseContext(bed, handler, OURS.includes(handler));
	const { deaths } = bed.containerd;
	const startedMs = performance.now();
	const failures: string[] = [];
	await bounded(one.check(context)).catch((error: unknown) => failures.push(textOf(error)));
	const durationMs = performance.now() - startedMs;
	await bounded(context.clean()).catch((error: unknown) => failures.push(`removing its pods failed: ${textOf(error)}`));
	if (bed.containerd.deaths > deaths) failures.push("containerd has died of it");
	const left = await leftovers.settle();
	if (left.length > 0) {
		failures.push(`left behind: ${left.join("; ")}`);
		await leftovers.forgive();
	}
	const failure = failures.length === 0 ? undefined : failures.join("\n");
	return { caseId: one.id, version: bed.containerd.version, handler, durationMs, failure };
}

function textOf(error: unknown): string {
	return error instanceof Error ? error.message : String(error);
}

async function bounded(work: Promise<void>): Promise<void> {
	let timer: NodeJS.Timeout | undefined;
	const limit = new Promise<never>((_, reject) => {
		timer = setTimeout(() => reject(new Error(`not done in ${CASE_TIMEOUT_MS} ms`)), CASE_TIMEOUT_MS);
	});
	try {
		await Promise.race([work, limit]);
	} finally {
		clearTimeout(timer);
	}
}

/** What of a failure is never a known difference. */
const NEVER = /^(?:left behind|removing its pods failed): /m;

function entriesOf({ caseId, version, handler }: Outcome, differences: readonly Difference[]): Difference[] {
	return differences.filter(
		(entry) => entry.case === caseId && (entry.containerd?.includes(version) ?? true) && (entry.handlers?.includes(handler) ?? true),
	);
}

/** Whether the list says that we don't pass this case there. */
export function isListed(outcome: Outcome, differences: readonly Difference[]): boolean {
	return entriesOf(outcome, differences).length > 0;
}

/** Whether a case failed in the way that the list says. */
function isKnown(outcome: Outcome, differences: readonly Difference[]): boolean {
	const { failure = "" } = outcome;
	return !NEVER.test(failure) && entriesOf(outcome, differences).some((entry) => new RegExp(entry.failure).test(failure));
}

/**
 * What is wrong with a run, one line each; empty when it is as it should be. Wrong are: a case that we fail and runc passes (or was not asked)
 * without being listed, a listed one that passes or fails otherwise than is listed, a case that nobody passes, and a list entry without a case.
 */
export function judge(outcomes: readonly Outcome[], differences: readonly Difference[], cases: readonly ConformanceCase[]): string[] {
	const wrong: string[] = [];
	const known = new Set(cases.map(({ id }) => id));
	for (const { case: id } of differences) if (!known.has(id)) wrong.push(`${id}: is listed as a difference, and there is no such case`);
	for (const outcome of outcomes.filter(({ handler }) => OURS.includes(handler))) {
		const { caseId, version, handler, failure } = outcome;
		const other = outcomes.find((entry) => entry.handler === RUNC_HANDLER && entry.caseId === caseId && entry.version === version);
		const listed = isListed(outcome, differences);
		const where = `${caseId} on containerd ${version} (${handler})`;
		if (failure === undefined && listed) wrong.push(`${where}: is listed as a difference, and passes`);
		if (failure !== undefined && other?.failure !== undefined) wrong.push(`${where}: no runtime passes it: ${other.failure}`);
		else if (failure !== undefined && !listed) wrong.push(`${where}: fails and is not listed: ${failure}`);
		else if (failure !== undefined && !isKnown(outcome, differences)) wrong.push(`${where}: fails otherwise than is listed: ${failure}`);
	}
	for (const { handler, caseId, version, failure } of outcomes) {
		const ours = outcomes.find((entry) => OURS.includes(entry.handler) && entry.caseId === caseId && entry.version === version);
		if (handler === RUNC_HANDLER && failure !== undefined && ours === undefined)
			wrong.push(`${caseId} on containerd ${version}: runc fails: ${failure}`);
	}
	return wrong;
}
