import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import {
	decodeFrame,
	decodeRequest,
	decodeResponse,
	encodeFrame,
	encodeRequest,
	encodeResponse,
	FrameReader,
	FrameType,
	MAX_DATA_BYTES,
} from "../../shim/wire/frame.ts";
import type { Frame } from "../../shim/wire/frame.ts";
import { randomBytes, randomSource } from "../support/random.ts";
import { failing } from "../base/failing.ts";

const plain = (frames: Frame[]): unknown[] => frames.map(({ streamId, type, data }) => ({ streamId, type, data: data.toString("latin1") }));

t.test("encodeFrame writes the header of ttrpc's specification", async (t) => {
	t.equal(encodeFrame(FrameType.request, 0x01020305, Buffer.from("ab")).toString("hex"), "000000020102030501006162");
	t.throws(() => encodeFrame(1, 1, new Uint8Array(MAX_DATA_BYTES + 1)), failing({ reason: "call.invalid" }));
});

t.test("FrameReader gives the same frames however the bytes are cut", async (t) => {
	const sent = [encodeFrame(1, 1, Buffer.from("one")), encodeFrame(2, 3, Buffer.alloc(0)), encodeFrame(1, 5, Buffer.alloc(9000, "x"))];
	const wire = Buffer.concat(sent);
	const whole = plain(new FrameReader("call.invalid").push(wire));
	t.equal(whole.length, 3);

	const byByte = new FrameReader("call.invalid");
	t.same(plain([...wire].flatMap((byte) => byByte.push(Buffer.from([byte])))), whole);

	const random = randomSource(7);
	for (let round = 0; round < 100; round++) {
		const reader = new FrameReader("call.invalid");
		const frames: Frame[] = [];
		for (let offset = 0; offset < wire.length; ) {
			const end = Math.min(wire.length, offset + 1 + random(4000));
			// A copy each time: a socket reuses nothing, but the reader must not rely on what it was given.
			const chunk = Buffer.from(wire.subarray(offset, end));
			frames.push(...reader.push(chunk));
			offset = end;
		}
		t.same(plain(frames), whole);
	}
});

t.test("FrameReader takes frames of the full size and no byte more", async (t) => {
	const data = Buffer.alloc(MAX_DATA_BYTES, 7);
	const [frame] = new FrameReader("call.invalid").push(encodeFrame(2, 1, data));
	t.ok(frame?.data.equals(data));
	const header = Buffer.alloc(10);
	header.writeUInt32BE(MAX_DATA_BYTES + 1);
	t.throws(
		() => new FrameReader("guest.protocol").push(header),
		failing({ reason: "guest.protocol", message: /4194305 bytes of data; the limit is 4194304/ }),
	);
	t.throws(() => new FrameReader("guest.protocol", 16).push(encodeFrame(2, 1, Buffer.alloc(17))), failing({ reason: "guest.protocol" }));
});

t.test("decodeFrame refuses a header for another length", async (t) => {
	t.throws(() => decodeFrame(Buffer.alloc(9), "call.invalid"), failing({ reason: "call.invalid" }));
	t.throws(
		() => decodeFrame(Buffer.concat([encodeFrame(1, 1, Buffer.alloc(3)), Buffer.alloc(1)]), "call.invalid"),
		failing({ reason: "call.invalid" }),
	);
});

t.test("a request keeps its parts", async (t) => {
	const request = {
		service: "containerd.task.v2.Task",
		method: "Create",
		payload: Buffer.from([1, 2, 3]),
		timeoutMs: 10_000,
		metadata: { "containerd-namespace-ttrpc": "k8s.io", __proto__x: "1" },
	};
	const decoded = decodeRequest(encodeRequest(request));
	t.match(decoded, { service: request.service, method: request.method, timeoutMs: 10_000 });
	t.same([...decoded.payload], [1, 2, 3]);
	t.same({ ...decoded.metadata }, request.metadata);
	// The bytes are those of protoc's encoding of {service "s", method "m", payload 0x01, timeout_nano 1000000}.
	t.equal(
		Buffer.from(encodeRequest({ service: "s", method: "m", payload: Buffer.from([1]), timeoutMs: 1 })).toString("hex"),
		"0a017312016d1a010120c0843d",
	);
});

t.test("a request without a time-out or with a negative one has none", async (t) => {
	t.equal(decodeRequest(encodeRequest({ service: "s", method: "m", payload: new Uint8Array(0) })).timeoutMs, undefined);
	const negative = Buffer.concat([Buffer.from("0a017312016d", "hex"), Buffer.from("20ffffffffffffffffff01", "hex")]);
	t.equal(decodeRequest(negative).timeoutMs, undefined);
	const huge = Buffer.concat([Buffer.from("0a017312016d", "hex"), Buffer.from("20ffffffffffffffff7f", "hex")]);
	t.ok((decodeRequest(huge).timeoutMs ?? 0) > 2 ** 31);
});

t.test("a request may have fields that are not known, and needs a name", async (t) => {
	const unknown = Buffer.concat([Buffer.from("0a017312016d", "hex"), Buffer.from("f20103616263", "hex")]);
	t.match(decodeRequest(unknown), { service: "s", method: "m" });
	t.throws(() => decodeRequest(new Uint8Array(0)), failing({ reason: "call.invalid" }));
});

t.test("a response keeps its parts", async (t) => {
	const ok = decodeResponse(encodeResponse({ code: 0, message: "", payload: Buffer.from("abc") }), "guest.protocol");
	t.match(ok, { code: 0, message: "" });
	t.equal(Buffer.from(ok.payload).toString(), "abc");
	const failed = decodeResponse(encodeResponse({ code: 5, message: "no such container", payload: new Uint8Array(0) }), "guest.protocol");
	t.match(failed, { code: 5, message: "no such container" });
	t.equal(Buffer.from(encodeResponse({ code: 5, message: "no", payload: new Uint8Array(0) })).toString("hex"), "0a06080512026e6f");
});

t.test("garbage is refused by name, never by another error", async (t) => {
	const random = randomSource(20260726);
	for (let round = 0; round < 3000; round++) {
		const bytes = randomBytes(random, random(200));
		for (const take of [
			() => decodeRequest(bytes),
			() => decodeResponse(bytes, "call.invalid"),
			() => new FrameReader("call.invalid").push(bytes),
		]) {
			try {
				take();
			} catch (error) {
				if (!(error instanceof ShimError) || error.reason !== "call.invalid") t.fail(`round ${round}: ${String(error)}`);
			}
		}
	}
});

t.test("a damaged request is refused by name, never by another error", async (t) => {
	const random = randomSource(3);
	const good = encodeRequest({ service: "service", method: "method", payload: Buffer.alloc(50), timeoutMs: 5, metadata: { a: "b" } });
	for (let round = 0; round < 3000; round++) {
		const bytes = Buffer.from(good);
		bytes[random(bytes.length)] = random(256);
		bytes[random(bytes.length)] = random(256);
		try {
			decodeRequest(bytes.subarray(0, bytes.length - random(3)));
		} catch (error) {
			if (!(error instanceof ShimError)) t.fail(`round ${round}: ${String(error)}`);
		}
	}
});
