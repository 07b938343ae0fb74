/** The operator's tool and snpd's own arguments, as programs. */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const file = (name: string): string => fileURLToPath(new URL(`../../shim/command/${name}.ts`, import.meta.url));

function run(name: string, args: readonly string[], config?: string): { code: number | null; out: string; err: string } {
	const env = { ...process.env, ...(config === undefined ? {} : { CONTAINERD_SHIM_SNP_CONFIG: config }) };
	const { status, stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", file(name), ...args], { env, encoding: "utf8" });
	return { code: status, out: stdout, err: stderr };
}

t.test("help and version go to standard output", async (t) => {
	for (const name of ["snpctl", "snpd"]) {
		t.match(run(name, ["--help"]), { code: 0, out: new RegExp(`^usage: ${name}`, "u"), err: "" });
		t.match(run(name, ["--version"]), { code: 0, out: new RegExp(`^${name} \\d`, "u"), err: "" });
	}
});

t.test("wrong words are named, with the usage", async (t) => {
	t.match(run("snpctl", []), { code: 1, out: "", err: /no command is given.*\(usage: snpctl/u });
	t.match(run("snpctl", ["timeline"]), { code: 1, err: /timeline needs the ID/u });
	t.match(run("snpctl", ["timeline", "a", "b"]), { code: 1, err: /timeline takes one ID/u });
	t.match(run("snpctl", ["version", "x"]), { code: 1, err: /unknown command: version x/u });
	t.match(run("snpctl", ["ps", "--jsn"]), { code: 1, err: /'--jsn'/u });
	t.match(run("snpd", ["--state"]), { code: 1, err: /unknown argument --state \(usage: snpd/u });
});

t.test("config check tells what was read", async (t) => {
	const folder = t.testdir();
	const config = join(folder, "config.toml");
	t.match(run("snpctl", ["config", "check"], config), { code: 1, err: /config\.toml/u });
	writeFileSync(config, "[guest]\nvcpus = 2\n");
	mkdirSync(`${config}.d`);
	writeFileSync(join(`${config}.d`, "10.toml"), "[guest]\nmemory_mib = 512\n");
	t.same(run("snpctl", ["config", "check"], config), { code: 0, out: `${config}: sound\n${config}.d/10.toml: sound\n`, err: "" });
	t.match(JSON.parse(run("snpctl", ["config", "check", "--json"], config).out), { guest: { vcpus: 2, memory_mib: 512 } });
	writeFileSync(config, "[guest]\nvcpu = 2\n");
	t.match(run("snpctl", ["config", "check"], config), { code: 1, err: /config\.toml:2.*guest\.vcpu.*vcpus/su });
});

t.test("config cmdline tells what is measured of a guest's start", async (t) => {
	const config = join(t.testdir(), "config.toml");
	writeFileSync(config, 'confidential.mode = "snp"\n[guest]\nkernel_parameters = "extra=1"\n');
	t.match(run("snpctl", ["config", "cmdline"], config), {
		code: 0,
		out: /^reboot=t panic=-1 .* quiet agent\.log=info extra=1\n$/u,
		err: "",
	});
});

t.test("a second snpd in one folder is told of the first", async (t) => {
	const folder = mkdtempSync("/tmp/snpd-");
	t.teardown(() => rmSync(folder, { recursive: true }));
	const first = createServer().listen(join(folder, "snpd.sock"));
	await once(first, "listening");
	t.teardown(() => first.close());
	t.match(run("snpd", ["--state-dir", folder]), { code: 1, err: /another snpd serves this folder/u });
});
