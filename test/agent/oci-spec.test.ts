import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { hooksLeftOut, readSpec } from "../../shim/agent/oci-spec.ts";
import { failing } from "../base/failing.ts";

const SOUND = { ociVersion: "1.1.0", process: { args: ["sh"], cwd: "/" }, root: { path: "rootfs" } };

async function readText(t: { testdir: (fixture: { [name: string]: string }) => string }, text: string) {
	const bundle = t.testdir({ "config.json": text });
	return readSpec(bundle);
}

t.test("readSpec reads a bundle and drops what it does not know", async (t) => {
	const read = await readText(t, JSON.stringify({ ...SOUND, unknown: 1, process: { ...SOUND.process, env: null, extra: true } }));
	t.same(read.process, { args: ["sh"], cwd: "/", env: null });
});

t.test("hooksLeftOut names every hook and its moment", async (t) => {
	const hooks = {
		prestart: [{ path: "/usr/bin/a", args: ["a", "b"] }, { path: "/b" }],
		poststop: null,
		createRuntime: [{ path: "/c", timeout: 1 }],
	};
	t.same(hooksLeftOut(await readText(t, JSON.stringify({ ...SOUND, hooks }))), [
		"prestart: /usr/bin/a",
		"prestart: /b",
		"createRuntime: /c",
	]);
	t.same(hooksLeftOut(await readText(t, JSON.stringify(SOUND))), []);
});

t.test("readSpec names the file that is missing", async (t) => {
	const bundle = t.testdir({});
	await t.rejects(readSpec(bundle), failing({ reason: "spec.invalid", message: /config\.json can't be read: does not exist/ }));
});

t.test("readSpec says that a file is not JSON", async (t) => {
	await t.rejects(readText(t, '{"ociVersion": '), failing({ reason: "spec.invalid", message: /config\.json is not JSON/ }));
});

t.test("readSpec names the field that is wrong", async (t) => {
	const cases: [unknown, RegExp][] = [
		[{ ...SOUND, process: { ...SOUND.process, args: [] } }, /process\.args: has no command/],
		[{ ...SOUND, process: { cwd: "/" } }, /process\.args: has no command/],
		[{ ...SOUND, process: { ...SOUND.process, args: "sh" } }, /process\.args/],
		[{ ...SOUND, process: { ...SOUND.process, user: { uid: -1 } } }, /process\.user\.uid/],
		[{ ...SOUND, mounts: [{ destination: "etc" }] }, /mounts\.0\.destination: is not an absolute path/],
		[{ ...SOUND, root: undefined }, /root/],
		[[], /the whole document|ociVersion/],
	];
	for (const [document, message] of cases)
		await t.rejects(readText(t, JSON.stringify(document)), failing({ reason: "spec.invalid", message }));
});

t.test("readSpec refuses a file of more than 4 MiB", async (t) => {
	const bundle = t.testdir({});
	writeFileSync(join(bundle, "config.json"), " ".repeat(4 * 1024 * 1024 + 1));
	await t.rejects(readSpec(bundle), failing({ reason: "spec.invalid", message: /at most 4194304/ }));
});
