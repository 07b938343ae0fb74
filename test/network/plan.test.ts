/** From a namespace's contents to a VM's network. */

import { t } from "tap";

import type { Address, Link, Neighbour, Route, Snapshot } from "../../shim/host/links.ts";
import { chooseNetwork } from "../../shim/network/choice.ts";
import { networkOf, planNetwork } from "../../shim/network/plan.ts";

const UP = 0x1;
const LOOPBACK: Link = { index: 1, name: "lo", kind: "", hardware: 772, flags: 0x49, mtu: 65_536, mac: "00:00:00:00:00:00", master: 0 };
const link = (index: number, name: string, more: Partial<Link> = {}): Link => ({
	...{ index, name, kind: "veth", hardware: 1, flags: UP, mtu: 1450, mac: `02:00:00:00:00:0${index}`, master: 0 },
	...more,
});
const address = (link: number, text: string, prefix: number, more: Partial<Address> = {}): Address => ({
	...{ link, address: text, prefix, peer: text, flags: 0x80, scope: 0 },
	...more,
});
const route = (link: number, destination: string, gateway: string, more: Partial<Route> = {}): Route => ({
	...{ destination, v6: destination.includes(":") || gateway.includes(":"), gateway, source: "", link },
	...{ scope: 0, type: 1, protocol: 3, flags: 0, metric: 0, mtu: 0, table: 254 },
	...more,
});
const neighbour = (link: number, text: string, more: Partial<Neighbour> = {}): Neighbour => ({
	...{ link, address: text, mac: "02:00:00:00:00:ff", state: 0x80, flags: 0 },
	...more,
});
const snapshot = (more: Partial<Snapshot>): Snapshot => ({ links: [LOOPBACK], addresses: [], routes: [], neighbours: [], ...more });

t.test("loopback alone is nothing for the VM", async (t) => {
	const plan = planNetwork(snapshot({ addresses: [address(1, "127.0.0.1", 8)], routes: [route(1, "10.0.0.0/8", "")] }));
	t.same(plan, { endpoints: [], interfaces: [], routes: [], neighbours: [], omitted: [] });
});

t.test("an interface goes in with MAC, MTU and the addresses of both families", async (t) => {
	const addresses = [
		address(2, "10.1.2.3", 24),
		address(2, "fd00::3", 64),
		address(2, "10.5.0.1", 32, { peer: "10.5.0.2" }),
		address(2, "fe80::1234:56ff:fe78:9abc", 64, { scope: 253 }),
		address(2, "2001:db8::7", 64, { flags: 0x100 }),
	];
	const plan = planNetwork(snapshot({ links: [LOOPBACK, link(2, "eth0", { flags: UP | 0x80 })], addresses }));
	t.same(plan.endpoints, [{ index: 2, name: "eth0", mac: "02:00:00:00:00:02", mtu: 1450 }]);
	t.same(plan.interfaces, [
		{
			...{ device: "eth0", name: "eth0", mtu: 1450, hwAddr: "02:00:00:00:00:02", devicePath: "", raw_flags: 0x80 },
			IPAddresses: [
				{ family: 0, address: "10.1.2.3", mask: "24" },
				{ family: 1, address: "fd00::3", mask: "64" },
				{ family: 0, address: "10.5.0.1", mask: "32" },
			],
		},
	]);
});

t.test("an address that somebody else has is left out, and said", async (t) => {
	const plan = planNetwork(snapshot({ links: [link(2, "eth0")], addresses: [address(2, "fd00::3", 64, { flags: 0x88 })] }));
	t.same(plan.interfaces[0]?.IPAddresses, []);
	t.match(plan.omitted, [/fd00::3 of eth0.*duplicate/]);
});

t.test("routes: those of addresses and advertisements are the guest's own, the rest goes in, what a gateway needs first", async (t) => {
	const plan = planNetwork(
		snapshot({
			links: [link(2, "eth0")],
			addresses: [address(2, "10.1.2.3", 24), address(2, "fd00::3", 64), address(2, "10.5.0.1", 32, { peer: "10.5.0.2" })],
			routes: [
				route(2, "", "169.254.1.1", { flags: 0x14, mtu: 1300 }),
				route(2, "169.254.1.1/32", "", { scope: 253, source: "10.1.2.3" }),
				route(2, "10.1.2.0/24", "", { protocol: 2, scope: 253 }),
				route(2, "10.5.0.2/32", "", { protocol: 2, scope: 253 }),
				route(2, "fd00::/64", "", { protocol: 2, metric: 256 }),
				route(2, "fe80::/64", "", { protocol: 2, metric: 256 }),
				route(2, "", "fe80::1", { protocol: 9, metric: 1024 }),
				route(1, "10.9.0.0/16", ""),
			],
		}),
	);
	const shown = plan.routes.map(({ dest, gateway, scope, family, flags, mtu, source }) => [
		dest,
		gateway,
		scope,
		family,
		flags,
		mtu,
		source,
	]);
	t.same(shown, [
		["169.254.1.1/32", "", 253, 0, 0, 0, "10.1.2.3"],
		["10.5.0.2/32", "", 253, 0, 0, 0, ""],
		["", "169.254.1.1", 0, 0, 4, 1300, ""],
	]);
	t.same(plan.omitted, []);
});

