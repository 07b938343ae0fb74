/**
 * `npm run demo`: a container in its own VM under a private containerd, shown step by step; nothing stays behind.
 * `npm run demo -- pod`: a Kubernetes pod through containerd's CRI.
 * `npm run demo -- confidential`: a confidential pod in sample mode: its policy, its evidence, what is denied.
 */
import { parseArgs } from "node:util";
import { containerdVersions, isContainerdVersion, requireBuilt, type ContainerdVersion } from "../test/support/paths.ts";
import { playConfidential } from "./demo/confidential.ts";
import { playContainer } from "./demo/container.ts";
import { playPod } from "./demo/pod.ts";
import { dim, say, textOf } from "./demo/stage.ts";

const DEMOS: Readonly<Record<string, (version: ContainerdVersion) => Promise<void>>> = {
	container: playContainer,
	pod: playPod,
	confidential: playConfidential,
};

function readArguments(): { readonly play: (version: ContainerdVersion) => Promise<void>; readonly version: ContainerdVersion } {
	const { values, positionals } = parseArgs({ allowPositionals: true, options: { containerd: { type: "string", default: "2" } } });
	const [name = "container", ...more] = positionals;
	const play = DEMOS[name];
	if (play === undefined || more.length > 0)
		throw new Error(`${positionals.join(" ")}: there is no such demo; say one of ${Object.keys(DEMOS).join(", ")}`);
	if (!isContainerdVersion(values.containerd))
		throw new Error(`--containerd: ${values.containerd} is not one of ${containerdVersions.join(", ")}`);
	return { play, version: values.containerd };
}

async function main(): Promise<void> {
	const startedMs = performance.now();
	const { play, version } = readArguments();
	requireBuilt();
	await play(version);
	say(dim(`${((performance.now() - startedMs) / 1000).toFixed(1)} s in all`));
}

main().catch((error: unknown) => {
	process.stderr.write(`demo: ${textOf(error)}\n`);
	process.exitCode = 1;
});
