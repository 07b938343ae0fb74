/** The second demo: a Kubernetes pod, asked for through the container runtime interface (CRI) as a node's kubelet does. */
import { release } from "node:os";
import { CaseContext, type TestContainer, type TestPod } from "../../test/conformance/context.ts";
import { CriBed } from "../../test/support/cri/bed.ts";
import { BRIDGE, BRIDGE_ADDRESS, SNP_HANDLER } from "../../test/support/cri/containerd-config.ts";
import { ForwardedPort } from "../../test/support/cri/forward.ts";
import { busyboxPath } from "../../test/support/image.ts";
import { PodVolumeFolders, publishKeys } from "../../test/support/kubelet.ts";
import { Leftovers } from "../../test/support/leftovers.ts";
import { here, TestNamespace } from "../../test/support/netns.ts";
import type { ContainerdVersion } from "../../test/support/paths.ts";
import { eventually } from "../../test/support/retry.ts";
import { readTimeline } from "../../test/support/timeline.ts";
import { dim, keepLogsOnFailure, say, scene, showNothingLeft, showTimeline, tell } from "./stage.ts";

const WAIT_MS = 60_000;
const PORT = 8080;
const GREETING = "hello from inside the VM";
const MIB = 1024 * 1024;
const NS_PER_S = 1e9;
/** Outside of the addresses that the network hands out first. */
const NEIGHBOUR_ADDRESS = "10.88.255.2/16";

/** A second network namespace on the pods' bridge: any other machine or pod of the network. After a failure it goes with containerd's namespaces. */
class Neighbour {
	readonly #space: TestNamespace;
	readonly #umount: () => void;

	constructor(bed: CriBed) {
		const shell = (...argv: readonly string[]): string => here(...bed.containerd.inside(...argv));
		// iproute2 makes the folder of all namespaces' names a mount of its own, and leaves it.
		this.#umount = () => shell("umount", "/run/netns");
		this.#space = new TestNamespace("neighbour", shell);
		this.#space.ip("link add eth0 type veth peer name snp-demo0 netns 1");
		shell("ip", "link", "set", "snp-demo0", "master", BRIDGE, "up");
		shell("ip", "link", "set", BRIDGE, "up");
		this.#space.ip(`addr add ${NEIGHBOUR_ADDRESS} dev eth0`);
		this.#space.ip("link set eth0 up");
	}

	/** Gets a page from a web server. */
	fetch(url: string): string {
		return this.#space.exec(busyboxPath(), "wget", "-q", "-O", "-", url).trim();
	}

	remove(): void {
		this.#space.remove();
		this.#umount();
	}
}

function expect(what: string, found: string, wanted: string): void {
	if (found !== wanted) throw new Error(`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`);
}

async function startPod(context: CaseContext): Promise<{ readonly pod: TestPod; readonly address: string }> {
	say(dim("  RunPodSandbox: containerd has a CNI plug-in make the pod's interface, and the runtime boots a VM that gets it"));
	const startedMs = performance.now();
	const pod = await context.pod({ hostname: "demo-pod" });
	tell("ready after", `${((performance.now() - startedMs) / 1000).toFixed(1)} s`);
	const address = (await context.bed.client.podStatus(pod.id)).network?.ip ?? "";
	if (address === "") throw new Error("the pod has no address");
	tell("address", address);
	return { pod, address };
}

async function runInitContainer(pod: TestPod): Promise<void> {
	say(dim("  it runs to its end before the others start"));
	const init = await pod.run(["sh", "-c", 'echo "prepared on $(hostname)"'], { name: "init" });
	const { exit_code } = await init.exited();
	expect("its exit code", String(exit_code), "0");
	expect("its log", init.logText(), "prepared on demo-pod\n");
	tell("exit code", String(exit_code));
	tell("its log", init.logText().trim());
}

async function startTalkers(pod: TestPod, configMap: string): Promise<{ readonly web: TestContainer; readonly client: TestContainer }> {
	say(dim("  containers of a pod share its VM and its network"));
	const serve = `mkdir /tmp/www; echo '${GREETING}' > /tmp/www/index.html; exec httpd -f -p ${PORT} -h /tmp/www`;
	const mounts = [{ container_path: "/config", host_path: configMap, readonly: true }];
	const web = await pod.run(["sh", "-c", serve], { name: "web", mounts });
	const ask = `while :; do wget -q -O - http://localhost:${PORT}/ && echo asked; sleep 0.5; done`;
	const client = await pod.run(["sh", "-c", ask], { name: "client" });
	await client.logged(/^asked$/m);
	tell("web serves", `port ${PORT}`);
	tell("client gets by localhost", client.log().find(({ stream }) => stream === "stdout")?.text ?? "nothing");
	return { web, client };
}

async function changeConfigMap(web: TestContainer, configMap: string): Promise<void> {
	say(dim("  the node replaces the folder as Kubernetes does; the VM's copy follows"));
	tell("colour in the container", await web.output("cat /config/colour"));
	const changedMs = performance.now();
	publishKeys(configMap, { colour: "green" });
	await eventually("the change", WAIT_MS, async () => ((await web.output("cat /config/colour")) === "green" ? true : undefined));
	tell("after its change", `${await web.output("cat /config/colour")}, seen after ${(performance.now() - changedMs).toFixed(0)} ms`);
	await eventually("the deletion", WAIT_MS, async () => ((await web.output("ls /config")) === "colour" ? true : undefined));
	tell("a key that was deleted", "is gone");
}

