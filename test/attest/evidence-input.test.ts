import { X509Certificate } from "node:crypto";
import t from "tap";
import { AMD_CERTIFICATES } from "../../shim/attest/amd/certificates.ts";
import { readCertificates, readReport, readRevocationList } from "../../shim/attest/evidence-input.ts";
import { recognise } from "../../shim/attest/foreign.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { fixture, makeRevocationList, testKey } from "../support/amd-chain.ts";
import { randomBytes, randomSource } from "../support/random.ts";

const file = (bytes: Buffer | string) => ({ name: "input", bytes: typeof bytes === "string" ? Buffer.from(bytes) : bytes });
const report = fixture("milan.report");
const vcek = fixture("milan.vcek.der");
const guids = {
	VCEK: "63da758de6644564adc5f4b93be8accd",
	ASK: "4ab7b379bbac4fe4a02f05aef327c782",
	CRL: "92f81bc358114d3d97ffd19f88dc67ea",
};

/** A certificate table (AMD document 56421). */
function table(...entries: readonly { readonly guid: string; readonly bytes: Buffer; readonly offset?: number }[]): Buffer {
	const header = Buffer.alloc((entries.length + 1) * 24);
	let offset = header.length;
	for (const [index, entry] of entries.entries()) {
		Buffer.from(entry.guid, "hex").copy(header, index * 24);
		header.writeUInt32LE(entry.offset ?? offset, index * 24 + 16);
		header.writeUInt32LE(entry.bytes.length, index * 24 + 20);
		offset += entry.bytes.length;
	}
	return Buffer.concat([header, ...entries.map(({ bytes }) => bytes)]);
}

const pem = (der: Buffer): string => new X509Certificate(der).toString();

t.test("a report comes alone, or with its certificate table", async (t) => {
	t.match(readReport(file(report)), { report: { version: 2 }, certificates: [] });
	const extended = Buffer.concat([report, table({ guid: guids.VCEK, bytes: vcek })]);
	t.match(readReport(file(extended)).certificates, [{ subjectName: "SEV-VCEK" }]);
	const broken = file(Buffer.concat([report, table({ guid: guids.VCEK, bytes: vcek, offset: 1 << 20 })]));
	t.throws(() => readReport(broken), { reason: "attest.certificate", message: /leads out of its/ });
	t.match(readReport(broken, { table: false }), { report: { version: 2 }, certificates: [] }, "nobody needs what the host put behind it");
	t.equal(
		readReport(file(Buffer.concat([report, Buffer.alloc(4096)]))).certificates.length,
		0,
		"the page of a host without certificates is zero",
	);
});

t.test("a report comes in a guest's evidence; evidence that is none is named", async (t) => {
	const certificates = table({ guid: guids.VCEK, bytes: vcek }).toString("base64");
	const evidence = (fields: Readonly<Record<string, unknown>>) => file(JSON.stringify({ platform: "snp", cert_chain: null, ...fields }));
	const read = readReport(evidence({ report: report.toString("base64"), certificates }));
	t.ok(read.report.bytes.equals(report));
	t.match(read.certificates, [{ subjectName: "SEV-VCEK" }]);
	t.same(readReport(evidence({ report: report.toString("base64"), certificates: null })).certificates, []);
	const late_bound = { initdata_digest: "ab".repeat(32) };
	t.equal(readReport(evidence({ report: report.toString("base64"), late_bound })).lateBound, "ab".repeat(32));
	t.throws(() => readReport(evidence({ report: report.toString("base64"), late_bound: { initdata_digest: "ab" } })), {
		reason: "attest.report",
		message: /is JSON text/,
	});
	t.throws(() => readReport(evidence({ report: "AAAA" })), { reason: "attest.report", message: /evidence whose report has 3 bytes/ });
	t.throws(() => readReport(evidence({})), { reason: "attest.report", message: /is JSON text/ });
	t.throws(() => readReport(file("{not JSON")), { reason: "attest.report", message: /is JSON text/ });
});

t.test("certificates come in DER, PEM or a table", async (t) => {
	t.match(readCertificates(file(vcek)), [{ subjectName: "SEV-VCEK", issuerName: "SEV-Milan" }]);
	t.match(readCertificates(file(pem(vcek))), [{ subjectName: "SEV-VCEK" }]);
	const chain = readCertificates(file(`${AMD_CERTIFICATES.Milan.ask}\r\n${AMD_CERTIFICATES.Milan.ark}\n`));
	t.same(
		chain.map(({ subjectName }) => subjectName),
		["SEV-Milan", "ARK-Milan"],
	);
	t.match(chain[1]?.source, "input (certificate 2)");
	const ask = Buffer.from(AMD_CERTIFICATES.Milan.ask);
	const both = readCertificates(
		file(table({ guid: guids.VCEK, bytes: vcek }, { guid: guids.CRL, bytes: Buffer.alloc(3) }, { guid: guids.ASK, bytes: ask })),
	);
	t.same(
		both.map(({ subjectName }) => subjectName),
		["SEV-VCEK", "SEV-Milan"],
		"PEM in the table is taken, other kinds are passed over",
	);
});

