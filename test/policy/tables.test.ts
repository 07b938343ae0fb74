/** What a generated policy allows and denies, request by request: one decision for each line, with the field that a denial must name. */
import t, { type Test } from "tap";
import { decide } from "../../shim/policy/engine.ts";
import type { AllowData } from "../../shim/policy/policy-data.ts";
import { DECIDE_MS, recorded, recordedContainer, recordedPolicy, type Json } from "../support/policy.ts";

/** A request, and the field that its denial names; undefined: it is allowed. */
type Case = readonly [what: string, name: string, input: unknown, denied?: string | undefined];

const CID = "482ad96f89f3dc007d1f1863c8702812ab416b8401e1cdb96417130cccb76a3b";
const VOLUME = `/run/kata-containers/volumes/${"0".repeat(32)}`;
const MOUNT = `/run/kata-containers/sandbox/volumes/${"0".repeat(32)}`;
const FILE = `/run/kata-containers/snp/${CID}/0`;

async function judge(t: Test, cases: readonly Case[], allow: Partial<AllowData> = {}): Promise<void> {
	const { text } = recordedPolicy(allow);
	const requests = cases.map(([, name, input]) => ({ name, input }));
	const decisions = await decide({ name: "policy", text }, requests, { timeoutMs: DECIDE_MS });
	for (const [index, [what, name, , denied]] of cases.entries()) {
		const decision = decisions[index];
		const label = `${name}: ${what}`;
		if (denied === undefined) t.match(decision, { allowed: true }, `${label} is allowed`);
		else {
			t.equal(decision?.allowed, false, `${label} is denied`);
			t.ok(
				decision?.reasons.some(({ path }) => path.startsWith(denied)),
				`${label}: ${denied} is named, of ${decision?.reasons.map(({ path }) => path).join(", ")}`,
			);
		}
	}
}

/** A recorded request with a change. */
function changed(container: string, change: (input: Json) => void): Json {
	const input = recordedContainer("2-snp", container);
	change(input);
	return input;
}

function first(name: string): Json {
	return structuredClone<unknown>(recorded("2-snp").find((request) => request.name === name)?.input) as Json;
}

function but(name: string, change: (input: Json) => void): Json {
	const input = first(name);
	change(input);
	return input;
}

const create = (what: string, denied: string | undefined, change: (input: Json) => void, container = "web"): Case => [
	what,
	"CreateContainerRequest",
	changed(container, change),
	denied,
];

const placeOf = (mount: Json): unknown => mount.destination;
const volumeOf = (storage: Json): unknown => (storage as unknown as { mount_point: unknown }).mount_point;

/** Sets a field that the type of JSON here does not know the type of. */
const set = (at: Json, key: string | number, value: unknown): void =>
	void ((at as unknown as Record<string | number, unknown>)[key] = value);
const push = (list: Json, value: unknown): void => void list.push(value);

const ENCRYPTED: readonly string[] = ["encryption_key=ephemeral", "create_filesystem"];

/** Makes a volume's storage a disk of its own, on which the guest makes a file system. */
function ownDisk(storage: Json, driverOptions: readonly string[]): void {
	const fields = {
		driver: "blk",
		source: "0001:00:05.0",
		fstype: "btrfs",
		options: ["fsgid=2000", "mode=777"],
		driver_options: [...driverOptions],
	};
	for (const [field, value] of Object.entries(fields)) set(storage, field, value);
}

