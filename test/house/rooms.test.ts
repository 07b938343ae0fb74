import t from "tap";
import { findViolations } from "../../scripts/rooms.ts";

/** The rules that one line in one file breaks. */
function rules(path: string, text: string): string[] {
	return findViolations([{ path, text }]).map(({ rule }) => rule);
}

t.test("imports go down, never up and never sideways", async (t) => {
	t.same(rules("shim/pod/a.ts", 'import { a } from "../vmm/a.ts";\nimport b from "../base/b.ts";\nimport c from "./c.ts";'), []);
	t.same(rules("shim/command/a.ts", 'import { a } from "../wire/a.ts";\nimport { b } from "../service/b.ts";'), []);
	t.same(rules("shim/vmm/a.ts", 'import { a } from "../pod/a.ts";'), ["vmm is below pod: imports go down only"]);
	t.same(rules("shim/vmm/a.ts", 'import type { a } from "../agent/a.ts";'), [
		"vmm and agent are on one level: what both need belongs below, what joins them above",
	]);
	t.same(rules("shim/wire/a.ts", 'import { a } from "../config/a.ts";').length, 1);
	t.same(rules("shim/base/a.ts", 'import { a } from "../wire/a.ts";').length, 1);
});

t.test("every form of import is seen, with its line", async (t) => {
	const forms = [
		'import "../pod/a.ts";',
		'export * from "../pod/a.ts";',
		'export { a } from "../pod/a.ts";',
		'const a = await import("../pod/a.ts");',
		'let a: import("../pod/a.ts").A;',
		'import {\n\ta,\n} from "../pod/a.ts";',
	];
	for (const form of forms) t.equal(rules("shim/vmm/a.ts", form).length, 1, form);
	t.match(findViolations([{ path: "shim/vmm/x/a.ts", text: '\n\nimport { a } from "../../pod/a.ts";' }]), [
		{ path: "shim/vmm/x/a.ts", line: 3, imported: "../../pod/a.ts" },
	]);
	t.same(rules("shim/vmm/a.ts", '// import "../pod/a.ts"\nconst s = \'import "../pod/a.ts"\';'), [], "comments and strings are no imports");
});

t.test("generated codecs and native code have one door each", async (t) => {
	t.same(rules("shim/agent/a.ts", 'import { grpc } from "../../proto/gen/agent.js";'), []);
	t.same(rules("shim/pod/a.ts", 'import { grpc } from "../../proto/gen/agent.js";'), [
		"proto/gen is imported by wire, agent, service only",
	]);
	t.same(rules("shim/host/a.ts", 'import { a } from "../../native/src/socket.ts";'), []);
	t.same(rules("shim/vmm/a.ts", 'import { a } from "../../native/src/socket.ts";'), ["native/src is imported by host only"]);
});

t.test("telemetry, ch-qemu and native keep apart", async (t) => {
	t.same(rules("shim/telemetry/a.ts", 'import { a } from "../base/log.ts";'), []);
	t.same(rules("shim/telemetry/a.ts", 'import { a } from "../pod/pod.ts";'), ["telemetry imports base only"]);
	t.same(rules("shim/pod/a.ts", 'import { a } from "../telemetry/a.ts";'), ["telemetry is imported by command only"]);
	t.same(
		rules(
			"ch-qemu/a.ts",
			'import type { VmConfig } from "../shim/vmm/config-types.ts";\nimport { type A, type B } from "../shim/vmm/api-types.ts";',
		),
		[],
	);
	t.equal(rules("ch-qemu/a.ts", 'import { VmmClient } from "../shim/vmm/client.ts";').length, 1);
	t.equal(rules("ch-qemu/a.ts", 'import type { Log } from "../shim/base/log.ts";').length, 1);
	t.equal(rules("native/src/a.ts", 'import { a } from "../../shim/base/log.ts";').length, 1);
});

t.test("a new room must be entered in the table", async (t) => {
	t.match(rules("shim/novel/a.ts", 'import { a } from "../base/log.ts";'), [/shim\/novel is no room/]);
	t.match(rules("shim/pod/a.ts", 'import { a } from "../novel/a.ts";'), [/shim\/novel is no room/]);
	t.match(rules("shim/pod/a.ts", 'import { a } from "../../test/support/a.ts";'), [/shim imports nothing of the repository but/]);
});
