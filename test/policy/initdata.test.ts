import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";

import t from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { decodeInitdata, encodeInitdata, initdataDigest, makeInitdata, MAX_INITDATA_BYTES } from "../../shim/policy/initdata.ts";

const pack = (toml: string): string => gzipSync(toml).toString("base64");

t.test("what is made can be read, and the digest is that of the text inside", async (t) => {
	const texts = [
		"",
		"package agent_policy\n",
		"\nfirst line is empty",
		"a ''' b",
		"ends with '",
		'tab\tand \\ and "',
		"\r\n",
		"\u0000\u007f",
		"äöü ☃ 𐍈",
	];
	for (const algorithm of ["sha256", "sha384", "sha512"] as const) {
		for (const text of texts) {
			const data = { "policy.rego": text, "other.toml": "x = 1\n" };
			const made = makeInitdata({ algorithm, data });
			const read = decodeInitdata(encodeInitdata(made));
			t.same(read.data, data, JSON.stringify(text));
			t.equal(read.hostData, made.hostData);
			const whole = createHash(algorithm).update(gunzipSync(made.gzip)).digest("hex");
			t.equal(made.hostData, whole.slice(0, 64));
			t.equal(made.hostData.length, 64);
		}
	}
});

t.test("the same parts always give the same annotation", async (t) => {
	const parts = { algorithm: "sha256", data: { "policy.rego": "package agent_policy\n" } } as const;
	t.equal(encodeInitdata(makeInitdata(parts)), encodeInitdata(makeInitdata(parts)));
	t.equal(initdataDigest(Buffer.from("abc"), "sha256"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
});

t.test("what others have made can be read", async (t) => {
	const toml =
		'algorithm = "sha384"\nversion = "0.1.0"\n[data]\n"aa.toml" = \'\'\'\n[token]\n\'\'\'\n"policy.rego" = "default X := true"\n';
	const read = decodeInitdata(`${pack(toml)}\n`);
	t.same(read.data, { "aa.toml": "[token]\n", "policy.rego": "default X := true" });
	t.equal(read.algorithm, "sha384");
	t.same(Buffer.from(read.toml).toString(), toml);
});

t.test("what is wrong is named", async (t) => {
	const bad: [string, string, RegExp][] = [
		["no base64", "%%%%", /no base64/u],
		["cut base64", pack('version = "0.1.0"').slice(0, -1), /no base64/u],
		["empty", "", /no base64/u],
		["not packed", Buffer.from('version = "0.1.0"').toString("base64"), /not packed with gzip/u],
		["cut while packed", gzipSync("x".repeat(1000)).subarray(0, 20).toString("base64"), /not packed with gzip/u],
		["no TOML", pack("version = \n"), /no TOML: line 1, column 11/u],
		["no UTF-8", gzipSync(Buffer.from([0xff, 0xfe])).toString("base64"), /no TOML/u],
		["no version", pack('algorithm = "sha256"\n[data]\n'), /version/u],
		["another version", pack('version = "9"\nalgorithm = "sha256"\n[data]\n'), /version: is not "0\.1\.0"/u],
		["another algorithm", pack('version = "0.1.0"\nalgorithm = "md5"\n[data]\n'), /algorithm: is none of sha256, sha384, sha512/u],
		["no data", pack('version = "0.1.0"\nalgorithm = "sha256"\n'), /data/u],
		["an entry that is no text", pack('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"policy.rego" = 3\n'), /data\.policy\.rego/u],
		["an unknown key", pack('version = "0.1.0"\nalgorithm = "sha256"\nkey = 1\n[data]\n'), /key/u],
		["too much when unpacked", pack("#".repeat(MAX_INITDATA_BYTES + 1)), /more than 4194304 bytes when unpacked/u],
		["a key of many parts", pack(`a${".a".repeat(40_000)} = 1`), /more than 65536 characters outside of texts/u],
		["many keys", pack("[data]\n".concat(...Array.from({ length: 10_000 }, (_, i) => `k${i} = ""\n`))), /more than 65536 characters/u],
		["too much base64", "A".repeat(1_500_000), /at most 1048576/u],
	];
	for (const [name, annotation, words] of bad) {
		const error = t.throws(() => decodeInitdata(annotation), words, name);
		t.ok(error instanceof ShimError && error.reason === "initdata.invalid", name);
	}
	t.throws(() => makeInitdata({ algorithm: "sha256", data: { "policy.rego": "#".repeat(MAX_INITDATA_BYTES) } }), /at most 4194304/u);
});
