import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { Log } from "../../shim/base/log.ts";
import type { LogLevel } from "../../shim/base/log.ts";

function collect(level?: LogLevel): { log: Log; records: () => Record<string, unknown>[] } {
	const lines: string[] = [];
	return {
		log: new Log((line) => void lines.push(line), level),
		records: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>),
	};
}

t.test("Log writes one JSON object a line, fixed fields first", async (t) => {
	const lines: string[] = [];
	new Log((line) => void lines.push(line)).info("started", { pid: 1, size: 2n ** 60n, text: "a\nb", none: undefined });
	t.equal(lines.length, 1);
	t.match(lines[0], /^\{"time":"[^"]+","level":"info","message":"started","pid":1,"size":"1152921504606846976","text":"a\\nb"\}\n$/);
});

t.test("Log.with adds fields and shares the level", async (t) => {
	const { log, records } = collect("warn");
	const child = log.with({ pod: "a" }).with({ container: "b" });
	child.info("hidden");
	log.setLevel("debug");
	child.debug("seen");
	t.match(records(), [{ level: "debug", message: "seen", pod: "a", container: "b" }]);
});

t.test("Log.error carries the chain of causes and the remedy", async (t) => {
	const { log, records } = collect();
	log.error("boot failed", new ShimError("vmm.missing", "no VMM", { cause: new Error("ENOENT") }), { pod: "a" });
	t.match(records(), [{ level: "error", pod: "a", error: "no VMM: ENOENT (install Cloud Hypervisor, or set hypervisor.path to it)" }]);
});
