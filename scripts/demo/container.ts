/** The first demo: one container in a VM of its own, by containerd's own client. */
import { release } from "node:os";
import { PrivateContainerd } from "../../test/support/containerd.ts";
import { Ctr, SNP_RUNTIME } from "../../test/support/ctr.ts";
import { EventStream } from "../../test/support/events.ts";
import { buildBusyboxImage } from "../../test/support/image.ts";
import { Leftovers } from "../../test/support/leftovers.ts";
import type { ContainerdVersion } from "../../test/support/paths.ts";
import type { Finished } from "../../test/support/process.ts";
import { readTimeline } from "../../test/support/timeline.ts";
import { dim, green, keepLogsOnFailure, say, scene, showNothingLeft, showTimeline } from "./stage.ts";

const WAIT_MS = 30_000;
const EXIT_CODE = 42;

function expectCode(finished: Finished, code: number): void {
	if (finished.code !== code)
		throw new Error(
			`exit code ${finished.code ?? finished.signal} instead of ${code}: ${finished.stderr.trim() || finished.stdout.trim()}`,
		);
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
	await scene("What is left", async () => await showNothingLeft(leftovers));
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

/** Plays the demo. @throws Error that names the scene which failed, why, and where the logs are */
export async function playContainer(version: ContainerdVersion): Promise<void> {
	const containerd = await scene(`A private containerd ${version}`, async () => await PrivateContainerd.start({ version }));
	try {
		say(dim(`  ${containerd.address}`));
		await keepLogsOnFailure(containerd, async () => await play(containerd));
	} finally {
		await containerd.stop();
	}
}
