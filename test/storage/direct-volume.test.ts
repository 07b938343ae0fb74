/** What CSI drivers say of direct-assigned volumes. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { parseMountInfo, readDirectVolume } from "../../shim/storage/direct-volume.ts";
import { failing } from "../base/failing.ts";

const VOLUME = "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~csi/pvc-1/mount";
const GOOD = { "volume-type": "block", device: "/dev/sdz", fstype: "ext4" };

/** The folder of all volumes, in which one has a file with this text. */
function root(t: Test, text: string, name = Buffer.from(VOLUME).toString("base64url")): string {
	const path = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(path, { recursive: true, force: true }));
	mkdirSync(join(path, name));
	writeFileSync(join(path, name, "mountInfo.json"), text);
	return path;
}

t.test("a whole description is read, with options, owner and its policy", async (t) => {
	const full = {
		...GOOD,
		"volume-type": "directvol",
		metadata: { fsGroup: "2000", fsGroupChangePolicy: "OnRootMismatch" },
		options: ["noatime", "errors=remount-ro"],
	};
	const wanted = {
		device: "/dev/sdz",
		fstype: "ext4",
		options: ["noatime", "errors=remount-ro"],
		readonly: false,
		group: { id: 2000, onRootMismatch: true },
	};
	t.same(await readDirectVolume(root(t, JSON.stringify(full)), VOLUME), wanted);
	const padded = Buffer.from(`${VOLUME}x`).toString("base64").replaceAll("+", "-").replaceAll("/", "_");
	t.match(padded, /=$/);
	t.same(await readDirectVolume(root(t, JSON.stringify(full), padded), `${VOLUME}x`), wanted, "with padding, as Kata writes it");
});

t.test("another path, and a long one, are of no such volume", async (t) => {
	const path = root(t, JSON.stringify(GOOD));
	t.equal(await readDirectVolume(path, `${VOLUME}/sub`), undefined);
	t.equal(await readDirectVolume(path, `/${"x".repeat(300)}`), undefined);
	t.equal(await readDirectVolume(join(path, "not-there"), VOLUME), undefined);
});

t.test("read-only is what the last option says, and EROFS always", async (t) => {
	const parse = (more: object) => parseMountInfo(JSON.stringify({ ...GOOD, ...more }), "f");
	t.equal(parse({ options: ["ro"] }).readonly, true);
	t.equal(parse({ options: ["ro", "rw"] }).readonly, false);
	t.equal(parse({ fstype: "erofs" }).readonly, true);
	t.same(parse({ options: null, metadata: null }).options, []);
});

t.test("what is not possible is refused by the field's name", async (t) => {
	const cases: readonly [unknown, RegExp][] = [
		[{ ...GOOD, "volume-type": "spdkvol" }, /volume-type: is none of block/],
		[{ ...GOOD, fstype: "btrfs" }, /fstype: is none of ext4/],
		[{ ...GOOD, device: "sdz" }, /device: is not an absolute path/],
		[{ device: "/dev/sdz", fstype: "ext4" }, /volume-type: is missing/],
		[{ ...GOOD, target: "/x" }, /target: there is no such field/],
		[{ ...GOOD, metadata: { owner: "me" } }, /metadata\.owner: there is no such field/],
		[{ ...GOOD, metadata: { fsGroup: "root" } }, /metadata\.fsGroup: is not a group/],
		[{ ...GOOD, metadata: { fsGroup: "4294967295" } }, /metadata\.fsGroup/],
		[{ ...GOOD, metadata: { fsGroupChangePolicy: "Never" } }, /metadata\.fsGroupChangePolicy: is none of/],
		[{ ...GOOD, options: ["ro,suid"] }, /options\.0: is no mount option/],
		[{ ...GOOD, options: ["noatime", "X-kata.overlay-upper"] }, /options\.1: has no meaning/],
		[{ ...GOOD, options: ["bind"] }, /options\.0: has no meaning/],
		[{ ...GOOD, options: Array.from({ length: 65 }, () => "ro") }, /options: has more than 64/],
		[[GOOD], /volume-type: is missing/],
		[null, /is not a JSON object/],
	];
	for (const [value, message] of cases)
		t.throws(() => parseMountInfo(JSON.stringify(value), "mountInfo.json"), failing({ reason: "volume.invalid", message }));
});

t.test("a file that is broken, too long, a link, or anybody's is refused by its path", async (t) => {
	const refused = (path: string, message: RegExp) =>
		t.rejects(readDirectVolume(path, VOLUME), failing({ reason: "volume.invalid", message }));
	const name = Buffer.from(VOLUME).toString("base64url");
	await refused(root(t, '{"volume-type":'), /mountInfo\.json is not JSON/);
	await refused(root(t, " ".repeat(65 * 1024)), /66560 bytes/);

	const link = root(t, "");
	rmSync(join(link, name, "mountInfo.json"));
	symlinkSync("/etc/hostname", join(link, name, "mountInfo.json"));
	await refused(link, /symbolic link/);

	const folderLink = root(t, JSON.stringify(GOOD), "elsewhere");
	symlinkSync("elsewhere", join(folderLink, name));
	await refused(folderLink, /folder is a symbolic link/);

	const open = root(t, JSON.stringify(GOOD));
	chmodSync(join(open, name, "mountInfo.json"), 0o666);
	await refused(open, /others than root/);
	chmodSync(join(open, name, "mountInfo.json"), 0o644);
	chmodSync(join(open, name), 0o777);
	await refused(open, /others than root/);
});
