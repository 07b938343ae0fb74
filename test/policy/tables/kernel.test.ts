/** What containers get of the guest's kernel: one decision for each line, with the field that a denial must name. */
import t from "tap";
import { type Json } from "../../support/policy.ts";
import { type Case, create, judge, push, set } from "../../support/policy-tables.ts";

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
