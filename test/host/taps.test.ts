/** Network namespaces, taps and redirections of the host, in namespaces of the tests' own. Needs root and iproute2. */

import { execFile } from "node:child_process";
import { once } from "node:events";
import { readdirSync, statSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { t } from "tap";
import type { Test } from "tap";

import { netlinkExchange, netnsNetlink, netnsTap } from "../../native/src/netns.ts";
import { closeFd } from "../../native/src/file.ts";
import { readLinks, readSnapshot } from "../../shim/host/links.ts";
import { catchPorts, holdNamespace, watchNamespace } from "../../shim/host/namespaces.ts";
import type { HeldNamespace } from "../../shim/host/namespaces.ts";
import { Netlink } from "../../shim/host/netlink.ts";
import { closeTap, joinAtOnce, makeTap, openTapLink, redirect, removeLink, removeRedirect } from "../../shim/host/taps.ts";
import { busyboxPath } from "../support/image.ts";
import { TestNamespace } from "../support/netns.ts";
import { eventually } from "../support/retry.ts";

interface Bed {
	readonly space: TestNamespace;
	readonly ns: HeldNamespace;
	readonly netlink: Netlink;
}

/** A namespace with the interface `eth0`, whose other end is `peer` in a namespace of its own. */
async function bed(t: Test): Promise<Bed & { readonly far: TestNamespace }> {
	const space = new TestNamespace("tap");
	t.teardown(() => space.remove());
	const far = new TestNamespace("far");
	t.teardown(() => far.remove());
	space.ip(`link add eth0 mtu 1400 address 02:00:00:00:00:05 type veth peer name peer netns ${far.name}`);
	for (const command of ["link set eth0 up", "addr add 10.7.0.2/24 dev eth0", "addr add fd07::2/64 dev eth0 nodad"]) space.ip(command);
	for (const command of ["link set peer up", "addr add 10.7.0.1/24 dev peer", "addr add fd07::1/64 dev peer nodad"]) far.ip(command);
	const ns = holdNamespace(space.path);
	t.teardown(() => ns.close());
	const netlink = await Netlink.open(ns.fd);
	t.teardown(() => netlink.close());
	return { space, ns, netlink, far };
}

async function linkNamed(netlink: Netlink, name: string): Promise<number> {
	const found = (await readLinks(netlink)).find((link) => link.name === name);
	if (found === undefined) throw new Error(`no link ${name}`);
	return found.index;
}

/** What a server says to a program in a namespace; empty when it refuses. */
function inside(space: TestNamespace, host: string, port: number): Promise<string> {
	return new Promise((resolve) => {
		const argv = ["netns", "exec", space.name, busyboxPath(), "nc", host, String(port)];
		execFile("ip", argv, { encoding: "utf8", timeout: 30_000 }, (_error, stdout) => resolve(stdout)).stdin?.end();
	});
}

t.test("holdNamespace tells namespaces apart", async (t) => {
	const { space, ns } = await bed(t);
	t.equal(ns.own, false);
	const again = holdNamespace(space.path);
	t.equal(again.id, ns.id);
	again.close();
	const own = holdNamespace("/proc/self/ns/net");
	t.equal(own.own, true);
	own.close();
	t.throws(() => holdNamespace("/run/netns/snp-none"), { code: "ENOENT" });
});

t.test("readSnapshot gives what ip made", async (t) => {
	const { space, netlink } = await bed(t);
	space.ip("route add default via 10.7.0.1 metric 7 mtu 1300");
	space.ip("route add 10.9.0.0/16 via 169.254.1.1 dev eth0 onlink src 10.7.0.2");
	space.ip("route add fd09::/48 via fd07::1");
	space.ip("route add 10.55.0.0/16 dev eth0 table 100");
	space.ip("neigh add 10.7.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
	const { links, addresses, routes, neighbours } = await readSnapshot(netlink);
	const eth0 = links.find((link) => link.name === "eth0");
	t.match(eth0, { kind: "veth", hardware: 1, mtu: 1400, mac: "02:00:00:00:00:05", master: 0 });
	t.match(
		links.find((link) => link.name === "lo"),
		{ kind: "", hardware: 772 },
	);
	const on = <T extends { readonly link: number }>(list: readonly T[]): T[] => list.filter(({ link }) => link === eth0?.index);
	const found = on(addresses).map(({ address, prefix }) => `${address}/${prefix}`);
	t.ok(
		["10.7.0.2/24", "fd07::2/64"].every((address) => found.includes(address)),
		found.join(" "),
	);
	t.match(
		on(routes).find((route) => route.metric === 7),
		{ destination: "", v6: false, gateway: "10.7.0.1", type: 1, mtu: 1300 },
	);
	t.match(
		on(routes).find(({ destination }) => destination === "10.9.0.0/16"),
		{ gateway: "169.254.1.1", source: "10.7.0.2" },
	);
	t.match(
		on(routes).find(({ destination }) => destination === "fd09::/48"),
		{ gateway: "fd07::1", v6: true, table: 254 },
	);
	t.match(
		on(routes).find(({ destination }) => destination === "10.55.0.0/16"),
		{ table: 100 },
	);
	t.notOk(
		routes.some(({ table }) => table === 255),
		"those to the node itself are left out",
	);
	t.match(
		on(neighbours).find(({ address }) => address === "10.7.0.1"),
		{ mac: "02:00:00:00:00:01", state: 0x80 },
	);
});

t.test("a redirected interface carries frames to the tap and back, and its own address no longer answers", async (t) => {
	const { space, ns, netlink, far } = await bed(t);
	far.exec(busyboxPath(), "ping", "-c", "1", "-W", "5", "10.7.0.2");
	const fds = await makeTap(ns.fd, "snp1", 2);
	t.teardown(() => closeTap(fds));
	t.equal(fds.length, 2);
	const [eth0, tap] = [await linkNamed(netlink, "eth0"), await linkNamed(netlink, "snp1")];
	await openTapLink(netlink, tap, 1400);
	await redirect(netlink, eth0, tap);
	await redirect(netlink, tap, eth0);
	t.match(space.ip("-d link show snp1"), /mtu 1400 .*multi_queue/s);
	t.notMatch(space.ip("addr show snp1"), /inet6/);
	far.ip("neigh flush all");
	t.throws(() => far.exec(busyboxPath(), "ping", "-c", "1", "-W", "1", "10.7.0.2"), "the tap's frames are read by nobody");
	await t.rejects(makeTap(ns.fd, "snp1", 1), { code: "EBUSY" });
	await redirect(netlink, eth0, tap);
	t.equal(space.tc("filter show dev eth0 ingress").match(/mirred/g)?.length, 1, "made again, it is there once");

	await removeLink(netlink, tap);
	await removeLink(netlink, tap);
	await removeRedirect(netlink, eth0);
	await removeRedirect(netlink, eth0);
	await removeRedirect(netlink, 999);
	t.strictSame([space.links(), space.redirections()], [["eth0"], ""]);
	far.exec(busyboxPath(), "ping", "-c", "1", "-W", "5", "10.7.0.2");
});

t.test("a tap goes with its last descriptor; the redirection that it leaves is replaced and removed like any", async (t) => {
	const { space, ns, netlink } = await bed(t);
	const eth0 = await linkNamed(netlink, "eth0");
	closeTap(
		await makeTap(ns.fd, "snp1", 1).then(async (fds) => {
			await redirect(netlink, eth0, await linkNamed(netlink, "snp1"));
			return fds;
		}),
	);
	t.strictSame(space.links(), ["eth0"]);
	const fds = await makeTap(ns.fd, "snp1", 1);
	await redirect(netlink, eth0, await linkNamed(netlink, "snp1"));
	t.match(space.tc("filter show dev eth0 ingress"), /Redirect to device snp1/);
	closeTap(fds);
	await removeRedirect(netlink, eth0);
	t.equal(space.redirections(), "");
});

t.test("a new tap is joined at one stroke; where something is in the way, that is said and the longer way goes on", async (t) => {
	const { space, netlink, ns } = await bed(t);
	const eth0 = await linkNamed(netlink, "eth0");
	const fds = await makeTap(ns.fd, "snp1", 1);
	t.teardown(() => closeTap(fds));
	const tap = await linkNamed(netlink, "snp1");
	t.equal(await joinAtOnce(netlink, eth0, tap, 1400), true);
	// Actions are numbered as they are made.
	const shown = (): string => space.redirections().replaceAll(/index \d+ /g, "");
	const whole = shown();
	t.equal(whole.match(/mirred/g)?.length, 2, "one each way");
	t.match(space.ip("link show dev snp1"), /[<,]UP[,>].* mtu 1400 /s);
	t.notMatch(space.ip("addr show dev snp1"), /inet6/);
	t.equal(await joinAtOnce(netlink, eth0, tap, 1400), false, "an ingress queue is there");
	await openTapLink(netlink, tap, 1400);
	await redirect(netlink, eth0, tap);
	await redirect(netlink, tap, eth0);
	t.equal(shown(), whole);
});

t.test("filters and queues of others stay", async (t) => {
	const { space, netlink, ns } = await bed(t);
	const eth0 = await linkNamed(netlink, "eth0");
	const fds = await makeTap(ns.fd, "snp1", 1);
	t.teardown(() => closeTap(fds));
	const tap = await linkNamed(netlink, "snp1");
	space.tc("qdisc add dev eth0 clsact");
	space.tc("filter add dev eth0 egress protocol ip prio 5 u32 match u32 0 0 flowid 1:1");
	await redirect(netlink, eth0, tap);
	await removeRedirect(netlink, eth0);
	t.match(space.tc("filter show dev eth0 egress"), /pref 5/);
	space.tc("qdisc del dev eth0 clsact");
	space.tc("qdisc add dev eth0 ingress");
	space.tc("filter add dev eth0 ingress protocol ip prio 5 u32 match u32 0 0 flowid 1:1");
	await redirect(netlink, eth0, tap);
	await removeRedirect(netlink, eth0);
	t.match(space.tc("filter show dev eth0 ingress"), /pref 5/);
	t.notMatch(space.redirections(), /mirred/);
});

t.test("watchNamespace hears of links and addresses, and nothing after its end", async (t) => {
	const { space, ns } = await bed(t);
	let heard: () => void = () => undefined;
	const next = (): Promise<void> => new Promise((resolve) => (heard = resolve));
	const stop = await watchNamespace(ns.fd, () => heard());
	const keepAlive = setInterval(() => undefined, 1_000);
	t.teardown(() => clearInterval(keepAlive));
	const link = next();
	space.ip("link add eth1 type veth peer name eth2");
	await link;
	const address = next();
	space.ip("addr add 10.8.0.1/24 dev eth1");
	await address;
	stop();
	stop();
});

t.test("catchPorts takes what is made inside, whatever the port, until its end", async (t) => {
	const { space, ns, far } = await bed(t);
	const ports: number[] = [];
	const catcher = await catchPorts(ns.fd, 4, (socket, port) => {
		ports.push(port);
		socket.on("error", () => undefined).end(`port ${port}`);
	});
	const ask = (host: string, port: number): Promise<string> => inside(space, host, port);
	t.equal(await ask("127.0.0.1", 80), "port 80");
	t.equal(await ask("::1", 65_535), "port 65535");
	t.equal(await ask("10.7.0.2", 7), "port 7");
	t.equal(await inside(far, "10.7.0.1", 80), "", "other namespaces are untouched");
	catcher.close();
	t.equal(await ask("127.0.0.1", 80), "");
	t.strictSame(ports, [80, 65_535, 7]);
	const file = holdNamespace("/proc/self/ns/uts");
	await t.rejects(
		catchPorts(file.fd, 1, () => undefined),
		{ code: "EINVAL" },
	);
	file.close();
});

t.test("what the kernel refuses is told in its own words", async (t) => {
	const { ns, netlink } = await bed(t);
	await t.rejects(redirect(netlink, 999, 998), { name: "NetlinkError", code: "ENODEV" });
	await t.rejects(openTapLink(netlink, await linkNamed(netlink, "eth0"), 1), { name: "NetlinkError", message: /mtu/i });
	const file = holdNamespace("/proc/self/ns/uts");
	await t.rejects(netnsNetlink(file.fd, 0), { code: "EINVAL" });
	await t.rejects(netnsTap(file.fd, "snp1", 1), { code: "EINVAL" });
	file.close();
	await t.rejects(netnsTap(ns.fd, "a-name-that-is-too-long", 1), RangeError);
	await t.rejects(netnsTap(-1, "snp1", 1), RangeError);
});

t.test("a thread of JavaScript that ends while visits are under way leaves no descriptor and no harm", async (t) => {
	const { ns } = await bed(t);
	const file = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
	const script = `const native = require(${JSON.stringify(file)});
		const { parentPort } = require("node:worker_threads");
		for (let count = 0; count < 20; count++) native.netnsNetlink(${ns.fd}, 0);
		native.receive(${ns.fd}, () => undefined);
		parentPort.postMessage("begun");
		process.exit(0);`;
	const before = readdirSync("/proc/self/fd").length;
	for (let round = 0; round < 5; round++) await once(new Worker(script, { eval: true }), "exit");
	await eventually("the descriptors' end", 10_000, () => (readdirSync("/proc/self/fd").length <= before ? true : undefined));
});

t.test("what is no message is refused before the kernel sees it; no visit changes the namespace of this process", async (t) => {
	const { ns } = await bed(t);
	const before = statSync("/proc/self/ns/net").ino;
	const socket = await netnsNetlink(ns.fd, 0);
	await t.rejects(netlinkExchange(socket, [Buffer.alloc(8)]), RangeError);
	await t.rejects(netlinkExchange(socket, [Buffer.alloc(16)]), RangeError);
	await t.rejects(netlinkExchange(socket, []), RangeError);
	closeFd(socket);
	t.equal(statSync("/proc/self/ns/net").ino, before);
});
