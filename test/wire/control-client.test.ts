import { once } from "node:events";
import net from "node:net";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { askDaemon } from "../../shim/wire/control-client.ts";
import { serveKeepers } from "../../shim/wire/keeper-server.ts";
import { failing } from "../base/failing.ts";
import { memoryLog, shortFolder } from "./support.ts";

async function daemon(t: Test, control: (request: unknown) => Promise<Record<string, unknown>>): Promise<string> {
	const path = join(shortFolder(t), "snpd.sock");
	const handlers = { attached: () => undefined, request: async () => ({ payload: Buffer.alloc(0) }), gone: () => undefined, control };
	const server = await serveKeepers(path, handlers, memoryLog().log);
	t.teardown(() => server.close());
	return path;
}

t.test("askDaemon gives snpd's answer", async (t) => {
	const path = await daemon(t, async (request) => ({ echo: request }));
	t.same(await askDaemon(path, { op: "list", large: "x".repeat(1_000_000) }), { echo: { op: "list", large: "x".repeat(1_000_000) } });
});

t.test("askDaemon gives snpd's failure in its own words", async (t) => {
	const path = await daemon(t, () => Promise.reject(new ShimError("pod.not-found", "no pod x", { remedy: "list them" })));
	await t.rejects(askDaemon(path, { op: "timeline" }), failing({ reason: "call.invalid", message: "no pod x (list them)" }));
});

t.test("askDaemon says when no snpd runs, or when it hangs up", async (t) => {
	const folder = shortFolder(t);
	await t.rejects(askDaemon(join(folder, "missing"), {}), failing({ reason: "internal", message: /asking snpd on .*missing failed/ }));
	const server = net.createServer((socket) => socket.resume().end());
	server.listen(join(folder, "s"));
	await once(server, "listening");
	t.teardown(() => server.close());
	await t.rejects(askDaemon(join(folder, "s"), {}), failing({ reason: "internal" }));
});
