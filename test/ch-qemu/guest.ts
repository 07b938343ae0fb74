/** The guest that the tests boot: the project's kernel with one small program of ours (`guest/init.c`) as its initramfs. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cpio } from "../support/archive.ts";
import { cacheDir } from "../support/paths.ts";

const cache = cacheDir();

/** The command line that every test guest starts with. */
export const COMMAND_LINE = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable no_timer_check random.trust_cpu=on";

/** The newest guest kernel of the cache. Throws with what to run when there is none. */
export function guestKernel(): string {
	const folder = join(cache, "guest-kernel");
	const kernels = (existsSync(folder) ? readdirSync(folder) : [])
		.map((name) => join(folder, name, "vmlinux"))
		.filter((file) => existsSync(file));
	const newest = kernels.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
	if (newest === undefined) throw new Error(`no guest kernel in ${folder}: run guest/build-kernel.sh`);
	return newest;
}

/** The initramfs, compiled once for each version of its source. */
export function guestInitramfs(): string {
	const source = fileURLToPath(new URL("guest/init.c", import.meta.url));
	const hash = createHash("sha256").update(readFileSync(source)).digest("hex").slice(0, 16);
	const folder = join(cache, "test-guest", hash);
	const file = join(folder, "initramfs");
	if (existsSync(file)) return file;
	const work = mkdtempSync(join(tmpdir(), "ch-qemu-guest-"));
	try {
		execFileSync("gcc", ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", join(work, "init"), source]);
		const console = { kind: "device", path: "dev/console", major: 5, minor: 1 } as const;
		const init = { kind: "file", path: "init", data: readFileSync(join(work, "init")), mode: 0o755 } as const;
		writeFileSync(join(work, "initramfs"), cpio([{ kind: "folder", path: "dev" }, console, init]));
		mkdirSync(folder, { recursive: true });
		execFileSync("cp", [join(work, "initramfs"), `${file}.${process.pid}`]);
		renameSync(`${file}.${process.pid}`, file);
	} finally {
		rmSync(work, { recursive: true, force: true });
	}
	return file;
}
