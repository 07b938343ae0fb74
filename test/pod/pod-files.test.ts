import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { OciMount, OciSpec } from "../../shim/agent/oci-spec.ts";
import { resolverText, withPodFiles, writePodFiles } from "../../shim/pod/pod-files.ts";
import { failing } from "../base/failing.ts";

const bind = (destination: string, source: string): OciMount => ({ destination, source, type: "bind", options: ["rbind", "rw"] });
const spec = (...mounts: OciMount[]): OciSpec => ({
	ociVersion: "1.2.0",
	process: { args: ["x"], cwd: "/" },
	root: { path: "rootfs" },
	mounts,
});

t.test("the resolver's file says what the pod's configuration says", async (t) => {
	const dns = { servers: ["10.0.0.1", "fd00::1"], searches: ["a.local", "b"], options: ["ndots:5"] };
	t.equal(resolverText(dns), "search a.local b\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n");
	t.equal(resolverText({ servers: [], searches: [], options: [] }), "");
});

t.test("host name, hosts and resolver are written; what is not told is the node's", async (t) => {
	const folder = t.testdir();
	const read = (name: string): string => readFileSync(join(folder, "etc", name), "utf8");
	writePodFiles(folder, "web", { servers: ["10.0.0.1"], searches: [], options: [] });
	t.strictSame([read("hostname"), read("resolv.conf")], ["web\n", "nameserver 10.0.0.1\n"]);
	t.equal(read("hosts"), existsSync("/etc/hosts") ? readFileSync("/etc/hosts", "utf8") : "");
	writePodFiles(folder, "web", undefined);
	t.equal(read("resolv.conf"), existsSync("/etc/resolv.conf") ? readFileSync("/etc/resolv.conf", "utf8") : "");
	writeFileSync(join(folder, "file"), "");
	t.throws(() => writePodFiles(join(folder, "file"), "web", undefined), failing({ reason: "journal.write", message: /file\/etc/ }));
});

t.test("a container has its pod's files and shared memory wherever it brings nothing of its own", async (t) => {
	const tmpfs = { destination: "/dev/shm", source: "shm", type: "tmpfs", options: ["size=65536k"] };
	t.strictSame(withPodFiles("/f", spec(tmpfs)).mounts, [
		{ destination: "/dev/shm", source: "/dev/shm", type: "bind", options: ["rbind"] },
		bind("/etc/hostname", "/f/etc/hostname"),
		bind("/etc/hosts", "/f/etc/hosts"),
		bind("/etc/resolv.conf", "/f/etc/resolv.conf"),
	]);
	const readOnly = { ...spec(), root: { path: "rootfs", readonly: true } };
	t.match(withPodFiles("/f", readOnly).mounts?.at(0), { destination: "/etc/hostname", options: ["rbind", "ro"] });
	const own = [
		bind("/etc/hosts", "/var/lib/kubelet/pods/u/etc-hosts"),
		bind("/etc/resolv.conf", "/a"),
		bind("/etc/hostname", "/b"),
		bind("/dev/shm", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/shm"),
	];
	t.strictSame(withPodFiles("/f", spec(...own)).mounts, own);
});
