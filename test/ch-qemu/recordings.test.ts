/**
 * The real VMM's recorded answers against ours. What still differs is listed, with the reason, in `data/differences.json`; a difference that is not
 * listed fails, and so does a listed one that is gone.
 */
import { readFileSync } from "node:fs";
import t from "tap";
import { shortFolder } from "./lab.ts";
import { type Differences, type Everywhere, KeptSnapshots, readRecordings, replay } from "./replay.ts";

type Listed = { differs: string[]; because: string };
type DifferenceFile = {
	everywhere: Record<string, string>;
	reasons: Record<string, string>;
	lives: Record<string, Record<string, Listed>>;
};

const listed = JSON.parse(readFileSync(new URL("data/differences.json", import.meta.url), "utf8")) as DifferenceFile;
const used: Everywhere = new Set();
const snapshots = new KeptSnapshots();

for (const recording of readRecordings()) {
	const name = `${recording.scenario} ${recording.vmm}`;
	t.test(name, async (t) => {
		const wanted: Differences = {};
		for (const [where, { differs, because }] of Object.entries(listed.lives[name] ?? {})) {
			wanted[where] = differs;
			t.ok(listed.reasons[because], `${where}: the reason '${because}' is written down`);
		}
		const found = await replay(recording, shortFolder(t), used, wanted, snapshots);
		t.same(found, wanted, "the differences are those that are listed");
	});
}

t.test("what is set aside everywhere is still needed", async (t) => {
	t.same([...used].sort(), Object.keys(listed.everywhere).sort());
});
