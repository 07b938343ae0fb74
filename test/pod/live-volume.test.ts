/** A folder of configuration that is kept up to date in the guest, against the real agent in its host mode: what it writes is looked at here. */
import {
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	readlinkSync,
	renameSync,
	rmSync,
	statSync,
	symlinkSync,
	unlinkSync,
	writeFileSync,
} from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Log } from "../../shim/base/log.ts";
import { LiveVolume } from "../../shim/pod/live-volume.ts";
import { failing } from "../base/failing.ts";
import { startAgent } from "../support/host-agent.ts";
import type { Bed, Tap } from "../support/host-agent.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 30_000;
const TREE = { maxBytes: 1024 * 1024, maxEntries: 1000, kernelDevices: new Set<string>(), hardLinks: true };
const NEVER = new AbortController().signal;
let count = 0;

/** Replaces the content of a folder as Kubernetes does. */
function publish(folder: string, files: Readonly<Record<string, string>>): void {
	const name = `..2024_${++count}`;
	const old = existsSync(join(folder, "..data")) ? readlinkSync(join(folder, "..data")) : undefined;
	mkdirSync(join(folder, name), { mode: 0o755, recursive: true });
	for (const [key, text] of Object.entries(files)) writeFileSync(join(folder, name, key), text, { mode: 0o640 });
	symlinkSync(name, join(folder, "..data_tmp"));
	renameSync(join(folder, "..data_tmp"), join(folder, "..data"));
	for (const key of Object.keys(files)) if (!existsSync(join(folder, key))) symlinkSync(`..data/${key}`, join(folder, key));
	for (const key of readdirSync(folder)) if (!key.startsWith("..") && !(key in files)) unlinkSync(join(folder, key));
	if (old !== undefined) rmSync(join(folder, old), { recursive: true });
}

interface Made {
	readonly live: LiveVolume;
	readonly guest: string;
	readonly lines: string[];
}

function make(t: Tap, { agent, runDir }: Bed, path: string, changes = true): Made {
	const guest = join(runDir, "volumes/v");
	const lines: string[] = [];
	const live = new LiveVolume({ path, volume: guest, agent, changes, tree: TREE, log: new Log((line) => lines.push(line)) });
	t.teardown(async () => {
		live.close();
		await live.idle();
	});
	return { live, guest, lines };
}

const content = (folder: string): Record<string, string> =>
	Object.fromEntries(
		readdirSync(folder)
			.filter((key) => !key.startsWith(".."))
			.map((key) => [key, readFileSync(join(folder, key), "utf8")]),
	);

async function becomes(guest: string, files: Readonly<Record<string, string>>): Promise<void> {
	await eventually(`${JSON.stringify(files)} in the guest`, WAIT_MS, () =>
		JSON.stringify(content(guest)) === JSON.stringify(files) ? true : undefined,
	);
}

t.test("a folder is brought as it is, and every replacement follows, with keys that come and go", async (t) => {
	const bed = await startAgent(t);
	const host = t.testdir({});
	publish(host, { a: "1", b: "1" });
	const { live, guest } = make(t, bed, host);
	await live.open(NEVER);
	t.same(content(guest), { a: "1", b: "1" });
	t.equal(readlinkSync(join(guest, "..data")), readlinkSync(join(host, "..data")));
	t.equal(readlinkSync(join(guest, "a")), "..data/a");
	t.equal(statSync(join(guest, "a")).mode & 0o777, 0o640);
	publish(host, { a: "2", b: "2" });
	await becomes(guest, { a: "2", b: "2" });
	publish(host, { a: "3", c: "3" });
	await becomes(guest, { a: "3", c: "3" });
	await live.idle();
	t.same(readdirSync(guest).sort(), readdirSync(host).sort(), "old timestamped folders go");
});

t.test("readers never see a mix, nor a missing file", async (t) => {
	const bed = await startAgent(t);
	const host = t.testdir({});
	publish(host, { a: "0", b: "0" });
	const { live, guest } = make(t, bed, host);
	await live.open(NEVER);
	const wrong: string[] = [];
	let reads = 0;
	for (let round = 1; round <= 20; round++) {
		publish(host, { a: `${round}`, b: `${round}` });
		await eventually(`round ${round}`, WAIT_MS, () => {
			const folder = readlinkSync(join(guest, "..data"));
			try {
				const pair = ["a", "b"].map((key) => readFileSync(join(guest, folder, key), "utf8"));
				if (pair[0] !== pair[1]) wrong.push(pair.join(" "));
				readFileSync(join(guest, "a"));
			} catch (error) {
				// The folder that was read a moment ago may be gone; the name that leads to the present one must not.
				if (readlinkSync(join(guest, "..data")) === folder) wrong.push(String(error));
			}
			reads++;
			return readFileSync(join(guest, "a"), "utf8") === `${round}` ? true : undefined;
		});
	}
	t.same(wrong, []);
	t.ok(reads >= 20);
});

t.test("a new snpd compares everything, and goes on", async (t) => {
	const bed = await startAgent(t);
	const host = t.testdir({});
	publish(host, { a: "1", b: "1" });
	const first = make(t, bed, host);
	await first.live.open(NEVER);
	first.live.close();
	publish(host, { a: "2" });
	const { live, guest } = make(t, bed, host);
	live.resume();
	await becomes(guest, { a: "2" });
	publish(host, { a: "3" });
	await becomes(guest, { a: "3" });
});

t.test("with Kata's copying call alone changes come, and what is deleted stays", async (t) => {
	const bed = await startAgent(t);
	const host = t.testdir({});
	publish(host, { a: "1", b: "1" });
	const { live, guest } = make(t, bed, host, false);
	await live.open(NEVER);
	t.same(content(guest), { a: "1", b: "1" });
	publish(host, { a: "2", c: "2" });
	await eventually("the new key", WAIT_MS, () => (existsSync(join(guest, "c")) ? true : undefined));
	t.equal(readFileSync(join(guest, "a"), "utf8"), "2");
	t.ok(readdirSync(guest).includes("b"));
});

t.test("a folder that is not there is named; one that goes later ends the watching", async (t) => {
	const bed = await startAgent(t);
	const host = join(t.testdir({}), "v");
	await t.rejects(make(t, bed, host).live.open(NEVER), failing({ reason: "volume.missing", message: /\/v of the node/ }));
	publish(host, { a: "1" });
	const { live, guest, lines } = make(t, bed, host);
	await live.open(NEVER);
	rmSync(host, { recursive: true });
	await eventually("the word of it", WAIT_MS, () => (lines.some((line) => line.includes("went from the node")) ? true : undefined));
	t.same(content(guest), { a: "1" });
});

t.test("a volume over the bound is refused, and a change over it leaves what was there", async (t) => {
	const bed = await startAgent(t);
	const host = t.testdir({});
	publish(host, { a: "1" });
	const { live, guest, lines } = make(t, bed, host);
	await live.open(NEVER);
	publish(host, { a: "x".repeat(2 * 1024 * 1024) });
	await eventually("the word of it", WAIT_MS, () => (lines.some((line) => line.includes("copy_max_mib")) ? true : undefined));
	t.same(content(guest), { a: "1" });
	publish(host, { a: "3" });
	await becomes(guest, { a: "3" });
});
