import { readFileSync } from "node:fs";
import { parse } from "smol-toml";
import t from "tap";
import { errorsMarkdown } from "../../scripts/errors-document.ts";
import { CATALOGUE } from "../../shim/base/catalogue.ts";
import { RUNTIME_NAME } from "../../shim/base/names.ts";
import { describeConfig } from "../../shim/config/describe.ts";
import { configMarkdown, configToml } from "../../shim/config/document.ts";
import { checkConfigText } from "../../shim/config/load.ts";
import { defaultConfig } from "../../shim/config/schema.ts";

const file = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

t.test("generated documents are what the sources say (npm run docs)", async (t) => {
	t.equal(file("deploy/config.toml"), configToml());
	t.equal(file("docs/config.md"), configMarkdown());
	t.equal(file("docs/errors.md"), errorsMarkdown());
});

t.test("the shipped configuration is valid, as it is and with every key switched on", async (t) => {
	t.same(
		checkConfigText("shipped", configToml()),
		Object.fromEntries(
			describeConfig()
				.filter(({ name }) => name !== "")
				.map(({ name }) => [name, {}]),
		),
	);
	const switchedOn = configToml().replace(/^#(?=[a-z_]+ = )/gm, "");
	t.same(checkConfigText("switched on", switchedOn), defaultConfig());
});

t.test("every key and every reason is documented", async (t) => {
	for (const key of describeConfig().flatMap((table) => table.keys)) {
		t.match(configMarkdown(), `| \`${key.path.at(-1)}\` |`);
		t.match(key.doc, /^[A-Z].*\.$/s, `${key.path.join(".")}: documentation is made of sentences`);
	}
	for (const reason of Object.keys(CATALOGUE)) t.match(errorsMarkdown(), `| \`${reason}\` |`);
});

t.test("containerd's drop-ins name the runtime where each version looks for it", async (t) => {
	const one = parse(file("deploy/containerd-1.toml"));
	const two = parse(file("deploy/containerd-2.toml"));
	t.match(one, {
		version: 2,
		plugins: { "io.containerd.grpc.v1.cri": { containerd: { runtimes: { snp: { runtime_type: RUNTIME_NAME } } } } },
	});
	t.match(two, {
		version: 3,
		plugins: { "io.containerd.cri.v1.runtime": { containerd: { runtimes: { snp: { runtime_type: RUNTIME_NAME } } } } },
	});
	t.match(file("deploy/runtime-class.yaml"), /^handler: snp$/m);
});

t.test("systemd's socket and the default state_dir agree", async (t) => {
	t.match(file("deploy/snpd.socket"), `ListenStream=${defaultConfig().state_dir}/snpd.sock`);
	t.match(file("deploy/snpd.socket"), /^SocketMode=0600$/m);
	t.match(file("deploy/snpd.service"), `--state-dir ${defaultConfig().state_dir}`);
});
