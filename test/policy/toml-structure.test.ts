import { parse } from "smol-toml";
import t from "tap";

import { structureLength } from "../../shim/policy/toml-structure.ts";

t.test("what stands in strings and comments does not count", async (t) => {
	const documents: [string, number][] = [
		["", 0],
		["a = 1\n", 6],
		["a = 'x=1'# b.c = 2\n", 5],
		["a = '''\nb = 1\n'' '''\nc = 2", 10],
		['a = """\nb = "1"\n\\""" "" """\nc = 2', 10],
		['a = "\\"b\\\\"\nc = 2', 10],
		["a = ''''x''''', 'y'", 6],
		['a = [""""x"""", """"y""""", 1]', 11],
		["'a'.\"b\" = ''", 4],
		["# only a comment", 0],
	];
	for (const [toml, length] of documents) t.equal(structureLength(toml), length, JSON.stringify(toml));
});

t.test("a string that ends with its own marks hides nothing behind it", async (t) => {
	const many = "1,".repeat(1000);
	for (const text of ["'''x''''", "'''x'''''", '"""x""""', '"""x"""""', "''", '""', "'''\n'''", '"""\\\\"""']) {
		const toml = `a = [${text},${many}]`;
		t.ok(Array.isArray(parse(toml)["a"]), text);
		t.ok(structureLength(toml) > many.length, text);
	}
});

t.test("of a text that is no TOML it counts what comes before the mistake, and ends", async (t) => {
	for (const [toml, length] of [
		["abc = 'x\ndef", 10],
		['abc = "x\ndef', 10],
		["abc = '''x", 6],
		['abc = """x\\', 6],
		['abc = "\\', 6],
	] as const)
		t.equal(structureLength(toml), length, JSON.stringify(toml));
});
