/** Trees that go into the guest, against the real agent in its host mode. */
import { chmodSync, existsSync, linkSync, mkdirSync, readFileSync, readlinkSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ChangeSink, CopyFileSink, copyTree } from "../../shim/pod/volume-copy.ts";
import { readTree } from "../../shim/storage/folder-tree.ts";
import { failing } from "../base/failing.ts";
import { startAgent } from "../support/host-agent.ts";

const TREE = { maxBytes: 64 * 1024 * 1024, maxEntries: 10_000, kernelDevices: new Set<string>(), hardLinks: true };
const ROOT = Buffer.alloc(0);

t.test("2000 small files take few calls, and arrive with content, modes, links and times", async (t) => {
	const { agent, runDir } = await startAgent(t);
	const host = t.testdir({});
	for (let n = 0; n < 2000; n++) {
		const folder = join(host, `d${n % 20}`);
		mkdirSync(folder, { recursive: true });
		writeFileSync(join(folder, `f${n}`), `content ${n}`, { mode: 0o640 });
	}
	linkSync(join(host, "d1/f1"), join(host, "z"));
	symlinkSync("d1/f1", join(host, "l"));
	chmodSync(join(host, "d2"), 0o2711);
	let calls = 0;
	const counted = Object.create(agent, {
		changeVolume: {
			value: (...parameters: Parameters<typeof agent.changeVolume>) => {
				calls++;
				return agent.changeVolume(...parameters);
			},
		},
	}) as typeof agent;
	const volume = join(runDir, "volumes/many");
	const { entries, leftOut } = await copyTree(readTree({ ...TREE, path: host }), new ChangeSink(counted, volume, {}), ROOT);
	t.equal(entries, 2023);
	t.same(leftOut, []);
	t.ok(calls <= 5, `${calls} calls`);
	for (const n of [0, 777, 1999]) t.equal(readFileSync(join(volume, `d${n % 20}/f${n}`), "utf8"), `content ${n}`);
	t.equal(statSync(join(volume, "d2")).mode & 0o7777, 0o2711);
	t.equal(statSync(join(volume, "z")).ino, statSync(join(volume, "d1/f1")).ino);
	t.equal(Math.round(statSync(join(volume, "d3/f3")).mtimeMs), Math.round(statSync(join(host, "d3/f3")).mtimeMs));
	t.equal(readlinkSync(join(volume, "l")), "d1/f1");
});

t.test("a large file goes in pieces", async (t) => {
	const { agent, runDir } = await startAgent(t);
	const data = Buffer.alloc(5 * 1024 * 1024 + 17, "0123456789abcdefg");
	const host = join(t.testdir({ f: data }), "f");
	const volume = join(runDir, "snp/c1/large");
	t.equal((await copyTree(readTree({ ...TREE, path: host }), new ChangeSink(agent, volume, {}), ROOT)).bytes, data.length);
	t.ok(readFileSync(volume).equals(data));
});

t.test("with Kata's copying call alone a tree arrives as well", async (t) => {
	const { agent, runDir } = await startAgent(t);
	const data = Buffer.alloc(3 * 1024 * 1024, "xyz");
	const host = t.testdir({ d: { f: data, empty: "" }, l: t.fixture("symlink", "d/f") });
	linkSync(join(host, "d/f"), join(host, "second"));
	const volume = join(runDir, "volumes/copied");
	const tree = readTree({ ...TREE, path: host, hardLinks: false });
	await copyTree(tree, new CopyFileSink(agent, volume, {}), ROOT);
	t.ok(readFileSync(join(volume, "d/f")).equals(data));
	t.ok(readFileSync(join(volume, "second")).equals(data));
	t.equal(statSync(join(volume, "d/empty")).size, 0);
	t.equal(readlinkSync(join(volume, "l")), "d/f");
});

t.test("what the guest refuses ends the copy with its words", async (t) => {
	const { agent, runDir } = await startAgent(t);
	const host = t.testdir({ f: "1" });
	const outside = join(runDir, "elsewhere/v");
	await t.rejects(
		copyTree(readTree({ ...TREE, path: host }), new ChangeSink(agent, outside, {}), ROOT),
		failing({ reason: "guest.call", message: /is no volume/ }),
	);
	t.notOk(existsSync(outside));
});
