/** `npm run demo`: one container in its own VM under a private containerd, shown step by step; nothing stays behind. */
import { mkdtemp } from "node:fs/promises";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { PrivateContainerd } from "../test/support/containerd.ts";
import { Ctr, SNP_RUNTIME } from "../test/support/ctr.ts";
import { buildBusyboxImage } from "../test/support/image.ts";
import { Leftovers } from "../test/support/leftovers.ts";
import { containerdVersions, isContainerdVersion, requireBuilt, type ContainerdVersion } from "../test/support/paths.ts";
import type { Finished } from "../test/support/process.ts";
import { readTimeline, type Step } from "../test/support/timeline.ts";
import { EventStream } from "../test/support/events.ts";

const WAIT_MS = 30_000;
const BAR_COLUMNS = 40;
const EXIT_CODE = 42;

const coloured = process.stdout.isTTY && process.env["NO_COLOR"] === undefined;
const bold = (text: string): string => (coloured ? `\x1b[1m${text}\x1b[0m` : text);
const dim = (text: string): string => (coloured ? `\x1b[2m${text}\x1b[0m` : text);
const green = (text: string): string => (coloured ? `\x1b[32m${text}\x1b[0m` : text);

function say(line = ""): void {
	process.stdout.write(`${line}\n`);
}

/** One scene of the demo: its title is shown first, and named when it fails. */
async function scene<T>(title: string, play: () => Promise<T>): Promise<T> {
	say(bold(title));
	try {
		return await play();
	} catch (error) {
		throw new Error(`${title}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
	}
}

function expectCode(finished: Finished, code: number): void {
	if (finished.code !== code)
		throw new Error(
			`exit code ${finished.code ?? finished.signal} instead of ${code}: ${finished.stderr.trim() || finished.stdout.trim()}`,
		);
}

function showTimeline(steps: readonly Step[]): void {
	const endMs = Math.max(1, ...steps.map((step) => step.startMs + step.durationMs));
	const nameWidth = Math.max(...steps.map((step) => step.step.length));
	for (const { step, startMs, durationMs } of steps) {
		const offset = Math.min(BAR_COLUMNS - 1, Math.floor((startMs / endMs) * BAR_COLUMNS));
		const length = Math.max(1, Math.round((durationMs / endMs) * BAR_COLUMNS));
		const bar = `${" ".repeat(offset)}${"=".repeat(Math.min(length, BAR_COLUMNS - offset))}`.padEnd(BAR_COLUMNS);
		say(`  ${step.padEnd(nameWidth)} ${`${startMs.toFixed(0)} ms`.padStart(8)} ${dim("|")}${bar}${dim("|")} ${durationMs.toFixed(1)} ms`);
	}
}

async function play(containerd: PrivateContainerd): Promise<void> {
	const image = await buildBusyboxImage(containerd.rootDir);
	const ctr = new Ctr(containerd, SNP_RUNTIME, image);
	await ctr.importImage(image);
	const leftovers = await Leftovers.watch(containerd);

	await scene(`A busybox container that ends with ${EXIT_CODE}`, async () => {
		const command = ["sh", "-c", `uname -r; exit ${EXIT_CODE}`];
		say(dim(`  $ ctr run --rm --runtime ${SNP_RUNTIME} ${image.name} first ${command.join(" ")}`));
		const finished = await ctr.run("first", command);
		expectCode(finished, EXIT_CODE);
		say(`  kernel in the container   ${green(finished.stdout.trim())}`);
		say(`  kernel of the host        ${release()}`);
		say(`  exit code                 ${green(String(finished.code))}`);
	});
	await scene("A container that stays", async () => {
		await ctr.detach("second", ["sleep", "1000"]);
		for (const { id, status } of await ctr.tasks()) say(`  ${id}: ${green(status)}`);
	});
	await scene("A command in it", async () => {
		const command = [
			"sh",
			"-c",
			"echo \"$(nproc) CPU, $(free -m | awk '/^Mem/ {print $2}') MiB, up $(cut -d. -f1 /proc/uptime) s, root on $(awk '$2 == \"/\" {print $3}' /proc/mounts | tail -1)\"",
		];
		const finished = await ctr.exec("second", command);
		expectCode(finished, 0);
		say(`  ${green(finished.stdout.trim())}`);
	});
	await scene("Its start, step by step", async () => showTimeline(await readTimeline(containerd, "second")));
	await scene("Killed and removed", async () => await killAndRemove(ctr, image.name));
	await scene("What is left", async () => {
		const left = await leftovers.settle();
		if (left.length > 0) throw new Error(`something is left behind:\n  ${left.join("\n  ")}`);
		say(`  ${green("nothing")}: no process, mount, socket, cgroup or journal entry`);
	});
}

async function killAndRemove(ctr: Ctr, imageName: string): Promise<void> {
	const events = await EventStream.open(ctr, imageName);
	try {
		const kill = await ctr.kill("second", "SIGKILL");
		expectCode(kill, 0);
		const exit = await events.waitForTopic("second", "/tasks/exit", WAIT_MS);
		say(`  exit code                 ${green(String(exit.fields["exit_status"]))} (128 + SIGKILL)`);
		await ctr.callOk(["task", "rm", "second"]);
		await ctr.callOk(["container", "rm", "second"]);
	} finally {
		events.stop();
	}
}

function readVersion(): ContainerdVersion {
	const { values } = parseArgs({ options: { containerd: { type: "string", default: "2" } } });
	if (!isContainerdVersion(values.containerd))
		throw new Error(`--containerd: ${values.containerd} is not one of ${containerdVersions.join(", ")}`);
	return values.containerd;
}

async function main(): Promise<void> {
	const startedMs = performance.now();
	const version = readVersion();
	requireBuilt();
	const containerd = await scene(`A private containerd ${version}`, async () => await PrivateContainerd.start({ version }));
	try {
		say(dim(`  ${containerd.address}`));
		await play(containerd);
	} catch (error) {
		const dir = await mkdtemp(join(tmpdir(), "snp-demo-logs-"));
		await containerd.keepLogs(dir);
		throw new Error(`${error instanceof Error ? error.message : String(error)}\nThe logs are in ${dir}`, { cause: error });
	} finally {
		await containerd.stop();
	}
	say(dim(`${((performance.now() - startedMs) / 1000).toFixed(1)} s in all`));
}

main().catch((error: unknown) => {
	process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
	process.exitCode = 1;
});
