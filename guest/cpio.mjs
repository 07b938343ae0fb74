/**
 * A writer of "newc" cpio archives, the kernel's initramfs format (Linux
 * Documentation/driver-api/early-userspace/buffer-format.rst). Made for equal bytes from equal
 * contents: entries sorted by name, owner 0:0, times 0, inode numbers counted.
 */

/** Where each part of the archive starts. */
const ALIGNMENT = 4;
/** Whole archive sizes: what cpio(1) writes, and what loaders like. */
const BLOCK = 512;
const TRAILER = "TRAILER!!!";

/** File types of st_mode. */
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;

/** @typedef {import("./cpio.d.mts").CpioEntry} CpioEntry */

/** @param {number} length bytes @param {number} unit bytes */
function padding(length, unit) {
	return Buffer.alloc((unit - (length % unit)) % unit);
}

/**
 * One header with its name, padded. All numbers are 8 hexadecimal digits; the order is the format's.
 * @param {{ino: number, mode: number, nlink: number, size: number, major: number, minor: number, name: string}} fields
 */
function header(fields) {
	const name = Buffer.from(`${fields.name}\0`, "utf8");
	const numbers = [
		fields.ino,
		fields.mode,
		0, // uid
		0, // gid
		fields.nlink,
		0, // mtime
		fields.size,
		0, // device of the file itself, major
		0, // and minor
		fields.major,
		fields.minor,
		name.length,
		0, // checksum: only of the "crc" format
	];
	const text = numbers.map((number) => number.toString(16).padStart(8, "0")).join("");
	const head = Buffer.concat([Buffer.from(`070701${text}`, "ascii"), name]);
	return Buffer.concat([head, padding(head.length, ALIGNMENT)]);
}

/** @param {CpioEntry} entry @returns {{mode: number, nlink: number, data: Uint8Array, major: number, minor: number}} */
function contents(entry) {
	const none = { nlink: 1, data: new Uint8Array(), major: 0, minor: 0 };
	switch (entry.kind) {
		case "dir":
			return { ...none, mode: S_IFDIR | entry.mode, nlink: 2 };
		case "file":
			return { ...none, mode: S_IFREG | entry.mode, data: entry.data };
		case "link":
			return { ...none, mode: S_IFLNK | 0o777, data: Buffer.from(entry.target, "utf8") };
		case "char":
			return { ...none, mode: S_IFCHR | entry.mode, major: entry.major, minor: entry.minor };
		default:
			throw new TypeError(`unknown kind of cpio entry: ${JSON.stringify(entry)}`);
	}
}

/**
 * An uncompressed archive of the entries, independent of their order. Names must be unique, relative
 * and have their parent folder among the entries: the kernel drops files whose folder is missing.
 * @param {readonly CpioEntry[]} entries
 * @returns {Buffer}
 */
export function cpioArchive(entries) {
	const sorted = [...entries].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
	const folders = new Set();
	const seen = new Set();
	const parts = [];
	let ino = 1;
	for (const entry of sorted) {
		const { name } = entry;
		if (
			name === "" ||
			name.startsWith("/") ||
			name.endsWith("/") ||
			name.split("/").some((part) => part === "" || part === "." || part === "..") ||
			name === TRAILER
		) {
			throw new RangeError(`cpio: '${name}' is no relative path below the root`);
		}
		if (seen.has(name)) {
			throw new RangeError(`cpio: '${name}' is there twice`);
		}
		const parent = name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "";
		if (parent !== "" && !folders.has(parent)) {
			throw new RangeError(`cpio: the folder of '${name}' is not in the archive before it`);
		}
		seen.add(name);
		if (entry.kind === "dir") {
			folders.add(name);
		}
		const { mode, nlink, data, major, minor } = contents(entry);
		parts.push(header({ ino, mode, nlink, size: data.length, major, minor, name }), data, padding(data.length, ALIGNMENT));
		ino += 1;
	}
	parts.push(header({ ino: 0, mode: 0, nlink: 1, size: 0, major: 0, minor: 0, name: TRAILER }));
	const archive = Buffer.concat(parts);
	return Buffer.concat([archive, padding(archive.length, BLOCK)]);
}
