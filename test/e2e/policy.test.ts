/** A pod in sample mode with the policy that snpctl makes for it: it runs as it is, and whatever else is asked of its guest is denied, with the reason in its event. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { CriBed } from "../support/cri/bed.ts";
import { CriError } from "../support/cri/client.ts";
import { SNP_HANDLER, SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { targets } from "../support/fixture.ts";
import { KubeletPod } from "../support/kubelet-pod.ts";
import { Leftovers } from "../support/leftovers.ts";
import { distBinDir, distShareDir, isFirstGeneration, repositoryDir } from "../support/paths.ts";
import { run } from "../support/process.ts";
import { eventually } from "../support/retry.ts";
import { readTimeline } from "../support/timeline.ts";

const RUN_MS = 60_000;
const SNPCTL = join(distBinDir, "snpctl");
const POD = readFileSync(join(repositoryDir, "test/policy/recorded/pod.yaml"), "utf8");
/** The same without what can't be bound late. */
const ORDINARY = POD.replace("privileged: true", "privileged: false");
const ARGUMENT = "echo $(COLOUR) at $(POD_IP); sleep 3600";
const CONFIG = `[confidential]\nmode = "sample"\nsample_image = ${JSON.stringify(join(distShareDir, "initramfs-sample-insecure"))}\n`;
const UID = "0d9a7a52-94c5-4f57-b3f8-6a1f2f0c3e11";

/** Runs snpctl without the loaders that tap gives to every Node program. */
async function snpctl(...args: readonly string[]): Promise<string> {
	const { code, stdout, stderr } = await run(["env", "-u", "NODE_OPTIONS", SNPCTL, ...args]);
	if (code !== 0) throw new Error(`snpctl ${args[1] ?? ""}: ${stderr}`);
	return stdout;
}

/** The annotation that snpctl makes for the pod, from its YAML and an OCI layout. */
async function annotated(bed: CriBed, text: string, ...options: readonly string[]): Promise<Record<string, string>> {
	const { rootDir } = bed.containerd;
	const [layout, yaml] = [join(rootDir, "layout"), join(rootDir, "pod.yaml")];
	mkdirSync(layout, { recursive: true });
	await run(["tar", "-xf", bed.image.file, "-C", layout]);
	writeFileSync(yaml, text);
	const cache = join(rootDir, "policy-cache");
	const initdata = await snpctl("policy", "generate", "--initdata", "--cache-dir", cache, "--image", layout, ...options, yaml);
	return { "io.katacontainers.config.hypervisor.cc_init_data": initdata.trim() };
}

/** How a call that must fail did, in the words that a pod's event has. */
async function denial(call: Promise<unknown>): Promise<string> {
	const error: unknown = await call.then(
		() => "it was not denied",
		(reason: unknown) => reason,
	);
	return error instanceof CriError ? error.details : String(error);
}

async function withPod(
	bed: CriBed,
	handler: string,
	{ text, annotations }: { readonly text: string; readonly annotations: Record<string, string> },
	work: (pod: KubeletPod, podId: string) => Promise<void>,
): Promise<void> {
	const pod = new KubeletPod(bed, text, UID, annotations);
	try {
		await work(pod, await pod.start(handler));
	} finally {
		await pod.release();
	}
}

/** Waits until so many VMs wait for a pod. @returns their names */
async function waiting({ containerd }: CriBed, count: number): Promise<string[]> {
	const argv = containerd.inside("env", "-u", "NODE_OPTIONS", SNPCTL, "--state-dir", containerd.stateDir, "--json", "pool");
	return await eventually(`${count} VMs in the pool`, RUN_MS, async () => {
		const { vms } = JSON.parse((await run(argv)).stdout) as { readonly vms: readonly { readonly name: string; readonly state: string }[] };
		return vms.length === count && vms.every(({ state }) => state === "ready") ? vms.map(({ name }) => name) : undefined;
	});
}

const logOf = (pod: KubeletPod): string => readFileSync(join(pod.config.log_directory ?? "", "web.log"), "utf8");