t.test("containers", async (t) => {
	await judge(t, [
		create("as recorded", undefined, () => undefined),
		create("its init container", undefined, () => undefined, "prepare"),
		create("its plain container", undefined, () => undefined, "plain"),
		create("its privileged container", undefined, () => undefined, "shell"),
		create("another id of the same form everywhere", undefined, ({ OCI }) => set(OCI.Annotations, "io.kubernetes.cri.sandbox-id", "0")),
		create("an id with a way out", "container_id", (input) => set(input, "container_id", "../../etc")),
		create("another exec id", "exec_id", (input) => set(input, "exec_id", "x")),
		create("a user by name", "string_user", (input) => set(input, "string_user", { uid: "root", gid: "", additionalGids: [] })),
		create("shared mounts", "shared_mounts", (input) =>
			push(input.shared_mounts, { name: "x", src_ctr: "a", src_path: "/", dst_ctr: "b", dst_path: "/" }),
		),
		create("the pod's PID namespace", "sandbox_pidns", (input) => set(input, "sandbox_pidns", true)),
		create("other ports of streams", undefined, (input) => set(input, "stdout_port", 999)),
		create("a hook", "OCI.Hooks", ({ OCI }) => set(OCI, "Hooks", { Prestart: [{ Path: "/bin/sh", Args: [], Env: [], Timeout: 0 }] })),
		create("another host name", "OCI.Hostname", ({ OCI }) => set(OCI, "Hostname", "evil")),
		create("the pod's host name", undefined, ({ OCI }) => set(OCI, "Hostname", "recorded-host")),
		create("a writable root", "OCI.Root.Readonly", ({ OCI }) => set(OCI.Root, "Readonly", false)),
		create("another root", "OCI.Root.Path", ({ OCI }) => set(OCI.Root, "Path", "/")),
		create("a container of another type", "OCI.Annotations.io.katacontainers", ({ OCI }) =>
			set(OCI.Annotations, "io.katacontainers.pkg.oci.container_type", "pod_sandbox"),
		),
		create("another bundle", "OCI.Annotations.io.katacontainers", ({ OCI }) =>
			set(OCI.Annotations, "io.katacontainers.pkg.oci.bundle_path", "/"),
		),
		create("Windows", "OCI.Windows", ({ OCI }) => set(OCI, "Windows", { dummy: "" })),
		create("Solaris", "OCI.Solaris", ({ OCI }) => set(OCI, "Solaris", { dummy: "" })),
		create("more memory", undefined, ({ OCI }) => set(OCI.Linux.Resources.Memory ?? OCI.Linux.Resources, "Limit", 1)),
		create("an annotation of the host's own", undefined, ({ OCI }) => set(OCI.Annotations, "anything", "else")),
	]);
});

