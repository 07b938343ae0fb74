/** The client against recorded answers of the real VMM, and against answers that no VMM should give. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { isUnknownDevice, VmmApiError } from "../../shim/vmm/api-error.ts";
import { VmmClient } from "../../shim/vmm/client.ts";
import type { CallOptions, VmmClientOptions } from "../../shim/vmm/client.ts";
import { MAX_REQUEST_BODY_BYTES } from "../../shim/vmm/http.ts";
import { answer, serveApi } from "./api-server.ts";
import type { Answer, ApiServer } from "./api-server.ts";
import { failure, shortFolder } from "./tools.ts";

interface Recorded {
	readonly method: string;
	readonly endpoint: string;
	readonly request: never;
	readonly status: number;
	readonly answer: string;
}

const recordings = readFileSync(new URL("data/recorded.jsonl", import.meta.url), "utf8")
	.trim()
	.split("\n")
	.map((line) => JSON.parse(line) as Recorded);
const api = JSON.parse(readFileSync(new URL("data/api.json", import.meta.url), "utf8")) as {
	endpoints: Record<string, { method: string; request: string | null }>;
};

/** How each endpoint is called, with a request as it was recorded. */
const CALLS: Record<string, (client: VmmClient, request: never, call?: CallOptions) => Promise<unknown>> = {
	"vmm.ping": (client, _request, call) => client.ping(call),
	"vmm.shutdown": (client, _request, call) => client.vmmShutdown(call),
	"vm.info": (client, _request, call) => client.info(call),
	"vm.counters": (client, _request, call) => client.counters(call),
	"vm.create": (client, request, call) => client.create(request, call),
	"vm.delete": (client, _request, call) => client.delete(call),
	"vm.boot": (client, _request, call) => client.boot(call),
	"vm.pause": (client, _request, call) => client.pause(call),
	"vm.resume": (client, _request, call) => client.resume(call),
	"vm.shutdown": (client, _request, call) => client.shutdown(call),
	"vm.reboot": (client, _request, call) => client.reboot(call),
	"vm.power-button": (client, _request, call) => client.powerButton(call),
	"vm.nmi": (client, _request, call) => client.nmi(call),
	"vm.resize": (client, request, call) => client.resize(request, call),
	"vm.resize-disk": (client, request, call) => client.resizeDisk(request, call),
	"vm.resize-zone": (client, request, call) => client.resizeZone(request, call),
	"vm.add-device": (client, request, call) => client.addDevice(request, call),
	"vm.add-disk": (client, request, call) => client.addDisk(request, call),
	"vm.add-fs": (client, request, call) => client.addFs(request, call),
	"vm.add-generic-vhost-user": (client, request, call) => client.addGenericVhostUser(request, call),
	"vm.add-net": (client, request, call) => client.addNet(request, [], call),
	"vm.add-pmem": (client, request, call) => client.addPmem(request, call),
	"vm.add-user-device": (client, request, call) => client.addUserDevice(request, call),
	"vm.add-vdpa": (client, request, call) => client.addVdpa(request, call),
	"vm.add-vsock": (client, request, call) => client.addVsock(request, call),
	"vm.remove-device": (client, request, call) => client.removeDevice((request as { id: string } | null)?.id ?? "", call),
	"vm.snapshot": (client, request, call) => client.snapshot(request, call),
	"vm.restore": (client, request, call) => client.restore(request, call),
	"vm.coredump": (client, request, call) => client.coredump(request, call),
	"vm.receive-migration": (client, request, call) => client.receiveMigration(request, call),
	"vm.send-migration": (client, request, call) => client.sendMigration(request, call),
};

interface Pair {
	readonly client: VmmClient;
	readonly server: ApiServer;
}

async function pair(t: Test, handle: Answer, options?: VmmClientOptions): Promise<Pair> {
	const server = await serveApi(join(shortFolder(t), "api.sock"), handle);
	const client = new VmmClient(server.path, options);
	t.teardown(async () => {
		client.close();
		await server.close();
	});
	return { client, server };
}

