import t from "tap";
import { decide, type Decision } from "../../shim/policy/engine.ts";
import { adviceOn, denialRemedy, denialSentence, explanation, readDenial } from "../../shim/policy/explain.ts";
import { DECIDE_MS, recordedContainer, recordedPolicy } from "../support/policy.ts";

const CID = "482ad96f89f3dc007d1f1863c8702812ab416b8401e1cdb96417130cccb76a3b";

async function denied(name: string, input: unknown): Promise<Decision> {
	const [decision] = await decide({ name: "policy", text: recordedPolicy().text }, [{ name, input }], { timeoutMs: DECIDE_MS });
	if (decision === undefined || decision.allowed) throw new Error("not denied");
	return decision;
}

t.test("a denial names field, rule, expected, got, and what to add", async (t) => {
	const web = recordedContainer("2-snp", "web");
	web.OCI.Process.Args.splice(1, 1, "-x");
	const decision = await denied("CreateContainerRequest", web);
	t.equal(
		denialSentence("CreateContainerRequest", decision),
		`the pod's policy denies CreateContainerRequest (container web): OCI.Process.Args[1]: expected "-c", got "-x"`,
	);
	t.match(denialRemedy(decision.reasons), /policy generate.*containers\[web\]\.process\.args\[1\]: -x/u);
	t.match(
		explanation("CreateContainerRequest", decision),
		/field +OCI\.Process\.Args\[1\]\n +rule +args \(container web\)\n +expected +"-c"\n +got +"-x"\n +to allow .*\n +to add +policy_data\.containers\[web\]\.process\.args\[1\]: -x$/u,
	);
});

t.test("what was not asked for names the option", async (t) => {
	const exec = await denied("ExecProcessRequest", { container_id: CID, process: { Args: ["ls", "/"] } });
	t.match(exec.reasons.map(adviceOn), [
		{
			how: `snpctl policy generate --allow-exec '["ls","/"]'`,
			place: "allow.exec",
			line: '{"container":"","any":false,"args":["ls","/"]}',
		},
	]);
	const advice = async (name: string, input: unknown) =>
		adviceOn((await denied(name, input)).reasons[0] ?? { path: "", rule: "", container: "" });
	t.match(await advice("ReadStreamRequest", { container_id: CID }), { how: /--allow-logs/u, line: '"logs": true' });
	t.match(await advice("ForwardPortRequest", { port: 80 }), { how: /--allow-port 80/u, line: "80" });
	t.match(await advice("ReadFileRequest", { path: "/x" }), { how: /--allow-termination-message/u });
	t.match(await advice("SetPolicyRequest", {}), { how: /no policy of snpctl allows it/u, line: "" });
	const web = recordedContainer("2-snp", "web");
	web.storages.at(0).options.splice(6, 1, `X-kata.dmverity.roothash=${"0".repeat(64)}`);
	t.match(await advice("CreateContainerRequest", web), { how: /the image is another one/u, line: "0".repeat(64) });
	web.storages.at(0).options.splice(6, 1, "X-kata.dmverity.roothash=2b26d17219494acd035067806131219c89bb6ef5bc535664bd1d7b44392f3951");
	web.OCI.Process.Env.push("NEW=1");
	t.match(await advice("CreateContainerRequest", web), { place: 'containers[web].process.env["NEW"]', line: '"1"' });
});

t.test("a line of a log is read back", async (t) => {
	const web = recordedContainer("2-snp", "web");
	web.OCI.Process.Args.splice(1, 1, '-x; y: expected "a", got "b"');
	const { reasons } = await denied("CreateContainerRequest", web);
	const line = `Error: failed to create: ${denialSentence("CreateContainerRequest", { allowed: false, reasons, failure: undefined })} (${denialRemedy(reasons)}): unknown`;
	t.match(readDenial(line), {
		name: "CreateContainerRequest",
		reasons: [{ path: "OCI.Process.Args[1]", expected: "-c", rule: "args", container: "web" }],
	});
	const guests = readDenial(
		'CreateContainer in the guest: the pod\'s policy denies CreateContainerRequest: OCI.Process.Cwd: expected "/tmp", got "/"; sandbox_pidns: expected false, got true; and 3 more',
	);
	t.same(
		guests?.reasons.map(({ path, expected, got, rule }) => [path, expected, got, rule]),
		[
			["OCI.Process.Cwd", "/tmp", "/", "cwd"],
			["sandbox_pidns", false, true, "request"],
		],
	);
	t.match(readDenial('the pod\'s policy denies ReadStreamRequest: container_id: expected "none", got "c"'), {
		reasons: [{ rule: "logs" }],
	});
	t.equal(readDenial("something else failed"), undefined);
});

t.test("a policy that explains nothing is told as that", async (t) => {
	const text = "package agent_policy\nimport rego.v1\ndefault CreateContainerRequest := false\nExecProcessRequest if input.missing.x\n";
	const decisions = await decide(
		{ name: "own.rego", text },
		[
			{ name: "CreateContainerRequest", input: {} },
			{ name: "Other", input: {} },
		],
		{ timeoutMs: DECIDE_MS },
	);
	t.match(
		denialSentence("CreateContainerRequest", decisions[0] as Decision),
		/its rule CreateContainerRequest is not fulfilled, and it does not say why/u,
	);
	t.match(denialSentence("Other", decisions[1] as Decision), /no rule/u);
});

t.test("a policy with an error is told with file, line and column", async (t) => {
	const text = "package agent_policy\nimport rego.v1\nX if {\n";
	await t.rejects(decide({ name: "own.rego", text }, [], { timeoutMs: DECIDE_MS }), {
		reason: "policy.invalid",
		message: /^own\.rego:\d+:\d+: /,
	});
	await t.rejects(decide({ name: "own.rego", text: "package other\n" }, [], { timeoutMs: DECIDE_MS }), {
		reason: "policy.invalid",
		message: /agent_policy/,
	});
});