t.test("processes", async (t) => {
	const process = (what: string, denied: string | undefined, change: (process: Json) => void): Case =>
		create(what, denied, ({ OCI }) => change(OCI.Process));
	await judge(t, [
		process("another argument", "OCI.Process.Args[2]", ({ Args }) => set(Args, 2, "echo stolen")),
		process("one argument more", "OCI.Process.Args", ({ Args }) => push(Args, "x")),
		process("one argument less", "OCI.Process.Args", ({ Args }) => void Args.pop()),
		process("another address in an argument", undefined, ({ Args }) => set(Args, 2, "echo blue at 10.1.2.3; sleep 3600")),
		process("a command in place of an address", "OCI.Process.Args[2]", ({ Args }) => set(Args, 2, "echo blue at $(id); sleep 3600")),
		process("a terminal", "OCI.Process.Terminal", (one) => set(one, "Terminal", true)),
		process("another folder", "OCI.Process.Cwd", (one) => set(one, "Cwd", "/")),
		process("another variable", "OCI.Process.Env[", ({ Env }) => push(Env, "LD_PRELOAD=/evil.so")),
		process("another value", "OCI.Process.Env[", ({ Env }) => set(Env, Env.indexOf("COLOUR=blue"), "COLOUR=red")),
		process("a variable less", "OCI.Process.Env", ({ Env }) => void Env.splice(Env.indexOf("COLOUR=blue"), 1)),
		process("a variable twice", "OCI.Process.Env[", ({ Env }) => push(Env, "POD_IP=10.88.0.9")),
		process("another PATH", "OCI.Process.Env[", ({ Env }) => set(Env, Env.indexOf("PATH=/usr/sbin:/usr/bin:/sbin:/bin"), "PATH=/evil")),
		process("a text without a name", "OCI.Process.Env[", ({ Env }) => push(Env, "nothing")),
		process("a value of any secret", undefined, ({ Env }) => set(Env, Env.indexOf("TOKEN=s3cr3t"), "TOKEN=other")),
		process("no secret", "OCI.Process.Env", ({ Env }) => void Env.splice(Env.indexOf("TOKEN=s3cr3t"), 1)),
		process("another service", undefined, ({ Env }) => push(Env, "CACHE_SERVICE_HOST=10.96.0.77")),
		process("a port of a service", undefined, ({ Env }) => push(Env, "CACHE_PORT_6379_TCP=tcp://10.96.0.77:6379")),
		process("a service that is no address", "OCI.Process.Env[", ({ Env }) => push(Env, "CACHE_SERVICE_HOST=$(evil)")),
		process("a service with a line more", "OCI.Process.Env[", ({ Env }) => push(Env, "CACHE_SERVICE_HOST=10.96.0.77\nLD_PRELOAD=/evil.so")),
		process("variables in another order", undefined, ({ Env }) => void Env.reverse()),
		process("another host's name", "OCI.Process.Env[", ({ Env }) => set(Env, Env.indexOf("HOSTNAME=recorded-host"), "HOSTNAME=evil")),
		process("no host's name", undefined, ({ Env }) => void Env.splice(Env.indexOf("HOSTNAME=recorded-host"), 1)),
		process("root", "OCI.Process.User.UID", ({ User }) => set(User, "UID", 0)),
		process("another group", "OCI.Process.User.GID", ({ User }) => set(User, "GID", 0)),
		process("a further group", "OCI.Process.User.AdditionalGids[", ({ User }) => push(User.AdditionalGids, 0)),
		process("a group less", "OCI.Process.User.AdditionalGids", ({ User }) => set(User, "AdditionalGids", [1001])),
		process("groups without the first one", undefined, ({ User }) => set(User, "AdditionalGids", [3000, 2000, 1002])),
		process("a user's name", "OCI.Process.User.Username", ({ User }) => set(User, "Username", "root")),
		process("a capability more", "OCI.Process.Capabilities.Bounding[", ({ Capabilities }) => push(Capabilities.Bounding, "CAP_SYS_ADMIN")),
		process("an effective capability more", "OCI.Process.Capabilities.Effective[", ({ Capabilities }) =>
			push(Capabilities.Effective, "CAP_SYS_PTRACE"),
		),
		process("an ambient capability", "OCI.Process.Capabilities.Ambient[", ({ Capabilities }) =>
			push(Capabilities.Ambient, "CAP_NET_BIND_SERVICE"),
		),
		process("a capability less", "OCI.Process.Capabilities.Permitted", ({ Capabilities }) => set(Capabilities, "Permitted", [])),
		process("new privileges", "OCI.Process.NoNewPrivileges", (one) => set(one, "NoNewPrivileges", false)),
		process("a label", "OCI.Process.SelinuxLabel", (one) => set(one, "SelinuxLabel", "x")),
		process("a profile", "OCI.Process.ApparmorProfile", (one) => set(one, "ApparmorProfile", "unconfined")),
		process("another score", undefined, (one) => set(one, "OOMScoreAdj", 7)),
		process("no process", "OCI.Process", (one) => Object.keys(one).forEach((key) => set(one, key, null))),
	]);
});

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

