/** Pods through containerd's Sandbox API (`sandboxer = "shim"`), on a node that has no pause image. The conformance cases run under it too. */
import { readFileSync } from "node:fs";
import t, { type Test } from "tap";
import { CaseContext, SLEEP } from "../conformance/context.ts";
import { CriBed } from "../support/cri/bed.ts";
import { SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { isDaemon, Leftovers } from "../support/leftovers.ts";
import { isContainerdVersion, isFirstGeneration, requireBuilt } from "../support/paths.ts";
import type { ProcessInfo } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";
import { SandboxShim } from "../support/sandbox-shim.ts";

const WAIT_MS = 60_000;
const READY = "SANDBOX_READY";
const NOT_READY = "SANDBOX_NOTREADY";

type Check = (t: Test, context: CaseContext) => Promise<void>;

function like(bed: CriBed, pattern: RegExp): ProcessInfo | undefined {
	return bed.containerd.processes().find((info) => pattern.test(info.commandLine) && info.state !== "Z");
}

/** Kills snpd as a crash would. */
async function killDaemon(bed: CriBed): Promise<void> {
	const daemon = await eventually("snpd", WAIT_MS, () => bed.containerd.processes().find((info) => isDaemon(info) && info.state !== "Z"));
	process.kill(daemon.pid, "SIGKILL");
}

const machine = (bed: CriBed): ProcessInfo | undefined => like(bed, /ch-qemu .*--api-socket/);

async function lives(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const dns_config = { servers: ["10.1.2.3"], searches: ["a.local"], options: ["ndots:3"] };
	const linux = { sysctls: { "kernel.msgmax": "4096" }, resources: { memory_limit_in_bytes: 128 << 20 } };
	const pod = await context.pod({ dns_config, linux });
	t.equal(machine(bed) === undefined, false, "the VM is there before any container");
	t.equal((await bed.client.podStatus(pod.id)).state, READY);
	t.strictSame(await bed.client.listContainers(pod.id), []);
	const container = await pod.sleeper();
	t.equal(await container.output("cat /etc/resolv.conf"), "search a.local\nnameserver 10.1.2.3\noptions ndots:3");
	t.equal(await container.output("hostname; cat /etc/hostname"), `${pod.config.hostname}\n${pod.config.hostname}`);
	t.equal(await container.output("cat /proc/sys/kernel/msgmax"), "4096");
	t.ok(Number(await container.output("awk '/^MemTotal/ { print $2 }' /proc/meminfo")) > 256 << 10, "the limits are on top of the base");
	await container.stop(0);
	await container.remove();
	t.equal((await bed.client.podStatus(pod.id)).state, READY, "the last container's removal leaves the pod");
	t.equal(await (await pod.sleeper()).output("echo again"), "again");
	await pod.stop();
	t.equal(machine(bed), undefined, "a stopped pod has no VM");
	await pod.stop();
	t.equal((await bed.client.podStatus(pod.id)).state, NOT_READY);
	await pod.remove();
	await pod.remove();
}

async function answers(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const pod = await context.pod();
	const shim = await SandboxShim.open(bed.containerd, pod.id);
	try {
		await shim.call("PingSandbox");
		const { state, pid, info } = await shim.status();
		const vmm = await eventually("the VMM", WAIT_MS, () => machine(bed));
		t.equal(state, READY);
		t.match(
			readFileSync(`/proc/${vmm.pid}/status`, "utf8"),
			new RegExp(`^NSpid:\\t${vmm.pid}\\t${pid}$`, "m"),
			"the VMM's, as containerd sees it",
		);
		t.match(JSON.parse(info["info"] ?? ""), { pid, vmState: "running", vm: { vcpus: Number, memoryMib: Number } });
		const { cpuMicros, memoryBytes, processes } = await shim.metrics();
		t.ok(cpuMicros > 0 && memoryBytes > 10 << 20 && processes > 1, `${cpuMicros} us, ${memoryBytes} bytes, ${processes} processes`);
		await t.rejects(shim.create(), /already exists|exists already/);
		await t.rejects(shim.call("StartSandbox"), /started already/);
		await t.rejects(shim.call("PingSandbox", "other"), /not "other"/);
		const container = await pod.run(["sh", "-c", "trap 'exit 7' TERM; echo ready; sleep 100000 & wait"]);
		await container.logged(/ready/);
		const ended = shim.wait();
		await shim.stop(WAIT_MS / 1000);
		t.equal(await ended, 0);
		t.equal((await container.exited()).exit_code, 7, "the container had its time");
		await shim.stop();
		await t.rejects(shim.call("PingSandbox"), /is gone|has no VM/);
		await t.rejects(pod.sleeper(), /is not running/, "a stopped pod takes no container");
	} finally {
		shim.close();
	}
	await eventually("the end of the pod at containerd", WAIT_MS, async () =>
		(await bed.client.podStatus(pod.id)).state === NOT_READY ? true : undefined,
	);
}

async function stopsEarly(t: Test, context: CaseContext): Promise<void> {
	const pod = await context.pod();
	const container = await pod.create(SLEEP, { security: {} });
	const shim = await SandboxShim.open(context.bed.containerd, pod.id);
	try {
		const starting = container.start();
		starting.catch(() => undefined);
		await shim.stop();
		t.equal(machine(context.bed), undefined);
		await t.rejects(starting, /is being stopped|has no VM|is not running/);
		t.equal((await shim.status()).state, NOT_READY);
	} finally {
		shim.close();
	}
}

async function daemonDies(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const config = context.podConfig();
	const coming = bed.client.runPod(config, context.handler);
	coming.catch(() => undefined);
	const first = await eventually("the VMM", WAIT_MS, () => machine(bed));
	await killDaemon(bed);
	const pod = context.adopt(await coming, config);
	t.not(machine(bed)?.pid, first.pid, "the creation began anew");
	const container = await pod.sleeper();
	const shim = await SandboxShim.open(bed.containerd, pod.id);
	try {
		const [created, ended] = [(await shim.status()).created_at, shim.wait()];
		ended.catch(() => undefined);
		await killDaemon(bed);
		t.equal(await container.output("echo on"), "on");
		await shim.call("PingSandbox");
		t.strictSame((await shim.status()).created_at, created, "the pod is as old as it was");
		t.equal(await (await pod.sleeper()).output("cat /etc/hostname"), config.hostname);
		await killDaemon(bed);
		await pod.stop();
		t.equal(await ended, 0, "who waits for the sandbox hears of its end, two daemons later");
		await killDaemon(bed);
		t.equal((await shim.status()).state, NOT_READY);
	} finally {
		shim.close();
	}
	t.equal((await bed.client.podStatus(pod.id)).state, NOT_READY);
	await pod.remove();
}

async function machineDies(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const pod = await context.pod();
	const container = await pod.sleeper();
	process.kill((await eventually("the VMM", WAIT_MS, () => machine(bed))).pid, "SIGKILL");
	await eventually("the end of the pod", WAIT_MS, async () =>
		(await bed.client.podStatus(pod.id)).state === NOT_READY ? true : undefined,
	);
	t.equal((await container.exited()).exit_code, 137);
	const shim = await SandboxShim.open(bed.containerd, pod.id);
	try {
		t.equal(await shim.wait(), 137);
		await t.rejects(shim.call("PingSandbox"), /VM of pod .* is gone|guest/);
		await killDaemon(bed);
		t.equal(await shim.wait(), 137, "the next daemon knows it too");
	} finally {
		shim.close();
	}
	await pod.stop();
	await pod.remove();
}

async function containerdDies(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const pod = await context.pod();
	const container = await pod.sleeper();
	await bed.containerd.restart();
	t.equal((await bed.client.podStatus(pod.id)).state, READY);
	t.equal(await container.output("echo on"), "on");
	await container.stop(0);
	await container.remove();
	t.equal(await (await pod.sleeper()).output("echo again"), "again");
	await pod.stop();
	await eventually("the end of the pod at containerd", WAIT_MS, async () =>
		(await bed.client.podStatus(pod.id)).state === NOT_READY ? true : undefined,
	);
	await pod.remove();
}

async function keeperDies(t: Test, context: CaseContext): Promise<void> {
	const { bed } = context;
	const pod = await context.pod();
	const container = await pod.sleeper();
	process.kill((await eventually("the keeper", WAIT_MS, () => like(bed, /containerd-shim-snp-v2/))).pid, "SIGKILL");
	await eventually("the end of the VM", WAIT_MS, () => (machine(bed) === undefined ? true : undefined));
	await eventually("the end of the pod", WAIT_MS, async () =>
		(await bed.client.podStatus(pod.id)).state === NOT_READY ? true : undefined,
	);
	t.not((await container.exited()).exit_code, 0);
	await pod.stop();
	await pod.remove();
}

const cases: Readonly<Record<string, Check>> = {
	"a pod lives without a pause image, without a container, and after its last one": lives,
	"the shim answers every call of the API, refuses what is wrong, and a stop may come twice": answers,
	"a stop while a container starts ends both": stopsEarly,
	"kill -9 of snpd during the creation, while the pod runs, before its stop and after it": daemonDies,
	"kill -9 of the VMM: the pod is told as ended, and goes": machineDies,
	"kill -9 of the keeper: the VM ends, the pod is told as ended, and goes": keeperDies,
	"containerd is killed and starts again: the pod goes on, and takes containers": containerdDies,
};

requireBuilt();
const only = process.env["SNP_E2E_CASE"] ?? "";
const versions = (process.env["SNP_E2E_CONTAINERD"] ?? "2").split(",").filter(isContainerdVersion);
for (const version of versions.filter((name) => !isFirstGeneration(name)).slice(-1)) {
	const bed = await CriBed.start({ version, pauseImage: false });
	t.teardown(async () => await bed.stop());
	const leftovers = await Leftovers.watch(bed.containerd);
	for (const [name, check] of Object.entries(cases).filter(([name]) => name.includes(only))) {
		await t.test(`containerd ${version}: ${name}`, async (t) => {
			const context = new CaseContext(bed, SNP_SANDBOX_HANDLER, true);
			try {
				await check(t, context);
			} catch (error) {
				t.comment(await bed.containerd.logs());
				throw error;
			} finally {
				await context.clean();
			}
			t.strictSame(await leftovers.settle(), [], "nothing is left behind");
		});
	}
}
