/** Many pods at once. */
import { CaseContext, SLEEP } from "../test/conformance/context.ts";
import type { Runtime } from "./runtimes.ts";
import { timed, type Bench } from "./scenario.ts";

/** What came of a burst. */
export type Burst = {
	/** From the beginning of each pod that runs now to its running container. */
	readonly eachMs: readonly number[];
	/** Until the last one runs. */
	readonly allMs: number;
	/** What the others failed with. */
	readonly failures: readonly string[];
};

/**
 * Starts pods of one container each at once, and removes them one after the other.
 * @param between is done when they run
 */
export async function startAtOnce(
	{ bed, givenBack }: Bench,
	runtime: Runtime,
	count: number,
	between?: () => Promise<void>,
): Promise<Burst> {
	const context = new CaseContext(bed, runtime.name, runtime.ours);
	try {
		const start = (): Promise<[unknown, number]> => timed(async () => await (await context.pod()).run(SLEEP));
		const [settled, allMs] = await timed(() => Promise.allSettled(Array.from({ length: count }, start)));
		await between?.();
		return {
			eachMs: settled.flatMap((one) => (one.status === "fulfilled" ? [one.value[1]] : [])),
			allMs,
			failures: settled.flatMap((one) => (one.status === "rejected" ? [String(one.reason)] : [])),
		};
	} finally {
		await context.clean();
		await givenBack();
	}
}
