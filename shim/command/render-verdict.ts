/** A verdict on an attestation report as text: the verdict, the first thing that failed, then the checks. */

import type { Check } from "../attest/checklist.ts";
import type { Verdict } from "../attest/verify.ts";

const MARKS: Readonly<Record<Check["status"], string>> = { passed: "passed", failed: "FAILED", "not-asked": "-", "not-reached": "." };

/** @param name the report's file */
export function renderVerdict(name: string, verdict: Verdict): string {
	const lines =
		verdict.failure === undefined ? [`VERIFIED: ${name} is genuine${asExpected(verdict.checks)}`] : refusal(name, verdict.failure);
	const shown = verdict.checks.filter(({ status }) => status === "passed" || status === "failed");
	const width = Math.max(...shown.map((check) => check.name.length));
	lines.push("", ...shown.map((check) => `${MARKS[check.status].padEnd(7)} ${check.name.padEnd(width)}  ${describe(check)}`));
	const unasked = namesOf(verdict.checks, "not-asked");
	if (unasked !== "") lines.push("", `not asked for: ${unasked}`);
	const unreached = namesOf(verdict.checks, "not-reached");
	if (unreached !== "") lines.push("", `not reached: ${unreached}`);
	return lines.join("\n");
}

/** A report that nothing was compared with says nothing about what runs in the guest. */
function asExpected(checks: readonly Check[]): string {
	const measured = checks.some(({ name, status }) => (name === "measurement" || name === "guest") && status === "passed");
	return measured ? " and as expected" : "; what runs in the guest was not asked for (--measurement)";
}

function refusal(name: string, { kind, name: check, title, expected, got, remedy }: NonNullable<Verdict["failure"]>): string[] {
	const meaning = kind === "evidence" ? "can't be relied on" : "is genuine, but not what was expected";
	return [
		`REFUSED: ${name} ${meaning}`,
		`  failed    ${check}: ${title}`,
		`  expected  ${expected}`,
		`  got       ${got}`,
		`  to do     ${remedy}`,
	];
}

function describe(check: Check): string {
	if (check.status === "passed") return check.detail === undefined ? check.title : `${check.title}: ${check.detail}`;
	return check.title;
}

function namesOf(checks: readonly Check[], status: Check["status"]): string {
	return checks
		.filter((check) => check.status === status)
		.map(({ name }) => name)
		.join(", ");
}

/** An object of fields as aligned lines, nested ones behind dots. */
export function renderFields(fields: Readonly<Record<string, unknown>>): string {
	const rows = flatten(fields, "");
	const width = Math.max(...rows.map(([name]) => name.length));
	return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join("\n");
}

function flatten(fields: object, prefix: string): (readonly [string, string])[] {
	return Object.entries(fields).flatMap(([name, value]: [string, unknown]) => {
		if (value === undefined) return [];
		if (Array.isArray(value))
			return value.length === 0 ? [] : value.map((one, index) => [`${prefix}${name}.${index}`, String(one)] as const);
		if (typeof value === "object" && value !== null) return flatten(value, `${prefix}${name}.`);
		return [[`${prefix}${name}`, typeof value === "string" ? value : JSON.stringify(value)] as const];
	});
}