t.test("every endpoint has a method, which asks for it in the right way", async (t) => {
	const seen: { path: string; method: string; body: string }[] = [];
	const { client, server } = await pair(t, (request) => {
		seen.push(request);
		t.equal(request.headers.has("content-length"), request.body !== "", "Content-Length goes with a body, and only with one");
		return request.path.endsWith("vmm.ping") || request.path.endsWith("vm.info") || request.path.endsWith("vm.counters")
			? answer(200, "{}")
			: answer(204);
	});
	t.same(Object.keys(CALLS).sort(), Object.keys(api.endpoints).sort());
	for (const [endpoint, { method, request }] of Object.entries(api.endpoints)) {
		await CALLS[endpoint]?.(client, { id: "x" } as never);
		const last = seen.at(-1);
		t.match(last, { path: `/api/v1/${endpoint}`, method });
		t.equal(last?.body !== "", request !== null, `${endpoint} has a body when the API takes one`);
	}
	t.equal(server.connections(), 1, "all on one connection");
});

t.test("recorded answers become results or the VMM's own words", async (t) => {
	let current: Recorded | undefined;
	const { client } = await pair(t, () => answer(current?.status ?? 500, current?.answer));
	for (const recorded of recordings) {
		current = recorded;
		const what = `${recorded.endpoint} ${recorded.status}`;
		const call = CALLS[recorded.endpoint]?.(client, recorded.request) ?? Promise.reject(new Error(`${what}: no call`));
		if (recorded.status >= 400) {
			const error = await failure(call);
			const chain = JSON.parse(recorded.answer) as string[];
			t.equal(error.reason, "vmm.api");
			t.ok(error.cause instanceof VmmApiError, what);
			t.match(error.cause, { endpoint: recorded.endpoint, status: recorded.status, chain });
			for (const link of chain.filter((link) => link !== "Error from API")) t.ok(error.message.includes(link), `${what}: ${link}`);
		} else {
			const result = await call;
			if (recorded.answer === "" || recorded.status === 204) t.equal(result, undefined, what);
			else if (recorded.endpoint !== "vm.counters") t.same(result, JSON.parse(recorded.answer), what);
		}
	}
});

t.test("a device that the VMM does not have is told from other refusals, whatever its version", async (t) => {
	const beforeBoot = 'No device with id "net2" to remove';
	const afterBoot = "Failed to find device corresponding to the given identifier: net2";
	const busy = "Not allowed to remove this type of device from the VM: balloon";
	for (const [status, cause, isUnknown] of [
		[404, beforeBoot, true],
		[404, afterBoot, true],
		[500, beforeBoot, true],
		[500, afterBoot, true],
		[500, busy, false],
	] as const) {
		const chain = ["Error from API", "The device could not be removed from the VM", cause];
		const { client } = await pair(t, () => answer(status, JSON.stringify(chain)));
		const { cause: refusal } = await failure(client.removeDevice("net2"));
		t.equal(isUnknownDevice(refusal), isUnknown, `${status} ${cause}`);
	}
});

t.test("counters keep every digit", async (t) => {
	const counters = recordings
		.filter((recorded) => recorded.endpoint === "vm.counters" && recorded.answer.includes("18446744073709551615"))
		.map((recorded) => recorded.answer);
	t.equal(counters.length, 1);
	const { client } = await pair(t, () => answer(200, counters[0]));
	const result = await client.counters();
	t.equal(result["pin"]?.["write_latency_min"], 2n ** 64n - 1n);
	t.equal(result["n2"]?.["rx_frames"], 0n);
});

t.test("errors of the HTTP layer are read although they are no JSON, and empty ones named", async (t) => {
	const bodies = ['{ "error": "Invalid HTTP Method.\nAll previous unanswered requests will be dropped." }', "", "plain\ntext", "[]"];
	const { client } = await pair(t, () => answer(400, bodies.shift()));
	t.match(await failure(client.ping()), {
		message: /HTTP 400\): Invalid HTTP Method\. All previous unanswered requests will be dropped\.$/,
	});
	t.match(await failure(client.ping()), { message: /no reason was given$/ });
	t.match(await failure(client.ping()), { message: /plain text$/ });
	t.match(await failure(client.ping()), { message: /no reason was given$/ });
});

t.test("calls wait for each other and keep their order", async (t) => {
	const running: string[] = [];
	const order: string[] = [];
	let release: () => void = () => undefined;
	const { client } = await pair(t, async (request) => {
		running.push(request.path);
		t.equal(running.length, 1, "one at a time");
		order.push(request.path.slice("/api/v1/".length));
		if (order.length === 1) await new Promise<void>((resolve) => (release = resolve));
		running.pop();
		return answer(204);
	});
	const calls = [client.boot(), client.pause(), client.resume()];
	const full = new VmmClient(client.socketPath, { queueLimit: 1 });
	t.teardown(() => full.close());
	while (order.length === 0) await new Promise((resolve) => setImmediate(resolve));
	release();
	await Promise.all(calls);
	t.same(order, ["vm.boot", "vm.pause", "vm.resume"]);
	const second = [full.boot(), failure(full.boot())] as const;
	t.equal((await second[1]).reason, "busy");
	await second[0];
});

