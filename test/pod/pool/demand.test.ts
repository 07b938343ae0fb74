import t from "tap";
import { defaultConfig } from "../../../shim/config/schema.ts";
import type { PodPlan } from "../../../shim/pod/plan.ts";
import { Demand, DEMAND_MS } from "../../../shim/pod/pool/demand.ts";
import { usualPlan } from "../../../shim/pod/pool/shape.ts";

const usual = usualPlan(defaultConfig());
const large: PodPlan = { ...usual, vcpus: 2, memoryMib: 768 };
const sizes = (plans: readonly PodPlan[]): number[] => plans.map(({ memoryMib }) => memoryMib);

t.test("before any pod the usual VM is wanted; afterwards those of the latest pods", async (t) => {
	const demand = new Demand({ size: 2, max: 0, memory_mib: 4096 });
	t.strictSame(sizes(demand.wanted(usual, 0)), [256, 256]);
	demand.ask(large, 1);
	t.strictSame(sizes(demand.wanted(usual, 1)), [768, 256]);
	demand.ask(large, 2);
	demand.ask(usual, 3);
	t.strictSame(sizes(demand.wanted(usual, 3 + DEMAND_MS)), [256, 768], "time alone changes nothing of them");
	t.equal(demand.changesAtMs(3), undefined);
});

t.test("a burst of pods is answered with more VMs, up to the limit and for a time", async (t) => {
	const demand = new Demand({ size: 1, max: 3, memory_mib: 4096 });
	for (const atMs of [1, 2, 3, 4]) demand.ask(usual, atMs);
	t.equal(demand.wanted(usual, 4).length, 3);
	t.equal(demand.changesAtMs(4), 2 + DEMAND_MS);
	t.equal(demand.wanted(usual, 2 + DEMAND_MS).length, 2);
	t.equal(demand.wanted(usual, 3 + DEMAND_MS).length, 1, "the size stays");
	t.equal(demand.changesAtMs(3 + DEMAND_MS), undefined);
	t.strictSame(new Demand({ size: 0, max: 2, memory_mib: 4096 }).wanted(usual, 0), [], "by demand alone: none before the first pod");
});

t.test("the memory of all of them has a bound", async (t) => {
	const demand = new Demand({ size: 4, max: 4, memory_mib: 1024 });
	t.strictSame(sizes(demand.wanted(usual, 0)), [256, 256, 256, 256]);
	demand.ask(large, 1);
	t.strictSame(sizes(demand.wanted(usual, 1)), [768, 256]);
	demand.ask({ ...usual, memoryMib: 2048 }, 2);
	t.strictSame(sizes(demand.wanted(usual, 2)), [768, 256], "one that does not fit leaves its place to others");
});
