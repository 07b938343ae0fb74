import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { checkConfigText, loadConfig } from "../../shim/config/load.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { failing } from "../base/failing.ts";

/** Writes a configuration and its drop-ins; returns the main file's path. */
function files(t: Test, main: string | undefined, dropIns: Record<string, string> = {}): string {
	const folder = t.testdir();
	const file = join(folder, "config.toml");
	if (main !== undefined) writeFileSync(file, main);
	mkdirSync(`${file}.d`);
	for (const [name, text] of Object.entries(dropIns)) writeFileSync(join(`${file}.d`, name), text);
	return file;
}

/** The message of the config.invalid error that a text gives. */
function complaint(toml: string): string {
	try {
		checkConfigText("/etc/c.toml", toml);
	} catch (error) {
		if (error instanceof ShimError && error.reason === "config.invalid") return error.message;
		throw error;
	}
	return "";
}

t.test("loadConfig without a file gives the defaults, unless the file was named", async (t) => {
	const file = join(t.testdir(), "config.toml");
	t.same(await loadConfig(file, { required: false }), defaultConfig());
	await t.rejects(
		loadConfig(file, { required: true }),
		failing({ reason: "config.unreadable", message: `reading the configuration ${file} failed` }),
	);
});

t.test("loadConfig takes drop-ins in the order of their names, key by key", async (t) => {
	const file = files(t, 'state_dir = "/run/a"\n[guest]\nvcpus = 2\nmemory_mib = 512\n', {
		"20-b.toml": "guest.memory_mib = 2048\n",
		"10-a.toml": '[guest]\nmemory_mib = 1024\nkernel_parameters = "quiet"\n[log]\nlevel = "debug"\n',
		"30-c.toml.bak": "this is = = not read",
		".hidden.toml": "nor = is = this",
	});
	const config = await loadConfig(file, { required: true });
	t.match(config, { state_dir: "/run/a", guest: { vcpus: 2, memory_mib: 2048, kernel_parameters: "quiet" }, log: { level: "debug" } });
	t.equal(config.timeouts.boot_ms, defaultConfig().timeouts.boot_ms);
});

t.test("loadConfig reads drop-ins even when there is no main file", async (t) => {
	const file = files(t, undefined, { "a.toml": "[guest]\nvcpus = 3\n" });
	t.equal((await loadConfig(file, { required: false })).guest.vcpus, 3);
});

