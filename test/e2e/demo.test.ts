/** What newcomers run first: the demos play to their end, and an unknown one is refused. */
import t from "tap";
import { repositoryDir, requireBuilt } from "../support/paths.ts";
import { run, type Finished } from "../support/process.ts";

const DEMO_TIMEOUT_MS = 300_000;

async function demo(...args: readonly string[]): Promise<Finished> {
	// Without the loaders that tap gives to every Node program, and so to those that the demo starts.
	const argv = ["env", "-u", "NODE_OPTIONS", process.execPath, "--import", "tsx", "scripts/demo.ts", ...args];
	return await run(argv, { cwd: repositoryDir, timeoutMs: DEMO_TIMEOUT_MS });
}

requireBuilt();
for (const name of ["container", "pod", "confidential"]) {
	await t.test(`the demo ${name} plays to its end and leaves nothing`, async (t) => {
		const { code, stdout, stderr } = await demo(name);
		t.equal(code, 0, "exit code", { stdout, stderr });
		t.match(stdout, /What is left\n {2}nothing/);
		t.equal(stderr, "");
	});
}
await t.test("a demo that is not there is refused with the names of those that are", async (t) => {
	const { code, stderr } = await demo("nope");
	t.equal(code, 1);
	t.match(stderr, /nope.*container, pod, confidential/);
});
