import { spawnSync } from "node:child_process";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { keyId, REFERENCE_TYPE, signReference, verifyReference } from "../../../shim/attest/measure/reference.ts";
import type { ReferenceValues } from "../../../shim/attest/measure/reference.ts";
import { fixture, testKey } from "../../support/amd-chain.ts";

const key = createPrivateKey(fixture("id.test-key.pem"));
const publicKey = createPublicKey(key);
const values: ReferenceValues = {
	launcher: "cloud-hypervisor",
	inputs: { igvm: "11".repeat(32), kernel: "22".repeat(32), initramfs: "33".repeat(32), commandLine: "quiet" },
	measurements: [1, 2, 4].map((vcpus) => ({ vcpus, measurement: Buffer.alloc(48, vcpus).toString("hex") })),
};

t.test("what was signed is read back", async (t) => {
	const text = signReference(values, key);
	t.same(verifyReference(text, publicKey, "file"), values);
	t.match(JSON.parse(text), { payloadType: REFERENCE_TYPE, signatures: [{ keyid: keyId(publicKey) }] });
});

t.test("openssl verifies the signature over DSSE's encoding", async (t) => {
	const folder = t.testdir();
	const { payload, signatures } = JSON.parse(signReference(values, key)) as { payload: string; signatures: { sig: string }[] };
	const body = Buffer.from(payload, "base64");
	writeFileSync(
		join(folder, "data"),
		Buffer.concat([Buffer.from(`DSSEv1 ${REFERENCE_TYPE.length} ${REFERENCE_TYPE} ${body.length} `), body]),
	);
	writeFileSync(join(folder, "signature"), Buffer.from(signatures[0]?.sig ?? "", "base64"));
	writeFileSync(join(folder, "key.pem"), publicKey.export({ format: "pem", type: "spki" }));
	const args = ["dgst", "-sha384", "-verify", join(folder, "key.pem"), "-signature", join(folder, "signature"), join(folder, "data")];
	t.match(spawnSync("openssl", args, { encoding: "utf8" }), { status: 0, stdout: /Verified OK/u });
});

t.test("a changed file, or another key, is refused", async (t) => {
	const envelope = JSON.parse(signReference(values, key)) as {
		payload: string;
		payloadType: string;
		signatures: { keyid?: string; sig: string }[];
	};
	const changed = (change: Partial<typeof envelope>): string => JSON.stringify({ ...envelope, ...change });
	const other = { ...values, measurements: [{ vcpus: 1, measurement: "00".repeat(48) }] };
	const refused: readonly (readonly [string, RegExp])[] = [
		[changed({ payload: Buffer.from(JSON.stringify(other)).toString("base64") }), /is not signed by the key .* or was changed/u],
		[changed({ signatures: [{ sig: "AAAA" }] }), /names one without a name/u],
		[changed({ signatures: [] }), /is no file of reference values/u],
		[changed({ payloadType: "text/plain" }), /is no file of reference values/u],
		["{}", /is no file of reference values/u],
		["no JSON", /it is no JSON/u],
	];
	for (const [text, message] of refused) t.throws(() => verifyReference(text, publicKey, "file"), { reason: "attest.reference", message });
	t.throws(() => verifyReference(changed({}), createPublicKey(fixture("author.test-key.pem")), "file"), {
		reason: "attest.reference",
		message: /not signed by the key/u,
	});
	t.throws(() => verifyReference(changed({}), testKey("ark"), "file"), { reason: "attest.key", message: /P-384/u });
	t.throws(() => signReference(values, publicKey), { reason: "attest.key", message: /private/u });
});
