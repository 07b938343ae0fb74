/** Pods and containers that come and go many times: nothing stays, on the node, in the programs that last, in the guest. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import t, { type Test } from "tap";
import { CaseContext, type TestContainer } from "../conformance/context.ts";
import { CriBed } from "../support/cri/bed.ts";
import { SNP_HANDLER } from "../support/cri/containerd-config.ts";
import { Inspector } from "../support/inspector.ts";
import { isDaemon, Leftovers } from "../support/leftovers.ts";
import { requireBuilt } from "../support/paths.ts";
import { descriptorsOf } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";

const PODS = 50;
const PODS_AT_A_TIME = 2;
const RESTARTS = 100;
const SETTLE_MS = 10_000;
/** From here on everything that is made once is there: what grows afterwards grows for ever. */
const WARM = 10;
/** Plain records: timelines and ends of the latest pods and containers are kept, a bounded number of them. */
const RECORDS: ReadonlySet<string> = new Set(["Object", "Array"]);
/** How many records of one pod or restart may stay. */
const RECORDS_EACH = 30;
/** What a guest may have more of by chance; less than one of it for each restart would add. */
const GUEST_SLACK = 60;

/** What the whole guest has of something, by its name: scripts that print one number. A mount that stays keeps inodes. */
const GUEST_COUNTS: Readonly<Record<string, string>> = {
	"open files": "cut -f1 /proc/sys/fs/file-nr",
	inodes: "echo 3 > /proc/sys/vm/drop_caches; cut -f1 /proc/sys/fs/inode-nr",
	"control groups": "awk '{ if ($3 + 0 > n) n = $3 } END { print n }' /proc/cgroups",
	threads: "cut -d' ' -f4 /proc/loadavg | cut -d/ -f2",
	disks: "ls /sys/block | grep -c '^vd'",
};

function daemonPid(bed: CriBed): number {
	const daemon = bed.containerd.processes().find((info) => isDaemon(info) && info.state !== "Z");
	if (daemon === undefined) throw new Error("there is no snpd");
	return daemon.pid;
}

/** The files that the CNI plug-ins and the image cache keep. */
function keptFiles(bed: CriBed): string[] {
	const folders = [join(bed.containerd.rootDir, "cni/leases"), join(bed.containerd.rootDir, "images")];
	return folders.flatMap((folder) => readdirSync(folder, { recursive: true, encoding: "utf8" })).sort();
}

/** The images that a container of a pod holds. */
const pinnedImages = (bed: CriBed): string[] => keptFiles(bed).filter((name) => /^rootfs\/pods\/.*\.erofs$/.test(name));

/** One pod from its beginning to its end. */
async function passPod(context: CaseContext): Promise<void> {
	const pod = await context.pod();
	const container = await pod.sleeper();
	await container.output("true");
	await pod.stop();
	await pod.remove();
}

async function passPods(context: CaseContext, count: number): Promise<void> {
	let left = count;
	const work = async (): Promise<void> => {
		while (left-- > 0) await passPod(context);
	};
	await Promise.all(Array.from({ length: PODS_AT_A_TIME }, work));
}

async function fiftyPods(t: Test, bed: CriBed, context: CaseContext): Promise<void> {
	const leftovers = await Leftovers.watch(bed.containerd);
	await passPods(context, WARM);
	const pid = daemonPid(bed);
	const inspector = await Inspector.open(bed.containerd, pid);
	try {
		await context.clean();
		t.strictSame(await leftovers.settle(), [], `nothing is left of ${WARM} pods`);
		const [objects, descriptors, files] = [await inspector.liveObjects(), descriptorsOf(pid), keptFiles(bed)];
		await passPods(context, PODS - WARM);
		await context.clean();
		t.strictSame(await leftovers.settle(), [], `nothing is left of ${PODS} pods`);
		t.equal(daemonPid(bed), pid, "the same snpd served all of them");
		await same(t, () => descriptorsOf(pid), descriptors, "snpd's descriptors");
		t.strictSame(keptFiles(bed), files, "leases and images");
		checkObjects(t, objects, await inspector.liveObjects(), PODS - WARM);
	} finally {
		inspector.close();
	}
}

async function guestCounts(container: TestContainer): Promise<Map<string, number>> {
	const counts = new Map<string, number>();
	for (const [name, script] of Object.entries(GUEST_COUNTS)) {
		const count = Number(await container.output(script));
		if (!(count > 0)) throw new Error(`the guest does not tell its ${name}`);
		counts.set(name, count);
	}
	return counts;
}

