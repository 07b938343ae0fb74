/** Sudden deaths: snpd, the VMM, the keeper; and what a long life leaves in snpd. */
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { EventStream } from "../support/events.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { SNP_RUNTIME } from "../support/ctr.ts";
import { isDaemon } from "../support/leftovers.ts";
import { descriptorsOf, type ProcessInfo } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";
import { readTimeline } from "../support/timeline.ts";

const WAIT_MS = 60_000;
const LINES = 80;
const CONTAINERS_AT_ONCE = 4;

function daemons(bed: Bed): ProcessInfo[] {
	return bed.containerd.processes().filter((info) => isDaemon(info) && info.state !== "Z");
}

/** Kills snpd as a crash would. @returns the pid that is gone. */
async function killDaemon(bed: Bed): Promise<number> {
	const victim = await eventually("snpd", WAIT_MS, () => daemons(bed)[0]);
	process.kill(victim.pid, "SIGKILL");
	return victim.pid;
}

function processLike(bed: Bed, pattern: RegExp): ProcessInfo {
	const found = bed.containerd.processes().find((info) => pattern.test(info.commandLine));
	if (found === undefined)
		throw new Error(
			`no process like ${pattern} among: ${bed.containerd
				.processes()
				.map((info) => info.commandLine)
				.join(" | ")}`,
		);
	return found;
}

