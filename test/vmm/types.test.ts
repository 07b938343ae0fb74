/** The hand-written types against the published description of the API, plus a list of what the program knows beyond it. */

import { readFileSync } from "node:fs";
import { t } from "tap";
import ts from "typescript";

const api = JSON.parse(readFileSync(new URL("data/api.json", import.meta.url), "utf8")) as {
	readonly objects: Record<string, Record<string, string>>;
	readonly enums: Record<string, string[]>;
};

/** Names that differ. */
const RENAMED: Record<string, string> = { VmMemoryZoneUpdateData: "MemoryZoneUpdate" };

/** What the program takes or gives although its description does not say so: from its source and its recorded answers. */
const UNDESCRIBED: Record<string, string[]> = {
	CpusConfig: ["profile?"],
	DeviceNode: ["parent?"],
	DiskConfig: ["disable_io_uring?", "disable_aio?"],
	PayloadConfig: ["fw_cfg_config?"],
};

/** Where the types are narrower or written otherwise. */
const WRITTEN_OTHERWISE: Record<string, Record<string, string>> = {
	DeviceNode: { "resources?": "Readonly<Record<string, unknown>>[]" },
	VmInfo: { "device_tree?": "Readonly<Record<string, DeviceNode>>" },
};

interface Declared {
	readonly objects: Map<string, Record<string, string>>;
	readonly unions: Map<string, string[]>;
}

function declared(): Declared {
	const objects = new Map<string, Record<string, string>>();
	const unions = new Map<string, string[]>();
	for (const file of ["api-types.ts", "config-types.ts"]) {
		const url = new URL(`../../shim/vmm/${file}`, import.meta.url);
		const source = ts.createSourceFile(file, readFileSync(url, "utf8"), ts.ScriptTarget.ES2022);
		for (const statement of source.statements) {
			if (ts.isInterfaceDeclaration(statement)) {
				const members: Record<string, string> = {};
				for (const member of statement.members) {
					if (!ts.isPropertySignature(member) || member.type === undefined) continue;
					members[member.name.getText(source) + (member.questionToken === undefined ? "" : "?")] = member.type
						.getText(source)
						.replace(/^readonly /, "");
				}
				objects.set(statement.name.text, members);
			}
			if (ts.isTypeAliasDeclaration(statement) && ts.isUnionTypeNode(statement.type)) {
				unions.set(
					statement.name.text,
					statement.type.types.map((type) => type.getText(source).replaceAll('"', "")),
				);
			}
		}
	}
	return { objects, unions };
}

t.test("every object of the API has its type, with the same fields", async (t) => {
	const { objects } = declared();
	for (const [name, described] of Object.entries(api.objects)) {
		const members = objects.get(RENAMED[name] ?? name);
		if (members === undefined) {
			t.fail(`${name} has no type`);
			continue;
		}
		const wanted = Object.fromEntries(
			Object.entries(described).map(([field, type]) => [field, WRITTEN_OTHERWISE[name]?.[field] ?? rename(type)]),
		);
		const known = new Set(UNDESCRIBED[name]);
		for (const field of known) t.ok(field in members, `${name}.${field} is in the type`);
		t.same(Object.fromEntries(Object.entries(members).filter(([field]) => !known.has(field))), wanted, name);
	}
});

t.test("every enumeration of the API has its union", async (t) => {
	const { unions } = declared();
	for (const [name, values] of Object.entries(api.enums)) t.same(unions.get(name), values, name);
});

function rename(type: string): string {
	const bare = type.replace("[]", "");
	return type.replace(bare, RENAMED[bare] ?? bare);
}
