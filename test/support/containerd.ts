/**
 * A private containerd for tests, the demo and the bench.
 *
 * It runs in mount, PID and network namespaces of its own: whatever it and the shims below it start, mount or create
 * is told apart from the rest of the machine, and all of it dies with the namespaces' first process, also when the
 * test itself is killed.
 */
import { createHash, randomBytes } from "node:crypto";
import { createWriteStream, type WriteStream } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child } from "./process.ts";
import { removeCgroups } from "./cgroups.ts";
import { BRIDGE, criToml, writeNetwork, type ExtraRuntime } from "./cri/containerd-config.ts";
import { containerdBinDir, distBinDir, isFirstGeneration, type ContainerdVersion } from "./paths.ts";
import { allProcesses, processInfo, type ProcessInfo } from "./procfs.ts";
import { shimConfigToml, type ShimConfig } from "./shim-config.ts";

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 15_000;

/** What containerd says when it serves, and the first process when it has ended. */
const BOOTED = "containerd successfully booted";
const ENDED = "containerd ended with";
const PAUSE = "sleep 0.2";

/**
 * The first process of the namespaces: it gives them a /run of their own (runc's shim has fixed paths there) with the state folder on a tmpfs,
 * for pods also a network and a place for CNI's records, starts containerd, again when it has ended, and reaps orphans until killed.
 */
const INIT_SCRIPT = `
set -e
mount -t tmpfs -o mode=0755 snp-run /run
mkdir -m 0700 "$STATE_DIR"
mount -t tmpfs -o mode=0700,size="$STATE_SIZE" snp-state "$STATE_DIR"
if [ -n "$BRIDGE" ]; then
  mkdir -p /var/lib/cni
  mount -t tmpfs snp-cni /var/lib/cni
  ip link set lo up
  ip link add "$BRIDGE" type bridge
fi
while :; do
  status=0
  "$CONTAINERD" --config "$CONFIG" &
  wait $! || status=$?
  echo "${ENDED} $status" >&2
  ${PAUSE} & wait $!
done
`;

export type ContainerdOptions = {
	readonly version: ContainerdVersion;
	/** Changes to the shim's default test configuration. */
	readonly config?: ShimConfig;
	/** Size of the tmpfs that holds the shim's state, as mount(8) takes it; 64m when left out. */
	readonly stateSize?: string;
	/** Whether containerd serves pods too (its CRI plugin with a network); false when left out. */
	readonly cri?: boolean;
	/** Runtimes of pods besides ours and runc. */
	readonly runtimes?: readonly ExtraRuntime[];
};

/** The plugins that serve pods, of one generation or the other. */
const FIRST_CRI_PLUGINS: readonly string[] = ["io.containerd.grpc.v1.cri"];
const SECOND_CRI_PLUGINS: readonly string[] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"];

/** Plugins that the tests don't need and that would write outside of the private folders. */
const DISABLED_PLUGINS: readonly string[] = [
	"io.containerd.internal.v1.opt",
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.internal.v1.tracing",
];
/** The same of 1.7 and later. */
const LATER_DISABLED_PLUGINS: readonly string[] = ["io.containerd.nri.v1.nri"];

function containerdToml({ version, runtimes }: ContainerdOptions, rootDir: string, address: string, cri: boolean): string {
	const first = isFirstGeneration(version);
	const disabled = [...DISABLED_PLUGINS, ...(version === "1.6" ? [] : LATER_DISABLED_PLUGINS)];
	if (!cri) disabled.push(...(first ? FIRST_CRI_PLUGINS : SECOND_CRI_PLUGINS));
	return `version = ${first ? 2 : 3}
root = ${JSON.stringify(join(rootDir, "root"))}
state = ${JSON.stringify(join(rootDir, "state"))}
disabled_plugins = ${JSON.stringify(disabled)}
[grpc]
  address = ${JSON.stringify(address)}
[ttrpc]
  address = ${JSON.stringify(`${address}.ttrpc`)}
[debug]
  level = "debug"
${cri ? criToml(version, join(rootDir, "cni"), runtimes) : ""}`;
}

