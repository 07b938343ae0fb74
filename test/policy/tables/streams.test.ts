/** Files, streams, ports and commands: one decision for each line, with the field that a denial must name. */
import t from "tap";
import type { AllowData } from "../../../shim/policy/policy-data.ts";
import { type Json, recordedContainer } from "../../support/policy.ts";
import { CID, FILE, judge, MOUNT, push, set, VOLUME } from "../../support/policy-tables.ts";

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
