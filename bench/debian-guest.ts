/** A guest with Debian's cloud kernel: its modules are loaded by a shell before the agent takes over, as an initramfs of Debian's would do it. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { cpio, type Member } from "../test/support/archive.ts";
import { busyboxPath } from "../test/support/image.ts";
import { distShareDir, repositoryDir } from "../test/support/paths.ts";
import { run } from "../test/support/process.ts";
import type { GuestKind } from "../test/support/guest-vm.ts";

const FETCH_MS = 300_000;

/** What boots beside our guest. */
export type DebianGuest = { readonly version: string; readonly kind: GuestKind };

/** The agent out of our own initramfs, which is the only file with bytes in it (guest/make-initramfs.mjs). */
function agentOf(initramfs: string): Buffer {
	const archive = readFileSync(initramfs);
	// newc (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): 110 bytes of header, fields of 8 hexadecimal digits behind 6 of magic.
	const field = (at: number, index: number): number =>
		Number.parseInt(archive.toString("latin1", at + 6 + 8 * index, at + 14 + 8 * index), 16);
	const aligned = (offset: number): number => Math.ceil(offset / 4) * 4;
	for (let at = 0; at < archive.length; ) {
		const [size, nameLength] = [field(at, 6), field(at, 11)];
		const data = aligned(at + 110 + nameLength);
		if (archive.toString("latin1", at + 110, at + 110 + nameLength - 1) === "init") return archive.subarray(data, data + size);
		at = aligned(data + size);
	}
	throw new Error(`${initramfs} has no /init`);
}

/**
 * Fetches Debian's kernel unless it is in the cache, and writes an initramfs for it.
 * @throws Error with what is to be done, when the kernel can't be had
 */
export async function debianGuest(folder: string): Promise<DebianGuest> {
	const script = join(repositoryDir, "scripts/fetch-debian-kernel.sh");
	const { code, stdout, stderr } = await run([script], { timeoutMs: FETCH_MS });
	if (code !== 0) throw new Error(stderr.trim().split("\n").at(-1) ?? `${script} failed`);
	const kernel = stdout.trim();
	const modules = readdirSync(join(kernel, "modules")).toSorted();
	const init = `#!/bin/busybox sh\nfor file in /modules/*; do /bin/busybox insmod "$file"; done\nexec /agent\n`;
	const folders = ["bin", "dev", "modules", "proc", "run", "sys", "tmp"];
	const members: Member[] = [
		...folders.map((path): Member => ({ kind: "folder", path })),
		{ kind: "device", path: "dev/console", major: 5, minor: 1 },
		{ kind: "file", path: "bin/busybox", data: readFileSync(busyboxPath()), mode: 0o755 },
		...modules.map((name): Member => ({ kind: "file", path: `modules/${name}`, data: readFileSync(join(kernel, "modules", name)) })),
		{ kind: "file", path: "agent", data: agentOf(join(distShareDir, "initramfs")), mode: 0o755 },
		{ kind: "file", path: "init", data: Buffer.from(init), mode: 0o755 },
	];
	const initramfs = join(folder, "debian.cpio");
	writeFileSync(initramfs, cpio(members));
	return { version: basename(kernel), kind: { kernel: join(kernel, "vmlinuz"), initramfs } };
}
