import Long from "long";
import t from "tap";
import { grpc } from "../../proto/gen/agent.js";
import type { GuestSource } from "../../shim/agent/guest-spec.ts";
import { guestProcess, guestSpec, hostBindMounts, refuseHostNamespaces, sharesPidNamespace } from "../../shim/agent/guest-spec.ts";
import { parseSpec, specSchema } from "../../shim/agent/oci-spec.ts";
import type { OciSpec } from "../../shim/agent/oci-spec.ts";
import { failing } from "../base/failing.ts";

const NAMESPACES = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map((type) => ({ type }));

function spec(changes: Record<string, unknown> = {}, linux: Record<string, unknown> = {}): OciSpec {
	const base = {
		ociVersion: "1.1.0",
		process: { args: ["sh"], cwd: "/" },
		root: { path: "rootfs" },
		linux: { namespaces: NAMESPACES, ...linux },
		...changes,
	};
	return parseSpec(specSchema, base, "a test");
}

const context = { containerId: "c1", podPid: 7, sandbox: false, seccomp: true, limits: true, guestSources: new Map<string, GuestSource>() };

t.test("guestProcess carries user, capabilities, limits and environment, and survives the wire", (t) => {
	const process = spec({
		process: {
			args: ["a", "b"],
			cwd: "/w",
			env: ["A=1"],
			terminal: true,
			consoleSize: { height: 24, width: 80 },
			user: { uid: 1000, gid: 100, additionalGids: [5] },
			capabilities: { bounding: ["CAP_CHOWN"], effective: null },
			rlimits: [{ type: "RLIMIT_NOFILE", hard: 1024, soft: 512 }],
			noNewPrivileges: true,
			oomScoreAdj: -5,
			selinuxLabel: "x",
			apparmorProfile: "y",
		},
	}).process;
	const back = grpc.Process.decode(grpc.Process.encode(guestProcess(process)).finish());
	t.same(back.Args, ["a", "b"]);
	t.equal(back.User?.UID, 1000);
	t.same(back.User?.AdditionalGids, [5]);
	t.same(back.Capabilities?.Bounding, ["CAP_CHOWN"]);
	t.equal(Long.fromValue(back.Rlimits?.[0]?.Hard ?? 0).toNumber(), 1024);
	t.equal(back.NoNewPrivileges, true);
	t.equal(Long.fromValue(back.OOMScoreAdj).toNumber(), -5);
	t.equal(back.ConsoleSize?.Width, 80);
	t.equal(back.SelinuxLabel, "", "labels belong to the host");
	t.equal(back.ApparmorProfile, "");
	t.end();
});

t.test("guestSpec keeps the VM's own namespaces out and clears paths", (t) => {
	const namespaces = [...NAMESPACES.filter(({ type }) => type !== "ipc"), { type: "ipc", path: "/proc/7/ns/ipc" }];
	const guest = guestSpec(spec({}, { namespaces }), context);
	t.same(
		guest.Linux?.Namespaces?.map((namespace) => [namespace.Type, namespace.Path]),
		[
			["uts", ""],
			["mount", ""],
			["ipc", ""],
		],
	);
	t.end();
});

for (const [type, words] of [
	["network", "host network"],
	["pid", "host PID"],
	["ipc", "host IPC"],
] as const) {
	t.test(`guestSpec refuses the host's ${type} namespace by name`, (t) => {
		const namespaces = NAMESPACES.filter((namespace) => namespace.type !== type);
		t.throws(() => guestSpec(spec({}, { namespaces }), context), failing({ reason: "spec.unsupported", message: new RegExp(words) }));
		t.end();
	});
}

t.test("guestSpec passes devices that every kernel has, and refuses the host's by name", (t) => {
	const devices = [
		{ path: "/dev/spare", type: "c", major: 1, minor: 5, fileMode: 0o600, uid: 7 },
		{ path: "/dev/fuse", type: "c", major: 10, minor: 229 },
	];
	t.match(guestSpec(spec({}, { devices }), context).Linux?.Devices, [
		{ Path: "/dev/spare", Type: "c", Major: 1, Minor: 5, FileMode: 0o600, UID: 7 },
		{ Path: "/dev/fuse", Major: 10, Minor: 229, FileMode: 0o666 },
	]);
	for (const device of [
		{ path: "/dev/sda", type: "b", major: 8, minor: 0 },
		{ path: "/dev/mem", type: "c", major: 1, minor: 1 },
	]) {
		const failure = failing({ reason: "spec.unsupported", message: new RegExp(`device ${device.path} `) });
		t.throws(() => guestSpec(spec({}, { devices: [device] }), context), failure);
	}
	t.end();
});

t.test("guestSpec passes a block device that was plugged into the VM", (t) => {
	const device = { path: "/dev/xvda", type: "b", major: 8, minor: 0, fileMode: 0o660, gid: 6 };
	const rules = [{ allow: true, type: "b", major: 8, minor: 0, access: "rw" }];
	const guest = guestSpec(spec({}, { devices: [device], resources: { devices: rules } }), { ...context, disks: new Set(["/dev/xvda"]) });
	t.match(guest.Linux?.Devices, [{ Path: "/dev/xvda", Type: "b", Major: 8, Minor: 0, FileMode: 0o660, GID: 6 }]);
	t.end();
});

