/** Templates on the disk: whole or not there, and each VM sees its own configuration. */
import { existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { templatesFolder } from "../../../shim/base/names.ts";
import { dropView, makeView, readTemplates, removeTemplate } from "../../../shim/pod/snapshot/template.ts";
import { falseTemplate, TEMPLATE_MEMORY_BYTES as MEMORY_BYTES } from "../../support/template.ts";

const OWN = { vsock: "/p/b/vsock.sock", serialFile: undefined, disks: {}, sharedMemory: false, landlockRules: undefined };

function place(t: Test): string {
	const stateDir = mkdtempSync("/tmp/templates-");
	t.teardown(() => rmSync(stateDir, { recursive: true, force: true }));
	return stateDir;
}

t.test("a new snpd finds what was made, and removes what is not whole or of another boot of the node", async (t) => {
	const stateDir = place(t);
	t.same(readTemplates(stateDir), [], "none before the first");
	const made = falseTemplate(stateDir);
	t.equal(statSync(templatesFolder(stateDir)).mode & 0o777, 0o700);
	t.ok(made.bytes < MEMORY_BYTES, "holes take no room");
	const [cut, old] = [falseTemplate(stateDir, "bb"), falseTemplate(stateDir, "cc")];
	rmSync(join(cut.folder, "template.json"));
	const document = join(old.folder, "template.json");
	writeFileSync(document, readFileSync(document, "utf8").replace(/"bootId":"[^"]*"/u, '"bootId":"another"'));
	t.same(readTemplates(stateDir), [made]);
	t.notOk(existsSync(cut.folder) || existsSync(old.folder));
	removeTemplate(made);
	t.same(readTemplates(stateDir), []);
});

t.test("a VM's view holds its own configuration, and goes without the template", async (t) => {
	const stateDir = place(t);
	const template = falseTemplate(stateDir);
	const folder = join(stateDir, "p");
	mkdirSync(folder);
	const view = makeView(template, folder, OWN);
	t.match(JSON.parse(readFileSync(join(view, "config.json"), "utf8")), { vsock: { socket: OWN.vsock } });
	t.equal(readFileSync(join(view, "state.json"), "utf8"), "state");
	t.ok(lstatSync(join(view, "memory-ranges")).isSymbolicLink(), "its memory is not copied");
	t.match(readFileSync(join(template.folder, "config.json"), "utf8"), /\/w\/a\//u, "the template's is as it was");
	dropView(folder);
	t.notOk(existsSync(view));
	t.equal(statSync(join(template.folder, "memory-ranges")).size, MEMORY_BYTES);
});

t.test("memory that was cut is found out before the VMM is asked: it would not notice", async (t) => {
	const stateDir = place(t);
	const template = falseTemplate(stateDir);
	truncateSync(join(template.folder, "memory-ranges"), MEMORY_BYTES / 2);
	t.throws(() => makeView(template, stateDir, OWN), /has 2097152 bytes, not 4194304/u);
});
