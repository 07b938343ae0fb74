/** Mounts and storages of containers: one decision for each line, with the field that a denial must name. */
import t from "tap";
import { type Json } from "../../support/policy.ts";
import { CID, create, ENCRYPTED, FILE, judge, MOUNT, ownDisk, placeOf, push, set, VOLUME, volumeOf } from "../../support/policy-tables.ts";

t.test("mounts and storages", async (t) => {
	const mount =
		(destination: string, change: (mount: Json, all: Json) => void) =>
		({ OCI }: Json) => {
			const found = OCI.Mounts.find((one) => placeOf(one) === destination);
			if (found === undefined) throw new Error(destination);
			change(found, OCI.Mounts);
		};
	const without =
		(destination: string) =>
		({ OCI }: Json) =>
			set(
				OCI,
				"Mounts",
				OCI.Mounts.filter((one) => placeOf(one) !== destination),
			);
	const layer =
		(index: number, option: string) =>
		({ storages }: Json) =>
			set(storages.at(0).options, index, option);
	await judge(t, [
		create("another mount", "OCI.Mounts[", ({ OCI }) =>
			push(OCI.Mounts, { destination: "/etc/passwd", source: FILE, type: "bind", options: ["rbind", "rw"] }),
		),
		create("a mount over the root", "OCI.Mounts[", ({ OCI }) =>
			push(OCI.Mounts, { destination: "/", source: VOLUME, type: "bind", options: ["rbind"] }),
		),
		create("a mount less", "OCI.Mounts", without("/shared")),
		create("a mount twice", "OCI.Mounts[", ({ OCI }) => push(OCI.Mounts, structuredClone(OCI.Mounts.at(-1)))),
		create("no /proc", "OCI.Mounts", without("/proc")),
		create("no shared memory", undefined, without("/dev/shm")),
		create("no hosts", undefined, without("/etc/hosts")),
		create(
			"/proc of something else",
			"OCI.Mounts[",
			mount("/proc", (one) => set(one, "source", "/run")),
		),
		create(
			"/proc as another type",
			"OCI.Mounts[",
			mount("/proc", (one) => set(one, "type_", "bind")),
		),
		create("types under the protocol's own name", undefined, ({ OCI }) => {
			for (let index = 0; index < OCI.Mounts.length; index++) {
				const one = OCI.Mounts.at(index) as unknown as Record<string, unknown>;
				one["type"] = one["type_"];
				delete one["type_"];
			}
		}),
		create(
			"/proc with programs",
			"OCI.Mounts[",
			mount("/proc", (one) => set(one, "options", ["nosuid"])),
		),
		create(
			"a writable /sys",
			"OCI.Mounts[",
			mount("/sys", (one) => set(one, "options", ["nosuid", "noexec", "nodev", "rw"])),
		),
		create(
			"a writable control group",
			"OCI.Mounts[",
			mount("/sys/fs/cgroup", (one) => set(one, "options", ["nosuid", "noexec", "nodev", "rw"])),
		),
		create(
			"a /sys that is read-only, and then writable",
			"OCI.Mounts[",
			mount("/sys", (one) => push(one.options, "rw")),
		),
		create(
			"a control group that is read-only, and then writable",
			"OCI.Mounts[",
			mount("/sys/fs/cgroup", (one) => push(one.options, "rw")),
		),
		create(
			"configuration that can be written",
			"OCI.Mounts[",
			mount("/etc/app", (one) => set(one, "options", ["rbind", "rprivate", "rw"])),
		),
		create(
			"configuration from the root file system",
			"OCI.Mounts[",
			mount("/etc/app", (one) => set(one, "source", "/etc")),
		),
		create(
			"configuration of another container",
			"OCI.Mounts[",
			mount("/etc/one.conf", (one) => set(one, "source", "/run/kata-containers/snp/other/3")),
		),
		create(
			"a file that is no file",
			"OCI.Mounts[",
			mount("/etc/hosts", (one) => set(one, "source", `/run/kata-containers/snp/${CID}/../x`)),
		),
		create(
			"an emptyDir from elsewhere",
			"OCI.Mounts[",
			mount("/shared", (one) => set(one, "source", VOLUME)),
		),
		create("an emptyDir where the node can write files", "OCI.Mounts[", ({ OCI, storages }) => {
			const shared = OCI.Mounts.find((one) => placeOf(one) === "/shared");
			const storage = storages.find((one) => volumeOf(one) === shared?.source);
			if (shared === undefined || storage === undefined) throw new Error("no emptyDir");
			set(storage, "mount_point", VOLUME);
			set(shared, "source", VOLUME);
		}),
		create(
			"an emptyDir that can't be written",
			"OCI.Mounts[",
			mount("/shared", (one) => set(one, "options", ["rbind", "rprivate", "ro"])),
		),
		create(
			"a part of an emptyDir",
			"OCI.Mounts[",
			mount("/shared", (one) => push(one.options, "X-snp.sub=a")),
		),
		create("an emptyDir in place of another", "OCI.Mounts[", ({ OCI }) => {
			const [a, b] = ["/shared", "/fast"].map((place) => OCI.Mounts.find((one) => placeOf(one) === place));
			if (a !== undefined && b !== undefined) [a.source, b.source] = [b.source, a.source];
		}),
		create("configuration in place of an emptyDir", "OCI.Mounts[", ({ OCI }) => {
			const [a, b] = ["/shared", "/etc/app"].map((place) => OCI.Mounts.find((one) => placeOf(one) === place));
			if (a !== undefined && b !== undefined) set(a, "source", b.source);
		}),
		create("a mount that hides others", "OCI.Mounts[", ({ OCI }) => void OCI.Mounts.push(OCI.Mounts.splice(1, 1).at(0))),
		create("another layer", "storages[0].options[6]", layer(6, `X-kata.dmverity.roothash=${"0".repeat(64)}`)),
		create("a layer without its check", "storages[0].options", ({ storages }) =>
			set(storages.at(0), "options", ["X-kata.overlay-lower", "X-kata.multi-layer=true"]),
		),
		create("a layer that can be written", "storages[0].options[0]", layer(0, "rw")),
		create("another salt", "storages[0].options[9]", layer(9, `X-kata.dmverity.salt=${"1".repeat(64)}`)),
		create("a shorter layer", "storages[0].options[7]", layer(7, "X-kata.dmverity.hashoffset=4096")),
		create("another number of a layer", "storages[0].options[4]", layer(4, "X-kata.partition-number=2")),
		create("a layer of another type", "storages[0].fstype", ({ storages }) => set(storages.at(0), "fstype", "ext4")),
		create("a layer from a folder", "storages[0].source", ({ storages }) =>
			set(storages.at(0), "source", "/run/kata-containers/sandbox/scratch"),
		),
		create("a layer elsewhere", "storages[0].mount_point", ({ storages }) => set(storages.at(0), "mount_point", "/run/evil")),
		create("no layer", "storages[0]", ({ storages }) => void storages.shift()),
		create("a second layer", "storages[1]", ({ storages }) => void storages.splice(1, 0, structuredClone(storages.at(0)))),
		create("a disk at another place of the bus", undefined, ({ storages }) => set(storages.at(0), "source", "0001:00:1f.0")),
		create("a writable layer of the host's", "storages[1]", ({ storages }) => set(storages.at(1), "source", "07")),
		create("no writable disk", undefined, ({ storages }) => void storages.splice(1, 1)),
		create("a shared folder", "storages[", ({ storages }) =>
			push(storages, {
				driver: "virtio-fs",
				driver_options: [],
				source: "share1",
				fstype: "virtiofs",
				options: [],
				mount_point: MOUNT,
				fs_group: null,
				shared: false,
			}),
		),
		create("a disk of the host", "storages[", ({ storages }) =>
			push(storages, {
				driver: "blk",
				driver_options: [],
				source: "08",
				fstype: "ext4",
				options: [],
				mount_point: "/etc",
				fs_group: null,
				shared: false,
			}),
		),
		create("a storage pulled in the guest", "storages[", ({ storages }) =>
			push(storages, {
				driver: "image_guest_pull",
				driver_options: [],
				source: "evil",
				fstype: "overlay",
				options: [],
				mount_point: "/x",
				fs_group: null,
				shared: false,
			}),
		),
		create("an emptyDir on a disk of the host", "OCI.Mounts[", ({ storages }) => {
			ownDisk(storages.at(2), []);
		}),
		create("an emptyDir in a folder of the pod's writable disk", undefined, ({ storages }) => {
			Object.assign(storages.at(2), { driver: "local", source: "local", fstype: "local", driver_options: [] });
		}),
		create("an emptyDir with an encrypted disk of its own", undefined, ({ storages }) => ownDisk(storages.at(2), ENCRYPTED)),
		create("an emptyDir with a disk that is not encrypted", "OCI.Mounts[", ({ storages }) =>
			ownDisk(storages.at(2), ["create_filesystem"]),
		),
		create("an emptyDir with a disk that holds something", "OCI.Mounts[", ({ storages }) => ownDisk(storages.at(2), ENCRYPTED.slice(0, 1))),
		create("an emptyDir with a disk and a key of the host's", "OCI.Mounts[", ({ storages }) =>
			ownDisk(storages.at(2), ["encryption_key=kbs:///a/b", "create_filesystem"]),
		),
		create("an emptyDir with a disk of another file system", "OCI.Mounts[", ({ storages }) => {
			ownDisk(storages.at(2), ENCRYPTED);
			set(storages.at(2), "fstype", "ext4");
		}),
		create("an emptyDir with another mode", undefined, ({ storages }) => set(storages.at(2), "options", ["mode=755"])),
		create("an emptyDir with an option of another kind", "OCI.Mounts[", ({ storages }) => push(storages.at(3).options, "exec,suid")),
	]);
});
