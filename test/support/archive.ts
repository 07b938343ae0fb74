/** Writers for the two archive formats that the tests make: tar (ustar, POSIX.1-1988) and cpio (newc, the kernel's initramfs format). */

/** One member of an archive. Paths are relative, without a leading slash. */
export type Member =
	| { readonly kind: "folder"; readonly path: string; readonly mode?: number }
	| { readonly kind: "file"; readonly path: string; readonly data: Buffer; readonly mode?: number }
	| { readonly kind: "link"; readonly path: string; readonly target: string }
	| { readonly kind: "device"; readonly path: string; readonly major: number; readonly minor: number };

const BLOCK_BYTES = 512;

function padded(length: number, unit: number): number {
	return Math.ceil(length / unit) * unit;
}

function octal(value: number, width: number): string {
	return `${value.toString(8).padStart(width - 1, "0")}\0`;
}

function tarType(member: Member): string {
	switch (member.kind) {
		case "folder":
			return "5";
		case "file":
			return "0";
		case "link":
			return "2";
		case "device":
			return "3";
	}
}

function tarHeader(member: Member): Buffer {
	const header = Buffer.alloc(BLOCK_BYTES);
	if (Buffer.byteLength(member.path) > 99) throw new Error(`path too long for ustar: ${member.path}`);
	const mode = member.kind === "folder" ? (member.mode ?? 0o755) : member.kind === "file" ? (member.mode ?? 0o644) : 0o777;
	header.write(member.path, 0);
	header.write(octal(mode, 8), 100);
	header.write(octal(0, 8), 108);
	header.write(octal(0, 8), 116);
	header.write(octal(member.kind === "file" ? member.data.length : 0, 12), 124);
	header.write(octal(0, 12), 136);
	header.write(tarType(member), 156);
	if (member.kind === "link") header.write(member.target, 157);
	header.write("ustar\x0000", 257);
	if (member.kind === "device") {
		header.write(octal(member.major, 8), 329);
		header.write(octal(member.minor, 8), 337);
	}
	// The checksum is taken over the header with the checksum field itself full of spaces.
	header.fill(0x20, 148, 156);
	let sum = 0;
	for (const byte of header) sum += byte;
	header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
	return header;
}

/** A tar archive; every member belongs to root and has the time 0, so that equal members give equal bytes. */
export function tar(members: readonly Member[]): Buffer {
	const parts: Buffer[] = [];
	for (const member of members) {
		parts.push(tarHeader(member));
		if (member.kind !== "file") continue;
		parts.push(member.data, Buffer.alloc(padded(member.data.length, BLOCK_BYTES) - member.data.length));
	}
	parts.push(Buffer.alloc(2 * BLOCK_BYTES));
	return Buffer.concat(parts);
}

function cpioMode(member: Member): number {
	switch (member.kind) {
		case "folder":
			return 0o040000 | (member.mode ?? 0o755);
		case "file":
			return 0o100000 | (member.mode ?? 0o644);
		case "link":
			return 0o120777;
		case "device":
			return 0o020600;
	}
}

function cpioEntry(member: Member, inode: number): Buffer {
	const data = member.kind === "file" ? member.data : member.kind === "link" ? Buffer.from(member.target) : Buffer.alloc(0);
	const [major, minor] = member.kind === "device" ? [member.major, member.minor] : [0, 0];
	const nameBytes = Buffer.byteLength(member.path) + 1;
	const fields = [inode, cpioMode(member), 0, 0, 1, 0, data.length, 0, 0, major, minor, nameBytes, 0];
	const head = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}${member.path}\0`);
	const entry = Buffer.alloc(padded(head.length, 4) + padded(data.length, 4));
	head.copy(entry, 0);
	data.copy(entry, padded(head.length, 4));
	return entry;
}

/** An uncompressed newc cpio archive, as the kernel unpacks it into its first root file system. */
export function cpio(members: readonly Member[]): Buffer {
	const trailer: Member = { kind: "file", path: "TRAILER!!!", data: Buffer.alloc(0), mode: 0 };
	return Buffer.concat([...members, trailer].map((member, index) => cpioEntry(member, index + 1)));
}