t.test("a table is read within its bounds", async (t) => {
	const sound = table({ guid: guids.VCEK, bytes: vcek });
	const empty = Buffer.concat([Buffer.from(guids.VCEK, "hex"), Buffer.alloc(24)]);
	t.throws(() => readCertificates(file(empty)), { reason: "attest.certificate", message: /is cut/u });
	t.throws(() => readCertificates(file(table({ guid: guids.VCEK, bytes: vcek, offset: sound.length - 10 }))), {
		message: /leads out of its/u,
	});
	t.throws(() => readCertificates(file(table({ guid: guids.VCEK, bytes: vcek, offset: 0xffff_ffff }))), { message: /leads out of its/u });
	const endless = Buffer.concat(Array.from({ length: 40 }, () => Buffer.concat([Buffer.from(guids.CRL, "hex"), Buffer.alloc(8, 1)])));
	Buffer.from(guids.VCEK, "hex").copy(endless);
	endless.writeUInt32LE(0, 20);
	t.throws(() => readCertificates(file(endless)), { message: /more than 32 entries/u });
});

t.test("revocation lists come in DER or PEM", async (t) => {
	const der = makeRevocationList("ARK-Milan", testKey("ark"), [1, 300]);
	t.same([...readRevocationList(file(der)).revoked.keys()], ["1", "12c"]);
	const text = `-----BEGIN X509 CRL-----\n${der.toString("base64")}\n-----END X509 CRL-----\n`;
	t.same([...readRevocationList(file(text)).revoked.keys()], ["1", "12c"]);
	t.throws(() => readRevocationList(file(vcek)), { reason: "attest.certificate", message: /./u });
	t.throws(() => readRevocationList(file(pem(vcek))), { message: /is a certificate \(PEM\), not a revocation list/u });
});

t.test("a file of another kind is named for what it is", async (t) => {
	const tdx = Buffer.alloc(5000);
	tdx.writeUInt16LE(4, 0);
	tdx.writeUInt16LE(2, 2);
	tdx.writeUInt32LE(0x81, 4);
	Buffer.from("939a7233f79c4ca9940a0db3957f0607", "hex").copy(tdx, 12);
	const sgx = Buffer.from(tdx);
	sgx.writeUInt32LE(0, 4);
	const answer = Buffer.alloc(4000);
	answer.writeUInt32LE(1184, 4);
	report.copy(answer, 32);
	const tdReport = Buffer.alloc(1024);
	tdReport[0] = 0x81;
	const kinds: readonly (readonly [Buffer | string, RegExp])[] = [
		["", /is an empty file/u],
		[pem(vcek), /is a certificate \(PEM\), not an SEV-SNP report/u],
		["-----BEGIN X509 CRL-----\n", /a revocation list \(PEM\)/u],
		["-----BEGIN EC PRIVATE KEY-----\n", /a private key \(PEM\)/u],
		["-----BEGIN PUBLIC KEY-----\n", /a public key \(PEM\)/u],
		[report.toString("hex"), /is hexadecimal text.*/u],
		[report.toString("base64"), /is base64 text/u],
		[`${report.toString("base64").replace(/.{76}/gu, "$&\n")}\n`, /is base64 text/u],
		['{"quote":"..."}', /is JSON text/u],
		["eyJhbGciOiJFUzM4NCJ9.eyJzdWIiOiIxIn0.AAAA_-AA", /is a JSON Web Token/u],
		[vcek, /is DER, perhaps a certificate/u],
		[tdx, /is a quote of Intel TDX/u],
		[sgx, /is a quote of Intel SGX/u],
		[tdReport, /is a TDREPORT of Intel TDX/u],
		[Buffer.concat([Buffer.from("ff54434780180022", "hex"), Buffer.alloc(200)]), /is a TPM quote/u],
		[Buffer.concat([Buffer.from("8444a1013822a0", "hex"), Buffer.alloc(200)]), /AWS Nitro/u],
		[Buffer.concat([Buffer.from("d9018fa2", "hex"), Buffer.alloc(200)]), /Arm CCA/u],
		[Buffer.concat([Buffer.from("HCLA"), Buffer.alloc(28), report]), /Azure's paravisor/u],
		[table({ guid: guids.VCEK, bytes: vcek }), /is a certificate table/u],
		[answer, /the raw answer of \/dev\/sev-guest/u],
		[Buffer.concat([Buffer.from("IGVM"), Buffer.alloc(100)]), /an IGVM file/u],
		[report.subarray(0, 1000), /has 1000 bytes, a report has 1184/u],
		[Buffer.concat([report, Buffer.alloc(10, 1)]), /has 1194 bytes/u],
	];
	for (const [bytes, message] of kinds) t.throws(() => readReport(file(bytes)), { reason: "attest.report", message }, String(message));
	t.throws(() => readReport(file(report.toString("hex"))), { message: /./u, remedy: /xxd -r -p/u });
	t.throws(() => readReport(file(report.toString("base64"))), { message: /./u, remedy: /base64 -d/u });
	t.throws(() => readCertificates(file(report)), {
		reason: "attest.certificate",
		message: /an attestation report, perhaps, not a certificate/u,
	});
	t.throws(() => readCertificates(file(Buffer.alloc(20_000, 0x30))), { reason: "attest.certificate", message: /too many/u });
	t.equal(recognise(Buffer.from([9, 9, 9])), undefined);
});

t.test("no bytes make it fail in another way than by an error that says so", async (t) => {
	const random = randomSource(56421);
	for (let round = 0; round < 1500; round++) {
		const bytes = randomBytes(random, random(400));
		if (round % 3 === 0) Buffer.from(guids.VCEK, "hex").copy(bytes);
		if (round % 3 === 1) Buffer.from([0x30, 0x82, 0, random(256)]).copy(bytes);
		for (const read of [readReport, readCertificates, readRevocationList]) {
			try {
				read(file(bytes));
			} catch (error) {
				if (!(error instanceof ShimError) || !error.reason.startsWith("attest.")) throw error;
			}
		}
	}
	t.pass();
});
