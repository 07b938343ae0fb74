/** From YAML to a policy's data: what is known, what only the run tells, and what is named. */
import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { ALLOW_NOTHING, generatePolicy } from "../../shim/policy/generate.ts";
import { readManifests } from "../../shim/policy/manifest.ts";
import type { ContainerData } from "../../shim/policy/policy-data.ts";
import { BUSYBOX } from "../support/policy.ts";

const POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n}\n";

function generated(text: string, { pinSecrets = false, image = BUSYBOX } = {}) {
	const manifest = readManifests([{ name: "x.yaml", text }]);
	const [pod] = manifest.pods;
	if (pod === undefined) throw new Error("no pod");
	return generatePolicy(pod, { manifest, images: new Map([["i", image]]), allow: ALLOW_NOTHING, pinSecrets });
}

function container(spec: string, more = "", options = {}): ContainerData {
	const [first] = generated(`${POD}spec:\n  containers:\n    - {name: c, image: i, ${spec}}\n${more}`, options).data.containers;
	if (first === undefined) throw new Error("no container");
	return first;
}

t.test("commands and variables are expanded as Kubernetes does", async (t) => {
	const env =
		'[{name: A, value: a}, {name: B, value: "$(A)b"}, {name: C, value: "$$(A) $(D) $(A"}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: D, value: "$(IP):80"}]';
	const { process } = container(`command: ["$(B)", "$(NONE)", "$$(B)"], args: ["ip=$(IP)", "$(KUBERNETES_SERVICE_HOST)"], env: ${env}`);
	t.equal(process.env["B"], "ab");
	t.equal(process.env["C"], "$(A) $(D) $(A", "later ones are not known yet");
	t.match(process.env["D"], { pattern: /^\^.*:80\)\$$/u });
	t.strictSame(process.args.slice(0, 3), ["ab", "$(NONE)", "$(B)"]);
	t.match(process.args[3], { pattern: /^\^\(\?:ip=/u });
	t.ok(typeof process.args[4] === "object", "services are known only at run time");
});

t.test("what the node may choose of a command is no more than it must be, or said", async (t) => {
	const env = "[{name: TOKEN, valueFrom: {secretKeyRef: {name: s, key: k}}}]";
	const text = (args: string): string => `${POD}spec:\n  containers:\n    - {name: c, image: i, args: ${args}, env: ${env}}\n`;
	const { notes, data } = generated(
		text('["$(KUBERNETES_SERVICE_HOST)", "$(KUBERNETES_SERVICE_PORT)", "$(DB_PORT)", "$(DB_PORT_53_UDP_PROTO)"]'),
	);
	t.same(notes, []);
	const tried = ["192.0.2.1", "80", "tcp://192.0.2.1:80", "udp", ";reboot", "$(reboot)", ""];
	const fitting = data.containers[0]?.process.args.map((arg) =>
		tried.filter((value) => typeof arg === "object" && new RegExp(arg.pattern, "u").test(value)),
	);
	// One variable may be of several services: SERVICE_PORT is the port of one, and the address of one that is called SERVICE.
	t.same(fitting, [["192.0.2.1", "80"], ["80", "tcp://192.0.2.1:80"], ["tcp://192.0.2.1:80"], ["udp"]]);
	t.match(generated(text('["login $(TOKEN)"]')).notes, [
		{ where: /container c: "login \$\(TOKEN\)"/u, text: /any command where a shell reads it/u },
	]);
});

t.test("special characters stand for themselves in patterns", async (t) => {
	const { process } = container(
		'args: ["a.b*c[$(IP)]+(x|y)\\\\ {1}"], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]',
	);
	const [arg] = process.args;
	if (typeof arg !== "object") throw new Error("no pattern");
	const pattern = new RegExp(arg.pattern, "u");
	t.match("a.b*c[10.0.0.1]+(x|y)\\ {1}", pattern);
	t.notMatch("aXb*c[10.0.0.1]+(x|y)\\ {1}", pattern);
	t.notMatch("a.b*c[10.0.0.1]+x\\ {1}", pattern);
});

t.test("the command is the pod's, else the image's", async (t) => {
	const image = { ...BUSYBOX, entrypoint: ["/e"], command: ["c"] };
	t.strictSame(container("", "", { image }).process.args, ["/e", "c"]);
	t.strictSame(container("args: [x]", "", { image }).process.args, ["/e", "x"]);
	t.strictSame(container("command: [k]", "", { image }).process.args, ["k"]);
	t.strictSame(container("command: [k], args: [x]", "", { image }).process.args, ["k", "x"]);
});

t.test("configuration that is given is written into the policy, secrets only when asked", async (t) => {
	const refs =
		"env: [{name: M, valueFrom: {configMapKeyRef: {name: m, key: k}}}, {name: S, valueFrom: {secretKeyRef: {name: s, key: k}}}], envFrom: [{prefix: P_, configMapRef: {name: m}}]";
	const docs = "---\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: v}\n---\nkind: Secret\nmetadata: {name: s}\ndata: {k: dw==}\n";
	const open = container(refs, docs).process.env;
	t.match(open, { M: "v", P_k: "v", S: { pattern: "^(?:(?:(?s:.*)))$" } });
	t.equal(container(refs, docs, { pinSecrets: true }).process.env["S"], "w");
	const alone = generated(
		`${POD}spec:\n  containers:\n    - {name: c, image: i, env: [{name: M, valueFrom: {configMapKeyRef: {name: m, key: k}}}]}\n`,
	);
	t.match(alone.notes, [{ where: /env M/u, text: /ConfigMap m is not given/u }]);
	t.throws(() => container("envFrom: [{secretRef: {name: s}}]"), /the Secret s is not given/u);
	t.same(container("envFrom: [{secretRef: {name: s, optional: true}}]").process.env["k"], undefined);
	t.throws(() => container("env: [{name: M, valueFrom: {configMapKeyRef: {name: m, key: none}}}]", docs), /ConfigMap m has no key none/u);
});