t.test("the kernel's settings and devices", async (t) => {
	const linux = (what: string, denied: string | undefined, change: (linux: Json) => void, container = "web"): Case =>
		create(what, denied, ({ OCI }) => change(OCI.Linux), container);
	const node = { Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: 438, UID: 0, GID: 0 };
	const rule = { Allow: true, Type: "c", Major: 1, Minor: 3, Access: "rwm" };
	await judge(t, [
		linux("another setting", "OCI.Linux.Sysctl", ({ Sysctl }) => set(Sysctl, "kernel.core_pattern", "|/evil")),
		linux("another value of a setting", "OCI.Linux.Sysctl", ({ Sysctl }) => set(Sysctl, "net.ipv4.tcp_syncookies", "0")),
		linux("no setting", "OCI.Linux.Sysctl", (one) => set(one, "Sysctl", {})),
		linux("a namespace of elsewhere", "OCI.Linux.Namespaces[0]", ({ Namespaces }) => set(Namespaces.at(0), "Path", "/proc/1/ns/ipc")),
		linux("a namespace less", "OCI.Linux.Namespaces", ({ Namespaces }) => void Namespaces.pop()),
		linux("a namespace of users", "OCI.Linux.Namespaces[", ({ Namespaces }) => push(Namespaces, { Type: "user", Path: "" })),
		linux("other users", "OCI.Linux.UIDMappings", ({ UIDMappings }) => push(UIDMappings, { HostID: 0, ContainerID: 0, Size: 1 })),
		linux("another group of control", "OCI.Linux.CgroupsPath", (one) => set(one, "CgroupsPath", "/")),
		linux("propagation", "OCI.Linux.RootfsPropagation", (one) => set(one, "RootfsPropagation", "shared")),
		linux("a label of mounts", "OCI.Linux.MountLabel", (one) => set(one, "MountLabel", "x")),
		linux("no seccomp", "OCI.Linux.Seccomp", (one) => set(one, "Seccomp", null)),
		linux("seccomp that allows", "OCI.Linux.Seccomp", ({ Seccomp }) => set(Seccomp, "DefaultAction", "SCMP_ACT_ALLOW")),
		linux("fewer calls", undefined, ({ Seccomp }) => set(Seccomp, "Syscalls", [])),
		linux("a call that fails", undefined, ({ Seccomp }) =>
			push(Seccomp.Syscalls, { Names: ["ptrace"], Action: "SCMP_ACT_ERRNO", Args: [], ErrnoRet: { errnoret: 1 } }),
		),
		...[0, 65_536].map((errnoret) =>
			linux(`a call that is not made and succeeds (${errnoret})`, "OCI.Linux.Seccomp.Syscalls[", ({ Seccomp }) =>
				push(Seccomp.Syscalls, { Names: ["setuid"], Action: "SCMP_ACT_ERRNO", Args: [], ErrnoRet: { errnoret } }),
			),
		),
		linux("nothing hidden", "OCI.Linux.MaskedPaths", (one) => set(one, "MaskedPaths", [])),
		linux("more of /proc hidden", undefined, ({ MaskedPaths }) => push(MaskedPaths, "/proc/interrupts")),
		linux("a file of the image hidden", "OCI.Linux.MaskedPaths[", ({ MaskedPaths }) => push(MaskedPaths, "/etc/policy.conf")),
		linux("/proc/sys writable", "OCI.Linux.ReadonlyPaths", (one) => set(one, "ReadonlyPaths", [])),
		linux("a file of the image hidden by way of /proc", "OCI.Linux.MaskedPaths[", ({ MaskedPaths }) =>
			push(MaskedPaths, "/proc/../etc/policy.conf"),
		),
		linux("a file of the image hidden by way of a process", "OCI.Linux.MaskedPaths[", ({ MaskedPaths }) =>
			push(MaskedPaths, "/proc/self/root/etc/policy.conf"),
		),
		linux("a folder of the image read-only by way of /sys", "OCI.Linux.ReadonlyPaths[", ({ ReadonlyPaths }) =>
			push(ReadonlyPaths, "/sys/../data"),
		),
		linux("a processor's throttling hidden", undefined, ({ MaskedPaths }) =>
			push(MaskedPaths, "/sys/devices/system/cpu/cpu0/thermal_throttle"),
		),
		linux("a folder of the image read-only", "OCI.Linux.ReadonlyPaths[", ({ ReadonlyPaths }) => push(ReadonlyPaths, "/data")),
		linux("a known device", undefined, ({ Devices }) => push(Devices, node)),
		linux("a device of the kernel's memory", "OCI.Linux.Devices[", ({ Devices }) => push(Devices, { ...node, Path: "/dev/mem", Minor: 1 })),
		linux("random numbers that are zeros", "OCI.Linux.Devices[", ({ Devices }) =>
			push(Devices, { ...node, Path: "/dev/urandom", Minor: 5 }),
		),
		linux(
			"random numbers that are zeros, in a privileged container",
			"OCI.Linux.Devices[",
			({ Devices }) => push(Devices, { ...node, Path: "/dev/urandom", Minor: 5 }),
			"shell",
		),
		linux(
			"a disk in a privileged container",
			undefined,
			({ Devices }) => push(Devices, { ...node, Path: "/dev/sda", Type: "b", Major: 8, Minor: 0 }),
			"shell",
		),
		linux("a device among the image's files", "OCI.Linux.Devices[", ({ Devices }) => push(Devices, { ...node, Path: "/etc/app.conf" })),
		linux(
			"a device among the files of a privileged container",
			"OCI.Linux.Devices[",
			({ Devices }) => push(Devices, { ...node, Path: "/dev/../etc/app.conf" }),
			"shell",
		),
		linux("a pipe", "OCI.Linux.Devices[", ({ Devices }) => push(Devices, { ...node, Path: "/dev/log", Type: "p" })),
		linux("a disk", "OCI.Linux.Devices[", ({ Devices }) => push(Devices, { ...node, Type: "b", Major: 8, Minor: 0 })),
		linux("a permission for a known device", undefined, ({ Resources }) => push(Resources.Devices, rule)),
		linux("a permission for all devices", "OCI.Linux.Resources.Devices[", ({ Resources }) =>
			push(Resources.Devices, { ...rule, Type: "a", Major: -1, Minor: -1 }),
		),
		linux("a permission for the kernel's memory", "OCI.Linux.Resources.Devices[", ({ Resources }) =>
			push(Resources.Devices, { ...rule, Minor: 1 }),
		),
		linux("a permission for disks", "OCI.Linux.Resources.Devices[", ({ Resources }) =>
			push(Resources.Devices, { ...rule, Type: "b", Major: -1, Minor: -1 }),
		),
		linux("all devices in a privileged container", undefined, () => undefined, "shell"),
		create("a disk that is not declared", "devices", (input) =>
			push(input.devices, { id: "07", type: "blk", vm_path: "", container_path: "/dev/x" }),
		),
	]);
});

