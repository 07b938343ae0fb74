/** Denials in words: which rule it was, the field, what was expected and what came, and what to add to the policy. Pure. */

import type { Decision, Reason } from "./engine.ts";

/** How much is told of a value, and of how many fields. */
const MAX_VALUE = 300;
const MAX_REASONS = 8;
const MAX_SENTENCE_REASONS = 4;

/** What to do about one reason. */
export interface Advice {
	/** How a new policy gets it. */
	readonly how: string;
	/** Where in the policy's `policy_data` the line belongs; empty when there is none. */
	readonly place: string;
	/** The line. */
	readonly line: string;
}

/** Options of `snpctl policy generate` by the rules that they answer. */
const SWITCHES: Readonly<Record<string, { readonly option: string; readonly line: string }>> = {
	logs: { option: "--allow-logs", line: '"logs": true' },
	stdin: { option: "--allow-stdin", line: '"stdin": true' },
	termination_message: { option: "--allow-termination-message", line: '"termination_message": true' },
};

/** Fields of a container's part of the policy, by the rules that look at them. */
const FIELDS: Readonly<Record<string, string>> = {
	args: "process.args",
	terminal: "process.terminal",
	cwd: "process.cwd",
	no_new_privileges: "process.no_new_privileges",
	capabilities: "process.capabilities",
	root: "root_readonly",
	devices: "devices",
};

/** What the pod's owner can do about a reason. */
export function adviceOn(reason: Reason): Advice {
	const { rule, got, container } = reason;
	const known = SWITCHES[rule];
	if (known !== undefined) return { how: `snpctl policy generate ${known.option}`, place: "allow", line: known.line };
	if (rule === "exec") return execAdvice(got, container);
	if (rule === "ports") return { how: `snpctl policy generate --allow-port ${text(got)}`, place: "allow.ports", line: text(got) };
	if (rule === "layers") {
		return {
			how: "the image is another one than the policy is for: if it is meant, snpctl policy generate with it",
			place: `containers[${container}].layers`,
			line: /roothash=(?<hash>[0-9a-f]{64})/u.exec(text(got))?.groups?.["hash"] ?? text(got),
		};
	}
	if (rule === "never") return { how: "no policy of snpctl allows it; a policy of your own may", place: "", line: "" };
	const place = container === "" ? "" : `containers[${container}]${placeOf(reason)}`;
	return { how: "if the pod is meant to ask for it: snpctl policy generate with the YAML that says so", place, line: lineOf(reason) };
}

function execAdvice(got: unknown, container: string): Advice {
	const words = Array.isArray(got) && got.every((word) => typeof word === "string") ? got : undefined;
	if (words === undefined) return { how: "snpctl policy generate --allow-exec COMMAND", place: "allow.exec", line: "" };
	return {
		how: `snpctl policy generate --allow-exec '${JSON.stringify(words)}'`,
		place: "allow.exec",
		line: JSON.stringify({ container, any: false, args: words }),
	};
}

function placeOf({ rule, path, got, expected }: Reason): string {
	if (rule === "env") return `.process.env[${JSON.stringify(text(got ?? expected ?? "").split("=", 1)[0])}]`;
	if (rule === "user") return `.process.user${path.endsWith("UID") ? ".uid" : path.endsWith("GID") ? ".gid" : ".groups"}`;
	if (rule === "sysctls") return ".sysctls";
	if (rule === "mounts") return ".mounts";
	const field = FIELDS[rule];
	const index = /\[\d+\]$/u.exec(path)?.[0] ?? "";
	return field === undefined ? "" : `.${field}${rule === "args" ? index : ""}`;
}

function lineOf({ rule, got }: Reason): string {
	if (rule === "env" && typeof got === "string") return JSON.stringify(got.slice(got.indexOf("=") + 1));
	return FIELDS[rule] !== undefined || rule === "user" ? text(got) : "";
}

function text(value: unknown): string {
	return typeof value === "string" ? value : (JSON.stringify(value) ?? "");
}

/** A value in a line; long ones are cut. */
export function shownValue(value: unknown): string {
	const shown = JSON.stringify(value) ?? "nothing";
	return shown.length > MAX_VALUE ? `${shown.slice(0, MAX_VALUE)}...` : shown;
}

