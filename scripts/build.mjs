/**
 * `npm run build`: makes `dist/`. TypeScript programs become one file each, the native addon and the
 * keeper are copied, large results stay in the cache and are linked (docs/contracts.md, "Built
 * artefacts"). Goes on after a failure, so that one broken part does not hold up the others, names all
 * that failed and ends with status 1.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { build as bundle, transform } from "esbuild";

const repository = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(repository, "dist");
const { version } = JSON.parse(readFileSync(join(repository, "package.json"), "utf8"));

/**
 * V8's flags for the daemon, whose code mostly runs a few times for each pod. Of all that were measured these keep its memory smallest without costing
 * processor time (bench/README.md, "The daemon's flags").
 */
const DAEMON_FLAGS = ["--max-semi-space-size=1", "--optimize-for-size", "--no-opt", "--v8-pool-size=1"];

/** Programs written in TypeScript: name in dist/bin, entry file, flags for Node.js. */
const programs = [
	{ name: "snpd", entry: "shim/command/snpd.ts", flags: DAEMON_FLAGS },
	{ name: "snpctl", entry: "shim/command/snpctl.ts" },
	{ name: "ch-qemu", entry: "ch-qemu/main.ts" },
];

/**
 * What is generated needs no line numbers, and a daemon keeps the text of all of its code: as it is, that of the codecs would be more than half of it.
 * @type {import("esbuild").Plugin}
 */
const minifyGenerated = {
	name: "minify generated code",
	setup(build) {
		build.onLoad({ filter: /\/proto\/gen\/\w+\.js$/ }, async ({ path }) => {
			const { code } = await transform(readFileSync(path, "utf8"), { minify: true, format: "esm", target: "node20" });
			return { contents: code, loader: "js" };
		});
	},
};

/** The longest that one step may take: cargo with an empty cache on a slow machine. */
const STEP_LIMIT_MS = 30 * 60 * 1000;

/** Answers of scripts that only say where a result lies: they hash all of its inputs for that. @type {Map<string, string>} */
const places = new Map();

/**
 * Where a script's result lies.
 * @param {string} script @param {readonly string[]} args
 */
function placeOf(script, ...args) {
	const key = [script, ...args].join(" ");
	const place = places.get(key) ?? run(script, ...args, "--path");
	places.set(key, place);
	return place;
}

/**
 * Runs a script of the repository and returns its last line of standard output (the path that it was asked for).
 * @param {string} script @param {readonly string[]} args
 */
function run(script, ...args) {
	const result = spawnSync(resolve(repository, script), args, {
		cwd: repository,
		stdio: ["ignore", "pipe", "inherit"],
		encoding: "utf8",
		timeout: STEP_LIMIT_MS,
	});
	if (result.error !== undefined) {
		throw new Error(`${script} could not be run: ${result.error.message}`);
	}
	if (result.status !== 0) {
		throw new Error(
			`${script} ended with ${result.status === null ? `signal ${result.signal}` : `status ${result.status}`}: see its message above`,
		);
	}
	return result.stdout.trimEnd().split("\n").at(-1) ?? "";
}

/**
 * Puts a file in place by a rename: whoever runs or has mapped the old one keeps it.
 * @param {string} target @param {(staged: string) => void} make
 */
function replace(target, make) {
	mkdirSync(dirname(target), { recursive: true });
	const staged = join(dirname(target), `.${basename(target)}.${process.pid}`);
	rmSync(staged, { force: true });
	make(staged);
	renameSync(staged, target);
}

/**
 * Links `target` to a file that an earlier step made.
 * @param {string} target @param {string} source @param {string} remedy
 */
function link(target, source, remedy) {
	if (!existsSync(source)) {
		throw new Error(`${source} is missing: ${remedy}`);
	}
	replace(target, (staged) => symlinkSync(source, staged));
}

/**
 * Bundles one program. Its first line names the node that builds: containerd's environment need not
 * have one on its PATH. The keeper finds snpd beside itself, and snpd its addon in ../lib.
 * @param {{name: string, entry: string, flags?: readonly string[]}} program
 */
async function bundleProgram({ name, entry, flags = [] }) {
	const body = await bundled(name, entry);
	const tried = spawnSync(process.execPath, [...flags, "--eval", "0"], { encoding: "utf8", timeout: STEP_LIMIT_MS });
	if (tried.status !== 0) throw new Error(`this Node.js does not take ${flags.join(" ")}: ${tried.stderr.trim()}`);
	replace(join(dist, "bin", name), (staged) => {
		writeFileSync(staged, `#!/usr/bin/env -S ${[process.execPath, ...flags].join(" ")}\n${body}`);
		chmodSync(staged, 0o755);
	});
}

/**
 * One file of a module and all that it imports. The first lines of a program are the caller's.
 * @param {string} name @param {string} entry
 */