t.test("the sandbox and its network", async (t) => {
	const sandbox = (what: string, denied: string | undefined, change: (input: Json) => void): Case => [
		what,
		"CreateSandboxRequest",
		but("CreateSandboxRequest", change),
		denied,
	];
	const card = (what: string, denied: string | undefined, change: (input: Json) => void): Case => [
		what,
		"UpdateInterfaceRequest",
		but("UpdateInterfaceRequest", change),
		denied,
	];
	const route = (what: string, denied: string | undefined, change: (route: Json) => void): Case => [
		what,
		"UpdateRoutesRequest",
		but("UpdateRoutesRequest", ({ routes }) => change(routes.Routes.at(0))),
		denied,
	];
	await judge(t, [
		sandbox("as recorded", undefined, () => undefined),
		sandbox("another host name", "hostname", (input) => set(input, "hostname", "evil")),
		sandbox("a resolver", undefined, ({ dns }) => push(dns, "nameserver 10.0.0.1")),
		sandbox("modules", "kernel_modules", ({ kernel_modules }) => push(kernel_modules, { name: "evil", parameters: [] })),
		sandbox("processes that see each other", "sandbox_pidns", (input) => set(input, "sandbox_pidns", true)),
		sandbox("hooks", "guest_hook_path", (input) => set(input, "guest_hook_path", "/hooks")),
		sandbox("a writable disk without a key", "storages[", ({ storages }) => set(storages.at(-1), "driver_options", ["create_filesystem"])),
		sandbox("a writable disk that is not made anew", "storages[", ({ storages }) =>
			set(storages.at(-1), "driver_options", ["encryption_key=ephemeral"]),
		),
		sandbox("a shared folder", "storages[", ({ storages }) => push(storages, { ...storages.at(0), driver: "virtio-fs" })),
		sandbox("shared memory elsewhere", "storages[0]", ({ storages }) => set(storages.at(0), "mount_point", "/etc")),
		sandbox("no writable disk", undefined, ({ storages }) => void storages.pop()),
		card("as recorded", undefined, () => undefined),
		card("another address", undefined, (input) => set(input.interface.IPAddresses.at(0), "address", "10.9.8.7")),
		card("the loopback", "interface.name", (input) => set(input.interface, "name", "lo")),
		card("the loopback's device", "interface.device", (input) => set(input.interface, "device", "lo")),
		card("an address of the loopback", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "127.0.0.53"),
		),
		card("an IPv6 address of the loopback", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "::1"),
		),
		card("an address of the loopback in IPv6", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "::ffff:127.0.0.1"),
		),
		card("the loopback by its hardware address", "interface.hwAddr", (input) => set(input.interface, "hwAddr", "00:00:00:00:00:00")),
		card("the loopback by its hardware address in short", "interface.hwAddr", (input) => set(input.interface, "hwAddr", "0:0:0:0:0:0")),
		card("no interface", "interface", (input) => set(input, "interface", null)),
		route("as recorded", undefined, () => undefined),
		route("to anywhere", undefined, (one) => set(one, "dest", "192.0.2.0/24")),
		route("to the loopback", "routes.Routes[0]", (one) => set(one, "dest", "127.0.0.0/8")),
		route("to more than the loopback", "routes.Routes[0]", (one) => set(one, "dest", "126.0.0.0/7")),
		route("over the loopback", "routes.Routes[0]", (one) => set(one, "device", "lo")),
		["no routes", "UpdateRoutesRequest", { routes: null }, "routes"],
		["neighbours", "AddARPNeighborsRequest", { neighbors: { ARPNeighbors: [] } }],
		["what is there", "ListInterfacesRequest", {}],
		["what is there", "ListRoutesRequest", {}],
	]);
});

