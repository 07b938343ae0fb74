/** The command line: `cloud-hypervisor`'s own, as far as a client of the REST API uses it. */
import type { HttpAddress } from "./http-server.ts";
import type { EventTarget } from "./event-monitor.ts";

export type CommandLine =
	| { readonly kind: "version"; readonly features: boolean }
	| { readonly kind: "help" }
	| {
			readonly kind: "serve";
			readonly api: HttpAddress;
			readonly events: EventTarget | undefined;
			readonly logFile: string | undefined;
			readonly verbosity: number;
	  };

/** A command line that is refused: the program prints the message and ends with `code` (2: usage, 1: a value that can't be used). */
export class UsageError extends Error {
	readonly code: 1 | 2;
	constructor(message: string, code: 1 | 2 = 2) {
		super(message);
		this.name = "UsageError";
		this.code = code;
	}
}

/** Options that take one value, and flags. */
const ONE_VALUE = new Set(["--api-socket", "--event-monitor", "--log-file", "--log-format", "--seccomp"]);
const FLAGS = new Set(["--no-shutdown", "--version", "--help"]);
/** Options that belong to a VM that is given on the command line: the real VMM refuses them without a payload, which ch-qemu never takes. */
const NEED_PAYLOAD = new Set(["--landlock", "--landlock-rules"]);
const SECCOMP = new Set(["true", "false", "log", "errno"]);

/** Reads the arguments behind the program's name. Throws {@link UsageError}. */
export function parseCommandLine(args: readonly string[]): CommandLine {
	const values = new Map<string, string>();
	const flags = new Set<string>();
	let verbosity = 0;
	for (let i = 0; i < args.length; i++) {
		const arg = args[i] ?? "";
		if (/^-v+$/.test(arg)) verbosity += arg.length - 1;
		else if (arg === "-V") flags.add("--version");
		else if (arg === "-h") flags.add("--help");
		else {
			const [name, inline] = splitOption(arg);
			if (FLAGS.has(name) && inline === undefined) flags.add(name);
			else if (NEED_PAYLOAD.has(name))
				throw new UsageError(
					"error: the following required arguments were not provided:\n  <--firmware <firmware>|--fw-cfg-config <fw-cfg-config>|--igvm <igvm>|--kernel <kernel>>",
				);
			else if (ONE_VALUE.has(name)) {
				const value = inline ?? args[++i];
				if (value === undefined) throw new UsageError(`error: a value is required for '${name} <${name.slice(2)}>' but none was supplied`);
				if (values.has(name)) throw new UsageError(`error: the argument '${name} <${name.slice(2)}>' cannot be used multiple times`);
				values.set(name, value);
			} else
				throw new UsageError(
					`error: unexpected argument '${name}' found\n\nUsage: ch-qemu [OPTIONS]\n\nFor more information, try '--help'.`,
				);
		}
	}
	if (flags.has("--help")) return { kind: "help" };
	if (flags.has("--version")) return { kind: "version", features: verbosity > 0 };
	return serveCommand(values, verbosity);
}

function splitOption(arg: string): [string, string | undefined] {
	const equals = arg.startsWith("--") ? arg.indexOf("=") : -1;
	return equals < 0 ? [arg, undefined] : [arg.slice(0, equals), arg.slice(equals + 1)];
}

function serveCommand(values: ReadonlyMap<string, string>, verbosity: number): CommandLine {
	const seccomp = values.get("--seccomp");
	if (seccomp !== undefined && !SECCOMP.has(seccomp))
		throw new UsageError(`error: invalid value '${seccomp}' for '--seccomp <seccomp>': one of true, false, log, errno`);
	const api = values.get("--api-socket");
	if (api === undefined)
		throw new UsageError("error: --api-socket is required: this program serves the REST API and takes no VM on its command line");
	const events = values.get("--event-monitor");
	return {
		kind: "serve",
		api: parseApiSocket(api),
		events: events === undefined ? undefined : parseEventMonitor(events),
		logFile: values.get("--log-file"),
		verbosity,
	};
}

function parseApiSocket(value: string): HttpAddress {
	if (value.startsWith("fd=")) return { fd: descriptor(value.slice(3), "Error parsing --api-socket") };
	return { path: value.startsWith("path=") ? value.slice(5) : value };
}

function parseEventMonitor(value: string): EventTarget {
	if (value.startsWith("fd=")) return { fd: descriptor(value.slice(3), "Error parsing --event-monitor") };
	if (value.startsWith("path=")) return { path: value.slice(5) };
	throw new UsageError("Error parsing --event-monitor: path or fd required", 1);
}

function descriptor(text: string, attempted: string): number {
	if (!/^\d{1,9}$/.test(text)) throw new UsageError(`${attempted}: '${text}' is no descriptor number`, 1);
	return Number(text);
}
