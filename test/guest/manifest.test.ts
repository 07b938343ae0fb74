/** What the guest was made of: its manifest, and its bill of materials. */
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { billOfMaterials } from "../../scripts/guest/sbom.ts";
import type { BillInput } from "../../scripts/guest/sbom.ts";
import { outputHash, parseManifest } from "../../shim/attest/guest-manifest.ts";
import { failing } from "../base/failing.ts";
import { repositoryDir } from "../support/paths.ts";

const sha256 = (data: Buffer | string): string => createHash("sha256").update(data).digest("hex");
const folderOf = (script: string, ...args: readonly string[]): string =>
	execFileSync("bash", [script, ...args, "--path"], { cwd: repositoryDir, encoding: "utf8" }).trim();

t.test("the manifest of the built guest names every input and output with its hash, and is the same each time", async (t) => {
	const [kernel, initramfs] = [folderOf("guest/build-kernel.sh"), folderOf("guest/build-initramfs.sh")];
	const sample = folderOf("guest/build-initramfs.sh", "--sample");
	const write = (target: string) => {
		const args = ["--import=tsx", "scripts/guest-manifest.ts", kernel, initramfs, sample, target];
		const result = spawnSync(process.execPath, args, { cwd: repositoryDir, encoding: "utf8", timeout: 60_000 });
		t.equal(result.status, 0, result.stderr);
		return { json: readFileSync(join(target, "guest-manifest.json"), "utf8"), bill: readFileSync(join(target, "guest-sbom.json"), "utf8") };
	};
	const folder = t.testdir();
	const first = write(join(folder, "a"));
	t.same(write(join(folder, "b")), first);
	const manifest = parseManifest(first.json, "it");
	for (const [part, place] of [
		[manifest.kernel, kernel],
		[manifest.initramfs, initramfs],
	] as const) {
		t.ok(part.outputs.length > 0);
		for (const { name, sha256: wanted } of part.outputs) {
			const path = name === "initramfs-sample-insecure" ? join(sample, "initramfs") : join(place, name);
			t.equal(sha256(readFileSync(path)), wanted, name);
		}
		for (const { name, sha256: wanted } of part.inputs.filter(({ name }) => name.includes("/")))
			t.equal(sha256(readFileSync(join(repositoryDir, name))), wanted, name);
		t.equal(part.recipe, place.split("/").at(-1));
	}
	for (const name of ["Cargo.lock", "guest/make-initramfs.mjs", "libseccomp.a", "libc.a", "guest/agent/src/main.rs"])
		t.ok(
			manifest.initramfs.inputs.some((input) => input.name === name),
			name,
		);
	t.ok(manifest.kernel.inputs.some(({ name }) => name.startsWith("linux-source-")));
	t.ok(manifest.initramfs.outputs.some(({ name }) => name === "initramfs-sample-insecure"));
	t.match(manifest.commandLine, /^reboot=t panic=-1 .*quiet/);
	t.equal(outputHash(manifest.kernel, "vmlinux", "it").toString("hex"), sha256(readFileSync(join(kernel, "vmlinux"))));

	const bill = JSON.parse(first.bill) as { components: Component[]; dependencies: { ref: string; dependsOn: string[] }[] };
	const refs = new Set(["guest", ...bill.components.map((component) => component["bom-ref"])]);
	t.equal(refs.size, bill.components.length + 1, "no two components have one name");
	for (const { ref, dependsOn } of bill.dependencies) for (const name of [ref, ...dependsOn]) t.ok(refs.has(name), name);
	for (const component of bill.components) {
		t.ok(component.licenses !== undefined, `${component.name} has a licence`);
		const own = component.name.startsWith("snp-") || component.name === "std";
		t.ok(own || component.hashes !== undefined, `${component.name} has a hash`);
	}
	for (const name of ["linux", "libseccomp", "glibc", "std", "tokio"])
		t.ok(
			bill.components.some((component) => component.name === name && component.scope === "required"),
			name,
		);
});

interface Component {
	readonly "bom-ref": string;
	readonly name: string;
	readonly scope: string;
	readonly hashes?: unknown;
	readonly licenses?: unknown;
}

t.test("a bill tells what is in the guest from what is only needed to build it, and leaves out what only tests need", async (t) => {
	const entry = (name: string, kind = "lib") => ({
		id: name,
		name,
		version: "1.0.0",
		license: "MIT/Apache-2.0",
		source: "registry",
		targets: [{ kind: [kind] }],
	});
	const dep = (pkg: string, kind: string | null = null) => ({ pkg, dep_kinds: [{ kind }] });
	const input: BillInput = {
		version: "0.1.0",
		agent: "agent",
		rustc: "rustc 1.90.0 (x)",
		debian: [],
		outputs: [{ name: "initramfs", sha256: "00".repeat(32) }],
		lock: `[[package]]\nname = "used"\nversion = "1.0.0"\nchecksum = "${"ab".repeat(32)}"\n`,
		metadata: {
			packages: [
				{ ...entry("agent"), source: null },
				entry("used"),
				entry("macro", "proc-macro"),
				entry("of-macro"),
				entry("builder"),
				entry("tester"),
				entry("both"),
				entry("stranger"),
			],
			resolve: {
				nodes: [
					{ id: "agent", deps: [dep("macro"), dep("used"), dep("builder", "build"), dep("tester", "dev")] },
					{ id: "used", deps: [dep("both")] },
					{ id: "macro", deps: [dep("of-macro")] },
					{ id: "of-macro", deps: [] },
					{ id: "builder", deps: [dep("both")] },
					{ id: "both", deps: [] },
					{ id: "stranger", deps: [dep("used")] },
				],
			},
		},
	};
	const bill = billOfMaterials(input) as unknown as { components: Component[]; serialNumber: string };
	const scopes = Object.fromEntries(bill.components.map(({ name, scope }) => [name, scope]));
	t.same(scopes, {
		agent: "required",
		used: "required",
		both: "required",
		macro: "excluded",
		"of-macro": "excluded",
		builder: "excluded",
		std: "required",
	});
	const used = bill.components.find(({ name }) => name === "used");
	t.match(used, {
		"bom-ref": "pkg:cargo/used@1.0.0",
		hashes: [{ content: "ab".repeat(32) }],
		licenses: [{ expression: "MIT OR Apache-2.0" }],
	});
	t.match(bill.serialNumber, /^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
	t.throws(() => billOfMaterials({ ...input, agent: "none" }), /names no package none/);
});

t.test("what is no manifest is named with the place", async (t) => {
	t.throws(() => parseManifest("{", "m.json"), failing({ reason: "attest.manifest", message: /m\.json is no manifest: / }));
	t.throws(() => parseManifest('{"version":2}', "m.json"), failing({ reason: "attest.manifest", message: /version/ }));
});