t.test("files, streams and commands, when nothing is allowed", async (t) => {
	const copy = (path: string, file_mode = 0o100644) => ({
		path,
		file_size: 1,
		file_mode,
		dir_mode: 493,
		uid: 0,
		gid: 0,
		offset: 0,
		data: [],
	});
	const process = { Args: ["ls"], Env: [] };
	await judge(t, [
		["a file of a mount", "CopyFileRequest", copy(FILE)],
		["a setuid file of a mount", "CopyFileRequest", copy(FILE, 0o104755)],
		["a link", "CopyFileRequest", copy(FILE, 0o120777), "file_mode"],
		["a folder", "CopyFileRequest", copy(FILE, 0o040755), "file_mode"],
		[
			"a file of the root file system",
			"CopyFileRequest",
			copy(`/run/kata-containers/shared/containers/passthrough/${CID}/rootfs/bin/sh`),
			"path",
		],
		["a file of a volume", "CopyFileRequest", copy(`${VOLUME}/x`), "path"],
		["a file of an emptyDir", "CopyFileRequest", copy(`${MOUNT}/x`), "path"],
		["a file anywhere", "CopyFileRequest", copy("/etc/passwd"), "path"],
		["a way out", "CopyFileRequest", copy(`/run/kata-containers/snp/${CID}/../../evil`), "path"],
		["a change of a volume", "ChangeRequest", { volume: VOLUME, changes: [] }],
		["a change of a container's copy", "ChangeRequest", { volume: `/run/kata-containers/snp/${CID}/${"0".repeat(32)}`, changes: [] }],
		["a change of an emptyDir", "ChangeRequest", { volume: MOUNT, changes: [] }, "volume"],
		["a list of an emptyDir", "ListRequest", { volume: MOUNT }, "volume"],
		["a change elsewhere", "ChangeRequest", { volume: "/run/kata-containers/shared", changes: [] }, "volume"],
		["a change with a way out", "ChangeRequest", { volume: `${VOLUME}/..`, changes: [] }, "volume"],
		["a list of a volume", "ListRequest", { volume: VOLUME }],
		["a list elsewhere", "ListRequest", { volume: "/" }, "volume"],
		["a termination message", "ReadFileRequest", { path: FILE, max_bytes: 100 }, "path"],
		["output", "ReadStreamRequest", { container_id: CID, exec_id: "", len: 0 }, "container_id"],
		["input", "WriteStreamRequest", { container_id: CID, exec_id: "", data: [] }],
		["a command", "ExecProcessRequest", { container_id: CID, exec_id: "e", string_user: null, process }, "process.Args"],
		["a port", "ForwardPortRequest", { port: 80 }, "port"],
	]);
});

