import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { repositoryDir } from "../support/paths.ts";

type Outcome = { readonly status: number | null; readonly out: string; readonly err: string };

/** Runs a script with a cache of its own. */
function run(script: string, args: readonly string[], env: NodeJS.ProcessEnv): Outcome {
	const result = spawnSync("bash", [script, ...args], { env: { ...process.env, ...env }, encoding: "utf8", timeout: 60_000 });
	return { status: result.status, out: result.stdout.trim(), err: result.stderr };
}

/** A copy of what the kernel's builder reads, with a small file in place of the source archive. */
function checkout(dir: string, name: string): { readonly root: string; readonly path: () => string } {
	const root = join(dir, name);
	mkdirSync(join(root, "scripts"), { recursive: true });
	cpSync(join(repositoryDir, "scripts/lib.sh"), join(root, "scripts/lib.sh"));
	mkdirSync(join(root, "guest"));
	cpSync(join(repositoryDir, "guest/build-kernel.sh"), join(root, "guest/build-kernel.sh"));
	cpSync(join(repositoryDir, "guest/kernel"), join(root, "guest/kernel"), { recursive: true });
	writeFileSync(join(root, "linux.tar.xz"), "source");
	const env = { CONTAINERD_SHIM_SNP_CACHE: join(dir, "cache"), GUEST_KERNEL_SOURCE: join(root, "linux.tar.xz") };
	return { root, path: () => run(join(root, "guest/build-kernel.sh"), ["--path"], env).out };
}

t.test("a kernel that is in the cache is named and not built", async (t) => {
	const dir = t.testdir({ "linux.tar.xz": "no archive: unpacking it would fail" });
	const env = { CONTAINERD_SHIM_SNP_CACHE: join(dir, "cache"), GUEST_KERNEL_SOURCE: join(dir, "linux.tar.xz") };
	const script = join(repositoryDir, "guest/build-kernel.sh");
	const path = run(script, ["--path"], env).out;
	t.match(path, new RegExp(`^${dir}/cache/guest-kernel/[0-9a-f]{16}$`));
	mkdirSync(path, { recursive: true });
	t.strictSame(run(script, [], env), { status: 0, out: path, err: "" });
	t.strictSame(readdirSync(join(dir, "cache/guest-kernel")), [path.split("/").at(-1)], "nothing else was left in the cache");
});

t.test("a kernel that can't be built leaves nothing that looks like a result", async (t) => {
	const dir = t.testdir({ "linux.tar.xz": "no archive" });
	const env = { CONTAINERD_SHIM_SNP_CACHE: join(dir, "cache"), GUEST_KERNEL_SOURCE: join(dir, "linux.tar.xz") };
	t.not(run(join(repositoryDir, "guest/build-kernel.sh"), [], env).status, 0);
	t.strictSame(
		readdirSync(join(dir, "cache/guest-kernel")).filter((name) => /^[0-9a-f]{16}$|^\.work/.test(name)),
		[],
	);
});

t.test("a missing kernel source is named with the package that has it", async (t) => {
	const dir = t.testdir({});
	const outcome = run(join(repositoryDir, "guest/build-kernel.sh"), ["--path"], {
		CONTAINERD_SHIM_SNP_CACHE: join(dir, "cache"),
		GUEST_KERNEL_SOURCE: join(dir, "none"),
	});
	t.equal(outcome.status, 1);
	t.match(outcome.err, /apt-get install .*linux-source-6\.12/);
});

t.test("the kernel's place depends on the source, the fragment and the recipe, not on comments or the checkout's place", async (t) => {
	const dir = t.testdir({});
	const one = checkout(dir, "one");
	const two = checkout(dir, "elsewhere");
	const path = one.path();
	t.equal(two.path(), path);

	const script = join(two.root, "guest/build-kernel.sh");
	const text = readFileSync(script, "utf8");
	writeFileSync(script, text.replace("set -euo pipefail", "# A remark.\nset -euo pipefail"));
	t.equal(two.path(), path, "a comment does not count");
	writeFileSync(script, text.replace("KBUILD_BUILD_USER=build", "KBUILD_BUILD_USER=other"));
	t.not(two.path(), path, "the recipe counts");
	writeFileSync(script, text);

	const fragment = join(two.root, "guest/kernel/fragment.config");
	writeFileSync(fragment, `${readFileSync(fragment, "utf8")}CONFIG_KSM=y\n`);
	t.not(two.path(), path, "the fragment counts");

	writeFileSync(join(one.root, "linux.tar.xz"), "another source");
	t.not(one.path(), path, "the source counts");
});

t.test("the initramfs' place depends on the agent, the protocol and Cargo.lock", async (t) => {
	const dir = t.testdir({});
	const root = join(dir, "checkout");
	for (const part of [
		"scripts/lib.sh",
		"guest/build-initramfs.sh",
		"guest/cpio.mjs",
		"guest/make-initramfs.mjs",
		"native/policy",
		"proto/agent",
		"Cargo.toml",
		"Cargo.lock",
	]) {
		cpSync(join(repositoryDir, part), join(root, part), { recursive: true });
	}
	mkdirSync(join(root, "guest/agent/src"), { recursive: true });
	const place = (): string =>
		run(join(root, "guest/build-initramfs.sh"), ["--path"], { CONTAINERD_SHIM_SNP_CACHE: join(dir, "cache") }).out;
	const seen = new Set<string>();
	const changes: readonly (readonly [string, string])[] = [
		["guest/agent/src/main.rs", "fn main() {}"],
		["guest/agent/src/main.rs", "fn main() { loop {} }"],
		["guest/agent/src/other.rs", ""],
		["proto/agent/agent.proto", 'syntax = "proto3";'],
		["Cargo.lock", "version = 4"],
	];
	for (const [file, content] of changes) {
		writeFileSync(join(root, file), content);
		const path = place();
		t.match(path, /\/cache\/guest-initramfs\/[0-9a-f]{16}$/);
		t.equal(place(), path, "the same inputs, the same place");
		seen.add(path);
	}
	t.equal(seen.size, changes.length, "each change has a place of its own");
});

t.test("the cache folder follows the environment, and must be absolute", async (t) => {
	const dir = t.testdir({ "print.sh": `. ${JSON.stringify(join(repositoryDir, "scripts/lib.sh"))}\ncache_dir\n` });
	const at = (env: NodeJS.ProcessEnv): Outcome =>
		run(join(dir, "print.sh"), [], { CONTAINERD_SHIM_SNP_CACHE: undefined, XDG_CACHE_HOME: undefined, HOME: "/home/a", ...env });
	t.equal(at({}).out, "/home/a/.cache/containerd-shim-snp");
	t.equal(at({ XDG_CACHE_HOME: "/x" }).out, "/x/containerd-shim-snp");
	t.equal(at({ XDG_CACHE_HOME: "/x", CONTAINERD_SHIM_SNP_CACHE: "/c" }).out, "/c");
	t.match(at({ CONTAINERD_SHIM_SNP_CACHE: "c" }), { status: 1, err: /'c' is not an absolute path/ });
});
