/** The guest's initramfs built by somebody else, elsewhere, at another time: the same bytes. The kernel's second build takes minutes: SNP_TEST_KERNEL_BUILD=1 asks for it. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync, mkdtempSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { repositoryDir } from "../support/paths.ts";

const BUILD_MS = 15 * 60_000;
const KERNEL_BUILD_MS = 60 * 60_000;
/** What the builders read: workspace members are looked at even when they are not built. */
const SOURCES = ["Cargo.toml", "Cargo.lock", "guest", "native", "proto", "scripts", "shim/policy/rules.rego"];

const sha256 = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

/** Another checkout of another user in another place. */
function otherPlace(t: Test): { readonly root: string; readonly env: NodeJS.ProcessEnv } {
	const root = mkdtempSync(join(tmpdir(), "somewhere-else-"));
	t.teardown(() => rmSync(root, { recursive: true, force: true }));
	const checkout = join(root, "deep/below/checkout");
	for (const name of SOURCES)
		cpSync(join(repositoryDir, name), join(checkout, name), {
			recursive: true,
			filter: (path) => !/\/(?:target|build|node_modules)$/u.test(path),
		});
	const home = join(root, "home");
	const cargoHome = process.env["CARGO_HOME"] ?? join(homedir(), ".cargo");
	mkdirSync(join(home, "crates"), { recursive: true });
	// The same crates, which Cargo.lock's hashes hold to what they are, under another name.
	for (const name of readdirSync(cargoHome)) if (name !== "bin") symlinkSync(join(cargoHome, name), join(home, "crates", name));
	return {
		root: checkout,
		env: {
			...process.env,
			CONTAINERD_SHIM_SNP_CACHE: join(root, "cache"),
			HOME: home,
			CARGO_HOME: join(home, "crates"),
			RUSTUP_HOME: process.env["RUSTUP_HOME"] ?? join(homedir(), ".rustup"),
			USER: "somebody",
			LOGNAME: "somebody",
			TZ: "Pacific/Auckland",
		},
	};
}

/** Runs a builder of the checkout as another user (user_namespaces(7)) whose files nobody else may read. @returns its last line */
function build(script: string, { root, env }: ReturnType<typeof otherPlace>, timeout: number): string {
	const asOther = ["unshare", "--user", "--map-user=4711", "--map-group=4711", "sh", "-c", 'umask 077; exec bash "$0"', script];
	const result = spawnSync(asOther[0] ?? "", asOther.slice(1), { cwd: root, env, encoding: "utf8", timeout });
	if (result.status !== 0) throw new Error(`${script} failed: ${result.stderr}`);
	return result.stdout.trim().split("\n").at(-1) ?? "";
}

const cached = (script: string): string =>
	spawnSync("bash", [script], { cwd: repositoryDir, encoding: "utf8", timeout: KERNEL_BUILD_MS }).stdout.trim().split("\n").at(-1) ?? "";

t.test("the initramfs and its agent", { timeout: BUILD_MS }, async (t) => {
	const [own, other] = [cached("guest/build-initramfs.sh"), build("guest/build-initramfs.sh", otherPlace(t), BUILD_MS)];
	t.not(own, other);
	for (const name of ["snp-agent", "initramfs"]) t.equal(sha256(join(other, name)), sha256(join(own, name)), name);
	t.equal(other.split("/").at(-1), own.split("/").at(-1), "its inputs have the same hash");
});

t.test("the kernel's recipe leaves nothing to who builds it, where and when", async (t) => {
	const recipe = readFileSync(join(repositoryDir, "guest/build-kernel.sh"), "utf8");
	for (const name of ["KBUILD_BUILD_TIMESTAMP", "KBUILD_BUILD_USER", "KBUILD_BUILD_HOST", "KBUILD_BUILD_VERSION", "SOURCE_DATE_EPOCH"])
		t.match(recipe, new RegExp(`export .*\\b${name}=\\S`, "u"), name);
	const folder = cached("guest/build-kernel.sh");
	const config = readFileSync(join(folder, "config"), "utf8");
	for (const option of [
		"LOCALVERSION_AUTO",
		"MODULES",
		"DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT",
		"DEBUG_INFO_DWARF4",
		"DEBUG_INFO_DWARF5",
		"IKCONFIG",
		"GCC_PLUGIN_RANDSTRUCT",
		"RANDSTRUCT_FULL",
	])
		t.notMatch(config, new RegExp(`^CONFIG_${option}=y`, "mu"), option);
	const image = readFileSync(join(folder, "vmlinux"));
	t.ok(image.includes("(build@build)"), "the version names no real builder");
	t.notOk(image.includes(folder.split("/guest-kernel/")[0] ?? "/"), "no path of the build is in it");
	t.notOk(image.includes("/.work."), "nor the name of its work folder");
});

const wanted = process.env["SNP_TEST_KERNEL_BUILD"] === "1";
if (wanted) {
	t.test("the kernel, built a second time", { timeout: KERNEL_BUILD_MS }, async (t) => {
		const [own, other] = [cached("guest/build-kernel.sh"), build("guest/build-kernel.sh", otherPlace(t), KERNEL_BUILD_MS)];
		for (const name of ["vmlinux", "bzImage", "config", "System.map"]) t.equal(sha256(join(other, name)), sha256(join(own, name)), name);
	});
}