async function closed(t: Test, bed: CriBed, handler: string): Promise<void> {
	const { client, containerd } = bed;
	await withPod(bed, handler, { text: POD, annotations: await annotated(bed, POD) }, async (pod, podId) => {
		const prepare = await pod.create("prepare");
		await client.startContainer(prepare);
		await eventually("the end of the init container", RUN_MS, async () =>
			(await client.containerStatus(prepare)).state === "CONTAINER_EXITED" ? true : undefined,
		);
		t.match(await client.containerStatus(prepare), { exit_code: 0 });

		const other = await pod.create("web", { args: [ARGUMENT.replace("3600", "3601")] });
		t.match(
			await denial(client.startContainer(other)),
			/denies CreateContainerRequest \(container web\): OCI\.Process\.Args\[2\]: expected "[^"]*sleep 3600.*, got "echo blue at .*sleep 3601/u,
			"another argument is denied with container, field, expected and got",
		);
		await client.removeContainer(other);

		const web = await pod.create("web");
		await client.startContainer(web);
		t.match(await client.containerStatus(web), { state: "CONTAINER_RUNNING" }, "as it is it runs");
		t.match(
			await denial(client.execSync(web, ["id"])),
			/the pod's policy denies ExecProcessRequest: process\.Args: .*\["id"\].*--allow-exec/u,
			"a command is denied, and what allows it is said",
		);
		const explain = [SNPCTL, "policy", "explain", "--state-dir", containerd.stateDir, podId];
		const explained = await run(containerd.inside("env", "-u", "NODE_OPTIONS", ...explain));
		t.match(explained.stdout, /^ExecProcessRequest: denied[^]*rule +exec[^]*--allow-exec '\["id"\]'/u, "snpd remembers the last denial");
		t.equal(logOf(pod), "", "what the container writes does not leave its guest");
	});
}

async function opened(t: Test, bed: CriBed, handler: string): Promise<void> {
	const annotations = await annotated(bed, ORDINARY, "--allow-exec", "web:cat /etc/app/COLOUR", "--allow-logs");
	await bed.containerd.configure({ append: `${CONFIG}[pool]\nsize = 1\n` });
	const isWarm = async (podId: string): Promise<boolean> =>
		(await readTimeline(bed.containerd, podId)).some(({ step }) => step === "pool-take");
	const [waits] = await waiting(bed, 1);
	await withPod(bed, handler, { text: POD, annotations: await annotated(bed, POD) }, async (_, podId) => {
		t.notOk(await isWarm(podId), "a policy that can't be bound late comes with the launch");
	});
	t.strictSame(await waiting(bed, 1), [waits], "and the VM that refused it waits on");
	await withPod(bed, handler, { text: ORDINARY, annotations }, async (pod, podId) => {
		t.ok(await isWarm(podId), "another pod has the VM, which was launched before the pod was known");
		await bed.containerd.configure({});
		const web = await pod.create("web");
		await bed.client.startContainer(web);
		t.match(await bed.client.execSync(web, ["cat", "/etc/app/COLOUR"]), { stdout: "blue", exitCode: 0 });
		t.match(await denial(bed.client.execSync(web, ["cat", "/etc/shadow"])), /denies ExecProcessRequest/u);
		t.match(await eventually("its log", RUN_MS, () => logOf(pod) || undefined), /stdout F blue at 10\./u);
		await waiting(bed, 0);
	});
}

// What the other versions ask for is in test/policy/recorded.
for (const { version } of targets({ withControl: false }).slice(-1)) {
	await t.test(`containerd ${version}`, async (t) => {
		const bed = await CriBed.start({ version, config: { layers: true, append: CONFIG } });
		t.teardown(() => bed.stop());
		const handler = isFirstGeneration(version) ? SNP_HANDLER : SNP_SANDBOX_HANDLER;
		const leftovers = await Leftovers.watch(bed.containerd);
		await t.test("the pod that a policy is for runs, and nothing else is done in its guest", async (t) => await closed(t, bed, handler));
		await t.test("what was asked for when the policy was made is allowed, and only that", async (t) => await opened(t, bed, handler));
		if (!t.passing()) t.comment(await bed.containerd.logs());
		t.strictSame(await leftovers.settle(), [], "nothing is left behind");
	});
}
