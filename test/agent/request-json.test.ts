import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { containerRequest, copyRequest, requestJson, ruleOf, sandboxRequest, type MessageCodec } from "../../shim/agent/request-json.ts";
import { grpc, snp } from "../../proto/gen/agent.js";
import { repositoryDir } from "../support/paths.ts";

t.test("every field of a request is there, under the protocol's name", async (t) => {
	t.strictSame(
		requestJson("ExecProcess", grpc.ExecProcessRequest, { container_id: "c", process: { Args: ["a"], Rlimits: [{ Type: "x", Hard: 5 }] } }),
		{
			name: "ExecProcessRequest",
			input: {
				container_id: "c",
				exec_id: "",
				string_user: null,
				process: {
					Terminal: false,
					ConsoleSize: null,
					User: null,
					Args: ["a"],
					Env: [],
					Cwd: "",
					Capabilities: null,
					Rlimits: [{ Type: "x", Hard: 5, Soft: 0 }],
					NoNewPrivileges: false,
					ApparmorProfile: "",
					OOMScoreAdj: 0,
					SelinuxLabel: "",
				},
				stdin_port: 0,
				stdout_port: 0,
				stderr_port: 0,
			},
		},
	);
	t.match(sandboxRequest({ hostname: "h" }), {
		name: "CreateSandboxRequest",
		input: { hostname: "h", storages: [], kernel_modules: [], guest_hook_path: "" },
	});
	t.match(containerRequest({ OCI: { Annotations: { a: "b" }, Linux: {} } }), {
		input: { OCI: { Annotations: { a: "b" }, Mounts: [], Linux: { Sysctl: {}, Seccomp: null, Resources: null } }, devices: [] },
	});
});

t.test("what is in files and streams is left out", async (t) => {
	t.match(requestJson("WriteStdin", grpc.WriteStreamRequest, { container_id: "c", data: Buffer.from([1, 255]) }), {
		name: "WriteStreamRequest",
		input: { container_id: "c", data: [] },
	});
	t.match(requestJson("ReseedRandomDev", grpc.ReseedRandomDevRequest, { data: Buffer.from([1, 255]) }), { input: { data: [1, 255] } });
	t.match(copyRequest("/x"), { name: "CopyFileRequest", input: { path: "/x", data: [] } });
	const changes = [
		{ path: Buffer.from("a"), file: { data: Buffer.from("secret"), last: true } },
		{ path: Buffer.from("..data"), link: { target: Buffer.from("..1") } },
		{ path: Buffer.from("b"), rename: Buffer.from("a") },
		{ path: Buffer.from("b"), hard_link: Buffer.from("c") },
		{ path: Buffer.alloc(0), remove: {} },
		{ path: Buffer.from("d"), folder: {} },
	];
	t.strictSame(requestJson("Change", snp.v1.ChangeRequest, { volume: "/v", changes }), {
		name: "ChangeRequest",
		input: {
			volume: "/v",
			changes: [
				{ path: "a", what: "file", target: null },
				{ path: "..data", what: "link", target: "..1" },
				{ path: "b", what: "rename", target: "a" },
				{ path: "b", what: "hard_link", target: "c" },
				{ path: "", what: "remove", target: null },
				{ path: "d", what: "folder", target: null },
			],
		},
	});
});

t.test("rules are named after messages", async (t) => {
	t.equal(ruleOf("CreateContainer"), "CreateContainerRequest");
	t.equal(ruleOf("ReadStderr"), "ReadStreamRequest");
	t.equal(ruleOf("GetGuestDetails"), "GuestDetailsRequest");
});

/** What the guest's own test compares with as well (`guest/agent/src/confidential/requests_tests.rs`). */
interface SharedCase {
	readonly service: string;
	readonly method: string;
	readonly payload: string;
	readonly rule: string;
	readonly input: unknown;
}

t.test("the host sees requests as the guest does", async (t) => {
	const cases = JSON.parse(readFileSync(join(repositoryDir, "proto/agent/policy-inputs.json"), "utf8")) as SharedCase[];
	t.ok(cases.length > 0);
	for (const { service, method, payload, rule, input } of cases) {
		const messages: Record<string, unknown> = service === "grpc.AgentService" ? grpc : snp.v1;
		const codec = messages[rule] as MessageCodec<object>;
		t.strictSame(requestJson(method, codec, codec.decode(Buffer.from(payload, "hex"))), { name: rule, input }, method);
	}
});
