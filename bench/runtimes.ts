/** The runtimes that are measured beside each other. */
import { UsageError } from "./usage-error.ts";

/** A runtime as containerd knows it. */
export type Runtime = {
	/** The name in the results, and the handler's in containerd's configuration. */
	readonly name: string;
	/** Such as `io.containerd.runc.v2`. */
	readonly type: string;
	/** The runtime's own configuration file, which containerd hands it. */
	readonly config: string | undefined;
	/** True for the one that this project is. */
	readonly ours: boolean;
};

export const OURS: Runtime = { name: "snp", type: "io.containerd.snp.v2", config: undefined, ours: true };
export const RUNC: Runtime = { name: "runc", type: "io.containerd.runc.v2", config: undefined, ours: false };

const TYPE = /^io\.containerd\.([a-z0-9-]+)\.(v\d+)$/;
const NAME = /^[a-z][a-z0-9-]{0,31}$/;

/** The program that containerd looks for: the last two words of the type (containerd, core/runtime/v2, "Binary naming"). */
export function shimProgram({ type }: Pick<Runtime, "type">): string {
	const [, word, version] = TYPE.exec(type) ?? [];
	return `containerd-shim-${word ?? ""}-${version ?? ""}`;
}

/**
 * Reads `name=type[,config=FILE]`.
 * @throws UsageError that says what is wrong with it
 */
export function parseRuntime(text: string): Runtime {
	const equals = text.indexOf("=");
	const name = text.slice(0, Math.max(0, equals));
	const [type = "", ...options] = text.slice(equals + 1).split(",");
	const wrong = (what: string): never => {
		throw new UsageError(`--runtime ${JSON.stringify(text)}: ${what}`);
	};
	if (equals < 1) return wrong("it has the form name=type[,config=FILE]");
	if (!NAME.test(name)) return wrong(`the name ${JSON.stringify(name)} is not of small letters, digits and dashes`);
	if (name === OURS.name || name === RUNC.name) return wrong(`${name} is measured anyway: give it another name`);
	if (!TYPE.test(type)) return wrong(`the type ${JSON.stringify(type)} has not the form io.containerd.NAME.v2`);
	let config: string | undefined;
	for (const option of options) {
		if (!option.startsWith("config=/")) return wrong(`${JSON.stringify(option)} is not config=FILE with an absolute path`);
		config = option.slice("config=".length);
	}
	return { name, type, config, ours: false };
}
