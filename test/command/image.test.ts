/** `snpctl image` on a cache of its own, with an image in an OCI layout. */

import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";

import { buildImage } from "../support/image.ts";
import { repositoryDir } from "../support/paths.ts";

const SNPCTL = join(repositoryDir, "shim/command/snpctl.ts");

interface Answer {
	readonly status: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

/** Documents of an OCI layout, as far as the way to an image's configuration leads through them. */
interface Layout {
	readonly manifests?: readonly { readonly digest: string }[];
	readonly config?: { readonly digest: string };
}

t.test("an image is prepared, listed, inspected, verified and collected", async (t) => {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const config = join(folder, "config.toml");
	writeFileSync(config, `[storage]\ncache_dir = ${JSON.stringify(join(folder, "cache"))}\n`);
	const env = { ...process.env, CONTAINERD_SHIM_SNP_CONFIG: config };
	const snpctl = (...words: readonly string[]): Answer =>
		spawnSync(process.execPath, ["--import=tsx", SNPCTL, "image", ...words], { encoding: "utf8", env, cwd: repositoryDir });
	const upper = [[{ kind: "file", path: "b", data: Buffer.alloc(9000, 2) } as const]];
	const members = [{ kind: "file", path: "a", data: Buffer.alloc(50_000, 1) } as const];
	const image = await buildImage(folder, { name: "docker.io/library/two:latest", members, upper, compression: "gzip" });
	const layout = join(folder, "layout");
	mkdirSync(layout);
	execFileSync("tar", ["-xf", image.file, "-C", layout]);

	const inspected = (...more: readonly string[]) =>
		JSON.parse(snpctl("inspect", layout, "--json", ...more).stdout) as {
			path: string | null;
			layers: { rootHash: string; dataBytes: number }[];
		};
	const before = inspected("--cache-dir", join(folder, "elsewhere"));
	t.equal(before.path, null, "root hashes need no disk");
	t.match(snpctl("verify", layout), { status: 1, stderr: /not in the cache.*snpctl image prepare/s });
	t.match(snpctl("prepare", layout), { status: 0, stdout: /2 layers, sha256:[0-9a-f]{64}\n/ });
	t.match(snpctl("prepare", layout), { status: 0, stdout: /was there/ });
	const found = inspected();
	t.equal(found.layers.length, 2);
	t.strictSame(found.layers, before.layers, "the hashes are the image's alone");
	const path = found.path ?? "";
	const shown = snpctl("inspect", layout).stdout;
	for (const { rootHash } of found.layers) t.ok(shown.includes(rootHash), "root hashes are shown");
	t.match(snpctl("list").stdout, /KIND.*\nlayers .*2 /);
	t.match(snpctl("verify"), { status: 0, stdout: /^3 files are sound\n$/ });

	const disk = readFileSync(path);
	const at = 2048 * 512 + 1030;
	disk[at] = (disk[at] ?? 0) ^ 1;
	writeFileSync(path, disk);
	t.match(snpctl("verify"), { status: 1, stdout: /layers-.*the image at byte 1048576 is damaged/, stderr: /1 of 3 files are damaged/ });

	t.match(snpctl("gc"), { status: 0, stdout: /removed 0 files/ });
	t.match(snpctl("gc", "--all"), { status: 0, stdout: /removed 3 files/ });
	t.match(snpctl("prepare", "no-such-image", "--address", join(folder, "none.sock")), { status: 1, stderr: /containerd does not tell/ });
	t.match(snpctl("prepare"), { status: 1, stderr: /usage: snpctl image/ });

	// A configuration whose digest is another one's would give a policy other defaults and other layers.
	const blob = (digest: string): string => join(layout, "blobs", digest.replace(":", "/"));
	const read = (file: string) => JSON.parse(readFileSync(file, "utf8")) as Layout;
	const manifest = read(join(layout, "index.json")).manifests?.[0]?.digest ?? "";
	const changed = blob(read(blob(manifest)).config?.digest ?? "");
	writeFileSync(changed, `${readFileSync(changed, "utf8")} `);
	t.match(snpctl("inspect", layout), { status: 1, stderr: /sha256:[0-9a-f]{64} of the image is damaged: it has another digest/ });
});