const cases: Case[] = [
	{
		name: "containers that start at the same moment with no snpd running start exactly one",
		check: async (t, bed) => {
			t.strictSame(daemons(bed), [], "none runs yet");
			const results = await Promise.all(
				Array.from(
					{ length: CONTAINERS_AT_ONCE },
					async (_, n) => await bed.ctr.run(bed.ctr.newId("cold"), ["echo", String(n)], { timeoutMs: 2 * WAIT_MS }),
				),
			);
			t.strictSame(
				results.map((result) => result.stdout || result.stderr),
				results.map((_, n) => `${n}\n`),
			);
			t.equal(daemons(bed).length, 1);
		},
	},
	{
		name: "kill -9 of snpd, twice, while a container prints: no line is missing, exec, metrics and the exit code work",
		check: async (t, bed) => {
			const { ctr } = bed;
			const id = ctr.newId("lines");
			const child = ctr.attach(
				id,
				["sh", "-c", `n=1; while [ $n -le ${LINES} ]; do echo line $n; n=$((n+1)); sleep 0.1; done; read last; echo $last; exit 4`],
				{ flags: ["--rm"] },
			);
			try {
				await child.waitForOutput(/line 10\n/, WAIT_MS);
				const first = await killDaemon(bed);
				await child.waitForOutput(/line 25\n/, WAIT_MS);
				const exec = await ctr.exec(id, ["sh", "-c", "echo from exec; exit 3"]);
				t.strictSame([exec.stdout, exec.code], ["from exec\n", 3], exec.stderr);
				t.not(daemons(bed)[0]?.pid, first, "another snpd serves");
				await killDaemon(bed);
				t.match((await ctr.callOk(["task", "metrics", "--format", "json", id])).stdout, /memory/);
				await child.waitForOutput(new RegExp(`line ${LINES}\n`), WAIT_MS);
				child.process.stdin.end("the end\n");
				const finished = await child.finished(WAIT_MS);
				const expected = Array.from({ length: LINES }, (_, n) => `line ${n + 1}\n`).join("");
				t.equal(finished.stdout, `${expected}the end\n`);
				t.equal(finished.code, 4);
			} finally {
				child.kill();
			}
		},
	},
	{
		name: "a container that ends while snpd is dead is reported with its exit code",
		check: async (t, bed) => {
			const { ctr } = bed;
			const id = ctr.newId("unseen");
			const child = ctr.attach(id, ["sh", "-c", "echo ready; read word; exit 17"], { flags: ["--rm"] });
			try {
				await child.waitForOutput(/ready/, WAIT_MS);
				await killDaemon(bed);
				child.process.stdin.end("go\n");
				t.equal((await child.finished(WAIT_MS)).code, 17);
			} finally {
				child.kill();
			}
		},
	},
	{
		name: "the timeline of a pod outlives snpd",
		check: async (t, bed) => {
			const id = bed.ctr.newId("timeline");
			await bed.ctr.detach(id, ["sleep", "1000"]);
			const before = await readTimeline(bed.containerd, id);
			for (const name of ["vm-boot", "guest-kernel", "guest-agent"])
				t.ok(
					before.some(({ step, durationMs }) => step === name && durationMs > 0),
					`${name}: the boot's steps are told, also the guest's own`,
				);
			await killDaemon(bed);
			await bed.ctr.exec(id, ["true"]);
			const after = await readTimeline(bed.containerd, id);
			t.strictSame(after.slice(0, before.length), before);
			t.equal(after.at(-1)?.step, "exec-start");
			await bed.ctr.remove(id);
		},
	},
	{
		name: "removal right after kill -9 of snpd",
		check: async (t, bed) => {
			const id = bed.ctr.newId("orphan");
			await bed.ctr.detach(id, ["sleep", "1000"]);
			await killDaemon(bed);
			await bed.ctr.remove(id);
			t.equal(await bed.ctr.status(id), undefined);
		},
	},
	{
		name: "a configuration that is wrong by now ends nothing that runs",
		check: async (t, bed) => {
			const id = bed.ctr.newId("kept");
			await bed.ctr.detach(id, ["sleep", "1000"]);
			await bed.containerd.configure({ append: '[log]\nlevle = "info"' });
			try {
				await killDaemon(bed);
				t.equal((await bed.ctr.exec(id, ["echo", "alive"])).stdout, "alive\n");
			} finally {
				await bed.containerd.configure({});
			}
			await bed.ctr.remove(id);
		},
	},
	{
		name: "a pod that a new snpd can't take up is seen ended, and can be removed",
		check: async (t, bed) => {
			const { containerd, ctr } = bed;
			const id = ctr.newId("damaged");
			await ctr.detach(id, ["sleep", "1000"]);
			writeFileSync(join(containerd.rootDir, "state/io.containerd.runtime.v2.task", containerd.namespace, id, "config.json"), "{");
			await killDaemon(bed);
			await eventually("the end of the task", WAIT_MS, async () => ((await ctr.status(id)) === "RUNNING" ? undefined : true));
			await eventually("its removal", WAIT_MS, async () => {
				await ctr.call(["task", "rm", "--force", id]);
				return (await ctr.call(["container", "rm", id])).code === 0 ? true : undefined;
			});
			t.equal(await ctr.status(id), undefined);
		},
	},
	{
		name: "kill -9 of snpd while an exec starts: the next one goes on with it",
		check: async (t, bed) => {
			const { containerd, ctr } = bed;
			const id = ctr.newId("starting");
			await ctr.detach(id, ["sleep", "1000"]);
			const guest = processLike(bed, /qemu-system-x86_64/).pid;
			const journal = containerd.seen(join(containerd.stateDir, "p", containerd.podKey(id), "journal.json"));
			process.kill(guest, "SIGSTOP");
			try {
				const exec = ctr.exec(id, ["sh", "-c", "echo out; echo err >&2; exit 5"]);
				exec.catch(() => undefined);
				await eventually("the start of the exec", WAIT_MS, () =>
					/"state":"starting"/.test(readFileSync(journal, "utf8")) ? true : undefined,
				);
				await killDaemon(bed);
				process.kill(guest, "SIGCONT");
				const { stdout, stderr, code } = await exec;
				t.strictSame([stdout, stderr, code], ["out\n", "err\n", 5]);
			} finally {
				process.kill(guest, "SIGCONT");
			}
			await ctr.remove(id);
		},
	},
	{
		name: "kill -9 of snpd before containerd has taken an event: the next one sends it",
		check: async (t, bed) => {
			const { containerd, ctr } = bed;
			const id = ctr.newId("owed");
			const socket = `${containerd.address}.ttrpc`;
			const owed = containerd.seen(join(containerd.stateDir, "e"));
			const events = await EventStream.open(ctr, bed.image.name);
			try {
				await ctr.detach(id, ["sleep", "1000"]);
				// Its connection goes with it, and the next one finds none.
				renameSync(socket, `${socket}.away`);
				await killDaemon(bed);
				await ctr.kill(id, "KILL");
				await eventually("an event that waits", WAIT_MS, () => (existsSync(owed) && readdirSync(owed).length > 0 ? true : undefined));
				t.strictSame(
					events.ofContainer(id).filter(({ topic }) => topic === "/tasks/exit"),
					[],
				);
				await killDaemon(bed);
				renameSync(`${socket}.away`, socket);
				// Whoever asks brings the next snpd.
				await eventually("the task's end", WAIT_MS, async () => ((await ctr.status(id)) === "STOPPED" ? true : undefined));
				t.equal((await events.waitForTopic(id, "/tasks/exit", WAIT_MS)).fields["exit_status"], 137);
				await ctr.remove(id);
			} finally {
				if (existsSync(`${socket}.away`)) renameSync(`${socket}.away`, socket);
				events.stop();
			}
		},
	},
	{
		name: "kill -9 of the VMM: the task is seen stopped, with an event, and can be removed",
		check: async (t, bed) => {
			const { ctr } = bed;
			const events = await EventStream.open(ctr, bed.image.name);
			try {
				const id = ctr.newId("vmm");
				await ctr.detach(id, ["sleep", "1000"]);
				process.kill(processLike(bed, /qemu-system-x86_64/).pid, "SIGKILL");
				const exit = await events.waitForTopic(id, "/tasks/exit", WAIT_MS);
				t.equal(exit.fields["exit_status"], 137);
				t.equal(await ctr.status(id), "STOPPED");
				const exec = await ctr.exec(id, ["true"]);
				t.not(exec.code, 0, "exec is refused");
				await ctr.callOk(["task", "rm", id]);
				await ctr.callOk(["container", "rm", id]);
			} finally {
				events.stop();
			}
		},
	},
	{
		name: "kill -9 of the VMM's own process while a client is attached: the client ends with 137",
		check: async (t, bed) => {
			const id = bed.ctr.newId("attached");
			const child = bed.ctr.attach(id, ["sh", "-c", "echo ready; sleep 1000"], { flags: ["--rm"] });
			try {
				await child.waitForOutput(/ready/, WAIT_MS);
				process.kill(processLike(bed, /ch-qemu.* --api-socket/).pid, "SIGKILL");
				const finished = await child.finished(WAIT_MS);
				t.strictSame([finished.stdout, finished.code], ["ready\n", 137], finished.stderr);
			} finally {
				child.kill();
			}
		},
	},
	{
		name: "kill -9 of the keeper: containerd sees the end, the VM goes with it",
		check: async (t, bed) => {
			const id = bed.ctr.newId("keeper");
			await bed.ctr.detach(id, ["sleep", "1000"]);
			process.kill(processLike(bed, /containerd-shim-snp-v2/).pid, "SIGKILL");
			await eventually("the end of the task", WAIT_MS, async () => ((await bed.ctr.status(id)) !== "RUNNING" ? true : undefined));
			await bed.ctr.removeLeftover(id);
			t.notOk(
				bed.containerd.processes().some((info) => info.commandLine.includes("qemu-system-x86_64")),
				"no VM runs on",
			);
		},
	},
	{
		name: "snpd holds no more descriptors after a few containers than after the first",
		check: async (t, bed) => {
			const once = async (): Promise<string[]> => {
				const id = bed.ctr.newId("fds");
				await bed.ctr.detach(id, ["sleep", "1000"]);
				await bed.ctr.exec(id, ["true"]);
				await bed.ctr.remove(id);
				const [daemon] = daemons(bed);
				if (daemon === undefined) throw new Error("snpd does not run");
				return descriptorsOf(daemon.pid);
			};
			const first = await once();
			await once();
			const last = await eventually("as many descriptors as before", WAIT_MS / 4, async () => {
				const [daemon] = daemons(bed);
				const now = daemon === undefined ? [] : descriptorsOf(daemon.pid);
				return now.length <= first.length ? now : undefined;
			}).catch(() => once());
			t.ok(last.length <= first.length, `at first: ${first.join(" ")}; then: ${last.join(" ")}`);
		},
	},
];

if ((process.env["SNP_E2E_RUNTIME"] ?? SNP_RUNTIME) === SNP_RUNTIME) await runCases(cases, { withControl: false });
