/** A shim without containerd in front of it: its program and its ttrpc calls as containerd makes them, each timed by itself. */
import { once } from "node:events";
import { closeSync, constants, openSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { dirname, join } from "node:path";
import { containerd as api } from "../proto/gen/containerd.js";
import { Log } from "../shim/base/log.ts";
import { cgroupPath, HostCgroup, mountedHierarchies } from "../shim/host/cgroups.ts";
import type { CgroupHierarchy } from "../shim/host/cgroups.ts";
import { makeFifo } from "../shim/host/filesystem.ts";
import { TtrpcClient } from "../shim/wire/client.ts";
import type { SnapshotMount } from "../test/support/containerd-api.ts";
import type { PrivateContainerd } from "../test/support/containerd.ts";
import { distBinDir } from "../test/support/paths.ts";
import { Child, runOk } from "../test/support/process.ts";
import { eventually } from "../test/support/retry.ts";
import { shimProgram, type Runtime } from "./runtimes.ts";
import type { Tools } from "./tools.ts";

/** Version 3 has the same messages. */
const task = api.task.v2;
const CALL_TIMEOUT_MS = 60_000;
const START_TIMEOUT_MS = 30_000;
const END_TIMEOUT_MS = 10_000;
const SIGKILL = 9;
const NANOS_PER_MS = 1e6;
const MICROS_PER_MS = 1000;

/** FIFOs of a process; empty for none. */
export type Fifos = { readonly stdin: string; readonly stdout: string; readonly stderr: string };
const NO_FIFOS: Fifos = { stdin: "", stdout: "", stderr: "" };

/** The control group of everything that a runtime's `start` and `delete` commands are, leave behind and run; pods' own processes go to their pods' groups. */
export class ShimGroup {
	readonly #group: HostCgroup;

	constructor(containerd: PrivateContainerd, runtime: Runtime) {
		this.#group = new HostCgroup(cgroupPath(`/${containerd.cgroupMark}/shims-${runtime.name}`));
	}

	/** Makes the groups of all runtimes. */
	static async prepare(containerd: PrivateContainerd, runtimes: readonly Runtime[]): Promise<void> {
		for (const runtime of runtimes) {
			const child = new Child(["sleep", "infinity"]);
			await new ShimGroup(containerd, runtime).#group.join(child.pid);
			child.process.kill("SIGKILL");
			await child.finished(END_TIMEOUT_MS);
		}
	}

	/** The files by which a process enters it; those of the processor's time come last. */
	get procs(): string[] {
		const counts = ({ version, controllers }: CgroupHierarchy): boolean => version === 2 || controllers.includes("cpuacct");
		const hierarchies = mountedHierarchies().toSorted((one, other) => Number(counts(one)) - Number(counts(other)));
		return hierarchies.map(({ mountPoint }) => join(mountPoint, this.#group.path, "cgroup.procs"));
	}

	/** Milliseconds of processor time so far. */
	cpuMs(): number {
		return this.#group.usage().cpuNanos / NANOS_PER_MS;
	}
}

/** What is started, where, and by what. */
export type Started = { readonly runtime: Runtime; readonly group: ShimGroup; readonly tools: Tools };

/** The shim of one pod. Its owner calls `end`. */
export class DirectShim {
	/** How long `start` took, its fork and exec included. */
	readonly startMs: number;
	readonly #containerd: PrivateContainerd;
	readonly #podId: string;
	readonly #bundles: string;
	readonly #started: Started;
	readonly #client: TtrpcClient;
	readonly #service: string;
	/** containerd's end of the shim's log. */
	readonly #log: number;

	private constructor(
		containerd: PrivateContainerd,
		how: Started,
		pod: { readonly podId: string; readonly bundles: string },
		started: { readonly startMs: number; readonly client: TtrpcClient; readonly service: string; readonly log: number },
	) {
		this.#containerd = containerd;
		this.#started = how;
		this.#podId = pod.podId;
		this.#bundles = pod.bundles;
		this.startMs = started.startMs;
		this.#client = started.client;
		this.#service = started.service;
		this.#log = started.log;
	}

	/** Runs `start` for a pod whose first container has this specification, and connects. */
	static async start(containerd: PrivateContainerd, how: Started, podId: string, spec: object): Promise<DirectShim> {
		containerd.containerIds.add(podId);
		const bundles = join(containerd.rootDir, "bundles", podId);
		const bundle = await writeBundle(bundles, podId, spec);
		const logFile = join(bundle, "log");
		makeFifo(logFile, 0o600);
		const log = openSync(logFile, constants.O_RDWR | constants.O_NONBLOCK);
		const started = await runShim(containerd, how, bundle, podId, ["start"]);
		const { address, version } = readAnswer(started.answer);
		const socket = connect(containerd.seen(address.replace(/^unix:\/\//, "")));
		await once(socket, "connect");
		const client = new TtrpcClient(socket, { name: `the shim of ${podId}`, log: new Log(() => undefined, "error") });
		const service = version === 3 ? "containerd.task.v3.Task" : "containerd.task.v2.Task";
		return new DirectShim(containerd, how, { podId, bundles }, { startMs: started.ms, client, service, log });
	}

	/** Create. The bundle of a further container is made before. @returns its milliseconds */
	async create(id: string, rootfs: readonly SnapshotMount[], fifos: Fifos = NO_FIFOS): Promise<number> {
		const request = task.CreateTaskRequest.encode({
			id,
			bundle: join(this.#bundles, id),
			rootfs: rootfs.map(({ type, source, options }) => ({ type, source, options: [...options] })),
			...fifos,
		});
		return await this.#timed("Create", request.finish());
	}

	/** Writes the bundle of a further container. */
	async addBundle(id: string, spec: object): Promise<void> {
		await writeBundle(this.#bundles, id, spec);
	}

	/** Start. @returns its milliseconds */
	async startTask(id: string): Promise<number> {
		return await this.#timed("Start", task.StartRequest.encode({ id }).finish());
	}

	/** Kill, Wait and Delete of a container, as containerd does them. @returns their milliseconds */
	async removeTask(id: string): Promise<number> {
		const startedMs = performance.now();
		await this.#call("Kill", task.KillRequest.encode({ id, signal: SIGKILL, all: true }).finish());
		await this.#call("Wait", task.WaitRequest.encode({ id }).finish());
		await this.#call("Delete", task.DeleteRequest.encode({ id }).finish());
		return performance.now() - startedMs;
	}

	/** Waits for a container's own end, then deletes it. */
	async endTask(id: string): Promise<void> {
		await this.#call("Wait", task.WaitRequest.encode({ id }).finish());
		await this.#call("Delete", task.DeleteRequest.encode({ id }).finish());
	}

	/** Shutdown, and the end of the shim's process. */
	async end(): Promise<void> {
		await this.#call("Shutdown", task.ShutdownRequest.encode({ id: this.#podId }).finish()).catch(() => undefined);
		this.#client.close();
		const bundle = join(this.#bundles, this.#podId);
		await runShim(this.#containerd, this.#started, bundle, this.#podId, ["-bundle", bundle, "delete"]);
		const left = (): number[] =>
			this.#containerd
				.processes()
				.filter((info) => ` ${info.commandLine} `.includes(` -id ${this.#podId} `))
				.map((info) => info.pid);
		closeSync(this.#log);
		await eventually(`the end of the shim of ${this.#podId}`, END_TIMEOUT_MS, () => (left().length === 0 ? true : undefined));
	}

	async #timed(method: string, payload: Uint8Array): Promise<number> {
		const startedMs = performance.now();
		await this.#call(method, payload);
		return performance.now() - startedMs;
	}

	async #call(method: string, payload: Uint8Array): Promise<Uint8Array> {
		return await this.#client.call(this.#service, method, payload, { timeoutMs: CALL_TIMEOUT_MS });
	}
}

/** Where a container's files are; its root file system's place is there too. */
async function writeBundle(bundles: string, id: string, spec: object): Promise<string> {
	const bundle = join(bundles, id);
	await mkdir(join(bundle, "rootfs"), { recursive: true });
	await writeFile(join(bundle, "config.json"), JSON.stringify(spec));
	return bundle;
}

/**
 * Runs the shim's program in its control group.
 * @returns how long it took, and what it printed
 * @throws Error with that when it fails
 */
async function runShim(
	containerd: PrivateContainerd,
	{ runtime, group, tools }: Started,
	bundle: string,
	id: string,
	words: readonly string[],
): Promise<{ readonly ms: number; readonly answer: string }> {
	const { argv, env } = shimCommand(containerd, runtime, bundle, id);
	const output = join(bundle, "out");
	const { stdout } = await runOk(containerd.inside(...env, tools.start, output, ...group.procs, "--", ...argv, ...words), {
		timeoutMs: START_TIMEOUT_MS,
	});
	const [micros = Number.NaN, code] = stdout.split(" ").map(Number);
	const answer = (await readFile(output, "utf8")).trim();
	if (code !== 0) throw new Error(`${runtime.name}: ${words.join(" ")} failed with ${code}: ${answer}`);
	return { ms: micros / MICROS_PER_MS, answer };
}

/** The command line up to the command, as containerd 2.0 to 2.2 give it, in the bundle's folder. */
function shimCommand(containerd: PrivateContainerd, runtime: Runtime, bundle: string, id: string) {
	const binary = join(containerd.ctrPath, "../containerd");
	const name = shimProgram(runtime);
	const program = runtime.ours ? join(distBinDir, name) : name;
	const path = `${dirname(containerd.ctrPath)}:${process.env["PATH"] ?? ""}`;
	const env = [
		...["env", "-C", bundle, `PATH=${path}`, `TTRPC_ADDRESS=${containerd.address}.ttrpc`, `GRPC_ADDRESS=${containerd.address}`],
		...[`NAMESPACE=${containerd.namespace}`, "MAX_SHIM_VERSION=2", `CONTAINERD_SHIM_SNP_CONFIG=${containerd.configFile}`, "GOMAXPROCS=2"],
	];
	const argv = [program, "-namespace", containerd.namespace, "-address", containerd.address, "-publish-binary", binary, "-id", id];
	return { env, argv };
}

/** What `start` prints: an address, or since version 3 a JSON document (containerd, pkg/shim). */
function readAnswer(text: string): { readonly address: string; readonly version: number } {
	if (!text.startsWith("{")) return { address: text, version: 2 };
	const answer = JSON.parse(text) as { readonly address?: unknown; readonly version?: unknown; readonly protocol?: unknown };
	if (typeof answer.address !== "string" || answer.protocol !== "ttrpc") throw new Error(`start answered ${text}`);
	return { address: answer.address, version: answer.version === 3 ? 3 : 2 };
}
