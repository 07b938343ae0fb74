/** VMs that are booted before a pod asks for one: real pods get them, deaths of snpd leave none behind, and they follow the configuration. */
import { readFileSync, readlinkSync } from "node:fs";
import { basename, join } from "node:path";
import t from "tap";
import { CaseContext } from "../conformance/context.ts";
import type { TestPod } from "../conformance/context.ts";
import { cgroupsNamed } from "../support/cgroups.ts";
import { CriBed } from "../support/cri/bed.ts";
import { BRIDGE_ADDRESS, SNP_HANDLER, SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { isDaemon, Leftovers } from "../support/leftovers.ts";
import { distBinDir, requireBuilt } from "../support/paths.ts";
import { runOk } from "../support/process.ts";
import type { ProcessInfo } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";
import { readTimeline } from "../support/timeline.ts";

const WAIT_MS = 60_000;
const SNPCTL_MS = 15_000;
const POOL_GROUP = "containerd-shim-snp-pool";
const ON = "[pool]\nsize = 1\n";

interface PoolTold {
	readonly vms: readonly { readonly name: string; readonly key: string; readonly state: string; readonly vmmPid: number }[];
	readonly hits: number;
	readonly misses: number;
}

async function pool({ containerd }: CriBed): Promise<PoolTold> {
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, "--json", "pool");
	return JSON.parse((await runOk(argv, { timeoutMs: SNPCTL_MS })).stdout) as PoolTold;
}

/** Waits for one VM that is ready, and like this. */
async function ready(bed: CriBed, like: (vm: PoolTold["vms"][number]) => boolean = () => true): Promise<PoolTold["vms"][number]> {
	return await eventually("a VM in the pool", WAIT_MS, async () => {
		const { vms } = await pool(bed);
		return vms.find((vm) => vm.state === "ready" && like(vm));
	});
}

/** The VMMs that work in such a folder, by their names. */
function vmms({ containerd }: CriBed, parent: "p" | "w"): Map<string, ProcessInfo> {
	const found = containerd.processes().flatMap((info): [string, ProcessInfo][] => {
		if (!info.commandLine.includes(" --api-socket ")) return [];
		const folder = readlinkSync(`/proc/${info.pid}/cwd`);
		return folder.endsWith(`/${parent}/${basename(folder)}`) ? [[basename(folder), info]] : [];
	});
	return new Map(found);
}

async function killDaemon({ containerd }: CriBed): Promise<void> {
	const victim = await eventually("snpd", WAIT_MS, () => containerd.processes().find((info) => isDaemon(info) && info.state !== "Z"));
	process.kill(victim.pid, "SIGKILL");
}

const isWarm = async ({ containerd }: CriBed, { id }: TestPod): Promise<boolean> =>
	(await readTimeline(containerd, id)).some(({ step }) => step === "pool-take");

t.test("VMs of the pool: kept through kill -9, taken once each, refilled, replaced and ended", async (t) => {
	requireBuilt();
	const bed = await CriBed.start({ version: "2", config: { append: ON } });
	const { containerd } = bed;
	const context = new CaseContext(bed, SNP_HANDLER, true);
	const sandboxes = new CaseContext(bed, SNP_SANDBOX_HANDLER, true);
	const clean = async (): Promise<void> => {
		await context.clean();
		await sandboxes.clean();
	};
	t.teardown(async () => {
		if (!t.passing()) t.comment(await containerd.logs());
		await clean();
		await bed.stop();
	});
	const leftovers = await Leftovers.watch(containerd);
	const cold = await context.pod();
	t.notOk(await isWarm(bed, cold), "the first pod finds none");

	const first = await ready(bed);
	const vmm = vmms(bed, "w").get(first.name);
	if (vmm === undefined) throw new Error("the VM's process is not where the pool's are");
	const told = (file: string): string => readFileSync(`/proc/${vmm.pid}/${file}`, "utf8");
	t.match(told("cgroup"), new RegExp(`/${POOL_GROUP}/${first.name}$`, "m"), "it has a group of its own");
	t.equal(told("oom_score_adj"), "1000\n", "it is the first to go when memory runs out");
	await killDaemon(bed);
	t.equal((await ready(bed)).name, first.name, "a new snpd takes it up");

	// One is there, two come at the same moment.
	const pods = await Promise.all([context.pod(), context.pod()]);
	const warmth = await Promise.all(pods.map((pod) => isWarm(bed, pod)));
	t.strictSame(warmth.filter(Boolean).length, 1, "it serves one of them");
	const { hits, misses } = await pool(bed);
	t.strictSame([hits, misses], [1, 1]);
	const warm = pods[warmth.indexOf(true)];
	if (warm === undefined) return;
	t.equal(vmms(bed, "p").get(containerd.podKey(warm.id))?.pid, vmm.pid, "the same process, in the pod's folder");
	t.match(told("cgroup"), new RegExp(`/${containerd.cgroupMark}/`), "in the pod's group");
	t.equal(told("oom_score_adj"), "0\n");
	await eventually("the end of its group in the pool", WAIT_MS, () => (cgroupsNamed([first.name]).length === 0 ? true : undefined));
	const script = `echo out; echo err >&2; hostname; ping -c 1 -W 10 ${BRIDGE_ADDRESS} > /dev/null && echo pong; date +%s; exec sleep 100000`;
	const container = await warm.run(["sh", "-c", script]);
	const [out, hostname, pong, date] = (await container.logged(/pong\n\d+\n/)).split("\n");
	t.strictSame([out, hostname, pong, container.logText("stderr")], ["out", warm.config.hostname, "pong", "err\n"]);
	t.ok(Math.abs(Number(date) - Date.now() / 1000) < WAIT_MS / 1000, "its clock is the host's");
	await killDaemon(bed);
	t.equal(await container.output("echo on"), "on", "a pod from the pool outlives snpd as any other");

	const second = await ready(bed);
	t.not(second.name, first.name, "another one takes its place");
	await containerd.configure({ maxVcpus: 2 });
	const third = await ready(bed, ({ key }) => key !== second.key);
	t.notOk(vmms(bed, "w").has(second.name), "one that no pod would get any more is ended");
	const alone = await sandboxes.pod();
	t.ok(await isWarm(bed, alone), "containerd's Sandbox API gets one as well");
	t.equal(await (await alone.sleeper()).output("hostname"), alone.config.hostname);

	const fourth = await ready(bed, ({ name }) => name !== third.name);
	const idle = vmms(bed, "w").get(fourth.name);
	if (idle !== undefined) process.kill(idle.pid, "SIGKILL");
	const last = await ready(bed, ({ name }) => name !== fourth.name);
	t.pass("one that dies is replaced");
	const hung = vmms(bed, "w").get(last.name);
	if (hung !== undefined) process.kill(hung.pid, "SIGSTOP");
	const own = await context.pod();
	const steps = (await readTimeline(containerd, own.id)).map(({ step }) => step);
	t.ok(steps.includes("pool-take") && steps.includes("vm-boot"), "a pod that gets one that hangs boots instead, in the same call");
	t.equal(await (await own.sleeper()).output("hostname"), own.config.hostname);
	t.equal(vmms(bed, "p").get(containerd.podKey(own.id))?.pid === hung?.pid, false, "and the other one is ended");

	await containerd.configure({ append: "" });
	await killDaemon(bed);
	await eventually("the end of the pool", WAIT_MS, () => (vmms(bed, "w").size === 0 ? true : undefined));
	await clean();
	t.strictSame(await leftovers.settle(), [], "nothing is left behind");
});
