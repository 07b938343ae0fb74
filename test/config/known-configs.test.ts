import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { KnownConfigs } from "../../shim/config/known-configs.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { failing } from "../base/failing.ts";

const OPTIONAL = { required: false };
/** Files that were written just now have settled by then. */
const later = (): number => Date.now() + 60_000;

t.test("a configuration is read again when something of it has changed, and only then", async (t) => {
	const file = join(t.testdir({ "config.toml": "guest.vcpus = 2\n" }), "config.toml");
	const configs = new KnownConfigs(later);
	const first = await configs.load(file, OPTIONAL);
	t.equal(first.guest.vcpus, 2);
	t.equal(await configs.load(file, OPTIONAL), first, "pods share what nobody has changed");

	writeFileSync(file, "guest.vcpus = 3\n");
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 3, "the file itself");
	mkdirSync(`${file}.d`);
	writeFileSync(join(`${file}.d`, "a.toml"), "guest.vcpus = 4\n");
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 4, "a first drop-in");
	writeFileSync(join(`${file}.d`, "a.toml"), "guest.vcpus = 5\n");
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 5, "a drop-in that is changed");
	writeFileSync(join(`${file}.d`, "b.toml"), "guest.vcpus = 6\n");
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 6, "another one");
	rmSync(join(`${file}.d`, "b.toml"));
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 5, "one that goes");
	writeFileSync(`${file}.next`, "guest.vcpus = 7\n");
	rmSync(`${file}.d`, { recursive: true });
	renameSync(`${file}.next`, file);
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 7, "a file that takes the other's place");
});

t.test("a file that was changed just now is read again: the next change may bear the same time", async (t) => {
	const file = join(t.testdir({ "config.toml": "guest.vcpus = 2\n" }), "config.toml");
	const configs = new KnownConfigs();
	const first = await configs.load(file, OPTIONAL);
	t.not(await configs.load(file, OPTIONAL), first);
});

t.test("however many were read before, the last ones are known", async (t) => {
	const folder = t.testdir();
	const configs = new KnownConfigs(later);
	const load = (index: number) => configs.load(join(folder, `${index}.toml`), OPTIONAL);
	const first = await load(0);
	for (let index = 1; index <= 64; index++) await load(index);
	t.equal(await load(64), await load(64));
	t.not(await load(0), first, "the one that was used longest ago is not");
});

t.test("a missing or a wrong file stays what it is until it is mended", async (t) => {
	const file = join(t.testdir(), "config.toml");
	const configs = new KnownConfigs(later);
	const defaults = await configs.load(file, OPTIONAL);
	t.same(defaults, defaultConfig());
	t.equal(await configs.load(file, OPTIONAL), defaults);
	await t.rejects(configs.load(file, { required: true }), failing({ reason: "config.unreadable" }));
	writeFileSync(file, "guest.vcpus = 0\n");
	await t.rejects(configs.load(file, OPTIONAL), failing({ reason: "config.invalid" }));
	writeFileSync(file, "guest.vcpus = 2\n");
	t.equal((await configs.load(file, OPTIONAL)).guest.vcpus, 2);
	t.equal((await configs.load(file, { required: true })).guest.vcpus, 2);
});
