/** The command line: what is taken, and what is refused as the real VMM refuses it. */

import t from "tap";

import { parseCommandLine, UsageError } from "../../ch-qemu/command-line.ts";

function refusal(...args: string[]): UsageError {
	try {
		parseCommandLine(args);
	} catch (error) {
		if (error instanceof UsageError) return error;
		throw error;
	}
	throw new Error(`taken: ${args.join(" ")}`);
}

t.test("what the shim passes is taken", async (t) => {
	const command = parseCommandLine(["--api-socket", "fd=3", "--event-monitor", "fd=4", "-vv", "--seccomp", "true"]);
	t.match(command, { kind: "serve" });
});

t.test("options of a VM on the command line are refused: there is no payload", async (t) => {
	for (const args of [["--landlock"], ["--landlock-rules", "path=/d,access=r"]]) {
		const error = refusal("--api-socket", "fd=3", ...args);
		t.equal(error.code, 2);
		t.match(error.message, /required arguments were not provided/u);
	}
	t.match(refusal("--kernel", "/k"), { code: 2, message: /unexpected argument '--kernel'/u });
});

t.test("a value that is missing or given twice is named", async (t) => {
	t.match(refusal("--api-socket"), { code: 2, message: /a value is required for '--api-socket/u });
	t.match(refusal("--log-file", "/a", "--log-file", "/b"), { code: 2, message: /'--log-file <log-file>' cannot be used multiple times/u });
});