/** Checks that of no class of snpd's objects one stayed for each of the rounds. */
function checkObjects(t: Test, before: ReadonlyMap<string, number>, after: ReadonlyMap<string, number>, rounds: number): void {
	const grown = [...after].map(([name, count]) => ({ name, more: count - (before.get(name) ?? 0) })).filter(({ more }) => more > 0);
	t.comment(`snpd's objects: ${grown.map(({ name, more }) => `${more} ${name}`).join(", ") || "none"} more after ${rounds} rounds`);
	const stayed = grown.filter(({ name, more }) => more >= rounds * (RECORDS.has(name) ? RECORDS_EACH : 1));
	t.strictSame(stayed, [], "snpd's memory is flat");
}

/** Checks that something is as it was, once what goes a moment later has gone: a guest gives a disk back in its own time. */
async function same<T>(t: Test, look: () => T, before: T, name: string): Promise<void> {
	await eventually(name, SETTLE_MS, () => (isDeepStrictEqual(look(), before) ? true : undefined)).catch(() => undefined);
	t.strictSame(look(), before, name);
}

async function hundredRestarts(t: Test, bed: CriBed, context: CaseContext): Promise<void> {
	// Privileged, so that it sees the whole guest and may empty its caches.
	const pod = await context.pod({ linux: { security_context: { privileged: true } } });
	const stays = await pod.sleeper({ security: { privileged: true } });
	let attempt = 0;
	const restart = async (times: number): Promise<void> => {
		for (let n = 0; n < times; n++, attempt++) {
			const container = await pod.run(["sh", "-c", "echo here; exit 1"], {
				metadata: { name: "crash", attempt },
				log_path: `${attempt}.log`,
			});
			const { exit_code } = await container.exited();
			if (exit_code !== 1 || container.logText() !== "here\n") throw new Error(`restart ${attempt}: ${exit_code} ${container.logText()}`);
			await container.remove();
		}
	};
	await restart(WARM);
	const programs = bed.containerd
		.processes()
		.filter(({ commandLine }) => /snpd|containerd-shim-snp-v2|ch-qemu|qemu-system/.test(commandLine));
	const openOf = (): Record<string, string[]> =>
		Object.fromEntries(programs.map(({ pid, commandLine }) => [`${pid} ${commandLine.slice(0, 80)}`, descriptorsOf(pid)]));
	const inspector = await Inspector.open(bed.containerd, daemonPid(bed));
	try {
		// The disk of a container that was removed goes a moment later.
		await eventually("the disks of the last restart to go", SETTLE_MS, () => (pinnedImages(bed).length === 1 ? true : undefined));
		// snpd looks at a VM's memory from some seconds after its start on, and keeps the files for that open.
		const watches = (): boolean => descriptorsOf(daemonPid(bed)).some((path) => path.endsWith("/statm"));
		await eventually("snpd to watch the VM's memory", SETTLE_MS, () => (watches() ? true : undefined));
		const [objects, descriptors, files] = [await inspector.liveObjects(), openOf(), keptFiles(bed)];
		const before = await guestCounts(stays);
		await restart(RESTARTS - WARM);
		await same(t, openOf, descriptors, "descriptors of snpd, keeper and VMM");
		await same(t, () => keptFiles(bed), files, "images");
		const after = await guestCounts(stays);
		for (const [name, count] of before) {
			const now = after.get(name) ?? 0;
			t.comment(`${name} in the guest: ${count}, then ${now}`);
			t.ok(now - count < GUEST_SLACK, `${name} in the guest`, { before: count, after: now });
		}
		checkObjects(t, objects, await inspector.liveObjects(), RESTARTS - WARM);
	} finally {
		inspector.close();
	}
	t.equal((await bed.client.listContainers(pod.id)).length, 1, "containerd knows the container that stays");
}

/** Runs a case on a containerd of its own. */
async function withBed(t: Test, work: (t: Test, bed: CriBed, context: CaseContext) => Promise<void>): Promise<void> {
	const bed = await CriBed.start({ version: "2" });
	try {
		const context = new CaseContext(bed, SNP_HANDLER, true);
		const leftovers = await Leftovers.watch(bed.containerd);
		try {
			await work(t, bed, context);
		} catch (error) {
			t.comment(await bed.containerd.logs());
			throw error;
		} finally {
			await context.clean();
		}
		t.strictSame(await leftovers.settle(), [], "nothing is left behind");
	} finally {
		await bed.stop();
	}
}

requireBuilt();
const only = process.env["SNP_E2E_CASE"] ?? "";
const cases = { [`${PODS} pods come and go`]: fiftyPods, [`a container is restarted ${RESTARTS} times`]: hundredRestarts };
for (const [name, work] of Object.entries(cases)) if (name.includes(only)) await t.test(name, async (t) => await withBed(t, work));
