/** The results of the bench of pods: plain data, as text, as a picture. */
import type { HostFacts } from "./host.ts";
import { FLOWS, HANDLERS, type PodRun } from "./pods.ts";
import { summarize, type Summary } from "./statistics.ts";
import { bar, COLOURS, picture, type Row } from "./svg.ts";
import { align, cells } from "./table.ts";

/** One thing that was measured under each runtime. */
export type Figure = {
	readonly name: string;
	readonly unit: "ms" | "MiB/s" | "MiB";
	/** By the runtime's handler. */
	readonly runtimes: Readonly<Record<string, Summary>>;
	/** The shim's median over runc's. */
	readonly ratio: number;
};

/** What it was measured with. */
export type About = { readonly date: string; readonly host: HostFacts; readonly containerd: string };
export type PodResults = About & { readonly figures: readonly Figure[] };

const STEPS: readonly (readonly [key: keyof PodRun, name: string])[] = [
	["runPodMs", "RunPodSandbox"],
	["startContainerMs", "create and start a container"],
	["stopPodMs", "StopPodSandbox"],
	["removePodMs", "RemovePodSandbox"],
	["removalMs", "removal (both)"],
];

/** Sums up what was measured; `flows` has the rates of each pod in the order of `FLOWS`. */
export function podResults(
	about: About,
	pods: ReadonlyMap<string, readonly PodRun[]>,
	flows: ReadonlyMap<string, readonly (readonly number[])[]>,
): PodResults {
	const rates = FLOWS.map(({ direction, streams }, index) =>
		figure(`TCP ${direction.replaceAll("-", " ")}, ${streams === 1 ? "1 stream" : `${streams} streams`}`, "MiB/s", (handler) =>
			(flows.get(handler) ?? []).map((pod) => pod[index] ?? 0),
		),
	);
	return { ...about, figures: [...podFigures(pods), ...rates] };
}

/** The figures of pods' lives, by their runtimes' handlers. */
export function podFigures(pods: ReadonlyMap<string, readonly PodRun[]>): Figure[] {
	return STEPS.map(([key, name]) => figure(name, "ms", (handler) => (pods.get(handler) ?? []).map((run) => run[key])));
}

/** One figure from the samples of each runtime's handler. */
export function figure(name: string, unit: Figure["unit"], samplesOf: (handler: string) => readonly number[]): Figure {
	const runtimes = Object.fromEntries(HANDLERS.map((handler) => [handler, summarize(samplesOf(handler))]));
	const [ours, other] = HANDLERS.map((handler) => runtimes[handler]?.median ?? 0);
	return { name, unit, runtimes, ratio: (ours ?? 0) / (other ?? 1) };
}

/** A table of all figures. */
export function renderPodTables({ host, containerd, figures }: PodResults): string {
	const head = `containerd ${containerd}, pods through CRI, ${host.cpus} x ${host.cpu}, Linux ${host.kernel}, load ${host.load1.toFixed(1)}`;
	const rows = figures.map(({ name, unit, runtimes, ratio }) => [
		`${name} (${unit})`,
		...HANDLERS.flatMap((handler) => (runtimes[handler] === undefined ? [] : cells(runtimes[handler]))),
		ratio.toFixed(2),
	]);
	const titles = ["", ...HANDLERS.flatMap((handler) => [handler, "", ""]), "ratio"];
	return `${head}\n\n${align([titles, ["", ...HANDLERS.flatMap(() => ["min", "median", "p95"]), "of medians"], ...rows])}\n`;
}

function rowsOf(figures: readonly Figure[]): Row[] {
	const summaries = figures.flatMap(({ runtimes }) => Object.values(runtimes));
	const full = Math.max(...summaries.map(({ p95 }) => p95));
	return figures.flatMap(({ name, unit, runtimes }) =>
		HANDLERS.flatMap((handler, index): Row[] => {
			const summary = runtimes[handler];
			const colour = COLOURS[index] ?? COLOURS[0];
			return summary === undefined ? [] : [(y) => bar(y, index === 0 ? name : handler, 0, summary, full, colour, unit)];
		}),
	);
}

const TITLES: Readonly<Record<Exclude<Figure["unit"], "ms">, string>> = {
	"MiB/s": "TCP between a pod and its host",
	MiB: "Memory of the shim's processes",
};

/** An SVG 1.1 document: the times, then what has other units. */
export function renderPodSvg(results: PodResults): string {
	const { figures, containerd } = results;
	return picture([
		{
			title: `${HANDLERS.join(" beside ")}: pods through CRI, containerd ${containerd}`,
			rows: rowsOf(figures.filter(({ unit }) => unit === "ms")),
		},
		...(["MiB/s", "MiB"] as const).flatMap((wanted) => {
			const chosen = figures.filter(({ unit }) => unit === wanted);
			return chosen.length === 0 ? [] : [{ title: TITLES[wanted], rows: rowsOf(chosen) }];
		}),
	]);
}
