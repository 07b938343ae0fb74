/** Plays what was recorded of the real VMM against `ch-qemu` and says where the two differ. */
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { holdNamespace } from "../../shim/host/namespaces.ts";
import { makeTap } from "../../shim/host/taps.ts";
import { TestNamespace } from "../support/netns.ts";
import { guestInitramfs, guestKernel } from "./guest.ts";
import { type Answer, soon, Vmm } from "./lab.ts";

/** One request of the recording, or a point where the recorder waited for the guest. */
export type Request = { method: string; path: string; body?: unknown; fds?: number; status: number; response?: unknown };
export type Step = Request | { wait: "guest" } | { wait: "removed"; id: string };

/** One VMM's life as it was recorded. Paths start with WORK. Event names are `source event`. */
export type Recording = { scenario: string; vmm: number; steps: Step[]; events: string[]; exit: { code: number; socketLeft: boolean } };

/** The differences of one life: by step number (from 1), and by what is compared at the end. */
export type Differences = Record<string, string[]>;

/** Differences that are everywhere and were set aside, by name. */
export type Everywhere = Set<string>;

export function readRecordings(): Recording[] {
	const text = readFileSync(new URL("data/recorded.jsonl", import.meta.url), "utf8");
	return text
		.split("\n")
		.filter((line) => line !== "")
		.map((line) => JSON.parse(line) as Recording);
}

/**
 * Plays one life in `folder`, in a network namespace of its own (recorded calls make taps). `listed` are the differences that are expected: what the
 * guest changes by and by is waited for until it is as they say.
 */
export async function replay(
	recording: Recording,
	folder: string,
	everywhere: Everywhere,
	listed: Differences,
	snapshots: KeptSnapshots,
): Promise<Differences> {
	prepare(recording, folder);
	snapshots.put(recording, folder);
	const space = new TestNamespace("play");
	const vmm = await Vmm.start(folder, ["ip", "netns", "exec", space.name]);
	const differences: Differences = {};
	try {
		await play(vmm, space, recording, differences, everywhere, listed);
		const { code } = await soon("the VMM's end", vmm.ended);
		note(differences, "exit", compare({ code, socketLeft: existsSync(vmm.api) }, recording.exit));
		note(differences, "events", compareEvents(vmm.events(), recording.events, everywhere));
	} finally {
		await vmm.kill();
		space.remove();
	}
	snapshots.keep(recording, folder);
	return differences;
}

/** What one life of a scenario has left in `snap` is there in the next one, as the recorder's folder was. */
export class KeptSnapshots {
	readonly #files = new Map<string, Map<string, Buffer>>();

	keep({ scenario }: Recording, folder: string): void {
		const names = readdirSync(join(folder, "snap"));
		if (names.length === 0) return;
		const read = (name: string): Buffer => readFileSync(join(folder, "snap", name));
		// The folder's own name stands in the configuration.
		const config = Buffer.from(read("config.json").toString().replaceAll(folder, "WORK"));
		this.#files.set(scenario, new Map(names.map((name) => [name, name === "config.json" ? config : read(name)])));
	}

	put({ scenario }: Recording, folder: string): void {
		for (const [name, bytes] of this.#files.get(scenario) ?? []) {
			const own = name === "config.json" ? bytes.toString().replaceAll("WORK", folder) : bytes;
			writeFileSync(join(folder, "snap", name), own);
		}
	}
}

/** The descriptors that the recorder sent with a request: queues of a tap, or no tap at all where that was the case in question. */
async function descriptorsOf(step: Request, number: number, space: TestNamespace): Promise<number[]> {
	if (step.fds === undefined) return [];
	if (JSON.stringify(step.response ?? "").includes("Inappropriate ioctl")) return [openSync("/dev/null", "r")];
	const ns = holdNamespace(space.path);
	try {
		const { tap = `chrec${number}` } = step.body as { tap?: string };
		return await makeTap(ns.fd, tap, step.fds);
	} finally {
		ns.close();
	}
}

