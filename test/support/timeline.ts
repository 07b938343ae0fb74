/** The steps of a pod's start, as `snpctl timeline --json` tells them. */
import { join } from "node:path";
import type { PrivateContainerd } from "./containerd.ts";
import { distBinDir } from "./paths.ts";
import { runOk } from "./process.ts";

/** One step; times in milliseconds since the pod's first call. */
export type Step = { readonly step: string; readonly startMs: number; readonly durationMs: number };

const SNPCTL_TIMEOUT_MS = 15_000;

function isStep(value: unknown): value is Step {
	if (typeof value !== "object" || value === null) return false;
	const { step, startMs, durationMs } = value as Record<string, unknown>;
	return typeof step === "string" && typeof startMs === "number" && typeof durationMs === "number";
}

/**
 * The finished steps of a pod that lives.
 * @throws Error when snpd does not know the pod or the answer has another form.
 */
export async function readTimeline(containerd: PrivateContainerd, id: string): Promise<Step[]> {
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, "--json", "timeline", id);
	const { stdout } = await runOk(argv, { timeoutMs: SNPCTL_TIMEOUT_MS });
	const answer: unknown = JSON.parse(stdout);
	if (!Array.isArray(answer)) throw new Error(`snpctl timeline ${id}: an array was expected: ${stdout.slice(0, 200)}`);
	return answer.filter(isStep);
}
