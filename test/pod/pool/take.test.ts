/** What becomes of a VM of the pool that dies while it becomes a pod's. A taking that goes well is in test/e2e/pool.test.ts. */
import t from "tap";
import { deferred } from "../../../shim/base/deadline.ts";
import { ShimError } from "../../../shim/base/errors.ts";
import { Log } from "../../../shim/base/log.ts";
import { defaultConfig } from "../../../shim/config/schema.ts";
import type { BootDisk } from "../../../shim/pod/boot.ts";
import type { PodNetwork } from "../../../shim/pod/pod-network.ts";
import { takeMachine } from "../../../shim/pod/pool/take.ts";
import type { TakeContext } from "../../../shim/pod/pool/take.ts";
import type { PoolVm } from "../../../shim/pod/pool/vm.ts";
import { Timeline } from "../../../shim/pod/timeline.ts";

t.test("what the pod brings after its VM has died does not go into that VM", async (t) => {
	const died = deferred<ShimError>();
	const disk = deferred<BootDisk | undefined>();
	const network = deferred<PodNetwork | undefined>();
	const plugged: string[] = [];
	const answer = (): Promise<void> => Promise.resolve();
	const machine = {
		vmm: { client: { ping: answer, addDisk: async () => void plugged.push("disk") } },
		agent: { check: answer, setTime: answer, reseed: answer },
		died: died.promise,
	};
	const vm = { scratchAddress: "", machineOf: () => machine, moveInto: answer };
	const context = {
		...{ podId: "p", folder: "/nowhere", config: defaultConfig(), timeline: new Timeline(), signal: new AbortController().signal },
		...{ log: new Log(() => undefined, "error"), plan: {}, cgroup: undefined, disk: disk.promise, network: network.promise },
	};
	let entered = false;
	const taking = takeMachine(context as unknown as TakeContext, vm as unknown as PoolVm, () => (entered = true));
	died.resolve(new ShimError("pod.lost", "it has died"));
	await t.rejects(taking, { message: "it has died" });
	disk.resolve({ id: "d", path: "/d" });
	network.resolve({ plugCold: async () => void plugged.push("network") } as unknown as PodNetwork);
	await new Promise(setImmediate);
	t.same([entered, plugged], [false, []], "another VM gets it");
});
