/** The bench's results: plain data, read again from a file as it was written. */
import * as v from "valibot";

const samples = v.record(v.string(), v.pipe(v.array(v.number()), v.minLength(1)));

const figure = v.object({
	/** Short and lasting: targets and earlier results name it. */
	id: v.string(),
	name: v.string(),
	unit: v.picklist(["ms", "s", "MiB", "MiB/s", ""]),
	better: v.picklist(["less", "more"]),
	/** By the runtime's name (or that of something else that stands beside them). */
	samples,
	/** How many samples after one another were taken together, as those of one burst: they have more in common than chance. Each alone when left out. */
	together: v.optional(v.record(v.string(), v.array(v.pipe(v.number(), v.integer(), v.minValue(1))))),
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

/** How a scenario came to its figures. */
const origin = v.object({
	/** When it began (ISO 8601). */
	date: v.string(),
	command: v.string(),
	/** What was checked out, with a plus sign when it was changed. */
	commit: v.string(),
	host: v.object({ kernel: v.string(), cpu: v.string(), cpus: v.number(), memoryGib: v.number() }),
	containerd: v.string(),
	/** The machine's load when it began. */
	load1: v.number(),
});

const scenarioResults = v.object({
	...measured.entries,
	...origin.entries,
	name: v.string(),
	what: v.string(),
	/** The VMs: those of `ch-qemu`, or of `null-vmm`, which do nothing; or none at all. */
	vm: v.picklist(["ch-qemu", "null", "none"]),
	seconds: v.number(),
});

const results = v.object({
	version: v.literal(3),
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
export type Origin = Readonly<v.InferOutput<typeof origin>>;
export type ScenarioResults = Readonly<v.InferOutput<typeof scenarioResults>>;
export type Results = Readonly<v.InferOutput<typeof results>>;

/** Earlier results with those scenarios replaced that were measured again; the rest is as it was. */
export function updated(before: Results, now: Results): Results {
	const names = new Set([...now.scenarios.map(({ name }) => name), ...now.failures.map(({ scenario }) => scenario)]);
	return {
		...now,
		runtimes: [...new Set([...before.runtimes, ...now.runtimes])],
		scenarios: [...before.scenarios.filter(({ name }) => !names.has(name)), ...now.scenarios],
		failures: [...before.failures.filter(({ scenario }) => !names.has(scenario)), ...now.failures],
	};
}

/** Results with their scenarios in the order of `known`, and the known scenarios that there is nothing of, not even a failure. */
export function arranged(results: Results, known: readonly string[]): { readonly results: Results; readonly absent: readonly string[] } {
	const place = (name: string): number => (known.includes(name) ? known.indexOf(name) : known.length);
	const scenarios = [...results.scenarios].sort((a, b) => place(a.name) - place(b.name));
	const there = new Set([...scenarios.map(({ name }) => name), ...results.failures.map(({ scenario }) => scenario)]);
	return { results: { ...results, scenarios }, absent: known.filter((name) => !there.has(name)) };
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
	readonly #together = new Map<string, Map<string, number[]>>();

	/** One more sample of a figure. */
	add(id: string, runtime: string, value: number): void {
		append(this.#all, id, runtime, [value]);
	}

	/** Samples that were taken together, such as those of a burst; a figure has either these or single ones. None is none. */
	addTogether(id: string, runtime: string, values: readonly number[]): void {
		if (values.length === 0) return;
		append(this.#all, id, runtime, values);
		append(this.#together, id, runtime, [values.length]);
	}

	/** One figure. @throws Error when nothing was added for it */
	figure(id: string, name: string, unit: Figure["unit"] = "ms", better: Figure["better"] = "less"): Figure {
		const found = this.#all.get(id);
		if (found === undefined) throw new Error(`nothing was measured for ${id}`);
		const together = this.#together.get(id);
		const groups = together === undefined ? {} : { together: Object.fromEntries(together) };
		return { id, name, unit, better, samples: Object.fromEntries(found), ...groups };
	}
}

function append(all: Map<string, Map<string, number[]>>, id: string, runtime: string, values: readonly number[]): void {
	const figure = all.get(id) ?? new Map<string, number[]>();
	all.set(id, figure);
	figure.set(runtime, [...(figure.get(runtime) ?? []), ...values]);
}

/** The samples of one column, those together that were taken together. */
export function groupsOf({ samples: all, together }: Figure, column: string): readonly (readonly number[])[] {
	const values = all[column] ?? [];
	const sizes = together?.[column];
	if (sizes === undefined) return values.map((value) => [value]);
	let at = 0;
	return sizes.map((size) => values.slice(at, (at += size)));
}
