/** Real sockets and logs for the wire's tests. */

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Test } from "tap";
import { Log } from "../../shim/base/log.ts";

/** A fresh folder with a short name (socket paths are bounded), removed after the test. */
export function shortFolder(t: Test): string {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	return folder;
}

/** Both ends of a connected unix stream, closed after the test. */
export async function connectedPair(t: Test): Promise<{ near: Socket; far: Socket }> {
	const path = join(shortFolder(t), "s");
	const server = net.createServer();
	server.listen(path);
	await once(server, "listening");
	const near = net.connect(path);
	const [far] = (await once(server, "connection")) as [Socket];
	t.teardown(() => {
		near.destroy();
		far.destroy();
		server.close();
	});
	far.on("error", () => undefined);
	return { near, far };
}

/** A log and what was written to it. */
export function memoryLog(): { log: Log; lines: string[] } {
	const lines: string[] = [];
	return { log: new Log((line) => void lines.push(line), "debug"), lines };
}
