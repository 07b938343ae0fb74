/** How long snpd's event loop lets others wait while 50 pods start at once, and what it does meanwhile. */
import { writeFile } from "node:fs/promises";
import * as v from "valibot";
import { isDaemon } from "../../test/support/leftovers.ts";
import { Inspector } from "../../test/support/inspector.ts";
import { startAtOnce } from "../burst.ts";
import { parseProfile, renderFlameGraph } from "../flame.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";

const PODS = 50;
const WARM_UP = 5;
const INTERVAL_MICROS = 250;
/** perf_hooks looks every millisecond, so that a delay of one is none. */
const BEGIN = `(() => {
	const { monitorEventLoopDelay, performance } = require("node:perf_hooks");
	globalThis.snpBench = { delay: monitorEventLoopDelay({ resolution: 1 }), began: performance.eventLoopUtilization() };
	globalThis.snpBench.delay.enable();
})()`;
const END = `(() => {
	const { performance } = require("node:perf_hooks");
	const { delay, began } = globalThis.snpBench;
	delay.disable();
	const ms = (nanos) => nanos / 1e6 - 1;
	return {
		mean: ms(delay.mean), p99: ms(delay.percentile(99)), max: ms(delay.max),
		busy: performance.eventLoopUtilization(began).utilization,
	};
})()`;
const answer = v.object({ mean: v.number(), p99: v.number(), max: v.number(), busy: v.number() });

async function run(bench: Bench) {
	const { bed } = bench;
	const samples = new Samples();
	await startAtOnce(bed, OURS, WARM_UP);
	const daemon = bed.containerd.processes().find(isDaemon);
	if (daemon === undefined) throw new Error("snpd does not run");
	const inspector = await Inspector.open(bed.containerd, daemon.pid);
	try {
		for (let round = 1; round <= bench.runs(3, 1); round++) {
			await inspector.evaluate(BEGIN);
			const { failures } = await startAtOnce(bed, OURS, PODS);
			if (failures.length > 0) throw new Error(`${failures.length} of ${PODS} pods failed: ${failures[0]}`);
			const { mean, p99, max, busy } = v.parse(answer, await inspector.evaluate(END));
			samples.add("loop.mean", OURS.name, mean);
			samples.add("loop.p99", OURS.name, p99);
			samples.add("loop.max", OURS.name, max);
			samples.add("loop.busy", OURS.name, busy);
			bench.progress(`p99 ${p99.toFixed(1)} ms, at most ${max.toFixed(1)} ms`);
		}
		if (bench.profileFile !== undefined) await profile(bench, inspector, bench.profileFile);
	} finally {
		inspector.close();
	}
	return {
		figures: [
			samples.figure("loop.mean", "mean delay of snpd's event loop"),
			samples.figure("loop.p99", "99th percentile of the delay"),
			samples.figure("loop.max", "longest delay"),
			samples.figure("loop.busy", "share of the time in which the loop is busy", ""),
		],
	};
}

/** A burst of its own: looking costs time. */
async function profile(bench: Bench, inspector: Inspector, file: string): Promise<void> {
	await inspector.startProfile(INTERVAL_MICROS);
	await startAtOnce(bench.bed, OURS, PODS);
	const found = await inspector.stopProfile();
	await writeFile(`${file.replace(/\.svg$/, "")}.cpuprofile`, JSON.stringify(found));
	await writeFile(file, renderFlameGraph(parseProfile(found), `snpd while ${PODS} pods start at once and are removed`));
}

/** snpd's event loop. */
export const loop: Scenario = {
	name: "loop",
	what: "snpd's event loop while 50 pods start at once and are removed (perf_hooks, through Node's inspector)",
	vm: "null",
	run,
};
