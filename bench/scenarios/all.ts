/** Every scenario, in the order in which they run. */
import type { Scenario } from "../scenario.ts";
import { boot } from "./boot.ts";
import { cold } from "./cold.ts";
import { exec } from "./exec.ts";
import { loop } from "./loop.ts";
import { memory } from "./memory.ts";
import { network } from "./network.ts";
import { parallel } from "./parallel.ts";
import { pod, removal } from "./pod.ts";
import { reclaim } from "./reclaim.ts";
import { sampling } from "./sampling.ts";
import { shim } from "./shim.ts";
import { snapshot } from "./snapshot.ts";
import { stdio, stdioGuest } from "./stdio.ts";
import { warm, warmShim } from "./warm.ts";

export const SCENARIOS: readonly Scenario[] = [
	boot,
	cold,
	warm,
	warmShim,
	snapshot,
	pod,
	shim,
	removal,
	exec,
	stdio,
	stdioGuest,
	memory,
	reclaim,
	sampling,
	parallel,
	loop,
	network,
];

/** Those that a quick run leaves out unless they are named. */
export const SLOW_SCENARIOS: ReadonlySet<string> = new Set([network.name, snapshot.name, stdioGuest.name]);

/** The scenarios of a run. @param names those that are wanted; empty for all */
export function chooseScenarios(names: readonly string[], quick: boolean): readonly Scenario[] {
	if (names.length > 0) return SCENARIOS.filter(({ name }) => names.includes(name));
	return SCENARIOS.filter(({ name }) => !quick || !SLOW_SCENARIOS.has(name));
}