async function play(
	vmm: Vmm,
	space: TestNamespace,
	recording: Recording,
	differences: Differences,
	everywhere: Everywhere,
	listed: Differences,
): Promise<void> {
	/** How often a device of that id was told to go, and which are told to now. */
	const removals = new Map<string, number>();
	const leaving = new Set<string>();
	for (const [index, step] of recording.steps.entries()) {
		if ("wait" in step) {
			if (step.wait === "guest") await vmm.ready();
			else await vmm.removed(step.id, removals.get(step.id) ?? 0);
			continue;
		}
		const fds = await descriptorsOf(step, index, space);
		const send = (): Promise<Answer> => vmm.request(step.method, step.path, fill(step.body, vmm.folder), fds);
		const look = (answer: Answer): string[] => compareAnswer(answer, step, vmm.folder, everywhere);
		const found = await settled(send, step.path, look, listed[String(index + 1)] ?? []);
		for (const fd of fds) closeSync(fd);
		note(differences, String(index + 1), found.differences);
		if (step.path.endsWith("vm.remove-device") && found.answer.status === 204) {
			const { id } = step.body as { id: string };
			// A device that is asked twice goes once.
			if (!leaving.has(id)) removals.set(id, (removals.get(id) ?? 0) + 1);
			leaving.add(id);
		}
		if (step.path.includes("/vm.add-") && found.answer.status === 200) leaving.delete((step.body as { id?: string }).id ?? "");
	}
}

type Found = { answer: Answer; differences: string[] };

/** `vm.info` shows what the guest does by and by (the balloon): it is asked again until it is as expected, at most some times. */
async function settled(send: () => Promise<Answer>, path: string, look: (answer: Answer) => string[], wanted: string[]): Promise<Found> {
	for (let tries = path.endsWith("vm.info") ? INFO_TRIES : 1; ; tries--) {
		const answer = await send();
		const differences = look(answer);
		if (tries <= 1 || JSON.stringify(differences) === JSON.stringify(wanted)) return { answer, differences };
		await new Promise((resolve) => setTimeout(resolve, INFO_PAUSE_MS));
	}
}

const INFO_TRIES = 100;
const INFO_PAUSE_MS = 50;
const IMAGE_BYTES = 16 * 1024 * 1024;

/** The files that the recorder had made. */
function prepare(recording: Recording, folder: string): void {
	mkdirSync(join(folder, "snap"));
	symlinkSync(guestKernel(), join(folder, "vmlinux"));
	symlinkSync(guestInitramfs(), join(folder, "l2.cpio"));
	writeFileSync(join(folder, "fake.igvm"), "not an IGVM file");
	writeFileSync(join(folder, "min.igvm"), `IGVM${"\0".repeat(60)}`);
	const names = JSON.stringify(recording.steps.map((step) => ("body" in step ? step.body : undefined))).matchAll(/WORK\/([\w.]+\.img)/g);
	for (const [, name] of names) {
		if (name === undefined || name === "missing.img") continue;
		writeFileSync(join(folder, name), "");
		truncateSync(join(folder, name), IMAGE_BYTES);
	}
}

/** A recorded body with the test's folder in it, and a serial port that can be watched. Spaced as the recorder's was: messages name columns. */
function fill(body: unknown, folder: string): string | undefined {
	if (body === undefined) return undefined;
	const text = spaced(body).replaceAll("WORK", folder);
	return text.replace('"serial": {"mode": "Null"}', `"serial": {"mode": "File", "file": "${folder}/serial"}`);
}

function spaced(value: unknown): string {
	if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
	if (typeof value !== "object" || value === null) return JSON.stringify(value);
	return `{${Object.entries(value)
		.map(([key, member]) => `${JSON.stringify(key)}: ${spaced(member)}`)
		.join(", ")}}`;
}

