import { spawnSync } from "node:child_process";
import { chmodSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { repositoryDir } from "../support/paths.ts";

t.test("setup names the command that installs the missing packages when it must not install them itself", async (t) => {
	// dpkg-query that knows every package but two.
	const dir = t.testdir({
		"dpkg-query": '#!/bin/sh\nfor last; do :; done\ncase "$last" in flex | erofs-utils) exit 1 ;; *) echo "ii " ;; esac\n',
	});
	chmodSync(join(dir, "dpkg-query"), 0o755);
	const result = spawnSync("bash", [join(repositoryDir, "scripts/setup.sh"), "--no-apt"], {
		env: { ...process.env, PATH: `${dir}:${process.env["PATH"] ?? ""}` },
		encoding: "utf8",
		timeout: 60_000,
	});
	t.equal(result.status, 1);
	t.match(
		result.stderr,
		/^error: missing Debian packages\. Run as root: apt-get update && apt-get install --no-install-recommends -y flex erofs-utils$/m,
	);
});

t.test("npm-current tells whether node_modules is what package-lock.json asks for", async (t) => {
	const lock = (version: string): string =>
		JSON.stringify({
			packages: { "": {}, "node_modules/a": { version, integrity: "i" }, "node_modules/b": { version: "1", optional: true } },
		});
	const installed = JSON.stringify({ packages: { "node_modules/a": { version: "1", integrity: "i" } } });
	const dir = t.testdir({
		current: { "package-lock.json": lock("1"), node_modules: { ".package-lock.json": installed } },
		old: { "package-lock.json": lock("2"), node_modules: { ".package-lock.json": installed } },
		none: { "package-lock.json": lock("1") },
	});
	const status = (name: string): number | null =>
		spawnSync(process.execPath, [join(repositoryDir, "scripts/npm-current.mjs"), join(dir, name)], { timeout: 60_000 }).status;
	t.equal(status("current"), 0);
	t.equal(status("old"), 1);
	t.equal(status("none"), 1);
});
