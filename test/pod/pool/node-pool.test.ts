/** Which configuration counts for the pool of a node: the file's, as it is now. No VM is booted here: the hypervisor is not there. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Log } from "../../../shim/base/log.ts";
import { loadConfig } from "../../../shim/config/load.ts";
import { NodePool } from "../../../shim/pod/pool/node-pool.ts";
import { usualPlan } from "../../../shim/pod/pool/shape.ts";

const ON = '[hypervisor]\npath = "/none/cloud-hypervisor"\n[pool]\nsize = 1\n';

t.test(
	"a file that is wrong changes nothing, nor one that somebody has named and that is gone; the default file need not be there",
	async (t) => {
		const folder = t.testdir({ "named.toml": ON, "default.toml": ON });
		const [named, usual] = [join(folder, "named.toml"), join(folder, "default.toml")];
		for (const [file, keptWithout] of [
			[named, true],
			[usual, false],
		] as const) {
			const pool = new NodePool({ stateDir: folder, log: new Log(() => undefined), defaultFile: usual });
			t.teardown(() => pool.close());
			let changes = 0;
			pool.follow(() => void changes++);
			await pool.know(file);
			t.strictSame([pool.kept, changes], [true, 1], "who looks after memory is told");
			writeFileSync(file, "[pool]\nsize = many\n");
			await pool.know(file);
			t.equal(pool.kept, true);
			rmSync(file);
			await pool.know(file);
			t.equal(pool.kept, keptWithout);
			writeFileSync(file, "");
			await pool.know(file);
			t.equal(pool.kept, false);
		}
	},
);

t.test("a pod that has an older configuration brings it not back, and one that has a newer one has the file read", async (t) => {
	const folder = t.testdir({ "named.toml": ON });
	const file = join(folder, "named.toml");
	const pool = new NodePool({ stateDir: folder, log: new Log(() => undefined), defaultFile: join(folder, "default.toml") });
	t.teardown(() => pool.close());
	const before = await loadConfig(file, { required: true });
	const take = (config: typeof before) => pool.for(file, config).take({ ...usualPlan(config), cgroupsPath: "/pod" });
	t.equal(await take(before), undefined);
	t.equal(pool.kept, true, "a file is known from its first pod on");
	writeFileSync(file, "");
	await pool.know(file);
	t.equal(await take(before), undefined);
	t.equal(pool.kept, false);
	writeFileSync(file, ON);
	t.equal(await take(before), undefined);
	t.equal(pool.kept, true);
	// Read by several at once while it changes: what was read last counts.
	const reads = [pool.know(file)];
	writeFileSync(file, "");
	reads.push(pool.know(file));
	await Promise.all(reads);
	t.equal(pool.kept, false);
});