t.test("guestSpec leaves the host's devices out for a privileged container, which gets a list of all", (t) => {
	const devices = [
		{ path: "/dev/sda", type: "b", major: 8, minor: 0 },
		{ path: "/dev/null", type: "c", major: 1, minor: 3 },
	];
	const guest = guestSpec(spec({}, { devices, resources: { devices: [{ allow: true, access: "rwm" }] } }), context);
	t.match(guest.Linux?.Devices, [{ Path: "/dev/null" }]);
	t.equal(guest.Linux?.Devices?.length, 1);
	t.end();
});

t.test("guestSpec gives the pod's kernel parameters, the container's own first", (t) => {
	const podSysctls = { "kernel.a": "pod", "kernel.b": "pod" };
	t.strictSame(guestSpec(spec({}, { sysctl: { "kernel.b": "own" } }), { ...context, podSysctls }).Linux?.Sysctl, {
		"kernel.a": "pod",
		"kernel.b": "own",
	});
	t.end();
});

t.test("guestSpec refuses namespaces that are none of the pod's, by path", (t) => {
	for (const [type, file] of [
		["pid", "pid"],
		["ipc", "ipc"],
		["mount", "mnt"],
	]) {
		const namespaces = [...NAMESPACES.filter((namespace) => namespace.type !== type), { type, path: `/proc/1/ns/${file}` }];
		const failure = failing({ reason: "spec.unsupported", message: new RegExp(`join the ${type} namespace /proc/1/ns/${file}`) });
		t.throws(() => guestSpec(spec({}, { namespaces }), context), failure);
	}
	t.end();
});

t.test("refuseHostNamespaces says whose wish it is", (t) => {
	const refused = (asker?: "pod") => () =>
		refuseHostNamespaces(spec({}, { namespaces: NAMESPACES.filter(({ type }) => type !== "pid") }), 0, asker);
	t.throws(refused("pod"), failing({ reason: "spec.unsupported", message: /^the pod asks for the host PID namespace/ }));
	t.throws(refused(), failing({ reason: "spec.unsupported", message: /^the container asks for the host PID namespace/ }));
	t.end();
});

t.test("sharesPidNamespace: a named PID namespace is the pod's", (t) => {
	t.notOk(sharesPidNamespace(spec({}, { namespaces: NAMESPACES })));
	t.ok(sharesPidNamespace(spec({}, { namespaces: [{ type: "pid", path: "/proc/7/ns/pid" }] })));
	t.end();
});

t.test("guestSpec refuses a user namespace", (t) => {
	const namespaces = [...NAMESPACES, { type: "user" }];
	t.throws(() => guestSpec(spec({}, { namespaces }), context), failing({ reason: "spec.unsupported", message: /user namespace/ }));
	t.end();
});

t.test("guestSpec gives /dev/shm of the pod, takes brought-in sources, and refuses others by their destination", (t) => {
	const bind = (destination: string) => ({ destination, type: "bind", source: "/host/x", options: ["rbind", "ro"] });
	const mounts = [bind("/dev/shm"), bind("/etc/hosts"), { destination: "/proc", type: "proc", source: "proc" }];
	const whole = spec({ mounts });
	t.same(
		hostBindMounts(whole).map((mount) => mount.destination),
		["/etc/hosts"],
	);
	const guest = guestSpec(whole, { ...context, guestSources: new Map([["/etc/hosts", { path: "/run/x/hosts" }]]) });
	t.equal(guest.Mounts?.[0]?.source, "/run/kata-containers/sandbox/shm");
	t.equal(guest.Mounts?.[1]?.source, "/run/x/hosts");
	t.equal(guest.Mounts?.[2]?.type, "proc");
	t.throws(() => guestSpec(whole, context), failing({ reason: "spec.unsupported", message: /mount \/etc\/hosts/ }));
	t.end();
});

t.test("guestSpec passes seccomp only to an agent that takes it, with errno and arguments", (t) => {
	const seccomp = {
		defaultAction: "SCMP_ACT_ERRNO",
		architectures: ["SCMP_ARCH_X86_64"],
		syscalls: [
			{ names: ["clone"], action: "SCMP_ACT_ALLOW", errnoRet: 38, args: [{ index: 0, value: 2114060288, op: "SCMP_CMP_MASKED_EQ" }] },
		],
	};
	const guest = guestSpec(spec({}, { seccomp }), context);
	t.equal(guest.Linux?.Seccomp?.Syscalls?.[0]?.errnoret, 38);
	t.equal(Long.fromValue(guest.Linux?.Seccomp?.Syscalls?.[0]?.Args?.[0]?.Value ?? 0).toNumber(), 2114060288);
	t.equal(guestSpec(spec({}, { seccomp }), { ...context, seccomp: false }).Linux?.Seccomp, undefined);
	t.end();
});

t.test("guestSpec hands over the rules of devices: they tell a privileged container from one with a capability", (t) => {
	const rules = [
		{ allow: false, access: "rwm" },
		{ allow: true, type: "c", major: 10, access: "rw" },
	];
	const guest = guestSpec(spec({}, { resources: { devices: rules } }), context);
	t.strictSame(guest.Linux?.Resources?.Devices, [
		{ Allow: false, Type: "a", Major: -1, Minor: -1, Access: "rwm" },
		{ Allow: true, Type: "c", Major: 10, Minor: -1, Access: "rw" },
	]);
	t.end();
});
