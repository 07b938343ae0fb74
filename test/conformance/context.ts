/** What a conformance case works with: pods and containers by short calls, all of which are removed afterwards. */
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { rm } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { removePodCgroups } from "../support/cgroups.ts";
import type { CriBed } from "../support/cri/bed.ts";
import { StreamSession } from "../support/cri/streams.ts";
import type { ContainerConfig, ContainerStatus, ExecSyncResult, PodConfig, SecurityContext, StreamOptions } from "../support/cri/types.ts";
import { PodVolumeFolders } from "../support/kubelet.ts";
import type { ProcessInfo } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;
/** A sleep that no case outlasts and that ends on SIGTERM at once. */
export const SLEEP: readonly string[] = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];

/** A container's configuration besides what the context fills in: a name, the everyday image, a log file. */
export type ContainerOptions = Omit<Partial<ContainerConfig>, "linux"> & {
	readonly name?: string;
	readonly linux?: ContainerConfig["linux"];
	/** Short for the security context. */
	readonly security?: SecurityContext;
};

/** A line of a container's log file (CRI log format). */
export type LogLine = { readonly stream: string; readonly tag: string; readonly text: string };

/** One container of a case. */
export class TestContainer {
	readonly id: string;
	readonly logFile: string;
	readonly #bed: CriBed;

	constructor(bed: CriBed, id: string, logFile: string) {
		this.#bed = bed;
		this.id = id;
		this.logFile = logFile;
	}

	async start(): Promise<void> {
		await this.#bed.client.startContainer(this.id);
	}

	async stop(graceS = 10): Promise<void> {
		await this.#bed.client.stopContainer(this.id, graceS);
	}

	async remove(): Promise<void> {
		await this.#bed.client.removeContainer(this.id);
	}

	async status(): Promise<ContainerStatus> {
		return await this.#bed.client.containerStatus(this.id);
	}

	/** Runs a shell script in the container. */
	async sh(script: string, timeoutS?: number): Promise<ExecSyncResult> {
		return await this.exec(["sh", "-c", script], timeoutS);
	}

	async exec(command: readonly string[], timeoutS?: number): Promise<ExecSyncResult> {
		return await this.#bed.client.execSync(this.id, command, timeoutS);
	}

	/** The output of a shell script that must succeed, without the last line's end. */
	async output(script: string): Promise<string> {
		const { stdout, stderr, exitCode } = await this.sh(script);
		if (exitCode !== 0) throw new Error(`${script}: exit code ${exitCode}: ${stderr || stdout}`);
		return stdout.replace(/\n$/, "");
	}

