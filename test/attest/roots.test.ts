import { createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import t from "tap";
import { AMD_CERTIFICATES } from "../../shim/attest/amd/certificates.ts";
import { isSignedBy, issuerProblem, parseCertificate } from "../../shim/attest/certificate.ts";
import { readEndorsement } from "../../shim/attest/endorsement.ts";
import { PRODUCT_LINES, productNamed, productOfCpu } from "../../shim/attest/product.ts";
import { amdIntermediates, amdRoots } from "../../shim/attest/roots.ts";
import { fixture } from "../support/amd-chain.ts";

const readme = readFileSync(new URL("../../shim/attest/amd/README.md", import.meta.url), "utf8");

t.test("the built-in certificates are those whose fingerprints are documented, and sign each other", async (t) => {
	for (const line of PRODUCT_LINES) {
		for (const kind of ["ark", "ask", "asvk"] as const) {
			const { raw } = new X509Certificate(AMD_CERTIFICATES[line][kind]);
			const fingerprint = createHash("sha256").update(raw).digest("hex");
			t.match(readme, `| ${line} | ${kind.toUpperCase()} | \`${fingerprint}\` |`);
		}
		const root = amdRoots().find(({ subjectName }) => subjectName === `ARK-${line}`);
		if (root === undefined) throw new Error(`no root of ${line}`);
		t.ok(isSignedBy(root.signed, root.publicKey, root.source), `${line}: the root signed itself`);
		t.equal(issuerProblem(root), undefined);
		for (const name of [`SEV-${line}`, `SEV-VLEK-${line}`]) {
			const intermediate = amdIntermediates().find(({ subjectName }) => subjectName === name);
			t.ok(intermediate !== undefined && isSignedBy(intermediate.signed, root.publicKey, name), `${name} is signed by the root`);
			t.ok(intermediate !== undefined && issuerProblem(intermediate) === undefined);
			for (const other of amdRoots().filter((one) => one !== root)) {
				t.notOk(
					intermediate !== undefined && isSignedBy(intermediate.signed, other.publicKey, name),
					`${name} is not signed by ${other.subjectName}`,
				);
			}
		}
	}
});

t.test("certificates are read as node:crypto reads them", async (t) => {
	const all = [
		...amdRoots(),
		...amdIntermediates(),
		...["milan", "milan-debug", "turin"].map((name) => parseCertificate(fixture(`${name}.vcek.der`), name)),
	];
	for (const certificate of all) {
		const other = new X509Certificate(certificate.der);
		t.match(other.subject, `CN=${certificate.subjectName}`);
		t.match(other.issuer, `CN=${certificate.issuerName}`);
		t.equal(new Date(other.validFrom).getTime(), certificate.notBefore.getTime());
		t.equal(new Date(other.validTo).getTime(), certificate.notAfter.getTime());
		t.equal(other.serialNumber.toLowerCase().replace(/^0+(?=.)/u, ""), certificate.serial.toLowerCase());
		t.ok(other.publicKey.equals(certificate.publicKey));
	}
});

t.test("real endorsement certificates of two TCB layouts", async (t) => {
	t.match(readEndorsement(parseCertificate(fixture("milan.vcek.der"), "milan"), "Milan"), {
		productName: "Milan-B0",
		tcb: Buffer.from("0300000000000873", "hex"),
		provider: undefined,
	});
	const turin = readEndorsement(parseCertificate(fixture("turin.vcek.der"), "turin"), "Turin");
	t.equal(turin.productName, "Turin");
	t.equal(turin.chipId?.length, 64);
	t.ok(
		turin.chipId?.subarray(8).every((byte) => byte === 0),
		"the short identifier is filled up with zeros, as in a report",
	);
	t.throws(() => readEndorsement(parseCertificate(fixture("turin.vcek.der"), "turin"), "Milan"), { message: /3704\.1\.3\.4.*is missing/u });
});

t.test("processors belong to lines", async (t) => {
	t.equal(productOfCpu(0x19, 0x01), "Milan");
	t.equal(productOfCpu(0x19, 0x11), "Genoa");
	t.equal(productOfCpu(0x19, 0xa0), "Genoa", "Bergamo and Siena have Genoa's roots");
	t.equal(productOfCpu(0x1a, 0x02), "Turin");
	t.equal(productOfCpu(0x1a, 0x11), "Turin");
	for (const [family, model] of [
		[0x17, 0x31],
		[0x19, 0x20],
		[0x1a, 0x50],
		[0, 0],
	] as const)
		t.equal(productOfCpu(family, model), undefined);
	t.equal(productNamed("Milan-B0"), "Milan");
	t.equal(productNamed("Naples"), undefined);
});
