/** Containers and their processes: one decision for each line, with the field that a denial must name. */
import t from "tap";
import { type Json, recordedContainer } from "../../support/policy.ts";
import { type Case, create, judge, MOUNT, placeOf, push, set } from "../../support/policy-tables.ts";

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
