/** The bench's command line. */
import t from "tap";
import { parseArguments } from "../../bench/arguments.ts";
import { shimProgram } from "../../bench/runtimes.ts";
import { UsageError } from "../../bench/usage-error.ts";

const KNOWN = ["cold", "shim"];
const parse = (...argv: string[]): ReturnType<typeof parseArguments> => parseArguments(argv, KNOWN);

t.test("without arguments everything is measured, and written where the report is looked for", async (t) => {
	t.match(parse(), {
		scenarios: [],
		quick: false,
		containerd: "2",
		runtimes: [{ name: "snp" }, { name: "runc" }],
		jsonFile: "bench/results/latest.json",
		htmlFile: "bench/results/latest.html",
		writeDocs: false,
	});
});

t.test("scenarios and options are taken", async (t) => {
	const options = parse(
		"shim",
		"--quick",
		"--runs",
		"7",
		"--json",
		"a/b.json",
		"--baseline",
		"old.json",
		"--write-docs",
		"--profile",
		"p.svg",
	);
	t.match(options, { scenarios: ["shim"], quick: true, runs: 7, jsonFile: "a/b.json", htmlFile: "a/b.html", baselineFile: "old.json" });
	t.match(options, { writeDocs: true, profileFile: "p.svg" });
	t.match(parse("--runtime", "kata=io.containerd.kata.v2,config=/etc/kata.toml", "--runtime", "nerdbox=io.containerd.nerdbox.v1"), {
		runtimes: [
			{ name: "snp", ours: true },
			{ name: "runc" },
			{ name: "kata", type: "io.containerd.kata.v2", config: "/etc/kata.toml", ours: false },
			{ name: "nerdbox", config: undefined },
		],
	});
	t.equal(parse("--help"), "help");
	t.equal(parse("--list"), "list");
});

t.test("results can be shown again, and are not overwritten then", async (t) => {
	const options = parse("--from", "old.json");
	t.match(options, { resultsFile: "old.json", htmlFile: "old.html" });
	t.equal(typeof options === "object" && options.jsonFile, undefined);
});

t.test("a mistake is named with what is allowed", async (t) => {
	const refused: readonly (readonly [argv: readonly string[], text: RegExp])[] = [
		[["warmth"], /"warmth" is no scenario; there are cold, shim/],
		[["--runs", "0"], /--runs: "0" is not a whole number from 1 to 1000/],
		[["--runs", "1e2"], /--runs: "1e2"/],
		[["--containerd", "3"], /--containerd: "3" is not one of 1\.6/],
		[["--json", ""], /--json: the file's name is empty/],
		[["--frobnicate"], /--frobnicate/],
		[["--from", "a.json", "shim"], /--from measures nothing/],
		[["--from", "a.json", "--update"], /nothing to --update/],
		[["--runtime", "kata"], /"kata": it has the form name=type\[,config=FILE\]/],
		[["--runtime", "=io.containerd.kata.v2"], /it has the form/],
		[["--runtime", "runc=io.containerd.runc.v2"], /runc is measured anyway/],
		[["--runtime", "Kata=io.containerd.kata.v2"], /the name "Kata"/],
		[["--runtime", "kata=kata"], /the type "kata" has not the form io\.containerd\.NAME\.v2/],
		[["--runtime", "kata=io.containerd.kata.v2,config=kata.toml"], /not config=FILE with an absolute path/],
		[["--runtime", "kata=io.containerd.kata.v2", "--runtime", "kata=io.containerd.runc.v2"], /the name kata stands for two runtimes/],
	];
	for (const [argv, text] of refused) {
		t.throws(() => parse(...argv), text, argv.join(" "));
		t.throws(() => parse(...argv), UsageError);
	}
});

t.test("the program of a runtime is the one that containerd looks for", async (t) => {
	t.equal(shimProgram({ type: "io.containerd.snp.v2" }), "containerd-shim-snp-v2");
	t.equal(shimProgram({ type: "io.containerd.kata-qemu.v2" }), "containerd-shim-kata-qemu-v2");
});
