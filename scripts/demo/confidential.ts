/**
 * The third demo: a confidential pod in sample mode (INSECURE: the same code without SEV-SNP and with a published key). Its policy is made from its YAML and
 * its image, what differs from it is denied, and its evidence leads to the commit that its guest was built from.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SNP_HANDLER } from "../../test/support/cri/containerd-config.ts";
import { CriBed } from "../../test/support/cri/bed.ts";
import { buildImage, busyboxMembers } from "../../test/support/image.ts";
import { KubeletPod } from "../../test/support/kubelet-pod.ts";
import { Leftovers } from "../../test/support/leftovers.ts";
import { distBinDir, distShareDir, type ContainerdVersion } from "../../test/support/paths.ts";
import { run, type Finished } from "../../test/support/process.ts";
import { eventually } from "../../test/support/retry.ts";
import { dim, keepLogsOnFailure, say, scene, showNothingLeft, tell, textOf } from "./stage.ts";

const WAIT_MS = 90_000;
const TOOL_MS = 120_000;
const SNPCTL = join(distBinDir, "snpctl");
const IMAGE = "docker.io/library/snp-busybox:latest";
const CONTAINER = "app";
/** Where the guest answers applications (docs/confidential.md). */
const EVIDENCE = "http://127.0.0.1:8006";
const MAX_SHOWN = 420;

/** What the application does: it asks for evidence of itself, for whoever sent the nonce. */
const script = (nonce: string): string =>
	`wget -q -O - '${EVIDENCE}/aa/evidence?runtime_data=${nonce}'; echo; wget -q -O - ${EVIDENCE}/layers; echo; echo done; sleep 1000`;

const podYaml = (nonce: string): string => `apiVersion: v1
kind: Pod
metadata: {name: demo, namespace: default}
spec:
  hostname: demo
  containers:
    - name: ${CONTAINER}
      image: ${IMAGE}
      command: [sh, -c]
      args: [${JSON.stringify(script(nonce))}]
`;

/** What the scenes share. */
interface Stage {
	readonly bed: CriBed;
	/** For the owner's files: YAML, initdata, evidence. */
	readonly folder: string;
	readonly nonce: string;
}

/** Runs snpctl as the pod's owner does. */
async function snpctl({ bed }: Stage, ...args: readonly string[]): Promise<Finished> {
	const env = { ...process.env, CONTAINERD_SHIM_SNP_CONFIG: bed.containerd.configFile, NODE_OPTIONS: "" };
	return await run([SNPCTL, ...args], { env, timeoutMs: TOOL_MS });
}

function succeeded(what: string, { code, stdout, stderr }: Finished): string {
	if (code !== 0) throw new Error(`${what} ended with ${code}: ${stderr}${stdout}`);
	return stdout;
}

/** The policy of the pod as it stands in its YAML; the YAML with it in its annotation. */
async function makePolicy(stage: Stage): Promise<string> {
	const { bed, folder, nonce } = stage;
	const file = join(folder, "pod.yaml");
	writeFileSync(file, podYaml(nonce));
	const options = ["--address", bed.containerd.address, "--namespace", "k8s.io", "--cache-dir", join(folder, "cache"), "--allow-logs"];
	const generate = (...output: readonly string[]): Promise<Finished> => snpctl(stage, "policy", "generate", ...options, ...output, file);
	const policy = succeeded("snpctl policy generate", await generate());
	writeFileSync(join(folder, "initdata"), succeeded("snpctl policy generate --initdata", await generate("--initdata")));
	tell("snpctl policy generate", `${policy.split("\n").length} lines of Rego; logs are allowed, nothing else`);
	return succeeded("snpctl policy generate --annotate", await generate("--annotate"));
}

/** Starts a pod and its container. */
async function start({ bed }: Stage, yaml: string): Promise<{ readonly pod: KubeletPod; readonly container: string }> {
	const pod = new KubeletPod(bed, yaml, randomBytes(8).toString("hex"));
	try {
		await pod.start(SNP_HANDLER);
		const container = await pod.create(CONTAINER);
		await bed.client.startContainer(container);
		return { pod, container };
	} catch (error) {
		await pod.release();
		throw error;
	}
}

async function startPod(
	stage: Stage,
	yaml: string,
): Promise<{ readonly pod: KubeletPod; readonly container: string; readonly log: string }> {
	const { bed } = stage;
	const { pod, container } = await start(stage, yaml);
	const logFile = join(pod.config.log_directory ?? "", `${CONTAINER}.log`);
	const log = await eventually("the application's evidence", WAIT_MS, () => {
		const text = readFileSync(logFile, "utf8");
		return /^\S+ stdout F done$/mu.test(text) ? text : undefined;
	});
	const ps = succeeded(
		"snpctl ps",
		await run(bed.containerd.inside(SNPCTL, "--state-dir", bed.containerd.stateDir, "ps"), { timeoutMs: TOOL_MS }),
	);
	tell("snpctl ps", /sample-INSECURE/u.exec(ps)?.[0] ?? "does not say INSECURE");
	if (!ps.includes("INSECURE")) throw new Error("snpctl ps does not say that the pod is insecure");
	return { pod, container, log };
}

/** Lines of a log in CRI's form, joined. */
function textOfLog(log: string): string {
	return log
		.split("\n")
		.map((line) => /^\S+ stdout ([FP]) (.*)$/u.exec(line))
		.map((found) => (found === null ? "" : `${found[2] ?? ""}${found[1] === "F" ? "\n" : ""}`))
		.join("");
}

