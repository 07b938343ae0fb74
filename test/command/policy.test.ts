/** `snpctl policy` with an image in an OCI layout. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { parseAllDocuments } from "yaml";
import { decodeInitdata, INITDATA_ANNOTATION } from "../../shim/policy/initdata.ts";
import { buildImage } from "../support/image.ts";
import { repositoryDir } from "../support/paths.ts";
import { recorded } from "../support/policy.ts";

type Answer = { readonly status: number | null; readonly stdout: string; readonly stderr: string };

const folder = mkdtempSync(join(tmpdir(), "snp-"));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const config = join(folder, "config.toml");
writeFileSync(config, `[storage]\ncache_dir = ${JSON.stringify(join(folder, "cache"))}\n`);
const layout = join(folder, "layout");

function snpctl(...words: readonly string[]): Answer {
	const env = { ...process.env, CONTAINERD_SHIM_SNP_CONFIG: config };
	return spawnSync(
		process.execPath,
		[`--import=${import.meta.resolve("tsx")}`, join(repositoryDir, "shim/command/snpctl.ts"), "policy", ...words],
		{
			encoding: "utf8",
			env,
			cwd: folder,
			maxBuffer: 64 * 1024 * 1024,
		},
	);
}

const write = (name: string, text: string): string => {
	writeFileSync(join(folder, name), text);
	return name;
};

const POD = `# The shop's web server.
apiVersion: v1
kind: Pod
metadata:
  name: web # short
spec:
  containers:
    - name: web
      image: example.org/web:1
      args: [--port=80]
`;

t.before(async () => {
	const members = [
		{ kind: "file", path: "etc/passwd", data: Buffer.from("root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n") } as const,
		{ kind: "file", path: "bin/web", data: Buffer.alloc(5000, 1) } as const,
	];
	const image = await buildImage(folder, {
		name: "example.org/web:1",
		members,
		entrypoint: ["/bin/web"],
		command: [],
		user: "web",
		compression: "zstd",
	});
	mkdirSync(layout);
	execFileSync("tar", ["-xf", image.file, "-C", layout]);
});

t.test("a policy is made, tried, and explains itself", async (t) => {
	const pod = write("pod.yaml", POD);
	const made = snpctl("generate", "--image", layout, pod);
	t.match(made, { status: 0, stderr: "" });
	t.match(made.stdout, /^# The fixed rules[^]*package agent_policy[^]*"args": \[\s*"\/bin\/web",\s*"--port=80"/u);
	t.match(made.stdout, /"uid": 33,\s*"gid": 33/u);
	const policy = write("policy.rego", made.stdout);
	t.match(snpctl("check", "--policy", policy, "--image", layout, pod), { status: 0, stdout: /^(\d+) of \1 requests are allowed\n$/u });

	const other = write("other.yaml", POD.replace("--port=80", "--port=81"));
	t.match(snpctl("check", "--policy", policy, "--image", layout, other), {
		status: 1,
		stdout: /container web: CreateContainerRequest: denied[^]*OCI\.Process\.Args\[1\][^]*"--port=80"[^]*"--port=81"/u,
	});
	const json = JSON.parse(snpctl("check", "--json", "--policy", policy, "--image", layout, other).stdout) as {
		allowed: boolean;
		decisions: { container: string }[];
	};
	t.match(json, { allowed: false });
	t.ok(json.decisions.some(({ container }) => container === "web"));

	const exec = JSON.stringify({ name: "ExecProcessRequest", input: { process: { Args: ["sh"] } } });
	t.match(snpctl("explain", "--policy", policy, "--request", write("request.json", exec)), {
		status: 0,
		stdout: /--allow-exec '\["sh"\]'/u,
	});
	t.match(snpctl("explain", 'the pod\'s policy denies ExecProcessRequest: process.Args: expected "none", got ["id"]'), {
		stdout: /--allow-exec '\["id"\]'/u,
	});
	t.match(snpctl("explain", "nothing of the kind"), { status: 1, stderr: /tells of no denial/u });
	const open = snpctl("generate", "--image", layout, "--allow-exec", "sh", "--allow-logs", "--allow-port", "80", pod).stdout;
	t.match(snpctl("explain", "--policy", write("open.rego", open), "--request", "request.json"), {
		stdout: /CreateContainer|process|denied/u,
	});
});

t.test("initdata and YAML carry the policy, and the digest is told", async (t) => {
	const pod = write("pod.yaml", POD);
	const packed = snpctl("generate", "--initdata", "--data", `aa.toml=${write("aa.toml", "x = 1\n")}`, "--image", layout, pod);
	const initdata = decodeInitdata(packed.stdout.trim());
	t.match(packed.stderr, new RegExp(`Pod web: HOST_DATA ${initdata.hostData}\n`, "u"));
	t.match(initdata.data, { "aa.toml": "x = 1\n", "policy.rego": /package agent_policy/u });
	const annotated = snpctl("generate", "--annotate", "--algorithm", "sha384", "--image", `example.org/web:1=${layout}`, pod);
	t.match(annotated.stdout, /^# The shop's web server\.[^]*name: web # short/u);
	const value: unknown = parseAllDocuments(annotated.stdout)[0]?.getIn(["metadata", "annotations", INITDATA_ANNOTATION]);
	t.equal(decodeInitdata(String(value)).algorithm, "sha384");
	for (const file of [write("packed.txt", packed.stdout), write("annotated.yaml", annotated.stdout)])
		t.match(snpctl("check", "--policy", file, "--image", layout, pod), { status: 0 }, file);
	const [shown] = JSON.parse(snpctl("generate", "--json", "--image", layout, pod).stdout) as { hostData: string; initdata: string }[];
	t.equal(decodeInitdata(shown?.initdata ?? "").hostData, shown?.hostData);
});

t.test("recorded requests are tried", async (t) => {
	const { stdout } = snpctl("generate", "--image", layout, write("pod.yaml", POD));
	const lines = recorded("1.6-snp").map((request) => JSON.stringify(request));
	const tried = snpctl("check", "--policy", write("policy.rego", stdout), "--requests", write("requests.jsonl", `${lines.join("\n")}\n`));
	t.match(tried, { status: 1, stdout: /CreateContainerRequest: denied[^]* of 43 requests are allowed/u });
});

t.test("wrong input is told with what to do", async (t) => {
	const pod = write("pod.yaml", POD);
	const policy = write("broken.rego", "package agent_policy\nimport rego.v1\nX if {\n");
	const wrong: [string[], RegExp][] = [
		[[], /unknown command: policy/u],
		[["generate"], /no YAML is named/u],
		[["generate", "none.yaml"], /none\.yaml does not exist/u],
		[["generate", write("map.yaml", "kind: ConfigMap\nmetadata: {name: m}\n")], /no pod, and nothing that makes pods/u],
		[["generate", write("bad.yaml", "kind: [\n")], /bad\.yaml:\d+:\d+/u],
		[["generate", "--pod", "Pod/other", pod], /there is no Pod\/other, but Pod\/web/u],
		[["generate", "--image", join(folder, "nowhere"), pod], /nowhere: the folder does not exist/u],
		[["generate", "--address", join(folder, "no.sock"), pod], /the image example\.org\/web:1 can't be had from containerd at .*no\.sock/u],
		[["generate", "--allow-port", "x", pod], /--allow-port x: is no port/u],
		[["generate", "--allow-exec", "[1]", pod], /no JSON list of texts/u],
		[["generate", "--algorithm", "md5", pod], /md5: is none of/u],
		[["generate", "--image", layout, "--allow-exec", "other:ls", pod], /has no container other/u],
		[["generate", "--what", pod], /--what/u],
		[["check", "--image", layout, pod], /no policy is named/u],
		[["check", "--policy", policy, "--image", layout, pod], /broken\.rego:\d+:\d+: /u],
		[["check", "--policy", write("text.txt", "no policy!\n"), "--image", layout, pod], /neither Rego nor/u],
		[["check", "--policy", policy, "--requests", write("no.jsonl", "{}\n")], /request 1 is no JSON of the form/u],
		[["explain"], /nothing to explain/u],
	];
	for (const [words, text] of wrong) t.match(snpctl(...words), { status: 1, stderr: text }, words.join(" "));
	t.match(snpctl("--help"), { status: 0, stdout: /usage: snpctl policy generate/u });
});

t.test("a pod of several documents and kinds needs a choice", async (t) => {
	const two = write("two.yaml", `${POD}---\n${POD.replace("name: web #", "name: second #")}`);
	t.match(snpctl("generate", "--image", layout, two), { status: 1, stderr: /there are 2 pods: Pod\/web, Pod\/second/u });
	t.match(snpctl("generate", "--pod", "pod/second", "--image", layout, two), { status: 0, stdout: /package agent_policy/u });
	const both = parseAllDocuments(snpctl("generate", "--annotate", "--image", layout, two).stdout);
	t.equal(both.length, 2);
	for (const one of both) t.ok(one.hasIn(["metadata", "annotations", INITDATA_ANNOTATION]));
	t.match(readFileSync(join(folder, two), "utf8"), /^(?!.*cc_init_data)/su, "the file itself stays");
});
