/** Room for templates, on a tmpfs as a node's. Needs root. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { mostBytes, requireRoom } from "../../../shim/pod/snapshot/room.ts";
import { failing } from "../../base/failing.ts";

const MIB = 1024 * 1024;

t.test("pods keep room for their state: a VM that could take it becomes no template", async (t) => {
	const folder = mkdtempSync("/tmp/room-");
	execFileSync("mount", ["-t", "tmpfs", "-o", "size=128m", "none", folder]);
	t.teardown(() => {
		execFileSync("umount", [folder]);
		rmSync(folder, { recursive: true });
	});
	t.equal(mostBytes(folder), 64 * MIB);
	await requireRoom(folder, 64);
	await t.rejects(
		requireRoom(folder, 65),
		failing({ reason: "storage.full", message: /no room for a template: .* 128 MiB free, its VM has 65 MiB/u }),
	);
	writeFileSync(join(folder, "journal"), Buffer.alloc(MIB));
	await t.rejects(requireRoom(folder, 64), failing({ reason: "storage.full" }));
});