t.test("a wrong drop-in is named, and state_dir can't be set in one", async (t) => {
	const file = files(t, "", { "a.toml": "[guest]\nvcpus = 0\n" });
	await t.rejects(
		loadConfig(file, { required: true }),
		failing({ reason: "config.invalid", message: `${file}.d/a.toml:2: guest.vcpus is 0, but must be an integer from 1 to 64` }),
	);
	const other = files(t, "", { "a.toml": 'state_dir = "/run/x"\n' });
	await t.rejects(
		loadConfig(other, { required: true }),
		failing({ reason: "config.invalid", message: /state_dir can't be set in a drop-in/ }),
	);
});

t.test("a configuration is frozen all the way down", async (t) => {
	const config = defaultConfig();
	t.throws(() => Object.assign(config, { state_dir: "/x" }), TypeError);
	t.throws(() => Object.assign(config.guest, { vcpus: 9 }), TypeError);
});

t.test("a misspelt key is an error that suggests the right one", async (t) => {
	t.equal(complaint("[guest]\nmemroy_mib = 300\n"), "/etc/c.toml:2: there is no key guest.memroy_mib; did you mean guest.memory_mib?");
	t.equal(complaint("[guest]\nmemory = 300\n"), "/etc/c.toml:2: there is no key guest.memory; did you mean guest.memory_mib?");
	t.equal(complaint("\n[timeouts]\nboot_s = 3\n"), "/etc/c.toml:3: there is no key timeouts.boot_s; did you mean timeouts.boot_ms?");
	t.equal(complaint("vcpus = 2\n"), "/etc/c.toml:1: there is no key vcpus; did you mean guest.vcpus?");
	t.equal(complaint("[guests]\nvcpus = 2\n"), "/etc/c.toml:1: there is no table guests; did you mean guest?");
	t.match(complaint("[log]\ncolour = true\n"), "/etc/c.toml:2: there is no key log.colour; there are log.level");
	t.match(complaint("[zzzzzzzzzz]\na = 1\n"), "there is no table zzzzzzzzzz; there are hypervisor, guest,");
});

t.test("a wrong value is an error that tells the value and what is allowed", async (t) => {
	const cases: [string, string][] = [
		['[guest]\nvcpus = "two"\n', '/etc/c.toml:2: guest.vcpus is "two", but must be an integer from 1 to 64'],
		["[guest]\nvcpus = 1.5\n", "/etc/c.toml:2: guest.vcpus is 1.5, but must be an integer from 1 to 64"],
		["[guest]\nmemory_mib = 127\n", "/etc/c.toml:2: guest.memory_mib is 127, but must be an integer from 128 to 1048576 (MiB)"],
		[
			'[timeouts]\nboot_ms = "60s"\n',
			'/etc/c.toml:2: timeouts.boot_ms is "60s", but must be an integer from 100 to 86400000 (milliseconds)',
		],
		['[hypervisor]\npath = "cloud-hypervisor"\n', '/etc/c.toml:2: hypervisor.path is "cloud-hypervisor", but must be an absolute path'],
		["[hypervisor]\nseccomp = 1\n", "/etc/c.toml:2: hypervisor.seccomp is 1, but must be true or false"],
		['[log]\nlevel = "loud"\n', '/etc/c.toml:2: log.level is "loud", but must be one of "debug", "info", "warn", "error"'],
		[
			'[guest]\nkernel_parameters = "a\\nb"\n',
			'/etc/c.toml:2: guest.kernel_parameters is "a\\nb", but must be one line of at most 1024 printable ASCII characters',
		],
		[
			'[storage]\nmkfs_erofs = "bin/mkfs"\n',
			'/etc/c.toml:2: storage.mkfs_erofs is "bin/mkfs", but must be an absolute path, or a name on PATH',
		],
		["guest = 3\n", "/etc/c.toml:1: guest is 3, but must be a table, [guest]"],
		["[guest.vcpus]\na = 1\n", "/etc/c.toml:1: guest.vcpus is a table, but must be an integer from 1 to 64"],
		["[guest]\nvcpus = 2024-01-01\n", "/etc/c.toml:2: guest.vcpus is 2024-01-01"],
	];
	for (const [toml, expected] of cases) t.ok(complaint(toml).startsWith(expected), `${complaint(toml)} | ${expected}`);
});

t.test("state_dir has room for sockets below it", async (t) => {
	t.equal(complaint(`state_dir = "/${"x".repeat(47)}"\n`), "");
	t.match(complaint(`state_dir = "/${"x".repeat(48)}"\n`), /must be an absolute path of at most 48 bytes/);
	t.match(complaint(`state_dir = "/${"ä".repeat(24)}"\n`), /must be an absolute path of at most 48 bytes/, "bytes, not characters");
});

t.test("several mistakes are told at once, not without end", async (t) => {
	const message = complaint(
		"[timeouts]\nboot_ms = 0\nagent_call_ms = 0\nvmm_call_ms = 0\n[guest]\nvcpus = 0\nmemory_mib = 0\n[log]\nlevel = 0\n[debug]\nconsole = 0\n",
	);
	t.equal(message.split("but must be").length - 1, 5, message);
	t.match(message, /; and 2 more$/);
});

t.test("broken TOML is an error with line and column", async (t) => {
	t.match(complaint("[guest]\nvcpus = = 2\n"), /^\/etc\/c\.toml:2:\d+: /);
	t.match(complaint("[guest]\nvcpus = 1\nvcpus = 2\n"), /^\/etc\/c\.toml:3:\d+: /);
	t.match(complaint("a = 99999999999999999999\n"), /^\/etc\/c\.toml:1:\d+: /);
	t.notMatch(complaint("[guest\n"), /\n/, "one line");
});

t.test("a file without end or a folder is no configuration", async (t) => {
	const folder = t.testdir({ "big.toml": "#".repeat(1024 * 1024 + 1) });
	await t.rejects(
		loadConfig(join(folder, "big.toml"), { required: true }),
		failing({ reason: "config.invalid", message: /at most 1048576/ }),
	);
	await t.rejects(loadConfig(folder, { required: true }), failing({ reason: "config.unreadable" }));
});