/** One running containerd. Its owner calls `stop`. */
export class PrivateContainerd {
	readonly version: ContainerdVersion;
	/** containerd's own folder: configuration, content, snapshots, logs, FIFOs. */
	readonly rootDir: string;
	/** The shim's state folder: a tmpfs that only the namespaces see; look at it through `seen`. */
	readonly stateDir: string;
	readonly address: string;
	/** containerd's namespace: that of Kubernetes for pods, else one of this instance's own. */
	readonly namespace: string;
	/** A name of this instance's own that is part of the names of all its cgroups. */
	readonly cgroupMark: string;
	/** Whether containerd serves pods. */
	readonly cri: boolean;
	/** The shim's configuration file. */
	readonly configFile: string;
	readonly logFile: string;
	/** Ids of the containers that the tests made, for naming what they leave. */
	readonly containerIds = new Set<string>();
	readonly #log: WriteStream;
	readonly #base: ShimConfig;
	#child: Child | undefined;
	#init: ProcessInfo | undefined;

	private constructor(options: ContainerdOptions, rootDir: string, tag: string) {
		this.version = options.version;
		this.rootDir = rootDir;
		this.stateDir = `/run/snp-${tag}`;
		this.address = join(rootDir, "c.sock");
		this.cri = options.cri ?? false;
		this.cgroupMark = `snptest-${tag}`;
		this.namespace = this.cri ? "k8s.io" : this.cgroupMark;
		this.configFile = join(rootDir, "snp.toml");
		this.logFile = join(rootDir, "containerd.log");
		this.#log = createWriteStream(this.logFile);
		this.#base = options.config ?? {};
	}

	/**
	 * Starts containerd and waits until it answers.
	 * @throws Error with the end of its log when it does not within 30 s.
	 */
	static async start(options: ContainerdOptions): Promise<PrivateContainerd> {
		if (process.getuid?.() !== 0) throw new Error("a private containerd needs root: run this as root");
		const binDir = containerdBinDir(options.version);
		const tag = randomBytes(4).toString("hex");
		const rootDir = await mkdtemp(join(tmpdir(), "snp-"));
		const instance = new PrivateContainerd(options, rootDir, tag);
		try {
			await mkdir(instance.fifoDir);
			if (instance.cri) await writeNetwork(join(rootDir, "cni"));
			await writeFile(join(rootDir, "containerd.toml"), containerdToml(options, rootDir, instance.address, instance.cri));
			await instance.configure({});
			await instance.#launch(binDir, options.stateSize ?? "64m");
			return instance;
		} catch (error) {
			await instance.stop();
			throw error;
		}
	}

	/** Folder for the FIFOs of `ctr`. */
	get fifoDir(): string {
		return join(this.rootDir, "fifo");
	}

	get ctrPath(): string {
		return join(containerdBinDir(this.version), "ctr");
	}

