/** The pod's network: what a CNI plug-in would leave in a namespace goes into the VM, follows it, and is gone afterwards. */
import { mkdir, rm, writeFile } from "node:fs/promises";
import type { Test } from "tap";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { busyboxPath } from "../support/image.ts";
import { isDaemon } from "../support/leftovers.ts";
import { here, type Shell, TestNamespace } from "../support/netns.ts";
import { Child } from "../support/process.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;
const MTU = 1400;

/** A pod's namespace as a bridge plug-in makes it, and a node's namespace with the bridge. */
class Net {
	readonly pod: TestNamespace;
	readonly node: TestNamespace;
	readonly empty: TestNamespace;
	readonly #bed: Bed;
	readonly #shell: Shell;

	constructor(bed: Bed) {
		this.#bed = bed;
		this.#shell = (...argv) => here(...bed.containerd.inside(...argv));
		this.node = new TestNamespace("node", this.#shell);
		this.pod = new TestNamespace("pod", this.#shell);
		this.empty = new TestNamespace("empty", this.#shell);
		this.node.ip("link add br0 type bridge");
		for (const address of ["10.88.0.1/24", "fd88::1/64"])
			this.node.ip(`addr add ${address} dev br0${address.includes(":") ? " nodad" : ""}`);
		this.node.ip("link set br0 up");
		// Behind the gateway, so that only a route leads there.
		for (const address of ["10.99.0.1/32", "fd99::1/128"]) this.node.ip(`addr add ${address} dev lo`);
		this.plug("eth0", "02:00:00:00:88:02", ["10.88.0.2/24", "fd88::2/64"]);
		this.pod.ip("route add default via 10.88.0.1");
		this.pod.ip("route add default via fd88::1");
	}

	/** Joins a new interface of the pod to the bridge. */
	plug(name: string, mac: string, addresses: readonly string[]): void {
		this.pod.ip(`link add ${name} address ${mac} mtu ${MTU} type veth peer name br-${name} netns ${this.node.name}`);
		this.node.ip(`link set br-${name} mtu ${MTU} master br0 up`);
		this.pod.ip(`link set ${name} up`);
		for (const address of addresses) this.pod.ip(`addr add ${address} dev ${name}${address.includes(":") ? " nodad" : ""}`);
	}

	get flags(): string[] {
		return ["--with-ns", `network:${this.pod.path}`];
	}

	/** Runs busybox in the node's namespace. */
	fromNode(...command: readonly string[]): string {
		return this.node.exec(busyboxPath(), ...command);
	}

	/** Runs a command in the container; its output. @throws Error when it fails */
	async fromPod(id: string, ...command: readonly string[]): Promise<string> {
		const { code, stdout, stderr } = await this.#bed.ctr.exec(id, command);
		if (code !== 0) throw new Error(`${command.join(" ")} in the pod: ${code} ${stdout}${stderr}`);
		return stdout;
	}

	/** Asks a web server as containerd's port-forward reaches it: at localhost in the pod's namespace on the host. */
	fromLocalhost(host: string, port: number): string {
		return this.pod.exec(busyboxPath(), "wget", "-q", "-O", "-", `http://${host}:${port}/`);
	}

	/** Waits until a server is reached so, and checks what it says. */
	async forwards(t: Test, port: number, expected: string): Promise<void> {
		for (const host of ["127.0.0.1", "[::1]"]) {
			const said = await eventually(`port ${port} at ${host}`, WAIT_MS, () => {
				try {
					return this.fromLocalhost(host, port);
				} catch {
					return undefined;
				}
			});
			t.equal(said, expected, `port-forward by ${host}`);
		}
	}

	remove(): void {
		this.pod.remove();
		this.empty.remove();
		this.node.remove();
		// iproute2 makes the folder of all names a mount of its own, and leaves it.
		this.#shell("umount", "/run/netns");
	}
}

async function withNet(bed: Bed, work: (net: Net) => Promise<void>): Promise<void> {
	const net = new Net(bed);
	try {
		await work(net);
	} finally {
		net.remove();
	}
}

const SERVER = "mkdir /www; echo from the pod > /www/index.html; exec httpd -f -p 8080 -h /www";

function killDaemon(bed: Bed): void {
	for (const daemon of bed.containerd.processes().filter((info) => isDaemon(info) && info.state !== "Z"))
		process.kill(daemon.pid, "SIGKILL");
}

/** Starts a server in a container that has the network, and waits until it answers. */
async function serve(bed: Bed, net: Net, label: string): Promise<string> {
	const id = bed.ctr.newId(label);
	await bed.ctr.detach(id, ["sh", "-c", SERVER], { flags: net.flags });
	await eventually("the pod's server", WAIT_MS, async () => {
		const { code } = await bed.ctr.exec(id, ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"]);
		return code === 0 ? true : undefined;
	});
	return id;
}

/** Waits until nothing of a VM is in a namespace: what a removed pod had there goes with its VM's process. */
async function cleared(t: Test, space: TestNamespace, ...links: readonly string[]): Promise<void> {
	const nothing = (): true | undefined => (space.links().join() === links.join() && space.redirections() === "" ? true : undefined);
	await t.resolves(eventually("a namespace without a VM", WAIT_MS, nothing));
}

/** What the namespace says of itself, less what passes. */
function stateOf(space: TestNamespace): string[] {
	return ["-o addr", "route", "-6 route"].map((command) => space.ip(command).replaceAll(/ tentative| linkdown/g, ""));
}

const cases: Case[] = [
	{
		name: "both families, both ways, MTU, routes; kill -9 of snpd changes nothing; afterwards the namespace is as before and serves again",
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				const before = stateOf(net.pod);
				const id = await serve(bed, net, "net");
				const wget = (host: string): string => net.fromNode("wget", "-q", "-O", "-", `http://${host}:8080/`);
				const allWays = async (): Promise<void> => {
					for (const host of ["10.88.0.2", "[fd88::2]"]) t.equal(wget(host), "from the pod\n", host);
					net.fromNode("ping", "-c", "1", "-W", "5", "-s", String(MTU - 28), "10.88.0.2");
					for (const host of ["10.88.0.1", "10.99.0.1", "fd88::1", "fd99::1"]) await net.fromPod(id, "ping", "-c", "1", "-W", "5", host);
				};
				await allWays();
				await net.forwards(t, 8080, "from the pod\n");
				t.throws(() => net.fromLocalhost("127.0.0.1", 8081), "a port that nobody has is refused");
				t.equal(await net.fromPod(id, "cat", "/sys/class/net/eth0/mtu"), `${MTU}\n`);
				t.equal(await net.fromPod(id, "cat", "/sys/class/net/eth0/address"), "02:00:00:00:88:02\n");
				t.match(await net.fromPod(id, "ip", "route"), /^default via 10\.88\.0\.1 dev eth0/m);
				const server = new Child(bed.containerd.inside("ip", "netns", "exec", net.node.name, busyboxPath(), "nc", "-l", "-p", "9000"));
				try {
					const sent = "from the pod to the node\n";
					await eventually("the node's listener", WAIT_MS, async () => {
						const { code } = await bed.ctr.exec(id, ["sh", "-c", `echo ${sent.trim()} | nc -w 5 10.99.0.1 9000`]);
						return code === 0 ? true : undefined;
					});
					await server.waitForOutput(/to the node/, WAIT_MS);
				} finally {
					server.kill();
				}
				killDaemon(bed);
				net.fromNode("ping", "-c", "1", "-W", "5", "10.88.0.2");
				await allWays();
				await net.forwards(t, 8080, "from the pod\n");
				killDaemon(bed);
				await bed.ctr.remove(id);
				// At once: it waits until the first one's VM has left.
				const again = await serve(bed, net, "again");
				t.equal(wget("10.88.0.2"), "from the pod\n");
				await bed.ctr.remove(again);
				await cleared(t, net.pod, "eth0");
				t.strictSame(stateOf(net.pod), before);
			}),
	},
	{
		name: "a pod in the namespace of one whose removal snpd did not outlive; and a namespace that is removed with a VM still in it",
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				await bed.ctr.remove(await serve(bed, net, "first"));
				killDaemon(bed);
				const second = await serve(bed, net, "second");
				t.equal(net.fromNode("wget", "-q", "-O", "-", "http://10.88.0.2:8080/"), "from the pod\n");
				// As CNI does: first its interface, then the namespace.
				await bed.ctr.remove(second);
				net.pod.ip("link del eth0");
				net.pod.remove();
				net.pod.add();
				t.strictSame([net.pod.links(), net.pod.redirections()], [[], ""]);
				net.plug("eth0", "02:00:00:00:88:02", ["10.88.0.2/24"]);
				await bed.ctr.remove(await serve(bed, net, "third"));
				await cleared(t, net.pod, "eth0");
			}),
	},
	{
		name: "an interface that appears later is plugged in, a changed address follows, one that goes is unplugged; a connection lives on",
		vmOnly: true,
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				const id = await serve(bed, net, "later");
				const has = async (what: string, command: readonly string[], pattern: RegExp, wanted: boolean): Promise<void> => {
					await eventually(what, WAIT_MS, async () =>
						pattern.test((await bed.ctr.exec(id, command)).stdout) === wanted ? true : undefined,
					);
				};
				const heard = new Child(bed.ctr.execArgv(id, ["nc", "-l", "-p", "7000"]));
				await has("a listener", ["netstat", "-ltn"], /:7000/, true);
				const talk = new Child(bed.containerd.inside("ip", "netns", "exec", net.node.name, busyboxPath(), "nc", "10.88.0.2", "7000"));
				try {
					talk.process.stdin.write("before\n");
					await heard.waitForOutput(/before/, WAIT_MS);
					// One that the VM can't have keeps none of the others from coming.
					net.pod.ip("tuntap add tap9 mode tap");
					net.pod.ip("link set tap9 up");
					net.plug("eth1", "02:00:00:00:88:03", ["10.88.0.3/24"]);
					net.pod.ip("route add 10.77.0.0/16 via 10.88.0.1 dev eth1");
					await has("eth1 in the guest", ["ip", "addr", "show", "dev", "eth1"], /mtu 1400[^]*02:00:00:00:88:03[^]*10\.88\.0\.3\/24/, true);
					await has("its route", ["ip", "route"], /10\.77\.0\.0\/16 via 10\.88\.0\.1 dev eth1/, true);
					net.fromNode("ping", "-c", "1", "-W", "5", "10.88.0.3");
					net.pod.ip("neigh add 10.88.0.9 lladdr 02:00:00:00:88:09 dev eth0 nud permanent");
					await has("a neighbour", ["ip", "neigh"], /10\.88\.0\.9 .*02:00:00:00:88:09 .*PERMANENT/, true);
					net.pod.ip("neigh del 10.88.0.9 dev eth0");
					await has("no neighbour", ["ip", "neigh"], /02:00:00:00:88:09/, false);
					net.pod.ip("addr add 10.88.0.4/24 dev eth0");
					net.pod.ip("link set eth0 mtu 1300");
					await has("the new address", ["ip", "addr", "show", "dev", "eth0"], /mtu 1300[^]*10\.88\.0\.2\/24[^]*10\.88\.0\.4\/24/, true);
					net.fromNode("ping", "-c", "1", "-W", "5", "10.88.0.4");
					net.pod.ip("link del tap9");
					killDaemon(bed);
					net.pod.ip("link del eth1");
					await has("no eth1", ["ip", "link"], /eth1/, false);
					t.strictSame(net.pod.links().sort(), ["eth0", "snp2"].sort());
					talk.process.stdin.write("after\n");
					await heard.waitForOutput(/after/, WAIT_MS);
				} finally {
					talk.kill();
					heard.kill();
				}
				await bed.ctr.remove(id);
				await cleared(t, net.pod, "eth0");
			}),
	},
	{
		name: "a VM with two processors has two queues to each of its interfaces, which keep their names",
		vmOnly: true,
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				net.plug("net7", "02:00:00:00:88:07", ["10.88.0.7/24"]);
				const dropIns = `${bed.containerd.configFile}.d`;
				await mkdir(dropIns);
				// The console, so that a guest that ends early says why.
				await writeFile(`${dropIns}/two.toml`, "[guest]\nvcpus = 2\n[debug]\nconsole = true\n");
				try {
					const id = await serve(bed, net, "queues");
					t.match(net.pod.ip("-d link show type tun"), /numqueues 2[^]*numqueues 2/);
					t.match(await net.fromPod(id, "ls", "/sys/class/net/eth0/queues"), /rx-1[^]*tx-1/);
					t.equal(await net.fromPod(id, "cat", "/sys/class/net/net7/address"), "02:00:00:00:88:07\n");
					for (const host of ["10.88.0.2", "10.88.0.7"]) net.fromNode("ping", "-c", "1", "-W", "5", host);
					await bed.ctr.remove(id);
				} finally {
					await rm(dropIns, { recursive: true });
				}
				await cleared(t, net.pod, "eth0", "net7");
			}),
	},
	{
		name: "a namespace with loopback alone gives loopback alone, at once",
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				const result = await bed.ctr.run(
					bed.ctr.newId("lo"),
					["sh", "-c", "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo up"],
					{
						flags: ["--with-ns", `network:${net.empty.path}`],
					},
				);
				t.match(result.stdout, /lo\nup\n$/, result.stderr);
				t.notMatch(result.stdout, /eth/);
				t.strictSame(net.empty.links(), []);
			}),
	},
	{
		name: "what a VM can't have is refused with a sentence that names it, and nothing is changed",
		vmOnly: true,
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				const refused = async (flags: readonly string[], pattern: RegExp): Promise<void> => {
					const { code, stderr } = await bed.ctr.run(bed.ctr.newId("refused"), ["true"], { flags });
					t.not(code, 0);
					t.match(stderr, pattern);
				};
				await refused(["--net-host"], /host's own network \(hostNetwork\).*take hostNetwork out of the pod/);
				await refused(["--with-ns", "network:/proc/1/ns/net"], /host's own network/);
				await refused(["--with-ns", "network:/run/netns/snp-none"], /network namespace \/run\/netns\/snp-none does not exist/);
				await refused(["--with-ns", "network:/proc/1/ns/uts"], /\/proc\/1\/ns\/uts is no network namespace/);
				net.pod.ip("tuntap add tap7 mode tap");
				net.pod.ip("link set tap7 up");
				await refused(net.flags, /interface tap7 of the pod's network namespace is of the kind tun, which a VM can't have/);
				net.pod.ip("tuntap del tap7 mode tap");
				const id = await serve(bed, net, "first");
				await refused(net.flags, /network namespace .* is in another VM/);
				t.equal(net.fromNode("wget", "-q", "-O", "-", "http://10.88.0.2:8080/"), "from the pod\n", "the first pod's network is untouched");
				await bed.ctr.remove(id);
				await cleared(t, net.pod, "eth0");
			}),
	},
	{
		name: "the namespace is as before after a boot that fails, and after the VM's death with snpd dead as well",
		vmOnly: true,
		check: async (t, bed) =>
			await withNet(bed, async (net) => {
				await bed.containerd.configure({ bootTimeoutMs: 300 });
				try {
					const { code } = await bed.ctr.run(bed.ctr.newId("slow"), ["true"], { flags: net.flags });
					t.not(code, 0);
				} finally {
					await bed.containerd.configure({});
				}
				await cleared(t, net.pod, "eth0");
				const id = await serve(bed, net, "dies");
				killDaemon(bed);
				for (const info of bed.containerd.processes()) if (/ch-qemu(\.\w+)? /.test(info.commandLine)) process.kill(info.pid, "SIGKILL");
				await bed.ctr.remove(id);
				await cleared(t, net.pod, "eth0");
			}),
	},
];

await runCases(cases, { withControl: true });
