/** `ch-qemu`: `cloud-hypervisor`'s command line and REST API over QEMU, for machines where Cloud Hypervisor can't run its guests. */
import { unlinkSync } from "node:fs";
import { messageOf, osErrorText } from "./api-error.ts";
import { AcceleratorChoice } from "./accelerator.ts";
import { parseCommandLine, type CommandLine, UsageError } from "./command-line.ts";
import { EventMonitor } from "./event-monitor.ts";
import { HttpServer } from "./http-server.ts";
import { Log } from "./log.ts";
import { Api } from "./routes.ts";
import { findTools } from "./tools.ts";
import { Turns } from "./turns.ts";
import { Vmm } from "./vmm.ts";

/** The version of the API that is served, and the build that its facts were recorded from. */
const VERSION = "54.0.0";
const BUILD_VERSION = "v53.0-ch-qemu";

/** What `sockaddr_un` holds, less the final NUL. Node cuts a longer path and listens elsewhere. */
const SOCKET_PATH_MAX_BYTES = 107;

const HELP = `ch-qemu: serves Cloud Hypervisor's REST API and runs the VM in QEMU

  --api-socket <path=PATH|fd=N|PATH>   where the API listens
  --event-monitor <path=PATH|fd=N>     where events go
  --log-file <PATH>                    the log, else standard error
  -v                                   more in the log; twice: still more
  --seccomp, --log-format, --no-shutdown   taken and ignored
  --version, --help

CH_QEMU_SYSTEM, CH_QEMU_VSOCK, or ch-qemu.json beside the program name the programs that are used.
`;

async function main(): Promise<void> {
	process.umask(0o077);
	const command = parse();
	if (command.kind === "help") process.stdout.write(HELP);
	else if (command.kind === "version")
		process.stdout.write(
			`cloud-hypervisor ${BUILD_VERSION}\nMigration Protocol Versions: 0\n${command.features ? "Enabled features: []\n" : ""}`,
		);
	else await serve(command);
}

function parse(): CommandLine {
	try {
		return parseCommandLine(process.argv.slice(2));
	} catch (error) {
		fail(error instanceof UsageError ? error.code : 1, messageOf(error));
	}
}

async function serve(command: CommandLine & { kind: "serve" }): Promise<void> {
	const api = command.api;
	const log = attempt("Error creating log file", () => new Log(command.logFile, command.verbosity));
	const events = attempt("Error doing event monitor I/O", () => new EventMonitor(command.events));
	const tools = attempt("ch-qemu", () => findTools(process.env, process.argv[1] ?? ""));
	events.emit("vmm", "starting");
	const turns = new Turns();
	let server: HttpServer | undefined;
	const exit = (code: number): void => {
		// The answer that is being given is written in this turn of the loop: the connections end in the next.
		setImmediate(() => {
			events.close();
			if (code === 0 && "path" in api) removeSocket(api.path);
			void (server?.endConnections() ?? Promise.resolve()).finally(() => process.exit(code));
		});
	};
	const host = { tools, accelerators: new AcceleratorChoice(tools, log), log };
	const vmm = new Vmm(host, events, turns, exit);
	const identity = { build_version: BUILD_VERSION, version: VERSION, pid: process.pid, features: [] };
	const routes = new Api(vmm, identity, exit);
	if ("path" in api) removeSocket(api.path);
	try {
		if ("path" in api && Buffer.byteLength(api.path) > SOCKET_PATH_MAX_BYTES) throw new Error("path must be shorter than SUN_LEN");
		server = await HttpServer.listen(api, (request) => routes.handle(request), turns);
	} catch (error) {
		fail(
			1,
			`Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Failed to start the VMM thread\n  1: Error creating API server socket\n  2: ${osErrorText(error)}`,
		);
	}
	for (const signal of ["SIGTERM", "SIGINT"] as const) {
		process.on(signal, () => {
			log.info(`${signal}: the end`);
			void turns.run(() => vmm.vmmShutdown()).finally(() => exit(0));
		});
	}
	log.info(`${BUILD_VERSION} serves ${"path" in api ? api.path : `descriptor ${api.fd}`}`);
}

function removeSocket(path: string): void {
	try {
		unlinkSync(path);
	} catch {
		// Not there: nothing to remove.
	}
}

function attempt<T>(what: string, work: () => T): T {
	try {
		return work();
	} catch (error) {
		fail(1, `Error: Cloud Hypervisor exited with the following chain of errors:\n  0: ${what}\n  1: ${osErrorText(error)}`);
	}
}

function fail(code: number, message: string): never {
	process.stderr.write(`${message}\n`);
	process.exit(code);
}

await main();
