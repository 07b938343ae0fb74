/** TCP between a pod and its host. */
import { buildTrafficImage, FLOWS, measureFlows } from "../pods.ts";
import { Samples } from "../results.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";

async function run(bench: Bench) {
	const samples = new Samples();
	const traffic = await buildTrafficImage(bench.bed.containerd.rootDir);
	await bench.bed.importImage(traffic.image);
	const id = (at: number): string => `network.${FLOWS[at]?.direction}.${FLOWS[at]?.streams}`;
	await byTurns(bench, bench.runs(3, 1), async (runtime, counted) => {
		if (!counted) return;
		const rates = await measureFlows(bench.bed, runtime, traffic);
		await bench.givenBack();
		for (const [at, rate] of rates.entries()) samples.add(id(at), runtime.name, rate);
	});
	const nameOf = ({ direction, streams }: (typeof FLOWS)[number]): string =>
		`TCP ${direction.replaceAll("-", " ")}, ${streams === 1 ? "1 stream" : `${streams} streams`}`;
	return { figures: FLOWS.map((flow, at) => samples.figure(id(at), nameOf(flow), "MiB/s", "more")) };
}

/** The network. Not part of a quick run: each pod takes some ten seconds. */
export const network: Scenario = { name: "network", what: "TCP between a pod and its host, one connection and four", vm: "ch-qemu", run };
