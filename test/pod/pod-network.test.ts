/** A VM's network that follows its namespace: what failed is tried again, and what has gone is taken back. Needs root. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { Log } from "../../shim/base/log.ts";
import type { GuestNeighbour, GuestRoute } from "../../shim/network/guest.ts";
import type { Machine } from "../../shim/pod/machine.ts";
import { LeavingNetworks } from "../../shim/pod/leaving-networks.ts";
import { PodNetwork } from "../../shim/pod/pod-network.ts";
import { VmmClient } from "../../shim/vmm/client.ts";
import { failing } from "../base/failing.ts";
import { TestNamespace } from "../support/netns.ts";
import { eventually } from "../support/retry.ts";
import { answer, serveApi } from "../vmm/api-server.ts";

const WAIT_MS = 20_000;
const NUD_PERMANENT = 0x80;
const NUD_FAILED = 0x20;

/** A namespace with one interface, joined to a VM whose guest does what the test says. */
async function setUp(t: Test) {
	const space = new TestNamespace("pod");
	t.teardown(() => space.remove());
	space.ip("link add eth0 address 02:00:00:00:88:02 type veth peer name peer");
	space.ip("addr add 10.88.0.2/24 dev eth0");
	space.ip("link set eth0 up");
	const dir = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(dir, { recursive: true }));
	const server = await serveApi(join(dir, "api.sock"), () => answer(200, '{"id":"net","bdf":"0000:00:05.0"}'));
	t.teardown(() => server.close());
	const routes: (readonly GuestRoute[])[] = [];
	const neighbours: GuestNeighbour[][] = [];
	const guest = { failures: 0 };
	const agent = {
		updateInterface: () => Promise.resolve(),
		updateRoutes: (told: readonly GuestRoute[]) => {
			routes.push(told);
			if (guest.failures-- > 0) return Promise.reject(new ShimError("wait.deadline", "the guest stands still"));
			return Promise.resolve();
		},
		addNeighbours: (told: GuestNeighbour[]) => {
			neighbours.push(told);
			return Promise.resolve();
		},
	};
	const network = PodNetwork.open(space.path, 1, {
		vmmCallMs: 5_000,
		log: new Log(() => undefined),
		leaving: new LeavingNetworks(),
		onChange: () => undefined,
	});
	t.teardown(() => network.close());
	const client = new VmmClient(server.path);
	const machine = { vmm: { client }, agent, details: { forward: false }, died: new Promise(() => undefined) } as unknown as Machine;
	await network.prepare();
	await network.plugCold(client, {});
	await network.tell(machine.agent, {});
	network.follow(machine);
	return { space, routes, neighbours, guest };
}

t.test("a change that the guest could not take is brought again, though nothing else changes", async (t) => {
	const { space, routes, guest } = await setUp(t);
	guest.failures = 2;
	space.ip("route add 10.77.0.0/16 via 10.88.0.1");
	const wanted = (told: readonly GuestRoute[]): boolean => told.some(({ dest }) => dest === "10.77.0.0/16");
	await eventually("the third attempt", WAIT_MS, () => (routes.filter(wanted).length === 3 ? true : undefined));
	t.equal(guest.failures, -1, "which the guest took");
});

t.test("a neighbour that the namespace has no more is taken back from the guest", async (t) => {
	const { space, neighbours } = await setUp(t);
	for (const last of [8, 9]) space.ip(`neigh add 10.88.0.${last} lladdr 02:00:00:00:88:0${last} dev eth0 nud permanent`);
	const told = (address: string, state: number) => (): true | undefined =>
		neighbours.at(-1)?.some((one) => one.toIPAddress.address === address && one.state === state) === true ? true : undefined;
	await eventually("both", WAIT_MS, () => told("10.88.0.8", NUD_PERMANENT)() && told("10.88.0.9", NUD_PERMANENT)());
	space.ip("neigh del 10.88.0.9 dev eth0");
	await eventually("the end of one", WAIT_MS, told("10.88.0.9", NUD_FAILED));
	t.ok(told("10.88.0.8", NUD_PERMANENT)(), "the other one stays");
	space.ip("neigh del 10.88.0.8 dev eth0");
	await eventually("the end of the last", WAIT_MS, told("10.88.0.8", NUD_FAILED));
	t.notOk(told("10.88.0.9", NUD_FAILED)(), "what is gone is told once");
});

t.test(
	"a pod joins a namespace when the one before has left it; one that is given up waits no longer; a namespace that has gone is left",
	async (t) => {
		const space = new TestNamespace("pod");
		let there = true;
		t.teardown(() => {
			if (there) space.remove();
		});
		space.ip("link add eth0 type veth peer name peer");
		space.ip("link set eth0 up");
		const leaving = new LeavingNetworks();
		const open = (): PodNetwork => {
			const network = PodNetwork.open(space.path, 1, {
				vmmCallMs: 5_000,
				log: new Log(() => undefined),
				leaving,
				onChange: () => undefined,
			});
			t.teardown(() => network.close());
			return network;
		};
		const first = open();
		await first.prepare();
		await t.rejects(open().prepare(), failing({ reason: "network.busy" }), "one that stays");
		first.leave();
		const { promise: vmEnd, resolve: endVm } = deferred<void>();
		leaving.add(
			first.space,
			vmEnd.then(() => first.close()),
		);
		const [second, givenUp] = [open(), open()];
		const joined = second.prepare();
		const given = givenUp.prepare();
		givenUp.leave();
		await t.rejects(given, failing({ reason: "wait.canceled" }));
		t.equal(space.links().filter((name) => name.startsWith("snp")).length, 1, "the first one's tap");
		endVm();
		await joined;
		t.not(second.record, null);
		space.remove();
		there = false;
		await second.close();
		t.equal(second.record, null);
	},
);
