/** Keys that exclude each other in a confidential pod's configuration. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";

import { loadConfig } from "../../shim/config/load.ts";
import { failing } from "../base/failing.ts";

const sound = (mode: string) => `confidential.mode = "${mode}"\n`;

t.test("what would open a confidential pod to its node is refused with both keys, whatever file it stands in", async (t) => {
	const file = join(t.testdir({ "config.toml.d": {} }), "config.toml");
	const load = (text: string, dropIn = "") => {
		writeFileSync(file, text);
		writeFileSync(join(`${file}.d`, "a.toml"), dropIn);
		return loadConfig(file, { required: true });
	};
	for (const mode of ["snp", "sample"]) {
		t.match(await load(sound(mode)), { confidential: { mode } });
		for (const [key, value] of [
			["storage.share_folders", "true"],
			["snapshots.enabled", "true"],
			["guest.max_vcpus", "4"],
			["guest.hotplug_memory_mib", "128"],
		] as const) {
			const refusal = failing({ reason: "config.invalid", message: new RegExp(`confidential\\.mode = "${mode}" needs ${key} = `, "u") });
			await t.rejects(load(sound(mode), `${key} = ${value}\n`), refusal);
			t.ok(await load(`${key} = ${value}\n`), `${key} is sound for ordinary pods`);
		}
		await t.rejects(
			load(`${sound(mode)}storage.layers = false\n`),
			failing({ reason: "config.invalid", message: /needs storage\.layers = true/ }),
		);
	}
	await t.rejects(
		load(sound("snp"), "debug.console = true\n"),
		failing({ reason: "config.invalid", message: /needs debug\.console = false/ }),
	);
	t.ok(await load(sound("sample"), "debug.console = true\n"), "a trial may have a console");
});
