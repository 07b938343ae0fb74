/**
 * Records the requests that snpd sends for one pod: `node --import tsx test/policy/record.ts VERSION HANDLER` (root; needs a build) writes
 * `recorded/VERSION-HANDLER.json`. Ids and addresses are containerd's own inventions; folders of this machine are called `/node`.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { argv } from "node:process";
import { CriBed } from "../support/cri/bed.ts";
import { KubeletPod } from "../support/kubelet-pod.ts";
import { isContainerdVersion } from "../support/paths.ts";

const [, , version = "", handler = "snp"] = argv;
if (!isContainerdVersion(version)) throw new Error(`no containerd line: ${version}`);
const here = new URL("recorded/", import.meta.url).pathname;
const uid = "5f0c2b9a-7d1e-4a53-9c11-2f6d8e4b7a10";
const bed = await CriBed.start({ version, config: { layers: true, append: "[debug]\nrequests = true\n" } });
try {
	mkdirSync(bed.podDir(uid), { recursive: true });
	const pod = new KubeletPod(bed, readFileSync(join(here, "pod.yaml"), "utf8"), uid);
	try {
		const podId = await pod.start(handler);
		for (const name of ["prepare", "web", "plain", "shell"]) await bed.client.startContainer(await pod.create(name));
		const folder = join(bed.containerd.stateDir, "p", bed.containerd.podKey(podId));
		const text = readFileSync(bed.containerd.seen(join(folder, "requests.jsonl")), "utf8").replaceAll(bed.containerd.rootDir, "/node");
		const requests = text
			.trimEnd()
			.split("\n")
			.map((line) => JSON.parse(line) as unknown);
		writeFileSync(join(here, `${version}-${handler}.json`), `[\n${requests.map((request) => JSON.stringify(request)).join(",\n")}\n]\n`);
	} finally {
		await pod.release();
	}
} catch (error) {
	process.stderr.write(`${await bed.containerd.logs()}\n`);
	throw error;
} finally {
	await bed.stop();
}