function compareAnswer(answer: Answer, step: Request, folder: string, everywhere: Everywhere): string[] {
	const differences: string[] = [];
	if (answer.status !== step.status) differences.push(`status ${step.status}, here ${answer.status}`);
	if (answer.reason !== "") differences.push("a reason phrase");
	const text = answer.text.replaceAll(folder, "WORK");
	const got: unknown =
		text === "" ? undefined : JSON.parse(text.replace('"serial":{"file":"WORK/serial","mode":"File"}', '"serial":{"mode":"Null"}'));
	const wanted: unknown =
		step.response === undefined
			? undefined
			: JSON.parse(JSON.stringify(step.response).replace('"serial":{"file":"WORK/serial","mode":"File"}', '"serial":{"mode":"Null"}'));
	if (Array.isArray(wanted) && typeof got === "object" && !Array.isArray(got)) return [...differences, "here another body"];
	if (Array.isArray(wanted) || Array.isArray(got)) {
		// A column depends on how long the recorder's folder was, where a body names it.
		const text = (value: unknown): string =>
			spaced(step.body ?? null).includes("WORK") ? withoutColumn(value) : (JSON.stringify(value) ?? "no body");
		if (text(got) !== text(wanted)) differences.push(`here ${text(got)}`);
		else if (JSON.stringify(got) !== JSON.stringify(wanted)) everywhere.add("columns");
		return differences;
	}
	if (typeof got === "object" && typeof wanted !== typeof got) return [...differences, "here a body"];
	for (const pointer of compare(got, wanted)) {
		const rule = ruleOf(pointer, step.path);
		if (rule === undefined) differences.push(pointer);
		else everywhere.add(rule);
	}
	return differences;
}

function withoutColumn(value: unknown): string {
	return (JSON.stringify(value) ?? "no body").replace(/ column \d+/, "");
}

/** The rule that sets a difference aside, if there is one. */
function ruleOf(pointer: string, path: string): string | undefined {
	if (/\/(pci_)?bdf$/.test(pointer)) return "slot";
	if (/^\/config\/net\/\d+\/mac$/.test(pointer)) return "mac";
	if (/^\/config\/net\/\d+\/fds\/\d+$/.test(pointer)) return "descriptor numbers";
	if (path.endsWith("vmm.ping") && /^\/(build_version|version|pid|features)/.test(pointer)) return "identity";
	if (path.endsWith("vm.counters") && /^\/[^/]+\/\w+(bytes|ops|frames|min|max|avg)$/.test(pointer)) return "counter values";
	return undefined;
}

function compareEvents(got: readonly string[], wanted: readonly string[], everywhere: Everywhere): string[] {
	const known = wanted.filter((name) => !name.startsWith("virtio-device "));
	if (known.length !== wanted.length) everywhere.add("driver events");
	const count = (names: readonly string[], name: string): number => names.filter((n) => n === name).length;
	const names = [...new Set([...got, ...known])].sort();
	return names
		.filter((name) => count(got, name) !== count(known, name))
		.map((name) => `${name}: ${count(known, name)} recorded, ${count(got, name)} here`);
}

/** The JSON pointers of all leaves that differ; a part that only one side has is one leaf. */
function compare(got: unknown, wanted: unknown, pointer = ""): string[] {
	if (typeof got === "object" && typeof wanted === "object" && got !== null && wanted !== null) {
		const keys = [...new Set([...Object.keys(got), ...Object.keys(wanted)])].sort();
		const child = (value: object, key: string): unknown => (value as Record<string, unknown>)[key];
		return keys.flatMap((key) => compare(child(got, key), child(wanted, key), `${pointer}/${key}`));
	}
	return Object.is(got, wanted) ? [] : [pointer === "" ? "the body" : pointer];
}

function note(differences: Differences, where: string, found: string[]): void {
	if (found.length > 0) differences[where] = found;
}
