/**
 * TCG or KVM. `/dev/kvm` opens on machines whose KVM runs no ordinary guest, so KVM is used only after a guest really ran.
 */
import { accessSync, constants, readFileSync, renameSync, writeFileSync } from "node:fs";
import { Child, within } from "./child.ts";
import { messageOf } from "./api-error.ts";
import type { Log } from "./log.ts";
import type { Accelerator } from "./qemu-arguments.ts";
import type { Tools } from "./tools.ts";

/** An ordinary guest without a root file system is done within a second under KVM, and has reset itself then. */
const PROBE_LIMIT_MS = 4000;
const PROBE_COMMAND_LINE = "panic=-1 reboot=t quiet";

/** Remembers, for this boot of the host, whether guests run under KVM. In doubt they don't: TCG always works. */
export class AcceleratorChoice {
	readonly #tools: Tools;
	readonly #log: Log;
	readonly #file: string | undefined;

	constructor(tools: Tools, log: Log) {
		this.#tools = tools;
		this.#log = log;
		this.#file = verdictFile();
	}

	/** What to run guests with. The first call of a host's boot starts `kernel` under KVM, unless the processor or the device rule KVM out at once. */
	async choose(kernel: string): Promise<Accelerator> {
		if (this.#file === undefined || !kvmPossible()) return "tcg";
		const known = readVerdict(this.#file);
		if (known !== undefined) return known;
		const verdict = (await this.#guestRuns(kernel)) ? "kvm" : "tcg";
		this.#log.info(`KVM probe: guests run in ${verdict} until the host boots again (${this.#file})`);
		remember(this.#file, verdict);
		return verdict;
	}

	/** Boots the kernel with nothing else: it finds no root, panics and resets, which ends QEMU with 0. A guest that hangs is killed. */
	async #guestRuns(kernel: string): Promise<boolean> {
		const args = [
			"-nodefaults",
			"-no-user-config",
			"-display",
			"none",
			"-no-reboot",
			"-machine",
			"pc",
			"-accel",
			"kvm",
			"-cpu",
			"host",
			"-m",
			"256",
		];
		const child = new Child(
			this.#tools.leash,
			[this.#tools.qemu, ...args, "-kernel", kernel, "-append", PROBE_COMMAND_LINE],
			["ignore", "ignore", "pipe"],
		);
		try {
			const { code } = await within(PROBE_LIMIT_MS, "the probe guest hangs", child.ended);
			return code === 0;
		} catch (error) {
			this.#log.info(`KVM probe: ${messageOf(error)}`);
			return false;
		} finally {
			await child.kill();
		}
	}
}

/** A processor without virtualisation of its own (a guest of some paravirtual KVM) or a closed device needs no probe. */
function kvmPossible(): boolean {
	try {
		accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
		return /^flags\s*:.*\b(?:vmx|svm)\b/m.test(readFileSync("/proc/cpuinfo", "utf8"));
	} catch {
		return false;
	}
}

/** A file that goes with the host's boot, in a folder that is this user's alone; undefined where there is none: then nothing can be remembered. */
function verdictFile(): string | undefined {
	const folder = process.getuid?.() === 0 ? "/run" : process.env["XDG_RUNTIME_DIR"];
	if (folder === undefined) return undefined;
	try {
		return `${folder}/ch-qemu-accelerator-${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()}`;
	} catch {
		return undefined;
	}
}

function readVerdict(file: string): Accelerator | undefined {
	try {
		return readFileSync(file, "utf8").trim() === "kvm" ? "kvm" : "tcg";
	} catch {
		return undefined;
	}
}

function remember(file: string, verdict: Accelerator): void {
	try {
		writeFileSync(`${file}.${process.pid}`, `${verdict}\n`, { mode: 0o600 });
		renameSync(`${file}.${process.pid}`, file);
	} catch {
		// The next VM asks again.
	}
}
