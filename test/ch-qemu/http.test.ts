/** The VMM's own HTTP server: what it takes, what it refuses, one request at a time. */
import { connect, type Socket } from "node:net";
import t from "tap";
import { HttpParser } from "../../ch-qemu/http-request.ts";
import { parseAnswer, rawRequest, request, shortFolder, soon, Vmm } from "./lab.ts";

t.test("a request may come in any pieces", async (t) => {
	const text = "PUT /api/v1/vm.resize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";
	const parser = new HttpParser();
	const events = text.split("").flatMap((letter) => parser.push(Buffer.from(letter)));
	t.match(events, [
		{ kind: "request", request: { method: "PUT", path: "/api/v1/vm.resize", body: "{}" } },
		{ kind: "request", request: { method: "GET", path: "/api/v1/vmm.ping" } },
	]);
});

t.test("what the real server refuses is refused", async (t) => {
	const refused = (text: string): boolean => new HttpParser().push(Buffer.from(text)).at(-1)?.kind === "bad";
	t.ok(refused("POST / HTTP/1.1\r\n"), "another method");
	t.ok(refused("GET / HTTP/2\r\n"), "another version");
	t.ok(refused("rubbish\r\n"), "no request line");
	t.ok(refused(`GET / HTTP/1.1\r\nX: ${"y".repeat(2000)}`), "a line above 1 KiB");
	t.ok(refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), "a chunked body");
	t.ok(refused("PUT / HTTP/1.1\r\nContent-Length: 307200\r\n\r\n"), "a body of 300 KiB");
	t.notOk(refused("PUT / HTTP/1.1\r\nContent-Length: 307199\r\n\r\n"), "a smaller one");
	t.ok(refused("GET / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"), "a GET with a body");
	t.same(new HttpParser().push(Buffer.from("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")), [{ kind: "continue" }]);
});

t.test("the server over a socket", async (t) => {
	const vmm = await Vmm.start(shortFolder(t));
	t.teardown(() => vmm.kill());
	const api = vmm.api;

	await t.test("statuses and bodies of what is no call", async (t) => {
		const cases: [string, string, unknown, number, unknown][] = [
			["GET", "/", undefined, 404, ["Not Found"]],
			["GET", "/api/v1/vmm.ping/", undefined, 404, ["Not Found"]],
			["GET", "/api/v1/vmm.ping?x=1", undefined, 404, ["Not Found"]],
			["PUT", "/api/v1/vm.nope", undefined, 404, ["Not Found"]],
			["GET", "/api/v1/vm.boot", undefined, 400, ["Bad Request"]],
			["PUT", "/api/v1/vm.info", undefined, 400, ["Bad Request"]],
			["PUT", "/api/v1/vm.boot", {}, 400, ["Bad Request"]],
			["PUT", "/api/v1/vm.add-disk", undefined, 400, ["Bad Request"]],
			["PUT", "/api/v1/vm.create", undefined, 400, undefined],
			["PUT", "/api/v1/vm.create", "{", 400, ["Failed to deserialize JSON", "EOF while parsing an object at line 1 column 1"]],
			["PUT", "/api/v1/vm.create", "{} x", 400, ["Failed to deserialize JSON", "trailing characters at line 1 column 4"]],
			["PUT", "/api/v1/vm.resize", "{}", 404, ["Error from API", "The VM could not be resized", "VM is not created"]],
			["DELETE", "/api/v1/vm.delete", undefined, 400, undefined],
		];
		for (const [method, path, body, status, json] of cases) {
			const answer = await request(api, method, path, body);
			t.equal(answer.status, status, `${method} ${path}`);
			t.same(answer.json, json);
			t.equal(answer.reason, "");
		}
	});

	await t.test("the server's own refusal is no valid JSON, and ends the connection", async (t) => {
		const answer = await rawRequest(api, "rubbish\r\n\r\n");
		t.equal(answer.status, 400);
		t.match(answer.text, /^\{ "error": ".*\nAll previous unanswered requests will be dropped\." \}$/);
	});

	await t.test("a connection is kept, and requests on it are answered in order", async (t) => {
		const socket = connect(api);
		let got = "";
		socket.on("data", (chunk: Buffer) => (got += chunk));
		socket.write("GET /api/v1/vmm.ping HTTP/1.1\r\n\r\nPUT /api/v1/vm.delete HTTP/1.1\r\n\r\nGET /api/v1/vm.info HTTP/1.1\r\n\r\n");
		await soon("three answers", new Promise<void>((resolve) => socket.on("data", () => got.includes("VM is not created") && resolve())));
		t.same(
			[...got.matchAll(/HTTP\/1\.1 (\d+) \r\n/g)].map((m) => m[1]),
			["200", "204", "404"],
		);
		socket.destroy();
	});

	await t.test("the eleventh connection is turned away", async (t) => {
		const sockets: Socket[] = [];
		t.teardown(() => sockets.forEach((socket) => socket.destroy()));
		for (let i = 0; i < 10; i++) {
			const socket = connect(api);
			sockets.push(socket);
			socket.write("GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n");
			await soon("a ping", new Promise((resolve) => socket.once("data", resolve)));
		}
		t.equal((await request(api, "GET", "/api/v1/vmm.ping")).status, 503);
		const first = sockets.shift();
		first?.destroy();
		let status = 503;
		while (status === 503) status = (await request(api, "GET", "/api/v1/vmm.ping")).status;
		t.equal(status, 200, "there is room when one is closed");
	});

	await t.test("an answer is complete only with its body", async (t) => {
		t.equal(parseAnswer("HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nab"), undefined);
		t.equal(parseAnswer("HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc")?.text, "abc");
	});
});