/** One sentence for a pod's event: what was denied, and why. */
export function denialSentence(name: string, { reasons, failure }: Decision): string {
	const head = `the pod's policy denies ${name}`;
	if (reasons.length === 0)
		return failure === undefined ? `${head}: its rule ${name} is not fulfilled, and it does not say why` : `${head}: ${failure}`;
	const container = reasons[0]?.container ?? "";
	const told = reasons
		.slice(0, MAX_SENTENCE_REASONS)
		.map(({ path, expected, got }) => `${path}: expected ${shownValue(expected)}, got ${shownValue(got)}`);
	const more = reasons.length > told.length ? `; and ${reasons.length - told.length} more` : "";
	return `${head}${container === "" ? "" : ` (container ${container})`}: ${told.join("; ")}${more}`;
}

/** What the pod's owner can do about a denial, in one line. */
export function denialRemedy(reasons: readonly Reason[]): string {
	const [first] = reasons;
	if (first === undefined) return "look at the policy's rule of this name";
	const { how, place, line } = adviceOn(first);
	return place === "" || line === ""
		? how
		: `${how}; in policy_data, ${place}: ${line.length > MAX_VALUE ? `${line.slice(0, MAX_VALUE)}...` : line}`;
}

/** A whole explanation for a person: a few lines for each reason. */
export function explanation(name: string, decision: Decision): string {
	if (decision.allowed) return `${name}: allowed`;
	if (decision.reasons.length === 0) return denialSentence(name, decision);
	const lines = [`${name}: denied`];
	for (const reason of decision.reasons.slice(0, MAX_REASONS)) {
		const { how, place, line } = adviceOn(reason);
		lines.push(
			"",
			`  field     ${reason.path}`,
			`  rule      ${reason.rule}${reason.container === "" ? "" : ` (container ${reason.container})`}`,
			`  expected  ${shownValue(reason.expected)}`,
			`  got       ${shownValue(reason.got)}`,
			`  to allow  ${how}`,
		);
		if (place !== "" && line !== "") lines.push(`  to add    policy_data.${place}: ${line}`);
	}
	if (decision.reasons.length > MAX_REASONS) lines.push("", `  and ${decision.reasons.length - MAX_REASONS} more`);
	return lines.join("\n");
}

/** What a line of a log or an event tells of a denial; undefined when it tells of none. */
export function readDenial(line: string): { readonly name: string; readonly reasons: readonly Reason[] } | undefined {
	const found = /the pod's policy denies (?<name>[A-Za-z]+)(?: \(container (?<container>[^)]*)\))?(?:: (?<rest>.*))?/su.exec(line)?.groups;
	if (found?.["name"] === undefined) return undefined;
	const reasons: Reason[] = [];
	for (const match of (found["rest"] ?? "").matchAll(
		/(?:^|; )(?<path>[A-Za-z_][\w.[\]"/-]*): expected (?<expected>.+?), got (?<got>.+?)(?=; (?:[A-Za-z_][\w.[\]"/-]*: expected |and \d+ more)| \(|$)/gsu,
	)) {
		const { path = "", expected = "", got = "" } = match.groups ?? {};
		reasons.push({
			path,
			expected: valueOf(expected),
			got: valueOf(got),
			rule: ruleOfPath(found["name"], path),
			container: found["container"] ?? "",
		});
	}
	return { name: found["name"], reasons };
}

function valueOf(shown: string): unknown {
	try {
		return JSON.parse(shown) as unknown;
	} catch {
		return shown;
	}
}

/** The rule of a generated policy that looks at a field. */
function ruleOfPath(name: string, path: string): string {
	if (name === "ExecProcessRequest" && path === "process.Args") return "exec";
	if (name === "ReadStreamRequest") return "logs";
	if (name === "WriteStreamRequest") return "stdin";
	if (name === "ReadFileRequest") return "termination_message";
	if (name === "ForwardPortRequest") return "ports";
	const table: readonly (readonly [RegExp, string])[] = [
		[/Process\.Args/u, "args"],
		[/[pP]rocess\.Env/u, "env"],
		[/[pP]rocess\.Cwd/u, "cwd"],
		[/[pP]rocess\.User/u, "user"],
		[/[pP]rocess\.Capabilities/u, "capabilities"],
		[/NoNewPrivileges/u, "no_new_privileges"],
		[/Process\.Terminal/u, "terminal"],
		[/^OCI\.Mounts/u, "mounts"],
		[/^OCI\.Root/u, "root"],
		[/^storages/u, "layers"],
		[/[dD]evices/u, "devices"],
		[/Sysctl/u, "sysctls"],
		[/Seccomp/u, "seccomp"],
	];
	return table.find(([pattern]) => pattern.test(path))?.[1] ?? "request";
}
