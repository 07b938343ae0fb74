/** Results as a run writes them, for tests of what is made of them. */
import type { Figure, Results } from "../../bench/results.ts";

/** One figure in milliseconds. */
export function figure(id: string, samples: Figure["samples"], more: Partial<Figure> = {}): Figure {
	return { id, name: `figure ${id}`, unit: "ms", better: "less", samples, ...more };
}

/** A run with one scenario. */
export function resultsWith(figures: readonly Figure[], more: Partial<Results["scenarios"][number]> = {}): Results {
	const origin = {
		date: "2026-01-02T03:04:05.000Z",
		command: "npm run bench -- shim",
		commit: "0123456789",
		host: { kernel: "6.18", cpu: 'CPU "one"', cpus: 2, memoryGib: 8 },
		containerd: "2.1.9",
		load1: 1.5,
	};
	const scenario = { ...origin, name: "shim", what: "a <pod> & more", vm: "null" as const, seconds: 3, timeline: [], curves: [] };
	return { version: 3, runtimes: ["snp", "runc"], scenarios: [{ ...scenario, figures: [...figures], ...more }], failures: [] };
}
