import { createPrivateKey } from "node:crypto";
import t from "tap";
import { amdKeyDigest, toAmdKey } from "../../../shim/attest/amd-ecdsa.ts";
import { idBlockBytes, idBlockProblem, signIdBlock } from "../../../shim/attest/measure/id-block.ts";
import { fixture } from "../../support/amd-chain.ts";

const idKey = createPrivateKey(fixture("id.test-key.pem"));
const authorKey = createPrivateKey(fixture("author.test-key.pem"));
const fields = {
	measurement: Buffer.from("a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd13d214b35c231715b38e263dc6059745", "hex"),
	familyId: Buffer.alloc(16),
	imageId: Buffer.alloc(16),
	guestSvn: 0,
	guestPolicy: 0x30000n,
};

t.test("block and key digests are those that the crate sev publishes", async (t) => {
	t.equal(
		idBlockBytes(fields).toString("base64"),
		"oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA",
	);
	t.equal(amdKeyDigest(idKey).toString("base64"), "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i");
	t.equal(amdKeyDigest(authorKey).toString("base64"), "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf");
});

t.test("the crate's authentication has our layout, and its author signed its ID key", async (t) => {
	const published = fixture("id-authentication.bin");
	const own = signIdBlock(fields, idKey, authorKey).authentication;
	t.equal(published.length, own.length);
	const signatures = [
		[0x40, 0x240],
		[0x680, 0x880],
	] as const;
	const without = (bytes: Buffer): Buffer => {
		const copy = Buffer.from(bytes);
		for (const [from, to] of signatures) copy.fill(0, from, to);
		return copy;
	};
	t.same(without(published), without(own), "all but the signatures, which are new each time");
	t.equal(idBlockProblem(idBlockBytes(fields), own, true), undefined);
	t.match(toAmdKey(idKey), published.subarray(0x240, 0x240 + 0x404));
});

t.test("what was signed can't be changed", async (t) => {
	const { block, authentication, idKeyDigest, authorKeyDigest } = signIdBlock(
		{ ...fields, guestSvn: 7, guestPolicy: 0x3001fn },
		idKey,
		authorKey,
	);
	t.equal(block.readUInt32LE(84), 7);
	t.equal(block.readBigUInt64LE(88), 0x3001fn);
	t.same(idKeyDigest, amdKeyDigest(idKey));
	t.same(authorKeyDigest, amdKeyDigest(authorKey));
	for (let offset = 0; offset < block.length; offset++) {
		const changed = Buffer.from(block);
		changed[offset] = (changed[offset] ?? 0) ^ 1;
		t.equal(idBlockProblem(changed, authentication, true), "the ID key did not sign the ID block");
	}
	const changed = (offset: number): Buffer => {
		const bytes = Buffer.from(authentication);
		bytes[offset] = (bytes[offset] ?? 0) ^ 1;
		return bytes;
	};
	t.match(idBlockProblem(block, changed(0x40), true), /ID key did not sign/u);
	t.match(idBlockProblem(block, changed(0x244), true), /ID key did not sign/u);
	t.match(idBlockProblem(block, changed(0x680), true), /author key did not sign/u);
	t.match(idBlockProblem(block, changed(0x884), true), /author key did not sign/u);
	t.equal(idBlockProblem(block, changed(0x680), false), undefined, "without an author key its place is not looked at");
	t.match(idBlockProblem(block.subarray(1), authentication, true), /another size/u);
});

t.test("without an author key", async (t) => {
	const { block, authentication, authorKeyDigest } = signIdBlock(fields, idKey);
	t.equal(authorKeyDigest, undefined);
	t.ok(authentication.subarray(0x680).every((byte) => byte === 0));
	t.equal(idBlockProblem(block, authentication, false), undefined);
	t.match(idBlockProblem(block, authentication, true), /author key did not sign/u);
	t.throws(() => signIdBlock(fields, createPrivateKey(fixture("ark.test-key.pem"))), {
		reason: "attest.key",
		message: /P-384 is needed, this is rsa/u,
	});
});