t.test("users are found as containerd finds them", async (t) => {
	const user = (spec: string, own: string) => container(spec, "", { image: { ...BUSYBOX, user: own } }).process.user;
	t.match(user("", ""), { uid: 0, gid: 0, groups: [] });
	t.match(user("", "guest"), { uid: 1000, gid: 1001, groups: [1002], optional_groups: [1001] });
	t.match(user("", "1000"), { uid: 1000, gid: 1001, groups: [1002] });
	t.match(user("", "guest:extra"), { uid: 1000, gid: 1002 });
	t.match(user("", "4711:12"), { uid: 4711, gid: 12, groups: [] });
	t.match(user("securityContext: {runAsUser: 5}", "guest"), { uid: 5, gid: 0 });
	t.match(user("securityContext: {runAsUser: 1000, runAsGroup: 7}", ""), { uid: 1000, gid: 7, groups: [1002] });
	t.throws(() => user("", "nobody-knows"), /user nobody-knows is in no account file/u);
	t.throws(() => user("", "guest:nobody-knows"), /group nobody-knows is in no account file/u);
});

t.test("what a VM can't have, and what is not followed, is named", async (t) => {
	const spec = (text: string) => `${POD}spec:\n  containers: [{name: c, image: i}]\n  ${text}\n`;
	t.throws(
		() => generated(spec("hostNetwork: true\n  hostPID: true")),
		/Pod p has what a pod in a VM can't have: spec.hostNetwork; spec.hostPID/u,
	);
	t.throws(
		() => generated(spec("volumes: [{name: v, nfs: {server: s, path: /}}, {name: w, image: {reference: r}}]")),
		/volume v \(nfs\); volume w \(image\)/u,
	);
	t.throws(() => generated(spec("ephemeralContainers: [{name: e}]")), /spec.ephemeralContainers/u);
	t.match(generated(spec("newField: 1")).notes, [{ where: "x.yaml: Pod p: spec.newField", text: /not known/u }]);
	t.match(generated(`${POD}spec:\n  containers: [{name: c, image: i, livenessProbe: {exec: {command: [a, b]}}}]\n`).notes, [
		{ where: /container c.livenessProbe.exec/u, text: /--allow-exec '\["a","b"\]'/u },
	]);
	t.throws(() => container("volumeMounts: [{name: v, mountPath: /v}]"), /mounts the volume v, which the pod does not have/u);
	t.throws(() => container("securityContext: {capabilities: {add: [ALL]}}"), /ALL means those of the node's kernel/u);
});

t.test("wrong YAML is told with its place", async (t) => {
	const whole = t.throws(() => readManifests([{ name: "x.yaml", text: "a".repeat(9000) }]), /document 1: .*Object/u);
	t.ok(whole instanceof ShimError && whole.message.length < 300, "a file that is something else is not repeated whole");
	const bad: [string, RegExp][] = [
		["a: [1", /x\.yaml:1:6/u],
		["kind: Pod\n  b: c\n", /x\.yaml:1:7/u],
		["- 1\n", /document 1/u],
		["just text", /document 1/u],
		[`${POD}spec: {containers: []}\n`, /Pod p: spec: containers: has no container/u],
		[`${POD}spec: {containers: [{name: c}]}\n`, /image/u],
		[`${POD}spec: {containers: [{name: c, image: i, env: [{name: A, value: 3}]}]}\n`, /containers\.0\.env\.0\.value: is not a text/u],
		[`${POD}spec: {containers: [{name: c, image: i, securityContext: {runAsUser: -1}}]}\n`, /runAsUser/u],
		["kind: Deployment\nmetadata: {name: d}\n", /Deployment d: spec\.template/u],
		[
			`a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [${"*a, ".repeat(9)}*a]\nc: &c [${"*b, ".repeat(9)}*b]\nkind: [${"*c, ".repeat(9)}*c]\n`,
			/alias/iu,
		],
	];
	for (const [text, words] of bad) {
		const error = t.throws(() => readManifests([{ name: "x.yaml", text }]), words, text.slice(0, 40));
		t.ok(error instanceof ShimError && error.reason === "policy.input");
	}
	t.throws(() => generated("kind: ConfigMap\nmetadata: {name: m}\n"), /no pod/u);
});

t.test("names of pods that a controller makes are patterns", async (t) => {
	const of = (kind: string, name: string) =>
		generated(`kind: ${kind}\nmetadata: {name: ${name}}\nspec: {template: {spec: {containers: [{name: c, image: i}]}}}\n`).data.pod
			.hostname;
	const matches = (expected: unknown, text: string): boolean => new RegExp((expected as { pattern: string }).pattern, "u").test(text);
	t.ok(matches(of("Deployment", "web"), "web-5d5f8c7b9d-x2x4z"));
	t.notOk(matches(of("Deployment", "web"), "other-5d5f8c7b9d-x2x4z"));
	t.ok(matches(of("StatefulSet", "db"), "db-0"));
	t.notOk(matches(of("StatefulSet", "db"), "db-x"));
	t.ok(matches(of("DaemonSet", "agent"), "agent-abcde"));
	t.equal(generated(`${POD}spec: {hostname: h, containers: [{name: c, image: i}]}\n`).data.pod.hostname, "h");
});
