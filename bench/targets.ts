/** What this project wants to reach, and whether a run has reached it. */
import reasons from "./missed.json" with { type: "json" };
import { figuresOf, type Results } from "./results.ts";
import { OURS, RUNC } from "./runtimes.ts";
import { DEBIAN } from "./scenarios/boot.ts";
import { RAW } from "./scenarios/stdio.ts";
import { summarize, type Summary } from "./statistics.ts";

/** A figure's summaries, by what was measured. */
type Found = (id: string, column?: string) => Summary | undefined;

/** One target. */
export type Target = {
	/** Short and lasting: reasons name it. */
	readonly id: string;
	readonly name: string;
	readonly unit: string;
	/** The value that counts; undefined when it was not measured. */
	readonly value: (found: Found) => number | undefined;
	readonly limit: number;
	/** Whether the value has to be at most the limit, or at least. */
	readonly sense: "at most" | "at least";
	/** The figure whose runc column stands beside it. */
	readonly runc?: string;
	/** runc's value on the machine that the target was set on: where runc is measured too, the ratio to it counts, not the machine. */
	readonly runcThen?: number;
	/** What must be known of the value even where the target is met. */
	readonly remark?: string;
};

/** How a target stands. */
export type Verdict = {
	readonly target: Target;
	readonly value: number | undefined;
	readonly runc: number | undefined;
	/** What the limit is on this machine. */
	readonly limit: number;
	readonly outcome: "met" | "missed" | "not measured";
	/** Why it is missed; empty unless it is. */
	readonly reason: string;
	/** What this run says besides: a limit that is met by itself, and missed beside runc. */
	readonly besides: string;
};

const medianOf =
	(id: string) =>
	(found: Found): number | undefined =>
		found(id)?.median;

function ratio(above: number | undefined, below: number | undefined): number | undefined {
	return above === undefined || below === undefined ? undefined : above / below;
}

/** One that a figure's median has to stay below. */
function below(figure: string, name: string, limit: number, unit = "ms", runcThen?: number): Target {
	const then = runcThen === undefined ? {} : { runcThen };
	return { id: figure, name, unit, value: medianOf(figure), limit, sense: "at most", runc: figure, ...then };
}

const against = (figure: string, name: string, remark?: string): Target => ({
	...(remark === undefined ? {} : { remark }),
	id: figure,
	name,
	unit: "of a raw vsock stream",
	value: (found) => ratio(found(figure)?.median, found(figure, RAW)?.median),
	limit: 0.8,
	sense: "at least",
});

export const TARGETS: readonly Target[] = [
	{
		id: "boot",
		name: "boot of a guest (`pc`, emulated)",
		unit: "of one with Debian's cloud kernel",
		value: (found) => ratio(found("boot.ready")?.median, found("boot.ready", DEBIAN)?.median),
		limit: 0.33,
		sense: "at most",
	},
	{
		id: "warm",
		name: "a start in a VM of the pool",
		unit: "of a cold one",
		value: (found) => ratio(found("warm.total")?.median, found("warm.cold")?.median),
		limit: 0.35,
		sense: "at most",
	},
	below("warm-shim.total", "a start in a VM of the pool, the shim's own part", 25),
	below("shim.start", "`start`", 2, "ms", 6.7),
	below("shim.sandbox-network", "Create of a sandbox, with an interface", 12, "ms", 37),
	below("shim.sandbox", "Create of a sandbox, loopback alone", 12, "ms", 37),
	below("shim.container", "Create and Start of a container", 4, "ms", 45),
	below("removal.removal", "removal of a pod through CRI", 70, "ms", 112),
	below("shim.cpu", "processor time until a pod runs", 10),
	below("memory.10.pss", "memory per pod, 10 pods (PSS)", 6, "MiB"),
	below("memory.50.pss", "memory per pod, 50 pods (PSS)", 1.4, "MiB"),
	below("memory.200.pss", "memory per pod, 200 pods (PSS)", 0.6, "MiB"),
	{
		id: "parallel.50.spread",
		name: "50 pods at once: 99th percentile",
		unit: "x median",
		value: (found) => ratio(found("parallel.50.each")?.p99, found("parallel.50.each")?.median),
		limit: 3,
		sense: "at most",
	},
	{
		id: "parallel.50.failed",
		name: "50 pods at once: failures",
		unit: "",
		value: (found) => found("parallel.50.failed")?.max,
		limit: 0,
		sense: "at most",
	},
	below("reclaim.seconds", "400 MiB that a guest has freed, until the host has them again", 5, "s"),
	below("sampling.pages", "one sample of the memory of 1,000 VMs", 5),
	below("sampling.time", "one with their CPU time, while memory is short", 5),
	below("sampling.main", "the main thread's part of a sample, reading it included", 0.2),
	below("sampling.time-main", "the same with their CPU time", 0.2),
	against("stdio.lines", "standard streams, lines of 64 bytes"),
	against("stdio.large", "standard streams, writes of 1 MiB", "who gets the processors decides, so that it differs much from run to run"),
];

/** Holds a run against the targets. @param texts why one is missed, by its id */
export function judge(results: Results, texts: Readonly<Record<string, string>> = reasons): Verdict[] {
	const figures = new Map(figuresOf(results).map((figure) => [figure.id, figure.samples]));
	const found: Found = (id, column = OURS.name) => {
		const samples = figures.get(id)?.[column];
		return samples === undefined ? undefined : summarize(samples);
	};
	return TARGETS.map((target): Verdict => {
		const value = target.value(found);
		const runc = target.runc === undefined ? undefined : found(target.runc, RUNC.name)?.median;
		const { runcThen } = target;
		const limit = runc === undefined || runcThen === undefined ? target.limit : (target.limit / runcThen) * runc;
		if (value === undefined) return { target, value, runc, limit, outcome: "not measured", reason: "", besides: "" };
		const meets = (bound: number): boolean => (target.sense === "at most" ? value <= bound : value >= bound);
		const met = meets(limit);
		const reason = met ? "" : (texts[target.id] ?? "no reason is known yet");
		return { target, value, runc, limit, outcome: met ? "met" : "missed", reason, besides: besides(target, met, meets(target.limit)) };
	});
}

/** Where the limit itself and the one for this machine part. */
function besides({ unit }: Target, met: boolean, metByItself: boolean): string {
	if (met === metByItself) return "";
	return met ? `missed in ${unit}, met beside runc` : `met in ${unit}, missed beside runc`;
}