async function reachFromNeighbour(neighbour: Neighbour, client: TestContainer, address: string): Promise<void> {
	const page = await eventually("the pod's page", WAIT_MS, () => neighbour.fetch(`http://${address}:${PORT}/`));
	expect("the page", page, GREETING);
	tell(`${NEIGHBOUR_ADDRESS.replace(/\/.*/, "")} gets`, page);
	await client.output(`ping -c 1 -W 10 ${BRIDGE_ADDRESS}`);
	tell("the pod reaches", `its gateway ${BRIDGE_ADDRESS}`);
}

function showLog(client: TestContainer): void {
	say(dim(`  the file that kubectl logs reads: ${client.logFile}`));
	const lines = client.log().slice(0, 2);
	if (lines.length < 2) throw new Error("the log has less than two lines");
	for (const { stream, tag, text } of lines) say(`  ${stream} ${tag} ${text}`);
}

async function runCommand(web: TestContainer): Promise<void> {
	tell("kernel in the pod", await web.output("uname -r"));
	tell("kernel of the host", release());
	tell("host name in the pod", await web.output("hostname"));
	const missing = await web.exec(["no-such-program"]).catch((error: unknown) => error);
	if (!(missing instanceof Error)) throw new Error("a program that is not there was run");
	tell("a program that is missing", "refused at once");
}

async function forwardPort(bed: CriBed, pod: TestPod): Promise<void> {
	say(dim("  as kubectl port-forward: through containerd to localhost of the pod"));
	const port = await ForwardedPort.open(bed, pod.id, PORT);
	try {
		port.write("GET / HTTP/1.0\r\n\r\n");
		await port.waitUntil("the page", ({ received }) => received.includes(GREETING));
	} finally {
		port.close();
	}
	tell("the page", GREETING);
}

async function showStats(bed: CriBed, pod: TestPod, containers: Readonly<Record<string, TestContainer>>): Promise<void> {
	const { linux } = await bed.client.podStats(pod.id);
	const bytes = linux?.memory?.working_set_bytes?.value ?? 0;
	const cpuNs = linux?.cpu?.usage_core_nano_seconds?.value ?? 0;
	if (bytes === 0 || cpuNs === 0) throw new Error("the pod's statistics are empty");
	tell("the VM on this host", `${(bytes / MIB).toFixed(0)} MiB, ${(cpuNs / NS_PER_S).toFixed(1)} s of CPU`);
	for (const [name, { id }] of Object.entries(containers)) {
		const { cpu, memory } = await bed.client.containerStats(id);
		const used = memory?.working_set_bytes?.value ?? 0;
		if (used === 0) throw new Error(`the statistics of container ${name} are empty`);
		tell(
			`container ${name}`,
			`${(used / MIB).toFixed(1)} MiB, ${((cpu?.usage_core_nano_seconds?.value ?? 0) / NS_PER_S).toFixed(1)} s of CPU in the VM`,
		);
	}
}

async function removePod(bed: CriBed, pod: TestPod): Promise<void> {
	const startedMs = performance.now();
	await pod.stop();
	await pod.remove();
	tell("stopped and removed in", `${(performance.now() - startedMs).toFixed(0)} ms`);
	const ids = await bed.client.podIds();
	if (ids.length > 0) throw new Error(`containerd still has ${ids.join(", ")}`);
}

async function play(bed: CriBed): Promise<void> {
	const leftovers = await Leftovers.watch(bed.containerd);
	const context = new CaseContext(bed, SNP_HANDLER, true);
	const neighbour = await scene("A bridge network, and a neighbour on it", async () => {
		const made = new Neighbour(bed);
		tell("neighbour", NEIGHBOUR_ADDRESS);
		return made;
	});
	const { pod, address } = await scene("A pod", async () => await startPod(context));
	await scene("Its init container", async () => await runInitContainer(pod));
	// It has no mounts that would have to be given back.
	const configMap = new PodVolumeFolders(bed.containerd, pod.dir).configuration("configmap", "settings", { colour: "blue", old: "yes" });
	const { web, client } = await scene("Two containers that talk over localhost", async () => await startTalkers(pod, configMap));
	await scene("A configMap that changes while they run", async () => await changeConfigMap(web, configMap));
	await scene("From another network namespace", async () => await reachFromNeighbour(neighbour, client, address));
	await scene("Logs", async () => showLog(client));
	await scene("Commands in a container", async () => await runCommand(web));
	await scene("Port-forward", async () => await forwardPort(bed, pod));
	await scene("Statistics", async () => await showStats(bed, pod, { web, client }));
	await scene("Its start, step by step (snpctl timeline)", async () => showTimeline(await readTimeline(bed.containerd, pod.id)));
	await scene("Removed", async () => await removePod(bed, pod));
	await context.clean();
	neighbour.remove();
	await scene("What is left", async () => await showNothingLeft(leftovers));
}

/** Plays the demo. @throws Error that names the scene which failed, why, and where the logs are */
export async function playPod(version: ContainerdVersion): Promise<void> {
	const bed = await scene(`A private containerd ${version} that serves pods`, async () => await CriBed.start({ version }));
	try {
		say(dim(`  ${bed.containerd.address}`));
		await keepLogsOnFailure(bed.containerd, async () => await play(bed));
	} finally {
		await bed.stop();
	}
}
