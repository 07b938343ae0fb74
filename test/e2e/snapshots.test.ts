/** VMs that are copies of a template: each is another one, deaths of snpd leave nothing, and a template that is of no use costs no pod. */
import { readdirSync, readlinkSync, truncateSync } from "node:fs";
import { basename, join } from "node:path";
import t from "tap";
import { CaseContext } from "../conformance/context.ts";
import type { TestPod } from "../conformance/context.ts";
import { CriBed } from "../support/cri/bed.ts";
import { BRIDGE_ADDRESS, SNP_HANDLER } from "../support/cri/containerd-config.ts";
import { isDaemon, Leftovers } from "../support/leftovers.ts";
import { distBinDir, requireBuilt } from "../support/paths.ts";
import { runOk } from "../support/process.ts";
import { eventually } from "../support/retry.ts";
import { readTimeline } from "../support/timeline.ts";

const WAIT_MS = 60_000;
const SNPCTL_MS = 15_000;
const ON = "[snapshots]\nenabled = true\n";
const MIB = 1024 * 1024;
const LIMIT_MIB = 64;
/** Room for templates: the memory of a VM has to be free. */
const STATE_SIZE = "2g";

interface Told {
	readonly snapshots: {
		readonly templates: readonly { readonly name: string; readonly key: string; readonly bytes: number; readonly uses: number }[];
		readonly making: string;
		readonly restored: number;
		readonly failed: number;
		readonly trouble: string;
	};
}

async function snpctl({ containerd }: CriBed, ...words: string[]): Promise<string> {
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, ...words);
	return (await runOk(argv, { timeoutMs: SNPCTL_MS })).stdout;
}

const told = async (bed: CriBed): Promise<Told["snapshots"]> => (JSON.parse(await snpctl(bed, "--json", "pool")) as Told).snapshots;

/** Waits for a template like this, with none on its way. */
async function ready(bed: CriBed, like: (template: Told["snapshots"]["templates"][number]) => boolean = () => true) {
	return await eventually("a template", WAIT_MS, async () => {
		const { templates, making } = await told(bed);
		return making === "" ? templates.find(like) : undefined;
	});
}

/** The names of the folders in which VMMs work: pods' or those of VMs that no pod has yet. */
function vmms({ containerd }: CriBed, parent: "p" | "w"): string[] {
	return containerd.processes().flatMap((info) => {
		if (!info.commandLine.includes(" --api-socket ")) return [];
		const folder = readlinkSync(`/proc/${info.pid}/cwd`);
		return folder.endsWith(`/${parent}/${basename(folder)}`) ? [basename(folder)] : [];
	});
}

async function killDaemon({ containerd }: CriBed): Promise<void> {
	const victim = await eventually("snpd", WAIT_MS, () => containerd.processes().find((info) => isDaemon(info) && info.state !== "Z"));
	process.kill(victim.pid, "SIGKILL");
}

const kept = ({ containerd }: CriBed): string[] => readdirSync(containerd.seen(join(containerd.stateDir, "t")));

async function steps({ containerd }: CriBed, { id }: TestPod): Promise<string[]> {
	return (await readTimeline(containerd, id)).map(({ step }) => step);
}

async function isCopy(bed: CriBed, pod: TestPod): Promise<boolean> {
	const done = await steps(bed, pod);
	return done.includes("reseed") && !done.includes("vm-boot");
}

/** What a guest draws at random, or makes of it once. */
const DRAW = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'";

t.test("copies of a template: each its own, through kill -9, with a fall back to a boot", async (t) => {
	requireBuilt();
	const bed = await CriBed.start({ version: "2", config: { append: ON }, stateSize: STATE_SIZE });
	const { containerd } = bed;
	const context = new CaseContext(bed, SNP_HANDLER, true);
	t.teardown(async () => {
		if (!t.passing()) t.comment(await containerd.logs());
		await context.clean();
		await bed.stop();
	});
	const leftovers = await Leftovers.watch(containerd);

	const cold = await context.pod();
	t.ok((await steps(bed, cold)).includes("vm-boot"), "the first pod finds none and is booted");
	await eventually("the VM that becomes a template", WAIT_MS, () => (vmms(bed, "w").length > 0 ? true : undefined));
	await killDaemon(bed);
	const first = await ready(bed);
	t.strictSame(kept(bed), [first.name], "a snpd that dies while one is made leaves no half of one");
	await eventually("the end of VMs that became none", WAIT_MS, () => (vmms(bed, "w").length === 0 ? true : undefined));

	const pods = await Promise.all([context.pod(), context.pod()]);
	t.strictSame(await Promise.all(pods.map((pod) => isCopy(bed, pod))), [true, true], "one template serves both");
	const containers = await Promise.all(
		pods.map((pod) =>
			pod.run(["sh", "-c", `hostname; ping -c 1 -W 10 ${BRIDGE_ADDRESS} > /dev/null && echo pong; date +%s; exec sleep 100000`], {
				linux: { resources: { memory_limit_in_bytes: LIMIT_MIB * MIB } },
			}),
		),
	);
	const draws = await Promise.all(containers.map((container) => container.output(DRAW)));
	t.equal(new Set(draws.flatMap((draw) => draw.split("\n"))).size, 6, "neither random numbers nor what is made of them is the other's");
	for (const [at, container] of containers.entries()) {
		const [hostname, pong, date] = (await container.logged(/pong\n\d+\n/)).split("\n");
		t.strictSame([hostname, pong], [pods[at]?.config.hostname, "pong"]);
		t.ok(Math.abs(Number(date) - Date.now() / 1000) < WAIT_MS / 1000, "its clock is the host's");
		t.equal(await container.output("cat /sys/fs/cgroup/memory.max"), String(LIMIT_MIB * MIB));
		await container.output(`echo ${at} > /own; dd if=/dev/zero of=/large bs=1M count=8 2> /dev/null; sync`);
	}
	t.strictSame(await Promise.all(containers.map((container) => container.output("cat /own"))), ["0", "1"], "its disks are its own");
	await killDaemon(bed);
	t.equal(await containers[0]?.output("echo on"), "on", "a copy outlives snpd as any other");
	t.equal((await ready(bed)).name, first.name, "and so does the template");

	const before = vmms(bed, "p").length;
	const replayed = context.pod();
	await eventually("the VMM of a start", WAIT_MS, () => (vmms(bed, "p").length > before ? true : undefined));
	await killDaemon(bed);
	t.equal(await (await (await replayed).sleeper()).output("echo up"), "up", "a start that lost its snpd is made again");

	truncateSync(containerd.seen(join(containerd.stateDir, "t", first.name, "state.json")), 100);
	const booted = await context.pod();
	t.notOk(await isCopy(bed, booted), "a template that is damaged costs no pod");
	t.equal(await (await booted.sleeper()).output("echo up"), "up");
	t.match(await told(bed), { failed: 1, trouble: /could not be restored.*deserialising VM state/su });
	t.match(await snpctl(bed, "pool"), /1 had to be booted instead\nlast trouble with templates: /u);
	const second = await ready(bed, ({ name }) => name !== first.name);
	t.strictSame(kept(bed), [second.name], "it is made again");

	await containerd.configure({ append: ON, maxVcpus: 2 });
	const third = await ready(bed, ({ key }) => key !== second.key);
	t.strictSame(kept(bed), [third.name], "one that no pod would get any more is dropped");
	await containerd.configure({ append: "" });
	await eventually("the end of all templates", WAIT_MS, () => (kept(bed).length === 0 ? true : undefined));
	await context.clean();
	t.strictSame(await leftovers.settle(), [], "nothing is left behind");
});
