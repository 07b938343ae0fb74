/** How long a command in a running container takes. */
import { CaseContext, SLEEP, type TestContainer } from "../../test/conformance/context.ts";
import { Samples } from "../results.ts";
import { byTurns, timed, type Bench, type Scenario } from "../scenario.ts";

async function run(bench: Bench) {
	const samples = new Samples();
	const contexts = bench.runtimes.map((runtime) => ({ runtime, context: new CaseContext(bench.bed, runtime.name, runtime.ours) }));
	try {
		const containers = new Map<string, TestContainer>();
		for (const { runtime, context } of contexts) containers.set(runtime.name, await (await context.pod()).run(SLEEP));
		await byTurns(bench, bench.runs(50, 10), async ({ name }, counted) => {
			const container = containers.get(name);
			if (container === undefined) return;
			const [{ exitCode }, ms] = await timed(() => container.exec(["true"]));
			if (exitCode !== 0) throw new Error(`${name}: true ended with ${exitCode}`);
			if (counted) samples.add("exec.true", name, ms);
		});
	} finally {
		for (const { context } of contexts) await context.clean();
	}
	return { figures: [samples.figure("exec.true", "ExecSync of `true`")] };
}

/** Commands in a container, as kubelet's probes are. */
export const exec: Scenario = { name: "exec", what: "a command in a running container, by CRI's ExecSync", vm: "null", run };
