import t from "tap";
import { containerRequest, copyRequest, requestJson, ruleOf, sandboxRequest } from "../../shim/agent/request-json.ts";
import { grpc, snp } from "../../proto/gen/agent.js";

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

t.test("bytes are numbers, and left out where they are what is copied", async (t) => {
	t.match(requestJson("WriteStdin", grpc.WriteStreamRequest, { data: Buffer.from([1, 255]) }), {
		name: "WriteStreamRequest",
		input: { data: [1, 255] },
	});
	t.match(copyRequest("/x"), { name: "CopyFileRequest", input: { path: "/x", data: [] } });
	const changes = [{ path: Buffer.from("a"), file: { data: Buffer.from("secret"), last: true } }];
	t.notMatch(JSON.stringify(requestJson("Change", snp.v1.ChangeRequest, { volume: "/v", changes })), /115,101/u);
});

t.test("rules are named after messages", async (t) => {
	t.equal(ruleOf("CreateContainer"), "CreateContainerRequest");
	t.equal(ruleOf("ReadStderr"), "ReadStreamRequest");
	t.equal(ruleOf("GetGuestDetails"), "GuestDetailsRequest");
});
