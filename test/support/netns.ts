/** Network namespaces for tests, by ip(8) and tc(8) of iproute2. Needs root. */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";

/** Something that runs a command to its end and gives its standard output. */
export type Shell = (...argv: readonly string[]) => string;

const COMMAND_TIMEOUT_MS = 30_000;

/** Runs a command on this machine. @throws Error with the command's standard error, or when it takes more than 30 s. */
export const here: Shell = (program = "", ...argv) =>
	execFileSync(program, argv, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: COMMAND_TIMEOUT_MS });

/** One namespace with a name of its own below /run/netns. */
export class TestNamespace {
	readonly name: string;
	readonly path: string;
	readonly #shell: Shell;

	/** Makes it, with loopback up. Its owner calls `remove`. */
	constructor(label: string, shell: Shell = here) {
		this.name = `snp-${label}-${randomBytes(3).toString("hex")}`;
		this.path = `/run/netns/${this.name}`;
		this.#shell = shell;
		this.add();
	}

	/** Makes it anew after `remove`. */
	add(): void {
		this.#shell("ip", "netns", "add", this.name);
		this.ip("link set lo up");
	}

	/** Runs `ip` in it: arguments separated by spaces. */
	ip(command: string): string {
		return this.#shell("ip", "-n", this.name, ...command.split(" "));
	}

	/** Runs `tc` in it. */
	tc(command: string): string {
		return this.#shell("tc", "-n", this.name, ...command.split(" "));
	}

	/** Runs a program in it. */
	exec(...argv: readonly string[]): string {
		return this.#shell("ip", "netns", "exec", this.name, ...argv);
	}

	/** The names of its links but loopback. */
	links(): string[] {
		const lines = this.ip("-o link").trim().split("\n");
		return lines.map((line) => line.split(": ")[1]?.replace(/@.*$/, "") ?? "").filter((name) => name !== "lo");
	}

	/** Its ingress queues and their filters, as tc prints them; empty when there are none. */
	redirections(): string {
		return this.links()
			.flatMap((link) => [this.tc(`qdisc show dev ${link} ingress`), this.tc(`filter show dev ${link} ingress`)])
			.join("");
	}

	/** Removes it; what lives in it goes when its last user is gone. */
	remove(): void {
		this.#shell("ip", "netns", "del", this.name);
	}
}