t.test("a body that would kill the VMM is never sent", async (t) => {
	const { client, server } = await pair(t, () => answer(204));
	const error = await failure(client.create({ payload: { cmdline: "x".repeat(MAX_REQUEST_BODY_BYTES) } }));
	t.match(error, { reason: "vmm.api", message: /vm\.create would take \d+ bytes/ });
	t.equal(server.connections(), 0);
	await client.create({ payload: { cmdline: "x".repeat(MAX_REQUEST_BODY_BYTES - 64) } });
});

t.test("a call that takes too long or is canceled gives up its connection, and the next one has its own answer", async (t) => {
	let silent = true;
	const { client, server } = await pair(t, () => (silent ? undefined : answer(200, '{"version":"1"}')));
	t.match(await failure(client.boot({ timeoutMs: 30 })), { reason: "wait.deadline", message: /^vm\.boot of the hypervisor/ });
	const abort = new AbortController();
	const canceled = failure(client.boot({ signal: abort.signal }));
	const waiting = failure(client.pause({ timeoutMs: 30 }));
	t.equal((await waiting).reason, "wait.deadline", "waiting for an earlier call counts");
	abort.abort();
	t.equal((await canceled).reason, "wait.canceled");
	silent = false;
	t.same(await client.ping(), { version: "1" });
	t.equal(server.connections(), 3);
	t.equal((await failure(client.ping({ signal: AbortSignal.abort() }))).reason, "wait.canceled");
});

t.test("malformed answers are refused", async (t) => {
	const answers = [
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"SSH-2.0-OpenSSH\r\n\r\n",
		"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
		`HTTP/1.1 200 \r\nX: ${"y".repeat(10_000)}`,
		`${answer(200, "{}")}more`,
		answer(200, "[1]"),
		answer(200, "{"),
		answer(200),
	];
	const { client } = await pair(t, () => answers.shift());
	for (const left of [...answers])
		t.match(
			await failure(client.ping()),
			{ reason: "vmm.api", message: /answer to vmm\.ping is malformed/ },
			JSON.stringify(left.slice(0, 40)),
		);
});

t.test("an answer may come byte by byte", async (t) => {
	const { client } = await pair(t, async (_request, socket) => {
		for (const byte of answer(200, '{"version":"1"}')) {
			socket.write(byte);
			await new Promise((resolve) => setImmediate(resolve));
		}
		return undefined;
	});
	t.same(await client.ping(), { version: "1" });
});

t.test("a lost connection is an error, is explained by the owner, and is never retried", async (t) => {
	let asked = 0;
	const { client, server } = await pair(t, (_request, socket) => {
		asked += 1;
		socket.destroy();
		return undefined;
	});
	t.match(await failure(client.boot()), {
		reason: "vmm.api",
		message: /vm\.boot of the hypervisor at .*: closed the connection without an answer$/,
	});
	t.equal(asked, 1);
	const lost: string[] = [];
	const explained = new VmmClient(server.path, {
		onLost: async (endpoint) => {
			lost.push(endpoint);
			return new ShimError("vmm.exited", "it was killed");
		},
	});
	t.match(await failure(explained.boot()), { reason: "vmm.exited", message: "it was killed" });
	t.same(lost, ["vm.boot"]);
	await server.close();
	t.match(await failure(client.boot()), { message: /ENOENT|ECONNREFUSED/ });
});

t.test("a connection that was closed while idle is replaced", async (t) => {
	const { client, server } = await pair(t, (request, socket) => {
		if (request.path.endsWith("vm.pause")) socket.end(answer(204));
		return request.path.endsWith("vm.pause") ? undefined : answer(204);
	});
	await client.pause();
	// The end of the connection arrives with or right after the answer.
	while (server.connections() === 1) {
		await new Promise((resolve) => setImmediate(resolve));
		await client.boot().catch(() => undefined);
	}
	await client.boot();
	t.equal(server.connections(), 2);
});

t.test("a client that was closed asks nobody any more, whoever listens there by then", async (t) => {
	let asked = 0;
	const { client } = await pair(t, () => {
		asked++;
		return answer(204);
	});
	await client.pause();
	client.close();
	await t.rejects(client.pause(), /given up/);
	t.equal(asked, 1);
});
