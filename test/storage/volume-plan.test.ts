import t from "tap";
import { parseMountTable } from "../../shim/host/mounts.ts";
import { directCandidates, mountOf, planVolume } from "../../shim/storage/volume-plan.ts";
import type { VolumeMount } from "../../shim/storage/volume-plan.ts";

const POD = "/var/lib/kubelet/pods/0a1b";
const TABLE = parseMountTable(
	[
		"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
		"23 22 0:5 / /proc rw - proc proc rw",
		"24 22 0:6 / /dev rw - devtmpfs udev rw",
		`30 22 0:40 / ${POD}/volumes/kubernetes.io~empty-dir/fast rw - tmpfs tmpfs rw,size=1024k`,
		`31 22 0:41 / ${POD}/volumes/kubernetes.io~secret/keys rw - tmpfs tmpfs rw`,
		`32 22 0:42 / ${POD}/volumes/kubernetes.io~empty-dir/huge rw - hugetlbfs nodev rw`,
		`40 22 0:40 /deep/er ${POD}/volume-subpaths/fast/app/0 rw - tmpfs tmpfs rw`,
		`41 22 8:1 ${POD}/volumes/kubernetes.io~empty-dir/slow/part ${POD}/volume-subpaths/slow/app/1 rw - ext4 /dev/sda1 rw`,
		`42 22 0:41 /..2024/folder//deleted ${POD}/volume-subpaths/keys/app/2 rw - tmpfs tmpfs rw`,
		`44 22 8:1 ${POD}/volumes/kubernetes.io~csi/pvc/mount/a/b ${POD}/volume-subpaths/pvc/app/4 rw - ext4 /dev/sda1 rw`,
		`43 22 8:1 /srv/some\\040data/sub ${POD}/volume-subpaths/host/app/3 rw - ext4 /dev/sda1 rw`,
		"",
	].join("\n"),
);

const plan = (source: string, more: Partial<VolumeMount> = {}) =>
	planVolume({ destination: "/x", source, readonly: false, type: "folder", atomic: false, ...more }, TABLE);

t.test("folders of configuration stay live, known by their path or by their shape", async (t) => {
	for (const plugin of ["configmap", "secret", "projected", "downward-api"]) {
		const path = `${POD}/volumes/kubernetes.io~${plugin}/v`;
		t.same(plan(path), { kind: "live", path });
	}
	t.same(plan("/srv/shape", { atomic: true }), { kind: "live", path: "/srv/shape" });
});

t.test("an emptyDir is a folder of the guest, in memory when its own tmpfs is mounted there", async (t) => {
	const volumes = `${POD}/volumes/kubernetes.io~empty-dir`;
	t.same(plan(`${volumes}/fast`), { kind: "memory", path: `${volumes}/fast`, sub: "" });
	t.same(plan(`${volumes}/slow`), { kind: "scratch", path: `${volumes}/slow`, sub: "" });
	t.same(plan(`${volumes}/huge`), { kind: "huge", path: `${volumes}/huge`, sub: "" });
});

t.test("a part that kubelet mounted belongs to the volume that it comes from", async (t) => {
	const volumes = `${POD}/volumes/kubernetes.io~empty-dir`;
	const part = (path: string) => plan(`${POD}/volume-subpaths/${path}`);
	t.same(part("fast/app/0"), { kind: "memory", path: `${volumes}/fast`, sub: "deep/er" });
	t.same(part("slow/app/1"), { kind: "scratch", path: `${volumes}/slow`, sub: "part" });
	t.same(part("keys/app/2"), {
		kind: "copy",
		path: `${POD}/volume-subpaths/keys/app/2`,
		key: `${POD}/volume-subpaths/keys/app/2`,
		owner: "container",
	});
	t.same(part("host/app/3"), { kind: "copy", path: `${POD}/volume-subpaths/host/app/3`, key: "/srv/some data/sub", owner: "pod" });
});

t.test("a direct-assigned volume is known by its own path, also for what lies in it", async (t) => {
	const csi = `${POD}/volumes/kubernetes.io~csi/pvc`;
	t.same(directCandidates(`${csi}/mount`, TABLE), [`${csi}/mount`, csi]);
	t.same(directCandidates(`${POD}/volume-subpaths/pvc/app/4`, TABLE), [`${csi}/mount/a/b`, `${csi}/mount/a`, `${csi}/mount`, csi]);
	t.same(directCandidates("/srv/data", TABLE), ["/srv/data"]);
	t.same(plan(`${csi}/mount`, { direct: `${csi}/mount` }), { kind: "direct", path: `${csi}/mount`, sub: "" });
	t.same(plan(`${POD}/volume-subpaths/pvc/app/4`, { direct: `${csi}/mount` }), { kind: "direct", path: `${csi}/mount`, sub: "a/b" });
	t.match(plan(`${csi}/mount`), { kind: "refused", why: /kubernetes\.io\/csi/, remedy: /volumeMode: Block/ });
	t.same(plan(`${csi}/mount`, { direct: `${csi}/mount`, type: "missing" }), { kind: "missing", path: `${csi}/mount` });
});

t.test("folders are shared where that is allowed: the node's own, and volumes that the node has mounted", async (t) => {
	const share = true;
	const csi = `${POD}/volumes/kubernetes.io~csi/pvc/mount`;
	t.same(plan("/srv/data", { share }), { kind: "share", path: "/srv/data", readonly: false });
	t.same(plan(csi, { share, readonly: true }), { kind: "share", path: csi, readonly: true });
	t.match(plan("/srv/large", { share, type: "file" }), { kind: "copy" });
	t.match(plan("/proc/sys", { share }), { kind: "refused" });
	t.match(plan(`${POD}/volumes/kubernetes.io~secret/keys`, { share }), { kind: "live" });
	t.match(plan(`${POD}/volumes/kubernetes.io~empty-dir/slow`, { share }), { kind: "scratch" });
	t.match(plan(csi, { share, direct: csi }), { kind: "direct" });
});

t.test("other paths of the host are copied for the pod", async (t) => {
	t.same(plan("/srv/data"), { kind: "copy", path: "/srv/data", key: "/srv/data", owner: "pod" });
	t.same(plan("/srv/large", { type: "file" }), { kind: "copy", path: "/srv/large", key: "/srv/large", owner: "pod" });
});

t.test("what a VM can't have is refused with a reason", async (t) => {
	t.match(plan("/proc/sys"), { kind: "refused", why: /proc file system/ });
	t.match(plan("/dev"), { kind: "refused", why: /devtmpfs/ });
	t.match(plan("/run/x.sock", { type: "socket" }), { kind: "refused", why: /socket/ });
	t.match(plan("/dev/sdb", { type: "block-device" }), { kind: "refused", why: /block device/ });
	t.match(plan("/srv/gone", { type: "missing" }), { kind: "missing" });
	const csi = `${POD}/volumes/kubernetes.io~csi/pvc-1/mount`;
	t.match(plan(csi), { kind: "refused", why: /kubernetes.io\/csi volume/ });
	t.same(plan(csi, { readonly: true }), { kind: "copy", path: csi, key: csi, owner: "container" });
});

t.test("the newest and deepest mount holds a path", async (t) => {
	t.equal(mountOf("/proc/sys", TABLE)?.type, "proc");
	t.equal(mountOf("/process", TABLE)?.type, "ext4");
});
