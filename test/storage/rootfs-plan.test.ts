/** From snapshotters' mounts to layers. */

import { t } from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { planRootfs } from "../../shim/storage/rootfs-plan.ts";
import type { RootfsMount } from "../../shim/storage/rootfs-plan.ts";

const mount = (type: string, source: string, ...options: string[]): RootfsMount => ({ type, source, target: "", options });
const folder = (path: string): object => ({ kind: "folder", path });
const erofs = (source: string, ...options: string[]): object => ({ kind: "image", type: "erofs", source, options, folder: "" });

t.test("no mounts: the bundle's own folder, which may change", async (t) => {
	t.same(planRootfs([], "/bundle/rootfs"), { lowers: [folder("/bundle/rootfs")], upper: undefined, overlayOptions: [], immutable: false });
});

t.test("overlayfs: lower directories from the top down, the upper apart", async (t) => {
	const plan = planRootfs(
		[mount("overlay", "overlay", "index=off", "workdir=/w", "upperdir=/u", "lowerdir=/3:/2:/1", "userxattr", "volatile")],
		"/r",
	);
	t.same(plan, { lowers: [folder("/3"), folder("/2"), folder("/1")], upper: folder("/u"), overlayOptions: ["userxattr"], immutable: true });
	t.same(planRootfs([mount("overlay", "overlay", "lowerdir=/a\\:b:/c\\\\d")], "/r").lowers, [folder("/a:b"), folder("/c\\d")]);
});

t.test("bind: a read-only one is a view of a committed snapshot, another may change", async (t) => {
	t.match(planRootfs([mount("bind", "/fs", "ro", "rbind")], "/r"), { lowers: [folder("/fs")], immutable: true });
	t.match(planRootfs([mount("bind", "/fs", "rw", "rbind")], "/r"), { lowers: [folder("/fs")], immutable: false });
});

t.test("erofs snapshotter: one layer, a stack by templates, block mode, merged metadata", async (t) => {
	t.match(planRootfs([mount("erofs", "/l.erofs", "ro", "loop")], "/r"), { lowers: [erofs("/l.erofs")], immutable: true });
	const layers = [mount("erofs", "/2.erofs", "ro", "loop"), mount("erofs", "/1.erofs", "ro", "loop", "X-containerd.dmverity=/m")];
	const stacked = planRootfs(
		[
			...layers,
			mount(
				"format/mkdir/overlay",
				"overlay",
				"X-containerd.mkdir.path=/u:0755",
				"workdir=/w",
				"upperdir=/u",
				"lowerdir={{ overlay 0 1 }}",
			),
		],
		"/r",
	);
	t.same(stacked, { lowers: [erofs("/2.erofs"), erofs("/1.erofs")], upper: folder("/u"), overlayOptions: [], immutable: true });
	const reversed = planRootfs([...layers, mount("format/overlay", "overlay", "lowerdir={{overlay 1 0}}")], "/r");
	t.same(reversed.lowers, [erofs("/1.erofs"), erofs("/2.erofs")]);
	const block = planRootfs(
		[
			mount("mkfs/ext4", "/rw.img", "X-containerd.mkfs.fs=ext4", "rw", "loop"),
			layers[0] as RootfsMount,
			mount("format/mkdir/overlay", "overlay", "upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}"),
		],
		"/r",
	);
	t.same(block.upper, { kind: "image", type: "ext4", source: "/rw.img", options: [], folder: "/upper" });
	t.same(block.lowers, [erofs("/2.erofs")]);
	const merged = planRootfs(
		[mount("erofs", "/meta.erofs", "ro", "loop", "device=/1.erofs"), mount("format/bind", "{{ mount 0 }}", "ro", "rbind")],
		"/r",
	);
	t.match(merged, { lowers: [erofs("/meta.erofs", "device=/1.erofs")], immutable: true });
});

t.test("a block device may change", async (t) => {
	t.match(planRootfs([mount("ext4", "/dev/mapper/snap", "ro")], "/r"), {
		lowers: [{ kind: "image", type: "ext4", source: "/dev/mapper/snap" }],
		immutable: false,
	});
});

t.test("what is not understood is refused and named", async (t) => {
	const refused: [string, RootfsMount[]][] = [
		["without lowerdir", [mount("overlay", "overlay", "upperdir=/u")]],
		["data-only layers", [mount("overlay", "overlay", "lowerdir=/a::/b")]],
		["relative path", [mount("overlay", "overlay", "lowerdir=a:b")]],
		["range beyond the list", [mount("format/overlay", "overlay", "lowerdir={{ overlay 0 1 }}")]],
		["another template", [mount("format/bind", "{{ source 0 }}")]],
		["nested target", [{ ...mount("bind", "/a"), target: "/proc" }]],
		["a list without an end", [mount("erofs", "/a"), mount("erofs", "/b")]],
		["an odd type", [mount("../x", "/a")]],
	];
	for (const [what, mounts] of refused) {
		try {
			planRootfs(mounts, "/r");
			t.fail(what);
		} catch (error) {
			t.ok(error instanceof ShimError && error.reason === "storage.mount", what);
		}
	}
});
