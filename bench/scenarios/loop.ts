/** How long snpd's event loop lets others wait while 50 pods start at once and while they are removed, and what it does meanwhile. */
import { writeFile } from "node:fs/promises";
import { loadavg } from "node:os";
import * as v from "valibot";
import { isDaemon } from "../../test/support/leftovers.ts";
import { Inspector } from "../../test/support/inspector.ts";
import { startAtOnce } from "../burst.ts";
import { parseProfile, renderFlameGraph } from "../flame.ts";
import { commitNow } from "../host.ts";
import { loopDelay, TIMER_MS } from "../loop-delay.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";

const PODS = 50;
const WARM_UP = 5;
const INTERVAL_MICROS = 250;
/** Nothing of it is in snpd itself. The times are rounded to microseconds. */
const BEGIN = `(() => {
	const gaps = [];
	let last = performance.now();
	const timer = setInterval(() => {
		const now = performance.now();
		gaps.push(Math.round((now - last) * 1000) / 1000);
		last = now;
	}, ${TIMER_MS});
	globalThis.snpBench = { gaps, timer, began: performance.eventLoopUtilization() };
})()`;
const END = `(() => {
	const { gaps, timer, began } = globalThis.snpBench;
	clearInterval(timer);
	return { gaps, busy: performance.eventLoopUtilization(began).utilization };
})()`;
const answer = v.object({ gaps: v.array(v.number()), busy: v.number() });
const PHASES = { starts: "while they start", removals: "while they are removed" } as const;

/** Takes down what was noted since BEGIN. */
async function note(bench: Bench, inspector: Inspector, samples: Samples, phase: keyof typeof PHASES): Promise<void> {
	const { gaps, busy } = v.parse(answer, await inspector.evaluate(END));
	const { mean, p99, max } = loopDelay(gaps);
	samples.add(`loop.${phase}.mean`, OURS.name, mean);
	samples.add(`loop.${phase}.p99`, OURS.name, p99);
	samples.add(`loop.${phase}.max`, OURS.name, max);
	samples.add(`loop.${phase}.busy`, OURS.name, busy);
	bench.progress(`${phase}: p99 ${p99.toFixed(1)} ms, at most ${max.toFixed(1)} ms`);
}

async function run(bench: Bench) {
	const { bed } = bench;
	const samples = new Samples();
	await startAtOnce(bench, OURS, WARM_UP);
	const daemon = bed.containerd.processes().find(isDaemon);
	if (daemon === undefined) throw new Error("snpd does not run");
	const inspector = await Inspector.open(bed.containerd, daemon.pid);
	try {
		for (let round = 1; round <= bench.runs(4, 1); round++) {
			await inspector.evaluate(BEGIN);
			const { failures } = await startAtOnce(bench, OURS, PODS, async () => {
				await note(bench, inspector, samples, "starts");
				await inspector.evaluate(BEGIN);
			});
			await note(bench, inspector, samples, "removals");
			if (failures.length > 0) throw new Error(`${failures.length} of ${PODS} pods failed: ${failures[0]}`);
		}
		if (bench.profileFile !== undefined) await profile(bench, inspector, bench.profileFile);
	} finally {
		inspector.close();
	}
	return {
		figures: (["starts", "removals"] as const).flatMap((phase) => [
			samples.figure(`loop.${phase}.mean`, `mean delay of snpd's event loop, ${PHASES[phase]}`),
			samples.figure(`loop.${phase}.p99`, `99th percentile of the delay, ${PHASES[phase]}`),
			samples.figure(`loop.${phase}.max`, `longest delay, ${PHASES[phase]}`),
			samples.figure(`loop.${phase}.busy`, `share of the time in which the loop is busy, ${PHASES[phase]}`, ""),
		]),
	};
}

/** A burst of its own: looking costs time. */
async function profile(bench: Bench, inspector: Inspector, file: string): Promise<void> {
	const load = (loadavg()[0] ?? 0).toFixed(1);
	const flags = v.parse(v.array(v.string()), await inspector.evaluate("process.execArgv")).join(" ");
	await inspector.startProfile(INTERVAL_MICROS);
	await startAtOnce(bench, OURS, PODS);
	const found = await inspector.stopProfile();
	const title = `snpd while ${PODS} pods start at once and are removed (commit ${commitNow()}, load ${load}, ${flags})`;
	await writeFile(`${file.replace(/\.svg$/, "")}.cpuprofile`, JSON.stringify(found));
	await writeFile(file, renderFlameGraph(parseProfile(found), title));
}

/** snpd's event loop. */
export const loop: Scenario = {
	name: "loop",
	what: "snpd's event loop while 50 pods start at once, and while they are removed one after the other (a timer of 1 ms, through Node's inspector)",
	vm: "null",
	run,
};
