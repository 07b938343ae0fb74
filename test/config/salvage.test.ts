import t from "tap";
import { salvageConfig } from "../../shim/config/salvage.ts";
import { defaultConfig } from "../../shim/config/schema.ts";

t.test("a configuration that was written down is the same again", (t) => {
	const config = { ...defaultConfig(), guest: { ...defaultConfig().guest, vcpus: 3 } };
	t.strictSame(salvageConfig(JSON.parse(JSON.stringify(config))), config);
	t.end();
});

t.test("what is not known or not allowed any more gets its default, and the rest stays", (t) => {
	const written = {
		state_dir: "/run/x",
		guest: { vcpus: 3, memory_mib: "much", gone: 1 },
		old_table: { key: 1 },
		log: 7,
		timeouts: { boot_ms: -1, agent_call_ms: 5_000 },
	};
	const config = salvageConfig(written);
	const fallback = defaultConfig();
	t.strictSame(config, {
		...fallback,
		state_dir: "/run/x",
		guest: { ...fallback.guest, vcpus: 3 },
		timeouts: { ...fallback.timeouts, agent_call_ms: 5_000 },
	});
	t.equal(written.guest.memory_mib, "much", "the input stays as it is");
	t.end();
});

t.test("what is no table at all gives the defaults", (t) => {
	for (const written of [null, undefined, 3, "text", [], [1]]) t.strictSame(salvageConfig(written), defaultConfig());
	t.end();
});
