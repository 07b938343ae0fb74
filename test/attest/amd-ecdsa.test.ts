import { createPublicKey, generateKeyPairSync } from "node:crypto";
import t from "tap";
import { amdKeyDigest, fromAmdKey, signAmd, toAmdKey, verifyAmdSignature } from "../../shim/attest/amd-ecdsa.ts";
import { testKey } from "../support/amd-chain.ts";
import { randomBytes, randomSource } from "../support/random.ts";

const key = testKey("vcek");

t.test("keys and signatures survive AMD's format", async (t) => {
	const random = randomSource(384);
	for (let round = 0; round < 20; round++) {
		const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-384" });
		const data = randomBytes(random, random(500));
		const signature = signAmd(privateKey, data);
		t.equal(signature.length, 512);
		t.ok(signature.subarray(144).every((byte) => byte === 0));
		t.ok(fromAmdKey(toAmdKey(publicKey)).equals(publicKey));
		t.ok(toAmdKey(privateKey).equals(toAmdKey(publicKey)));
		t.ok(verifyAmdSignature(publicKey, data, signature));
		t.notOk(verifyAmdSignature(publicKey, Buffer.concat([data, Buffer.from([0])]), signature));
		t.notOk(verifyAmdSignature(createPublicKey(key), data, signature));
	}
});

t.test("numbers that are too wide, zero or cut are no signature", async (t) => {
	const data = Buffer.from("data");
	const sound = signAmd(key, data);
	const changed = (change: (bytes: Buffer) => void): Buffer => {
		const bytes = Buffer.from(sound);
		change(bytes);
		return bytes;
	};
	t.notOk(
		verifyAmdSignature(
			key,
			data,
			changed((bytes) => bytes.writeUInt8(1, 48)),
		),
	);
	t.notOk(
		verifyAmdSignature(
			key,
			data,
			changed((bytes) => bytes.writeUInt8(1, 72 + 71)),
		),
	);
	t.notOk(
		verifyAmdSignature(
			key,
			data,
			changed((bytes) => bytes.fill(0, 0, 144)),
		),
	);
	t.notOk(
		verifyAmdSignature(
			key,
			data,
			changed((bytes) => bytes.fill(0xff, 0, 48)),
		),
	);
	t.notOk(verifyAmdSignature(key, data, sound.subarray(0, 100)));
});

t.test("keys of other kinds are refused by name", async (t) => {
	const p256 = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
	t.throws(() => toAmdKey(p256), { reason: "attest.key", message: /P-384 is needed, this is ec prime256v1/u });
	t.throws(() => signAmd(testKey("ark"), Buffer.alloc(1)), { reason: "attest.key", message: /this is rsa/u });
	t.throws(() => signAmd(createPublicKey(key), Buffer.alloc(1)), { message: /a private key is needed, this is a public one/u });
	t.throws(() => fromAmdKey(Buffer.alloc(0x404)), { reason: "attest.key", message: /public key/u });
	t.throws(() => fromAmdKey(Buffer.alloc(10)), { reason: "attest.key", message: /public key/u });
	const off = toAmdKey(key);
	off[4] = (off[4] ?? 0) ^ 1;
	t.throws(() => fromAmdKey(off), { message: /no point of the curve/u });
	t.equal(amdKeyDigest(key).length, 48);
});