async function verifyEvidence(stage: Stage, log: string): Promise<void> {
	const { folder, nonce } = stage;
	const [evidence = "", layers = ""] = textOfLog(log).split("\n");
	const [evidenceFile, layersFile] = [join(folder, "evidence.json"), join(folder, "layers.json")];
	writeFileSync(evidenceFile, evidence);
	writeFileSync(layersFile, layers);
	tell("the application got", `${evidence.length} bytes of evidence for the nonce ${nonce}`);
	const commandLine = succeeded("snpctl config cmdline", await snpctl(stage, "config", "cmdline")).trim();
	const verdict = await snpctl(
		stage,
		"verify",
		evidenceFile,
		"--sample",
		...["--manifest", join(distShareDir, "guest-manifest.json"), "--initdata", join(folder, "initdata"), "--opened", layersFile],
		...["--cmdline", commandLine, "--report-data", Buffer.from(nonce).toString("hex")],
	);
	for (const line of verdict.stdout.split("\n").filter((text) => /^(?:passed|FAILED|VERIFIED|REFUSED|INSECURE| {2}\S)/u.test(text)))
		say(`  ${line.replace(folder, "").slice(0, 170)}`);
	// A guest that was built from files that are not committed is no commit's: that is what the check is for.
	const uncommitted = / {2}failed {4}source: /u.test(verdict.stdout);
	if (verdict.code !== 0 && !uncommitted) throw new Error(`snpctl verify ended with ${verdict.code}: ${verdict.stderr}`);
}

/** A call that must fail because of the policy. */
async function denied(what: string, call: () => Promise<unknown>, wanted: RegExp): Promise<void> {
	try {
		await call();
	} catch (error) {
		const text = textOf(error);
		if (!wanted.test(text)) throw new Error(`${what} fails, but not as the policy would have it: ${text}`, { cause: error });
		tell(what, "denied");
		say(dim(`  ${text.slice(0, MAX_SHOWN)}`));
		return;
	}
	throw new Error(`${what} was not denied`);
}

async function tryExec({ bed }: Stage, container: string): Promise<void> {
	await denied("a command in the container", () => bed.client.execSync(container, ["cat", "/etc/passwd"]), /policy/u);
}

/** Starts a pod that its policy must refuse. */
async function refused(stage: Stage, what: string, yaml: string, wanted: RegExp): Promise<void> {
	await denied(
		what,
		async () => {
			const { pod } = await start(stage, yaml);
			await pod.release();
		},
		wanted,
	);
}

/** YAML may break a long text where it has a space. */
function changedArgument(yaml: string): string {
	const changed = yaml.replace(/(sleep\s+)1000/u, "$1999");
	if (changed === yaml) throw new Error("the pod's YAML has no argument that could be changed");
	return changed;
}

/** Puts another image in the place of the one that the policy was made for. */
async function swapLayer(stage: Stage, yaml: string): Promise<void> {
	const { bed } = stage;
	const upper = [[{ kind: "file", path: "bin/backdoor", data: Buffer.from("#!/bin/sh\n"), mode: 0o755 } as const]];
	await bed.importImage(
		await buildImage(bed.containerd.rootDir, { name: IMAGE, members: busyboxMembers(), env: ["FROM_IMAGE=yes"], upper }),
	);
	await refused(stage, "the image with another layer", yaml, /policy denies CreateContainerRequest/u);
}

async function play(stage: Stage): Promise<void> {
	const leftovers = await Leftovers.watch(stage.bed.containerd);
	const yaml = await scene("A policy, made from the pod's YAML and its image", async () => await makePolicy(stage));
	const { pod, container, log } = await scene("The pod, in sample mode", async () => await startPod(stage, yaml));
	try {
		await scene("Its evidence, followed to policy, images and commit", async () => await verifyEvidence(stage, log));
		await scene("The node wants to run a command in it", async () => await tryExec(stage, container));
	} finally {
		await pod.release();
	}
	await scene("The same pod with one changed argument", async () => {
		await refused(stage, "another argument", changedArgument(yaml), /policy denies CreateContainerRequest.*sleep 999/su);
	});
	await scene("The same pod with a swapped layer", async () => await swapLayer(stage, yaml));
	await scene("What is left", async () => await showNothingLeft(leftovers));
}

/** Plays the demo. @throws Error that names the scene which failed, why, and where the logs are */
export async function playConfidential(version: ContainerdVersion): Promise<void> {
	const image = join(distShareDir, "initramfs-sample-insecure");
	const append = `[confidential]\nmode = "sample"\nsample_image = ${JSON.stringify(image)}\n`;
	const bed = await scene(`A private containerd ${version} with a runtime class for confidential pods`, async () => {
		return await CriBed.start({ version, config: { layers: true, append } });
	});
	const folder = mkdtempSync(join(tmpdir(), "snp-demo-owner-"));
	try {
		say(dim(`  ${bed.containerd.address}; INSECURE: sample mode is for trials`));
		const stage = { bed, folder, nonce: randomBytes(16).toString("hex") };
		await keepLogsOnFailure(bed.containerd, async () => await play(stage));
	} finally {
		await bed.stop();
		rmSync(folder, { recursive: true, force: true });
	}
}