	/** A streamed exec. The caller closes it. */
	async stream(command: readonly string[], streams: StreamOptions): Promise<StreamSession> {
		return await StreamSession.open(this.#bed.containerd.init.pid, await this.#bed.client.exec(this.id, command, streams));
	}

	/** Streams to the first process. The caller closes it. */
	async attach(streams: StreamOptions): Promise<StreamSession> {
		return await StreamSession.open(this.#bed.containerd.init.pid, await this.#bed.client.attach(this.id, streams));
	}

	/** Waits for the end of the first process. */
	async exited(): Promise<ContainerStatus> {
		return await eventually(`the end of container ${this.id}`, WAIT_MS, async () => {
			const status = await this.status();
			return status.state === "CONTAINER_EXITED" ? status : undefined;
		});
	}

	/** The log's lines so far. @throws Error for a line that is not of the format */
	log(file = this.logFile): LogLine[] {
		const lines = readFileSync(file, "utf8").split("\n").slice(0, -1);
		return lines.map((line) => {
			const match = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\S+ (stdout|stderr) ([FP]) (.*)$/.exec(line);
			if (match === null) throw new Error(`not a line of a log: ${JSON.stringify(line)}`);
			const [, stream = "", tag = "", text = ""] = match;
			return { stream, tag, text };
		});
	}

	/** The log's text of one stream so far. */
	logText(stream: "stdout" | "stderr" = "stdout", file = this.logFile): string {
		return this.log(file)
			.filter((line) => line.stream === stream)
			.map((line) => `${line.text}${line.tag === "F" ? "\n" : ""}`)
			.join("");
	}

	/** Waits until the log's standard output matches. */
	async logged(pattern: RegExp, file = this.logFile): Promise<string> {
		return await eventually(`a log like ${pattern}`, WAIT_MS, () => {
			const text = this.logText("stdout", file);
			return pattern.test(text) ? text : undefined;
		});
	}
}

/** One pod of a case. */
export class TestPod {
	readonly id: string;
	readonly uid: string;
	readonly config: PodConfig;
	/** Folder for logs and for files that containers mount. */
	readonly dir: string;
	readonly #bed: CriBed;
	#count = 0;

	constructor(bed: CriBed, id: string, config: PodConfig, dir: string) {
		this.#bed = bed;
		this.id = id;
		this.uid = config.metadata.uid;
		this.config = config;
		this.dir = dir;
	}

	/** Makes a container without starting it. */
	async create(command: readonly string[], options: ContainerOptions = {}): Promise<TestContainer> {
		const { name = `c${++this.#count}`, security, linux, ...rest } = options;
		const config: ContainerConfig = {
			metadata: { name },
			image: { image: this.#bed.image.name },
			...(command.length === 0 ? {} : { command }),
			log_path: `${name}.log`,
			...rest,
			linux: { ...linux, ...(security === undefined ? {} : { security_context: this.#security(security) }) },
		};
		const id = await this.#bed.client.createContainer(this.id, config, this.config);
		return new TestContainer(this.#bed, id, join(this.dir, config.log_path ?? ""));
	}

	/** A container shares the pod's PID namespace only when it asks for it, as kubelet does. */
	#security(security: SecurityContext): SecurityContext {
		return { ...security, namespace_options: { pid: "CONTAINER", ...security.namespace_options } };
	}

	/** Makes and starts a container. */
	async run(command: readonly string[], options: ContainerOptions = {}): Promise<TestContainer> {
		const container = await this.create(command, { security: {}, ...options });
		await container.start();
		return container;
	}

	/** Makes and starts a container that sleeps. */
	async sleeper(options: ContainerOptions = {}): Promise<TestContainer> {
		return await this.run(SLEEP, options);
	}

	/** Runs a container to its end; gives its status and its output. */
	async result(
		command: readonly string[],
		options: ContainerOptions = {},
	): Promise<{ readonly status: ContainerStatus; readonly stdout: string; readonly stderr: string }> {
		const container = await this.run(command, options);
		const status = await container.exited();
		return { status, stdout: container.logText(), stderr: container.logText("stderr") };
	}

	/** The output of a script in a container of its own, without the last line's end. @throws Error when its exit code is not 0 */
	async output(script: string, options: ContainerOptions = {}): Promise<string> {
		const { status, stdout, stderr } = await this.result(["sh", "-c", script], options);
		if (status.exit_code !== 0) throw new Error(`${script}: exit code ${status.exit_code}: ${stderr || stdout}`);
		return stdout.replace(/\n$/, "");
	}

	/** Kills the pod's hypervisor. */
	killVm(): void {
		const folder = `/p/${this.#bed.containerd.podKey(this.id)}`;
		const isOurs = ({ pid, commandLine }: ProcessInfo): boolean =>
			commandLine.includes(" --api-socket ") && readlinkSync(`/proc/${pid}/cwd`).endsWith(folder);
		const found = this.#bed.containerd.processes().find(isOurs);
		if (found === undefined) throw new Error(`pod ${this.id} has no hypervisor`);
		process.kill(found.pid, "SIGKILL");
	}

	async stop(): Promise<void> {
		await this.#bed.client.stopPod(this.id);
	}

	async remove(): Promise<void> {
		await this.#bed.client.removePod(this.id);
	}
}

/** One run of one case under one runtime. */
export class CaseContext {
	readonly bed: CriBed;
	/** The runtime handler of the case's pods. */
	readonly handler: string;
	/** True when pods are VMs. */
	readonly isVm: boolean;
	readonly #uids: string[] = [];

	constructor(bed: CriBed, handler: string, isVm: boolean) {
		this.bed = bed;
		this.handler = handler;
		this.isVm = isVm;
	}

	/** A pod's configuration with a name of its own. */
	podConfig(options: Partial<PodConfig> = {}): PodConfig {
		const uid = randomBytes(6).toString("hex");
		const dir = this.bed.podDir(uid);
		mkdirSync(dir, { recursive: true });
		this.#uids.push(uid);
		return {
			metadata: { name: `pod-${uid}`, uid, namespace: "default" },
			hostname: `host-${uid}`,
			log_directory: dir,
			...options,
			linux: {
				cgroup_parent: `/${this.bed.containerd.cgroupMark}/${uid}`,
				...options.linux,
				security_context: {
					...options.linux?.security_context,
					namespace_options: { pid: "CONTAINER", ...options.linux?.security_context?.namespace_options },
				},
			},
		};
	}

	/** Starts a pod. */
	async pod(options: Partial<PodConfig> = {}): Promise<TestPod> {
		const config = this.podConfig(options);
		return this.adopt(await this.bed.client.runPod(config, this.handler), config);
	}

	/** A pod that the case started itself. */
	adopt(id: string, config: PodConfig): TestPod {
		return new TestPod(this.bed, id, config, config.log_directory ?? "");
	}

	/** Removes every pod of the runtime, as the node's agent would: containers, pods, their cgroups. */
	async clean(): Promise<void> {
		const { client } = this.bed;
		await eventually("the removal of all pods", WAIT_MS, async () => {
			for (const id of await client.podIds()) {
				await client.stopPod(id);
				await client.removePod(id);
			}
			return true;
		});
		const files = this.#uids.flatMap((uid) => filesForEmptyDirs(this.bed.podDir(uid)));
		for (const uid of this.#uids) {
			await removePodCgroups(this.bed.containerd.cgroupMark, uid);
			await rm(this.bed.podDir(uid), { recursive: true, force: true });
		}
		if (files.length > 0) throw new Error(`emptyDirs keep ${files.join(", ")}`);
	}
}

/** The files of disks that the runtime has left in a pod's emptyDirs. */
function filesForEmptyDirs(podDir: string): string[] {
	const volumes = join(podDir, "volumes/kubernetes.io~empty-dir");
	if (!existsSync(volumes)) return [];
	return readdirSync(volumes, { recursive: true, encoding: "utf8" }).filter((name) => /\/containerd-shim-snp-[^/]*\.img$/.test(name));
}

/** One conformance case. */
export type ConformanceCase = {
	/** Short and lasting: `differences.json` names it. */
	readonly id: string;
	/** What must hold. */
	readonly name: string;
	readonly check: (context: CaseContext) => Promise<void>;
};

/** Runs a case with a pod and its volumes, whose mounts go after it. */
export function withVolumes(
	check: (pod: TestPod, volumes: PodVolumeFolders, context: CaseContext) => Promise<void>,
	options: Partial<PodConfig> = {},
): (context: CaseContext) => Promise<void> {
	return async (context) => {
		const pod = await context.pod(options);
		const volumes = new PodVolumeFolders(context.bed.containerd, pod.dir);
		try {
			await check(pod, volumes, context);
		} finally {
			await volumes.release();
		}
	};
}
