/** snpctl, the operator's tool: shows the pods of this node, how a pod's start went, and checks the configuration. */

import { existsSync } from "node:fs";
import { argv, env, exit, stdout } from "node:process";
import { parseArgs } from "node:util";

import * as v from "valibot";

import { explain, messageOf, ShimError } from "../base/errors.ts";
import { CONFIG_FILE_VARIABLE, daemonSocket, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { dropInsOf, loadConfig } from "../config/load.ts";
import { kernelParameters } from "../pod/plan.ts";
import { askDaemon } from "../wire/control-client.ts";
import { renderTimeline } from "./render-timeline.ts";
import { table } from "./table.ts";
import { memorySchema, renderMemory } from "./top.ts";
import { VERSION } from "./version.ts";

const USAGE = `usage: snpctl [options] command
  ps                 the pods of this node
  pool               the VMs that wait for a pod
  top                what the node's memory is held by, and what pods have given back
  timeline ID        the steps of a pod's start (ID: pod or container)
  config check       reads the configuration and says what is wrong with it
  config cmdline     the guest kernel's command line, which is measured
  attest verify      is an SEV-SNP attestation report genuine and as expected? (snpctl attest --help)
  attest show        every field of a report
  verify             follows a report to the commit, the policy and the images of its guest (snpctl verify --help)
  measure            SEV-SNP launch digests, ID blocks, signed reference values (snpctl measure --help)
  policy generate ... makes a pod's policy; check tries it, explain says what it denied (snpctl policy --help)
  image prepare ...  the cache of images: prepare, list, inspect, verify, gc (snpctl image --help)
  version            the version of this build
options:
  --state-dir DIR    the folder of snpd's socket (default: the configuration's state_dir)
  --json             machine-readable output
  --help, --version`;

const spansSchema = v.object({
	spans: v.array(v.object({ step: v.string(), startMs: v.number(), durationMs: v.optional(v.number()), failed: v.boolean() })),
});
const podsSchema = v.object({
	pods: v.array(
		v.object({
			namespace: v.string(),
			podId: v.string(),
			state: v.string(),
			vmmPid: v.number(),
			confidential: v.optional(v.string(), "off"),
			containers: v.array(v.object({ id: v.string(), state: v.string() })),
		}),
	),
});

const poolSchema = v.object({
	pool: v.object({
		vms: v.array(
			v.object({
				name: v.string(),
				key: v.string(),
				state: v.string(),
				vcpus: v.number(),
				memoryMib: v.number(),
				vmmPid: v.number(),
				ageMs: v.number(),
			}),
		),
		wanted: v.number(),
		hits: v.number(),
		misses: v.number(),
		trouble: v.string(),
		snapshots: v.object({
			enabled: v.boolean(),
			templates: v.array(
				v.object({
					name: v.string(),
					key: v.string(),
					vcpus: v.number(),
					memoryMib: v.number(),
					bytes: v.number(),
					ageMs: v.number(),
					uses: v.number(),
				}),
			),
			making: v.string(),
			restored: v.number(),
			failed: v.number(),
			trouble: v.string(),
		}),
	}),
});

/** As much of a key as tells kinds of VMs apart. */
const KEY_CHARACTERS = 12;
const MS_PER_SECOND = 1000;
const BYTES_PER_MIB = 1024 * 1024;

/** How a pod is kept from its node, as it is shown. */
const CONFIDENTIAL: Readonly<Record<string, string>> = { off: "no", snp: "SEV-SNP", sample: "sample-INSECURE" };

interface Options {
	readonly stateDir: string | undefined;
	readonly json: boolean;
}

/** Commands with options of their own, loaded when they are called. */
const COMMANDS: Readonly<Record<string, () => Promise<(args: readonly string[]) => Promise<number>>>> = {
	attest: async () => (await import("./attest.ts")).attest,
	verify: async () => (await import("./verify.ts")).verify,
	measure: async () => (await import("./measure.ts")).measure,
	image: async () => (await import("./image-commands.ts")).image,
	policy: async () => (await import("./policy.ts")).policy,
};

async function main(): Promise<void> {
	const words = argv.slice(2);
	const at = words.findIndex((word) => !word.startsWith("-"));
	const load = COMMANDS[words[at] ?? ""];
	if (load !== undefined) {
		const run = await load();
		process.exitCode = await run(words.toSpliced(at, 1));
		return undefined;
	}
	const { values, positionals } = readArguments();
	const options: Options = { stateDir: values["state-dir"], json: values.json ?? false };
	if (values.help === true) return print(USAGE);
	if (values.version === true) return print(`snpctl ${VERSION}`);
	const [command, argument, ...rest] = positionals;
	if (command === "version" && argument === undefined) return print(`snpctl ${VERSION}`);
	if (command === "ps" && argument === undefined) return ps(options);
	if (command === "pool" && argument === undefined) return pool(options);
	if (command === "top" && argument === undefined) return top(options);
	if (command === "timeline" && argument !== undefined && rest.length === 0) return timeline(argument, options);
	if (command === "config" && argument === "check" && rest.length === 0) return checkConfig(options);
	if (command === "config" && argument === "cmdline" && rest.length === 0) return print(kernelParameters(await readConfig()));
	throw new ShimError("call.invalid", complaint(positionals), { remedy: USAGE });
}

function complaint(words: readonly string[]): string {
	const [command] = words;
	if (command === undefined) return "no command is given";
	if (command === "timeline") return words.length === 1 ? "timeline needs the ID of a pod or container" : "timeline takes one ID";
	return `unknown command: ${words.join(" ")}`;
}

function readArguments() {
	try {
		return parseArgs({
			allowPositionals: true,
			options: {
				"state-dir": { type: "string" },
				json: { type: "boolean" },
				help: { type: "boolean", short: "h" },
				version: { type: "boolean" },
			},
		});
	} catch (error) {
		throw new ShimError("call.invalid", messageOf(error), { remedy: USAGE });
	}
}

async function ask<T extends v.GenericSchema>(options: Options, schema: T, request: Record<string, unknown>): Promise<v.InferOutput<T>> {
	const stateDir = options.stateDir ?? (await readConfig()).state_dir;
	const answer = v.safeParse(schema, await askDaemon(daemonSocket(stateDir), request));
	if (!answer.success) throw new ShimError("internal", `snpd's answer is not of the expected form: ${answer.issues[0].message}`);
	return answer.output;
}

function readConfig() {
	const file = env[CONFIG_FILE_VARIABLE];
	return loadConfig(file ?? DEFAULT_CONFIG_FILE, { required: file !== undefined });
}

async function ps(options: Options): Promise<void> {
	const { pods } = await ask(options, podsSchema, { op: "list" });
	if (options.json) return print(JSON.stringify(pods));
	const rows = pods.map((pod) => [
		pod.namespace,
		pod.podId,
		pod.state,
		String(pod.vmmPid),
		CONFIDENTIAL[pod.confidential] ?? pod.confidential,
		pod.containers.map(({ id, state }) => `${id} (${state})`).join(", "),
	]);
	print(table([["NAMESPACE", "POD", "STATE", "VMM PID", "CONFIDENTIAL", "CONTAINERS"], ...rows]));
}

async function pool(options: Options): Promise<void> {
	const { vms, wanted, hits, misses, trouble, snapshots } = (await ask(options, poolSchema, { op: "pool" })).pool;
	if (options.json) return print(JSON.stringify({ vms, wanted, hits, misses, trouble, snapshots }));
	const rows = vms.map((vm) => [
		vm.state,
		vm.key.slice(0, KEY_CHARACTERS),
		String(vm.vcpus),
		`${vm.memoryMib} MiB`,
		`${Math.round(vm.ageMs / MS_PER_SECOND)} s`,
		vm.vmmPid === 0 ? "-" : String(vm.vmmPid),
	]);
	print(table([["STATE", "KIND", "VCPUS", "MEMORY", "AGE", "VMM PID"], ...rows]));
	const ready = vms.filter(({ state }) => state === "ready").length;
	print(`${ready} of ${wanted} ready; ${hits} pods had one, ${misses} found none`);
	if (trouble !== "") print(`last trouble: ${trouble}`);
	printTemplates(snapshots);
}

function printTemplates({
	enabled,
	templates,
	making,
	restored,
	failed,
	trouble,
}: v.InferOutput<typeof poolSchema>["pool"]["snapshots"]): void {
	if (!enabled && templates.length === 0) return;
	const rows = templates.map(({ key, vcpus, memoryMib, bytes, ageMs, uses }) => [
		key.slice(0, KEY_CHARACTERS),
		String(vcpus),
		`${memoryMib} MiB`,
		`${Math.ceil(bytes / BYTES_PER_MIB)} MiB`,
		`${Math.round(ageMs / MS_PER_SECOND)} s`,
		String(uses),
	]);
	print("");
	print(table([["TEMPLATE OF KIND", "VCPUS", "MEMORY", "TAKES", "AGE", "USES"], ...rows]));
	if (making !== "") print(`one of kind ${making.slice(0, KEY_CHARACTERS)} is being made`);
	print(`${restored} VMs were restored from a template, ${failed} had to be booted instead`);
	if (trouble !== "") print(`last trouble with templates: ${trouble}`);
}

async function top(options: Options): Promise<void> {
	const { memory } = await ask(options, memorySchema, { op: "memory" });
	print(options.json ? JSON.stringify(memory) : renderMemory(memory));
}

async function timeline(id: string, options: Options): Promise<void> {
	const { spans } = await ask(options, spansSchema, { op: "timeline", id });
	print(options.json ? JSON.stringify(spans) : renderTimeline(spans));
}

async function checkConfig(options: Options): Promise<void> {
	const config = await readConfig();
	if (options.json) return print(JSON.stringify(config));
	const file = env[CONFIG_FILE_VARIABLE] ?? DEFAULT_CONFIG_FILE;
	const dropIns = await dropInsOf(file);
	print(existsSync(file) ? `${file}: sound` : `${file} does not exist: the defaults hold (${CONFIG_FILE_VARIABLE} names another file)`);
	for (const dropIn of dropIns) print(`${dropIn}: sound`);
}

function print(text: string): void {
	stdout.write(`${text}\n`);
}

main().catch((error: unknown) => {
	process.stderr.write(`snpctl: ${explain(error)}\n`);
	exit(1);
});
