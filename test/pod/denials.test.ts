/** A denial of a pod's policy, as the pod's event tells it: from the initdata that the guest was given, and the request. */
import t from "tap";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { agentHooks } from "../../shim/pod/denials.ts";
import { writeInitdataDisk } from "../../shim/pod/initdata-disk.ts";
import { makeInitdata } from "../../shim/policy/initdata.ts";
import { recordedContainer, recordedPolicy } from "../support/policy.ts";

const lines: string[] = [];
const log = new Log((line) => void lines.push(line));

function hooks(folder: string) {
	return agentHooks(folder, defaultConfig(), log);
}

t.test("a denial is explained from what the host has", async (t) => {
	const folder = t.testdir();
	writeInitdataDisk(folder, makeInitdata({ algorithm: "sha256", data: { "policy.rego": recordedPolicy().text } }).gzip);
	const input = recordedContainer("2.4-snp-sandbox", "web");
	input.OCI.Process.Args.splice(0, 1, "/bin/evil");
	t.match(await hooks(folder).onDenied?.({ name: "CreateContainerRequest", input }), {
		text: `the pod's policy denies CreateContainerRequest (container web): OCI.Process.Args[0]: expected "sh", got "/bin/evil"`,
		remedy: /snpctl policy generate.*containers\[web\]\.process\.args\[0\]: \/bin\/evil/u,
	});
	t.match(await hooks(folder).onDenied?.({ name: "ReadStreamRequest", input: { container_id: "c" } }), { remedy: /--allow-logs/u });
});

t.test("where the host can't tell, the guest's words stand", async (t) => {
	const request = { name: "CreateContainerRequest", input: recordedContainer("2-snp", "web") };
	t.equal(await hooks(t.testdir()).onDenied?.(request), undefined, "there is no initdata");
	const allowed = t.testdir();
	writeInitdataDisk(allowed, makeInitdata({ algorithm: "sha256", data: { "policy.rego": recordedPolicy().text } }).gzip);
	t.equal(await hooks(allowed).onDenied?.(request), undefined, "the host would allow it");
	const broken = t.testdir();
	writeInitdataDisk(broken, makeInitdata({ algorithm: "sha256", data: { "policy.rego": "package agent_policy\nX if {" } }).gzip);
	t.equal(await hooks(broken).onDenied?.(request), undefined, "the policy is none");
	t.ok(
		lines.some((line) => line.includes("policy.rego:") && line.includes("can't be explained")),
		"the log says why",
	);
	const garbage = t.testdir({ "initdata.img": "initdata and no more" });
	t.equal(await hooks(garbage).onDenied?.(request), undefined, "the initdata is none");
	t.equal(await hooks(broken).onDenied?.({ ...request, input: { OCI: "x".repeat(5_000_000) } }), undefined, "the request is too large");
});

t.test("nothing is kept of requests unless that is asked for", async (t) => {
	t.equal(hooks(t.testdir()).onRequest, undefined);
	const config = defaultConfig();
	t.type(agentHooks(t.testdir(), { ...config, debug: { ...config.debug, requests: true } }, log).onRequest, "function");
});
