/** The measurements: cold starts through containerd, and the shim's `start` command by itself. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { PrivateContainerd } from "../test/support/containerd.ts";
import { type Ctr, SNP_RUNTIME } from "../test/support/ctr.ts";
import { runOk } from "../test/support/process.ts";
import { eventually } from "../test/support/retry.ts";
import { readTimeline, type Step } from "../test/support/timeline.ts";
import { ContainerdApi } from "../test/support/containerd-api.ts";

const SNAPSHOTTER = "overlayfs";
const START_TIMEOUT_MS = 30_000;
const END_TIMEOUT_MS = 5_000;

/** One container from nothing to running and back; milliseconds as containerd's client sees them. */
export type ColdStart = {
	readonly createMs: number;
	readonly startMs: number;
	readonly totalMs: number;
	readonly removeMs: number;
	/** The shim's own steps within; empty for runtimes that tell none. */
	readonly steps: readonly Step[];
};

async function timed(work: () => Promise<void>): Promise<number> {
	const startedMs = performance.now();
	await work();
	return performance.now() - startedMs;
}

/** Starts and removes one container; its snapshot and record are made before the clock runs. */
export async function measureColdStart(ctr: Ctr, imageName: string): Promise<ColdStart> {
	const { containerd } = ctr;
	const id = ctr.newId("bench");
	await ctr.callOk(["container", "create", "--runtime", ctr.runtime, "--snapshotter", SNAPSHOTTER, imageName, id, "sleep", "1000"]);
	const api = new ContainerdApi(containerd.address, containerd.namespace);
	try {
		const createMs = await timed(async () => await api.createTask(id, SNAPSHOTTER));
		const startMs = await timed(async () => await api.startTask(id));
		const steps = ctr.runtime === SNP_RUNTIME ? await readTimeline(containerd, id) : [];
		const removeMs = await timed(async () => await api.removeTask(id));
		return { createMs, startMs, totalMs: createMs + startMs, removeMs, steps };
	} finally {
		api.close();
		await ctr.removeLeftover(id);
	}
}

/** Times one command from a small shell (whose fork is cheap, unlike that of a large Node process) and prints microseconds, then the command's output. */
const TIMER_SCRIPT =
	'out=$1; shift; t=$EPOCHREALTIME; "$@" > "$out" 2>&1 < /dev/null; code=$?; u=$EPOCHREALTIME; echo "$(( ${u/./} - ${t/./} )) $code"; cat "$out"';

/**
 * Times `start` of a shim's binary as containerd runs it, and cleans up by `delete`.
 * @param shim name of the binary on containerd's PATH, or its path
 * @returns milliseconds, the fork and exec included.
 */
export async function measureStartCommand(containerd: PrivateContainerd, shim: string, id: string): Promise<number> {
	containerd.containerIds.add(id);
	const bundle = join(containerd.rootDir, "bundles", id);
	await mkdir(bundle, { recursive: true });
	await writeFile(
		join(bundle, "config.json"),
		JSON.stringify({ ociVersion: "1.0.2", process: { args: ["true"], cwd: "/" }, root: { path: "rootfs" }, linux: {} }),
	);
	const binary = join(containerd.ctrPath, "../containerd");
	const environment = [
		`TTRPC_ADDRESS=${containerd.address}.ttrpc`,
		`GRPC_ADDRESS=${containerd.address}`,
		`NAMESPACE=${containerd.namespace}`,
		"MAX_SHIM_VERSION=2",
		`CONTAINERD_SHIM_SNP_CONFIG=${containerd.configFile}`,
		"GOMAXPROCS=2",
	];
	const command = [shim, "-namespace", containerd.namespace, "-address", containerd.address, "-publish-binary", binary, "-id", id];
	const inBundle = ["env", "-C", bundle, ...environment, "bash", "-c", TIMER_SCRIPT, "bash", join(bundle, "out")];
	const { stdout } = await runOk(containerd.inside(...inBundle, ...command, "start"), { timeoutMs: START_TIMEOUT_MS });
	const [first = "", ...output] = stdout.split("\n");
	const [micros, code] = first.split(" ").map(Number);
	if (code !== 0 || micros === undefined) throw new Error(`${shim} start failed with ${code}: ${output.join("\n")}`);
	await runOk(containerd.inside(...inBundle, ...command, "-bundle", bundle, "delete"), { timeoutMs: START_TIMEOUT_MS });
	// Without a connection nobody asks the shim that `start` left to end, as containerd would by Shutdown.
	const left = (): number[] =>
		containerd
			.processes()
			.filter((info) => ` ${info.commandLine} `.includes(` -id ${id} `))
			.map((info) => info.pid);
	for (const pid of left()) process.kill(pid, "SIGTERM");
	await eventually(`the end of the shim of ${id}`, END_TIMEOUT_MS, () => (left().length === 0 ? true : undefined)).catch(() => {
		for (const pid of left()) process.kill(pid, "SIGKILL");
	});
	return micros / 1000;
}