async function bundled(name, entry) {
	const entryPath = join(repository, entry);
	if (!existsSync(entryPath)) {
		throw new Error(`${entry} is missing: it is the entry file of ${name}`);
	}
	const result = await bundle({
		entryPoints: [entryPath],
		absWorkingDir: repository,
		bundle: true,
		write: false,
		platform: "node",
		format: "esm",
		target: "node20",
		charset: "utf8",
		define: { BUILD_VERSION: JSON.stringify(version) },
		// Modules in CommonJS ask for Node's own modules by require, which ES modules don't have.
		banner: { js: 'import { createRequire as snpCreateRequire } from "node:module";\nconst require = snpCreateRequire(import.meta.url);' },
		plugins: [minifyGenerated],
		logLevel: "warning",
	});
	const text = result.outputFiles[0]?.text ?? "";
	return text.startsWith("#!") ? text.slice(text.indexOf("\n") + 1) : text;
}

/** @type {readonly {name: string, work: () => void | Promise<void>}[]} */
const steps = [
	{ name: "protobuf codecs", work: () => void run("scripts/gen-proto.sh") },
	{
		name: "native addon",
		work: () => {
			run("scripts/build-native.sh");
			replace(join(dist, "lib/snp_native.node"), (staged) => copyFileSync(join(repository, "build/Release/snp_native.node"), staged));
		},
	},
	// Programs have no extension in their names: this says that they are ES modules.
	{ name: "module type", work: () => replace(join(dist, "package.json"), (staged) => writeFileSync(staged, '{"type":"module"}\n')) },
	...programs.map((program) => ({ name: program.name, work: () => bundleProgram(program) })),
	{
		name: "rules.rego",
		work: () => replace(join(dist, "lib/rules.rego"), (staged) => copyFileSync(join(repository, "shim/policy/rules.rego"), staged)),
	},
	{
		name: "containerd-shim-snp-v2",
		work: () => {
			const folder = run("scripts/build-keeper.sh");
			replace(join(dist, "bin/containerd-shim-snp-v2"), (staged) => copyFileSync(join(folder, "containerd-shim-snp-v2"), staged));
		},
	},
	{
		name: "snp-layers",
		work: () => {
			const folder = run("scripts/build-layers.sh");
			replace(join(dist, "bin/snp-layers"), (staged) => copyFileSync(join(folder, "snp-layers"), staged));
		},
	},
	{
		name: "snp-policy",
		work: () => {
			const folder = run("scripts/build-policy.sh");
			replace(join(dist, "bin/snp-policy"), (staged) => copyFileSync(join(folder, "snp-policy"), staged));
		},
	},
	{
		name: "ch-qemu-vsock",
		work: () => link(join(dist, "bin/ch-qemu-vsock"), join(run("ch-qemu/build-vsock.sh"), "ch-qemu-vsock"), "run ch-qemu/build-vsock.sh"),
	},
	{
		name: "initramfs",
		work: () => link(join(dist, "share/initramfs"), join(run("guest/build-initramfs.sh"), "initramfs"), "run guest/build-initramfs.sh"),
	},
	{
		name: "initramfs-sample-insecure",
		work: () =>
			link(
				join(dist, "share/initramfs-sample-insecure"),
				join(run("guest/build-initramfs.sh", "--sample"), "initramfs"),
				"run guest/build-initramfs.sh --sample",
			),
	},
	// Minutes, not seconds: the kernel is linked when it is there, and built by the set-up.
	{
		name: "vmlinux",
		work: () =>
			link(
				join(dist, "share/vmlinux"),
				join(placeOf("guest/build-kernel.sh"), "vmlinux"),
				"build it with guest/build-kernel.sh (or scripts/setup.sh)",
			),
	},
	{
		name: "bzImage",
		work: () => link(join(dist, "share/bzImage"), join(placeOf("guest/build-kernel.sh"), "bzImage"), "build it with guest/build-kernel.sh"),
	},
	{
		name: "guest manifest",
		work: () => {
			const folders = [["guest/build-kernel.sh"], ["guest/build-initramfs.sh"], ["guest/build-initramfs.sh", "--sample"]].map(
				([script = "", ...args]) => placeOf(script, ...args),
			);
			run(process.execPath, "--import=tsx", "scripts/guest-manifest.ts", ...folders, join(dist, "share"));
		},
	},
];

const failures = [];
for (const step of steps) {
	const started = performance.now();
	try {
		await step.work();
		console.log(`build: ${step.name} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
	} catch (error) {
		failures.push(`${step.name}: ${error instanceof Error ? error.message : String(error)}`);
	}
}
for (const failure of failures) {
	console.error(`build: FAILED ${failure}`);
}
process.exitCode = failures.length === 0 ? 0 : 1;