	/** The first process of the namespaces, in the host's PID namespace. */
	get init(): ProcessInfo {
		if (this.#init === undefined) throw new Error("containerd is not running");
		return this.#init;
	}

	/** A path as the processes in the namespaces see it, made readable from outside. */
	seen(path: string): string {
		return join(`/proc/${this.init.pid}/root`, path);
	}

	/** Every process in the namespaces besides the first one. */
	processes(): ProcessInfo[] {
		const { pid, pidNamespace } = this.init;
		return allProcesses().filter((info) => info.pid !== pid && info.pidNamespace === pidNamespace);
	}

	/** The command line that runs a program inside the namespaces, without the loaders that tap gives to every Node program. */
	inside(...argv: readonly string[]): string[] {
		return ["nsenter", "-t", String(this.init.pid), "-m", "-p", "-n", "--", "env", "-u", "NODE_OPTIONS", ...argv];
	}

	/** Writes the shim's configuration file: the defaults for tests, the instance's changes, then `changes`. */
	async configure(changes: ShimConfig): Promise<void> {
		await writeFile(this.configFile, shimConfigToml(this.stateDir, join(this.rootDir, "images"), { ...this.#base, ...changes }));
	}

	/** The pod key of docs/contracts.md, "Names and places". */
	podKey(podId: string): string {
		return createHash("sha256").update(`${this.address}\0${this.namespace}\0${podId}`).digest("hex").slice(0, 32);
	}

	/** Ends of the logs, for the report of a failure. */
	async logs(): Promise<string> {
		const parts: string[] = [];
		const files = [["containerd.log", this.logFile]];
		if (this.#init !== undefined) files.push(["snpd.log", this.seen(join(this.stateDir, "snpd.log"))]);
		for (const [name, file] of files) {
			try {
				const text = await readFile(file ?? "", "utf8");
				parts.push(`--- end of ${name}`, ...text.trimEnd().split("\n").slice(-40));
			} catch {
				parts.push(`--- no ${name}`);
			}
		}
		return parts.join("\n");
	}

	/** Copies the logs to `dir`, which it makes. */
	async keepLogs(dir: string): Promise<void> {
		await mkdir(dir, { recursive: true });
		for (const [name, file] of [
			["containerd.log", this.logFile],
			["snpd.log", this.#init === undefined ? "" : this.seen(join(this.stateDir, "snpd.log"))],
		] as const) {
			const text = await readFile(file).catch(() => undefined);
			if (text !== undefined) await writeFile(join(dir, name), text);
		}
	}

	/** How often containerd has ended; each time it is started again, as a service manager does. */
	get deaths(): number {
		return this.#said(ENDED);
	}

	/** Kills containerd alone, and waits until it serves again; what its shims hold goes on meanwhile. */
	async restart(): Promise<void> {
		const child = this.#child;
		const daemon = this.processes().find((info) => this.isContainerd(info));
		if (child === undefined || daemon === undefined) throw new Error("containerd is not running");
		const boots = this.#said(BOOTED);
		process.kill(daemon.pid, "SIGKILL");
		await child.waitUntil(() => this.#said(BOOTED) > boots, "a second start of containerd", START_TIMEOUT_MS);
	}

	/** True for containerd's own process, and for the pause before it is started again. */
	isContainerd({ commandLine }: ProcessInfo): boolean {
		return commandLine.startsWith(`${join(containerdBinDir(this.version), "containerd")} --config `) || commandLine === PAUSE;
	}

	#said(words: string): number {
		return (this.#child?.stderr ?? "").split(words).length - 1;
	}

	/** Ends everything in the namespaces and removes the folders. Safe to call twice. */
	async stop(): Promise<void> {
		const child = this.#child;
		this.#child = undefined;
		this.#init = undefined;
		if (child !== undefined) {
			// unshare (which ignores SIGTERM) was told to take its child with it; the kernel then ends the rest of the PID namespace.
			child.kill("SIGKILL");
			await child.finished(STOP_TIMEOUT_MS).catch(() => undefined);
		}
		this.#log.end();
		await removeCgroups(this.cgroupMark);
		await rm(this.rootDir, { recursive: true, force: true, maxRetries: 5 });
	}

	async #launch(binDir: string, stateSize: string): Promise<void> {
		const child = new Child(
			[
				"setpriv",
				"--pdeathsig",
				"KILL",
				"unshare",
				"--mount",
				"--pid",
				"--net",
				"--fork",
				"--kill-child=KILL",
				"--mount-proc",
				"sh",
				"-c",
				INIT_SCRIPT,
			],
			{
				cwd: "/",
				env: {
					PATH: [binDir, distBinDir, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"].join(":"),
					CONTAINERD: join(binDir, "containerd"),
					CONFIG: join(this.rootDir, "containerd.toml"),
					STATE_DIR: this.stateDir,
					STATE_SIZE: stateSize,
					BRIDGE: this.cri ? BRIDGE : "",
					CONTAINERD_SHIM_SNP_CONFIG: this.configFile,
				},
			},
		);
		this.#child = child;
		child.process.stdin.end();
		child.process.stderr.pipe(this.#log);
		await child.waitForOutput(new RegExp(`${BOOTED}|${ENDED}`), START_TIMEOUT_MS);
		if (child.stderr.includes(ENDED)) throw new Error(`containerd ${this.version} did not start: ${child.describe()}`);
		const init = allProcesses().find((info) => info.parentPid === child.pid);
		if (init === undefined) throw new Error(`the first process of the namespaces is gone: ${child.describe()}`);
		this.#init = processInfo(init.pid);
	}
}