t.test("of several routes to one destination the best goes in; what can't be told is said", async (t) => {
	const plan = planNetwork(
		snapshot({
			links: [link(2, "eth0"), link(3, "eth1")],
			routes: [
				route(3, "", "10.2.0.1", { metric: 200 }),
				route(2, "", "10.1.0.1", { metric: 100 }),
				route(2, "", "fd00::1", { metric: 1024 }),
				route(0, "10.3.0.0/16", "", { type: 6 }),
			],
		}),
	);
	t.same(
		plan.routes.map(({ gateway, device }) => `${gateway} ${device}`),
		["10.1.0.1 eth0", "fd00::1 eth0"],
	);
	t.match(plan.omitted, [/default with the metric 200: there is a better one/, /10\.3\.0\.0\/16: it is of a kind/]);
});

t.test("permanent neighbours go in, learnt ones do not", async (t) => {
	const neighbours = [
		neighbour(2, "169.254.1.1"),
		neighbour(2, "fd00::1"),
		neighbour(2, "10.1.2.9", { state: 0x02 }),
		neighbour(1, "10.0.0.1"),
	];
	const plan = planNetwork(snapshot({ links: [LOOPBACK, link(2, "eth0")], neighbours }));
	t.same(plan.neighbours, [
		{ toIPAddress: { family: 0, address: "169.254.1.1", mask: "32" }, device: "eth0", lladdr: "02:00:00:00:00:ff", state: 0x80, flags: 0 },
		{ toIPAddress: { family: 1, address: "fd00::1", mask: "128" }, device: "eth0", lladdr: "02:00:00:00:00:ff", state: 0x80, flags: 0 },
	]);
});

t.test("what is down without an address, a bridge's members and our own taps are passed over", async (t) => {
	const links = [
		LOOPBACK,
		link(2, "tunl0", { kind: "ipip", hardware: 768, flags: 0, mac: "00:00:00:00" }),
		link(3, "eth0", { master: 4 }),
		link(4, "br0", { kind: "bridge" }),
		link(5, "snp4", { kind: "tun" }),
		link(6, "eth1", { flags: 0 }),
		link(7, "net1", { kind: "" }),
	];
	const plan = planNetwork(snapshot({ links, addresses: [address(6, "10.0.0.6", 24)] }));
	t.same(
		plan.endpoints.map(({ name }) => name),
		["br0", "eth1", "net1"],
	);
});

t.test("interfaces that a VM can't have are refused by name", async (t) => {
	const refused: readonly [Link, RegExp][] = [
		[link(2, "tap0", { kind: "tun" }), /interface tap0 .* kind tun.*a tap belongs to the program/],
		[link(2, "wg0", { kind: "wireguard", hardware: 65_534, mac: "" }), /interface wg0 .* \(kind wireguard\) is no Ethernet interface/],
		[link(2, "ib0", { kind: "", hardware: 32, mac: "80:00:00:00:00:00:00:01" }), /interface ib0 .* \(kind hardware\) is no Ethernet/],
		[link(2, "nk0", { kind: "netkit" }), /interface nk0 .* kind netkit/],
		[link(2, "eth0", { mac: "00:00:00:00:00:00" }), /interface eth0 .* is no Ethernet/],
		[link(2, "snpx", { kind: "tun" }), /interface snpx/],
	];
	for (const [one, message] of refused) {
		t.throws(() => planNetwork(snapshot({ links: [one] })), { reason: "network.unsupported", message });
		const later = planNetwork(snapshot({ links: [link(7, "eth7"), one] }), { running: true });
		t.same(
			later.endpoints.map(({ name }) => name),
			["eth7"],
			"one that comes later is left out, and the others go on",
		);
		t.match(later.omitted, [message]);
	}
});

t.test("networkOf writes networks as the kernel's routes do", async (t) => {
	const cases: readonly [string, number, string][] = [
		["10.1.2.3", 24, "10.1.2.0/24"],
		["10.1.2.3", 32, "10.1.2.3/32"],
		["10.1.2.3", 0, "0.0.0.0/0"],
		["192.168.255.255", 17, "192.168.128.0/17"],
		["fd00::3", 64, "fd00::/64"],
		["2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::/48"],
		["::ffff:10.1.2.3", 128, "::ffff:a01:203/128"],
		["::1", 128, "::1/128"],
	];
	for (const [text, prefix, expected] of cases) t.equal(networkOf(text, prefix), expected);
});

t.test("chooseNetwork: a path, a new namespace, the host's own", async (t) => {
	t.same(chooseNetwork([{ type: "pid" }, { type: "network", path: "/run/netns/cni-1" }]), { kind: "namespace", path: "/run/netns/cni-1" });
	for (const path of [undefined, null, ""]) t.same(chooseNetwork([{ type: "network", path }]), { kind: "loopback" });
	t.throws(() => chooseNetwork([{ type: "pid" }]), {
		reason: "network.unsupported",
		message: /hostNetwork/,
		remedy: /another runtime class/,
	});
});

t.test("routes of other tables, as source-based routing has them, are left out, and each table is said once", async (t) => {
	const routes = [
		route(2, "", "10.1.2.1"),
		route(2, "", "10.1.2.9", { table: 100 }),
		route(2, "10.7.0.0/16", "", { table: 100 }),
		route(1, "10.8.0.0/16", "", { table: 101 }),
	];
	const plan = planNetwork(snapshot({ links: [LOOPBACK, link(2, "eth0")], addresses: [address(2, "10.1.2.3", 24)], routes }));
	t.match(plan.routes, [{ dest: "", gateway: "10.1.2.1" }]);
	t.match(plan.omitted, [/^routes of table 100: /]);
});
