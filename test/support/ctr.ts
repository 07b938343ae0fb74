/** containerd's own client as typed functions, with a deadline on each call. */
import { Child, run, runOk, type Finished, type RunOptions, type StartOptions } from "./process.ts";
import type { PrivateContainerd } from "./containerd.ts";
import type { TestImage } from "./image.ts";

/** The two runtimes that the tests compare. */
export const SNP_RUNTIME = "io.containerd.snp.v2";
export const RUNC_RUNTIME = "io.containerd.runc.v2";

const CALL_TIMEOUT_MS = 60_000;

export type ContainerOptions = {
	/** Flags of `ctr run` that come before the image, such as `--tty`. */
	readonly flags?: readonly string[];
	readonly image?: TestImage;
	readonly snapshotter?: string;
};

/** A task's line of `ctr task ls`. */
export type TaskLine = { readonly id: string; readonly pid: number; readonly status: string };

/** `ctr` on one private containerd, one runtime and one default image. */
export class Ctr {
	readonly containerd: PrivateContainerd;
	readonly runtime: string;
	readonly #image: TestImage;
	#count = 0;

	constructor(containerd: PrivateContainerd, runtime: string, image: TestImage) {
		this.containerd = containerd;
		this.runtime = runtime;
		this.#image = image;
	}

	/** A container id that this instance has not used. */
	newId(label: string): string {
		const id = `${label}-${++this.#count}`;
		this.containerd.containerIds.add(id);
		return id;
	}

	/** The whole command line of a `ctr` call. */
	argv(...args: readonly string[]): string[] {
		return [this.containerd.ctrPath, "--address", this.containerd.address, "--namespace", this.containerd.namespace, ...args];
	}

	/** Runs any `ctr` command to its end; the exit code is the caller's to judge. */
	async call(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
		return await run(this.argv(...args), { timeoutMs: CALL_TIMEOUT_MS, ...options });
	}

	/** Runs any `ctr` command that must succeed. */
	async callOk(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
		return await runOk(this.argv(...args), { timeoutMs: CALL_TIMEOUT_MS, ...options });
	}

	/** Imports an image for its own platform. */
	async importImage(image: TestImage): Promise<void> {
		const flags = this.containerd.version === "1.6" ? ["--platform", image.platform] : ["--local", "--platform", image.platform];
		await this.callOk(["image", "import", ...flags, image.file]);
	}

	/** The command line of `ctr run`, for tests that start it themselves. */
	runArgv(id: string, command: readonly string[], options: ContainerOptions = {}): string[] {
		const image = options.image ?? this.#image;
		return this.argv(
			"run",
			"--runtime",
			this.runtime,
			"--fifo-dir",
			this.containerd.fifoDir,
			"--platform",
			image.platform,
			...(options.snapshotter === undefined ? [] : ["--snapshotter", options.snapshotter]),
			...(options.flags ?? []),
			image.name,
			id,
			...command,
		);
	}

	/** `ctr run --rm`: one container from start to removal. */
	async run(id: string, command: readonly string[], options: ContainerOptions & RunOptions = {}): Promise<Finished> {
		const argv = this.runArgv(id, command, { ...options, flags: ["--rm", ...(options.flags ?? [])] });
		return await run(argv, { timeoutMs: CALL_TIMEOUT_MS, ...options });
	}

	/** `ctr run` that stays in the foreground, as a child that the caller owns. */
	attach(id: string, command: readonly string[], options: ContainerOptions & StartOptions = {}): Child {
		return new Child(this.runArgv(id, command, options), options);
	}

	/** `ctr run --detach` with its output thrown away: a container that runs in the background. */
	async detach(id: string, command: readonly string[], options: ContainerOptions = {}): Promise<void> {
		const flags = ["--detach", "--null-io", ...(options.flags ?? [])];
		await runOk(this.runArgv(id, command, { ...options, flags }), { timeoutMs: CALL_TIMEOUT_MS });
	}

	/** The command line of `ctr task exec`. */
	execArgv(id: string, command: readonly string[], flags: readonly string[] = []): string[] {
		const execId = `exec-${++this.#count}`;
		return this.argv("task", "exec", "--exec-id", execId, "--fifo-dir", this.containerd.fifoDir, ...flags, id, ...command);
	}

	/** `ctr task exec`: one more process in a running container. */
	async exec(id: string, command: readonly string[], options: RunOptions & { readonly flags?: readonly string[] } = {}): Promise<Finished> {
		return await run(this.execArgv(id, command, options.flags), { timeoutMs: CALL_TIMEOUT_MS, ...options });
	}

	/** `ctr task kill`. */
	async kill(id: string, signal: string, flags: readonly string[] = []): Promise<Finished> {
		return await this.call(["task", "kill", "--signal", signal, ...flags, id]);
	}

	/** Every task of the namespace. */
	async tasks(): Promise<TaskLine[]> {
		const { stdout } = await this.callOk(["task", "ls"]);
		return stdout
			.trim()
			.split("\n")
			.slice(1)
			.map((line) => {
				const [id = "", pid = "0", status = ""] = line.trim().split(/\s+/);
				return { id, pid: Number(pid), status };
			});
	}

	/** The status of one task as `ctr task ls` prints it, or undefined when there is none. */
	async status(id: string): Promise<string | undefined> {
		return (await this.tasks()).find((task) => task.id === id)?.status;
	}

	/** Removes a task by force, then its container. @throws Error when either fails. */
	async remove(id: string): Promise<void> {
		await this.callOk(["task", "rm", "--force", id]);
		await this.callOk(["container", "rm", id]);
	}

	/** Removes whatever is left of one container, for clean-up: failures are of no interest here. */
	async removeLeftover(id: string): Promise<void> {
		await this.call(["task", "rm", "--force", id]).catch(() => undefined);
		await this.call(["container", "rm", id]).catch(() => undefined);
	}
}
