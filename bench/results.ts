/** The bench's results: plain data, read again from a file as it was written. */
import * as v from "valibot";

const samples = v.record(v.string(), v.pipe(v.array(v.number()), v.minLength(1)));

const figure = v.object({
	/** Short and lasting: targets and earlier results name it. */
	id: v.string(),
	name: v.string(),
	unit: v.picklist(["ms", "MiB", "MiB/s", ""]),
	better: v.picklist(["less", "more"]),
	/** By the runtime's name (or that of something else that stands beside them). */
	samples,
});

const span = v.object({ step: v.string(), startMs: v.number(), durationMs: v.number() });

const curve = v.object({
	name: v.string(),
	unit: v.string(),
	/** What stands on the horizontal axis. */
	over: v.string(),
	points: v.record(v.string(), v.array(v.tuple([v.number(), v.number()]))),
});

const measured = v.object({
	figures: v.array(figure),
	/** The steps of one start of ours, each at its median. */
	timeline: v.optional(v.array(span), []),
	curves: v.optional(v.array(curve), []),
});

const scenarioResults = v.object({
	...measured.entries,
	name: v.string(),
	what: v.string(),
	/** The VMs: those of `ch-qemu`, or of `null-vmm`, which do nothing; or none at all. */
	vm: v.picklist(["ch-qemu", "null", "none"]),
	seconds: v.number(),
	/** The machine's load when it began. */
	load1: v.number(),
});

const results = v.object({
	version: v.literal(2),
	date: v.string(),
	command: v.string(),
	host: v.object({ kernel: v.string(), cpu: v.string(), cpus: v.number(), memoryGib: v.number() }),
	containerd: v.string(),
	runtimes: v.array(v.string()),
	scenarios: v.array(scenarioResults),
	/** Scenarios that could not be measured, with the reason. */
	failures: v.array(v.object({ scenario: v.string(), reason: v.string() })),
});

export type Figure = Readonly<v.InferOutput<typeof figure>>;
export type Span = Readonly<v.InferOutput<typeof span>>;
export type Curve = Readonly<v.InferOutput<typeof curve>>;
/** What a scenario has measured. */
export type Measured = Readonly<v.InferInput<typeof measured>>;
export type ScenarioResults = Readonly<v.InferOutput<typeof scenarioResults>>;
export type Results = Readonly<v.InferOutput<typeof results>>;

/** Earlier results with those scenarios replaced that were measured again; the rest is as it was, and both commands are named. */
export function updated(before: Results, now: Results): Results {
	const names = new Set([...now.scenarios.map(({ name }) => name), ...now.failures.map(({ scenario }) => scenario)]);
	const commands = [...new Set([...before.command.split("; "), now.command])];
	return {
		...now,
		command: commands.join("; "),
		containerd: now.containerd === "" ? before.containerd : now.containerd,
		scenarios: [...before.scenarios.filter(({ name }) => !names.has(name)), ...now.scenarios],
		failures: [...before.failures.filter(({ scenario }) => !names.has(scenario)), ...now.failures],
	};
}

/** Every figure of a run. */
export function figuresOf({ scenarios }: Results): Figure[] {
	return scenarios.flatMap(({ figures }) => figures);
}

/**
 * Reads results.
 * @param file its name, for messages
 * @throws Error that names the file and what is wrong in it
 */
export function parseResults(text: string, file: string): Results {
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw new Error(`${file} is no JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
	}
	const parsed = v.safeParse(results, value);
	if (parsed.success) return parsed.output;
	const [issue] = parsed.issues;
	throw new Error(`${file} has no results of this bench: ${v.getDotPath(issue) ?? "document"}: ${issue.message}`);
}

/** Collects samples by runtime, and makes figures of them. */
export class Samples {
	readonly #all = new Map<string, Map<string, number[]>>();

	/** One more sample of a figure. */
	add(id: string, runtime: string, value: number): void {
		const figure = this.#all.get(id) ?? new Map<string, number[]>();
		this.#all.set(id, figure);
		figure.set(runtime, [...(figure.get(runtime) ?? []), value]);
	}

	/** One figure. @throws Error when nothing was added for it */
	figure(id: string, name: string, unit: Figure["unit"] = "ms", better: Figure["better"] = "less"): Figure {
		const found = this.#all.get(id);
		if (found === undefined) throw new Error(`nothing was measured for ${id}`);
		return { id, name, unit, better, samples: Object.fromEntries(found) };
	}
}