t.test("files, streams and commands, when they are asked for", async (t) => {
	const web = recordedContainer("2-snp", "web").OCI.Process;
	const run = (args: readonly string[], change: (process: Json) => void = () => undefined) => {
		const process = structuredClone(web);
		set(process, "Args", args);
		change(process);
		return { container_id: CID, exec_id: "e", string_user: null, process, stdin_port: 0, stdout_port: 5, stderr_port: 6 };
	};
	const allow: AllowData = {
		exec: [
			{ container: "web", any: false, args: ["cat", "/proc/uptime"] },
			{ container: "plain", any: true, args: [] },
		],
		logs: true,
		stdin: true,
		ports: [8080],
		termination_message: true,
	};
	await judge(
		t,
		[
			["the command", "ExecProcessRequest", run(["cat", "/proc/uptime"])],
			["in a terminal", "ExecProcessRequest", run(["cat", "/proc/uptime"], (one) => set(one, "Terminal", true))],
			["another command", "ExecProcessRequest", run(["sh"]), "process"],
			["more arguments", "ExecProcessRequest", run(["cat", "/proc/uptime", "/etc/shadow"]), "process"],
			["the command as root", "ExecProcessRequest", run(["cat", "/proc/uptime"], ({ User }) => set(User, "UID", 0)), "process"],
			[
				"the command with another variable",
				"ExecProcessRequest",
				run(["cat", "/proc/uptime"], ({ Env }) => push(Env, "LD_PRELOAD=/x")),
				"process",
			],
			[
				"the command with capabilities",
				"ExecProcessRequest",
				run(["cat", "/proc/uptime"], ({ Capabilities }) => push(Capabilities.Effective, "CAP_SYS_ADMIN")),
				"process",
			],
			["the command elsewhere", "ExecProcessRequest", run(["cat", "/proc/uptime"], (one) => set(one, "Cwd", "/root")), "process"],
			[
				"the command as a named user",
				"ExecProcessRequest",
				{ ...run(["cat", "/proc/uptime"]), string_user: { uid: "root", gid: "", additionalGids: [] } },
				"string_user",
			],
			["no command", "ExecProcessRequest", run([]), "process"],
			["no process", "ExecProcessRequest", { container_id: CID, exec_id: "e", process: null }, "process"],
			["output", "ReadStreamRequest", { container_id: CID, exec_id: "", len: 0 }],
			["input", "WriteStreamRequest", { container_id: CID, exec_id: "", data: [] }],
			["the port", "ForwardPortRequest", { port: 8080 }],
			["another port", "ForwardPortRequest", { port: 22 }, "port"],
			["a termination message", "ReadFileRequest", { path: FILE, max_bytes: 100 }],
			["a file elsewhere", "ReadFileRequest", { path: "/etc/shadow", max_bytes: 100 }, "path"],
			["a file of a volume", "ReadFileRequest", { path: `${VOLUME}/key`, max_bytes: 100 }, "path"],
		],
		allow,
	);
});

t.test("what every pod needs, and what none does", async (t) => {
	const harmless = [
		"StartContainerRequest",
		"RemoveContainerRequest",
		"WaitProcessRequest",
		"SignalProcessRequest",
		"StatsContainerRequest",
		"UpdateContainerRequest",
		"PauseContainerRequest",
		"ResumeContainerRequest",
		"TtyWinResizeRequest",
		"CloseStdinRequest",
		"OnlineCPUMemRequest",
		"GuestDetailsRequest",
		"GetOOMEventRequest",
		"NextDamageRequest",
		"ContainerDamageRequest",
		"DestroySandboxRequest",
	];
	const useless = {
		SetPolicyRequest: "policy",
		UpdateEphemeralMountsRequest: "storages",
		GetDiagnosticDataRequest: "log_type",
		GetMetricsRequest: "request",
		GetIPTablesRequest: "is_ipv6",
		SetIPTablesRequest: "data",
		MemHotplugByProbeRequest: "memHotplugProbeAddr",
		ReseedRandomDevRequest: "data",
		SetGuestDateTimeRequest: "Sec",
		AddSwapRequest: "PCIPath",
		AddSwapPathRequest: "path",
		VolumeStatsRequest: "volume_guest_path",
		ResizeVolumeRequest: "volume_guest_path",
		RemoveStaleVirtiofsShareMountsRequest: "request",
		MemAgentMemcgConfig: "disabled",
		MemAgentCompactConfig: "disabled",
	};
	await judge(t, [
		...harmless.map((name): Case => ["as it comes", name, { container_id: CID }]),
		...Object.entries(useless).map(([name, path]): Case => ["as it comes", name, {}, path]),
	]);
	const [unknown] = await decide({ name: "policy", text: recordedPolicy().text }, [{ name: "NoSuchRequest", input: {} }], {
		timeoutMs: DECIDE_MS,
	});
	t.match(unknown, { allowed: false, failure: /no rule/u });
});

t.test("what the guest has already", async (t) => {
	const [web, plain] = ["web", "plain"].map((name) => recordedContainer("2-snp", name));
	const placed = (mount: Json): boolean => JSON.stringify(mount.source).startsWith('"/run/kata-containers/sandbox/volumes/');
	const [shared, fast] = ["/shared", "/fast"].map((place) => web?.OCI.Mounts.find((one) => placeOf(one) === place)?.source);
	const idOf = (input: Json | undefined): string => (input as unknown as { container_id: string }).container_id;
	const as = (input: Json | undefined, from: unknown, to: unknown): Json =>
		JSON.parse(JSON.stringify(input).replaceAll(String(from), String(to))) as Json;
	const exec = (input: Json | undefined): Case[2] => ({
		container_id: idOf(input),
		exec_id: "e",
		string_user: null,
		process: { ...plain?.OCI.Process, Args: ["ls"] },
	});
	t.ok(web?.OCI.Mounts.filter(placed).length === 2 && shared !== fast, "the recorded pod has two emptyDirs");
	await judge(
		t,
		[
			["a container", "CreateContainerRequest", web],
			["another", "CreateContainerRequest", plain],
			["a command where it is allowed", "ExecProcessRequest", exec(plain)],
			["the command in the other container", "ExecProcessRequest", exec(web), "container_id"],
			["a container under another's id", "CreateContainerRequest", as(plain, idOf(plain), idOf(web)), "container_id"],
			["the command in the other container, once more", "ExecProcessRequest", exec(web), "container_id"],
			["a container again", "CreateContainerRequest", web],
			["an emptyDir that they share", "CreateContainerRequest", recordedContainer("2-snp", "prepare")],
			[
				"an emptyDir that is another of the pod's",
				"CreateContainerRequest",
				as(recordedContainer("2-snp", "prepare"), shared, fast),
				"OCI.Mounts[",
			],
			["an emptyDir at a second place", "CreateContainerRequest", as(recordedContainer("2-snp", "prepare"), shared, MOUNT), "OCI.Mounts["],
		],
		{ exec: [{ container: "plain", any: false, args: ["ls"] }] },
	);
});
