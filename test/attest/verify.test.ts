import t from "tap";
import { readCertificates, readReport, readRevocationList } from "../../shim/attest/evidence-input.ts";
import { checkExpectationsForm } from "../../shim/attest/expectations.ts";
import { SIGNED_BYTES } from "../../shim/attest/report.ts";
import { verifyReport } from "../../shim/attest/verify.ts";
import type { Verdict } from "../../shim/attest/verify.ts";
import { ShimError } from "../../shim/base/errors.ts";
import {
	extension,
	fixture,
	makeCertificate,
	makeChain,
	makeReport,
	makeRevocationList,
	testKey,
	authority,
} from "../support/amd-chain.ts";
import type { ChainSpec } from "../support/amd-chain.ts";
import { randomSource } from "../support/random.ts";

const AT = new Date("2026-01-15T00:00:00Z");
const NOTHING = checkExpectationsForm({}, "test");

interface Case {
	readonly report: Buffer;
	readonly certificates: readonly Buffer[];
	readonly roots?: readonly Buffer[];
	readonly lists?: readonly Buffer[];
	readonly at?: Date;
	readonly expected?: unknown;
}

function verify({ report, certificates, roots = [], lists = [], at = AT, expected = {} }: Case): Verdict {
	const parse = (files: readonly Buffer[], what: string) =>
		files.flatMap((bytes, index) => readCertificates({ name: `${what}-${index}`, bytes }));
	return verifyReport(
		{
			report: readReport({ name: "report", bytes: report }).report,
			certificates: parse(certificates, "certificate"),
			trustedRoots: parse(roots, "root"),
			revocationLists: lists.map((bytes, index) => readRevocationList({ name: `list-${index}`, bytes })),
			at,
		},
		checkExpectationsForm(expected, "test"),
	);
}

const specs: Readonly<Record<string, ChainSpec>> = {
	milan: { line: "Milan", key: "vcek", tcb: Buffer.from("0300000000000873", "hex"), chipId: Buffer.alloc(64, 7) },
	genoa: { line: "Genoa", key: "vcek", tcb: Buffer.from("0a000000000018d5", "hex"), chipId: Buffer.alloc(64, 8) },
	turin: { line: "Turin", key: "vcek", tcb: Buffer.from("0102030400000005", "hex"), chipId: Buffer.alloc(8, 9) },
	vlek: { line: "Milan", key: "vlek", tcb: Buffer.from("0300000000000873", "hex"), chipId: Buffer.alloc(64) },
};
const milan = specs["milan"] as ChainSpec;
const vlek = specs["vlek"] as ChainSpec;

/** A genuine report of the test's own chain, with the root trusted. */
function genuine(
	spec: ChainSpec,
	version = 3,
	change: Parameters<typeof makeChain>[1] = {},
): Case & { readonly chain: ReturnType<typeof makeChain> } {
	const chain = makeChain(spec, change);
	return { chain, report: makeReport(version, spec), certificates: [chain.endorsement, chain.intermediate], roots: [chain.ark] };
}

t.test("real reports are genuine, with AMD's built-in chain or with a file of it", async (t) => {
	const verdict = verify({ report: fixture("milan.report"), certificates: [fixture("milan.vcek.der")] });
	t.match(verdict, { verified: true, failure: undefined, product: "Milan" });
	const evidence = verdict.checks.filter(({ kind }) => kind === "evidence");
	t.same(
		evidence.filter(({ status }) => status !== "passed").map(({ name }) => name),
		["certificate.revocation"],
		"all but what needs a list",
	);
	t.match(verify({ report: fixture("milan-debug.report"), certificates: [fixture("milan-debug.vcek.der")] }).failure, {
		kind: "expectation",
		name: "guest-policy.debug",
		expected: "false",
		got: "true",
	});
	t.ok(
		verify({
			report: fixture("milan-debug.report"),
			certificates: [fixture("milan-debug.vcek.der")],
			expected: { guestPolicy: { debug: "any" } },
		}).verified,
	);
	t.match(
		verify({ report: fixture("milan.report"), certificates: [fixture("milan-debug.vcek.der")] }).failure,
		{ name: "report.signature" },
		"another chip's certificate",
	);
});

t.test("a changed bit in any byte of a real report is refused", async (t) => {
	const random = randomSource(1184);
	const certificates = readCertificates({ name: "vcek", bytes: fixture("milan.vcek.der") });
	const names = new Map<string, number>();
	for (let offset = 0; offset < 0x4a0; offset++) {
		const bytes = fixture("milan.report");
		bytes[offset] = (bytes[offset] ?? 0) ^ (1 << random(8));
		let name: string | undefined;
		try {
			const { report } = readReport({ name: "report", bytes });
			name = verifyReport({ report, certificates, trustedRoots: [], revocationLists: [], at: AT }, NOTHING).failure?.name;
		} catch (error) {
			if (!(error instanceof ShimError)) throw error;
			name = error.reason;
		}
		if (name === undefined) t.fail(`a change of byte 0x${offset.toString(16)} was not noticed`);
		else names.set(name, (names.get(name) ?? 0) + 1);
	}
	t.same([...names.keys()].sort(), ["attest.report", "report.format", "report.signature"]);
	const inSignature = names.get("report.signature") ?? 0;
	t.ok(inSignature > SIGNED_BYTES / 2, `the signature caught ${inSignature} of 1184 bytes`);
});

t.test("each field of a real report is bound by the signature", async (t) => {
	const fields: readonly (readonly [string, number, number])[] = [
		["GUEST_SVN", 0x04, 4],
		["FAMILY_ID", 0x10, 16],
		["IMAGE_ID", 0x20, 16],
		["VMPL", 0x30, 4],
		["CURRENT_TCB", 0x38, 8],
		["PLATFORM_INFO", 0x40, 8],
		["REPORT_DATA", 0x50, 64],
		["MEASUREMENT", 0x90, 48],
		["HOST_DATA", 0xc0, 32],
		["ID_KEY_DIGEST", 0xe0, 48],
		["AUTHOR_KEY_DIGEST", 0x110, 48],
		["REPORT_ID", 0x140, 32],
		["REPORT_ID_MA", 0x160, 32],
		["REPORTED_TCB", 0x180, 8],
		["CHIP_ID", 0x1a0, 64],
		["COMMITTED_TCB", 0x1e0, 8],
		["CURRENT_VERSION", 0x1e8, 3],
		["COMMITTED_VERSION", 0x1ec, 3],
		["LAUNCH_TCB", 0x1f0, 8],
		["SIGNATURE.R", 0x2a0, 48],
		["SIGNATURE.S", 0x2e8, 48],
	];
	for (const [name, offset, length] of fields) {
		for (const at of [offset, offset + length - 1]) {
			const report = fixture("milan.report");
			report[at] = (report[at] ?? 0) ^ 0x10;
			t.equal(
				verify({ report, certificates: [fixture("milan.vcek.der")] }).failure?.name,
				"report.signature",
				`${name}, byte 0x${at.toString(16)}`,
			);
		}
	}
	const debug = fixture("milan-debug.report");
	debug[0x0a] = 0x03;
	t.equal(
		verify({ report: debug, certificates: [fixture("milan-debug.vcek.der")] }).failure?.name,
		"report.signature",
		"GUEST_POLICY without its debug bit",
	);
});

t.test("every version, line and signing key", async (t) => {
	for (const [name, spec] of Object.entries(specs)) {
		for (const version of [2, 3, 4, 5])
			t.match(verify(genuine(spec, version)), { verified: true, product: spec.line }, `${name}, version ${version}`);
		const { roots: _, ...untrusted } = genuine(spec);
		t.equal(verify(untrusted).failure?.name, "certificate.intermediate", `${name}: a chain that AMD did not sign`);
	}
});

t.test("a chain that is wrong in one place is refused in that place", async (t) => {
	const milanChain = makeChain(milan);
	const vlekChain = makeChain(vlek);
	const rogue = testKey("asvk");
	const refused = (name: string, what: string, input: Case, got?: RegExp): void => {
		const { failure } = verify(input);
		t.match(failure, { kind: "evidence", name, ...(got === undefined ? {} : { got }) }, what);
		t.ok(failure !== undefined && failure.remedy !== "");
	};
	const base = genuine(milan);
	refused("certificate.endorsement", "no certificate at all", { ...base, certificates: [] }, /^none$/u);
	refused("certificate.endorsement", "a chain without the leaf", { ...base, certificates: [milanChain.intermediate] }, /^none$/u);
	refused(
		"certificate.endorsement",
		"a VLEK for a report signed by a VCEK",
		{ ...base, certificates: [vlekChain.endorsement] },
		/SEV-VLEK/u,
	);
	refused(
		"certificate.endorsement",
		"a VCEK for a report signed by a VLEK",
		{ ...genuine(vlek), certificates: [milanChain.endorsement] },
		/SEV-VCEK/u,
	);
	refused("certificate.endorsement", "two leaves", { ...base, certificates: [milanChain.endorsement, fixture("milan.vcek.der")] }, /^2:/u);
	refused(
		"certificate.root",
		"a root that is not AMD's",
		{ ...base, certificates: [milanChain.endorsement, milanChain.ark], roots: [] },
		/ARK-Milan/u,
	);
	refused("certificate.root", "a root that did not sign itself", genuine(milan, 3, { ark: { signer: rogue } }));
	refused("certificate.root", "a root that is no authority", genuine(milan, 3, { ark: { extensions: [] } }));
	refused(
		"certificate.intermediate",
		"ASVK in place of ASK",
		{ ...base, certificates: [milanChain.endorsement, vlekChain.intermediate] },
		/SEV-VLEK-Milan/u,
	);
	refused(
		"certificate.intermediate",
		"ASK in place of ASVK",
		{ ...genuine(vlek), certificates: [vlekChain.endorsement, milanChain.intermediate] },
		/SEV-Milan/u,
	);
	refused(
		"certificate.intermediate",
		"an ASK signed by another key",
		genuine(milan, 3, { intermediate: { signer: rogue } }),
		/another key/u,
	);
	refused("certificate.intermediate", "an ASK with another issuer's name", genuine(milan, 3, { intermediate: { issuer: "ARK-Genoa" } }));
	refused("certificate.intermediate", "a leaf in place of an authority", genuine(milan, 3, { intermediate: { extensions: [] } }));
	refused(
		"certificate.intermediate",
		"a VCEK issued by an ASVK",
		genuine(milan, 3, { endorsement: { issuer: "SEV-VLEK-Milan", signer: rogue } }),
		/SEV-VLEK-Milan/u,
	);
	refused("certificate.intermediate", "PKCS#1 v1.5 in place of PSS", genuine(milan, 3, { intermediate: { pkcs1: true } }));
	refused("certificate.signature", "a VCEK signed by another key", genuine(milan, 3, { endorsement: { signer: rogue } }), /another key/u);
	refused("certificate.signature", "a VCEK signed with PKCS#1 v1.5", genuine(milan, 3, { endorsement: { pkcs1: true } }));
	refused(
		"certificate.endorsement",
		"an issuer of an unknown line",
		genuine(milan, 3, { endorsement: { issuer: "SEV-Venice" } }),
		/SEV-Venice/u,
	);
	const critical = extension("1.2.3.4", Buffer.from([5, 0]), true);
	refused(
		"certificate.signature",
		"a critical extension that nobody knows",
		genuine(milan, 3, { intermediate: { extensions: [...authority(), critical] } }),
		/1\.2\.3\.4/u,
	);
	const flipped = Buffer.from(fixture("milan.vcek.der"));
	flipped[flipped.length - 1] = (flipped.at(-1) ?? 0) ^ 1;
	refused("certificate.signature", "a real VCEK with one bit changed", { report: fixture("milan.report"), certificates: [flipped] });
});

t.test("certificates outside of their dates are refused, whichever it is", async (t) => {
	const past = { notAfter: new Date("2026-01-14T23:59:59Z") };
	const future = { notBefore: new Date("2026-01-15T00:00:01Z") };
	for (const role of ["ark", "intermediate", "endorsement"] as const) {
		for (const dates of [past, future]) {
			t.match(
				verify(genuine(milan, 3, { [role]: dates })).failure,
				{ name: "certificate.dates", got: AT.toISOString() },
				`${role} ${JSON.stringify(dates)}`,
			);
		}
	}
	const real = { report: fixture("milan.report"), certificates: [fixture("milan.vcek.der")] };
	t.equal(verify({ ...real, at: new Date("2040-01-01") }).failure?.name, "certificate.dates");
	t.equal(verify({ ...real, at: new Date("2019-01-01") }).failure?.name, "certificate.dates");
});

t.test("revocation lists count when they are the issuer's, and fresh", async (t) => {
	const base = genuine(milan);
	const ark = testKey("ark");
	const list = (...input: Parameters<typeof makeRevocationList>): Buffer[] => [makeRevocationList(...input)];
	t.match(
		verify({ ...base, lists: list("ARK-Milan", ark, []) }).checks.find(({ name }) => name === "certificate.revocation"),
		{
			status: "passed",
			detail: /SEV-Milan/u,
		},
	);
	t.ok(verify({ ...base, lists: list("ARK-Milan", ark, [17, 0x1234_5678]) }).verified);
	const failing: readonly (readonly [string, Buffer[], RegExp])[] = [
		["the ASK is revoked", list("ARK-Milan", ark, [17, 2]), /SEV-Milan \(serial 2\) was revoked on 2024-05-01/u],
		["the VCEK is revoked by the ASK", list("SEV-Milan", testKey("ask"), [3]), /SEV-VCEK \(serial 3\) was revoked/u],
		["the list is old", list("ARK-Milan", ark, [], { to: new Date("2025-01-01") }), /2025-01-01/u],
		["the list is of the future", list("ARK-Milan", ark, [], { from: new Date("2026-02-01") }), /2026-02-01/u],
		["another key signed it", list("ARK-Milan", testKey("ask"), []), /another key/u],
		["another issuer's list", list("ARK-Genoa", ark, []), /by another/u],
	];
	for (const [what, lists, got] of failing) t.match(verify({ ...base, lists }).failure, { name: "certificate.revocation", got }, what);
});

t.test("a certificate of another chip, TCB version or line does not vouch for a report", async (t) => {
	for (const [name, spec] of Object.entries(specs)) {
		const base = genuine(spec);
		const other = (change: Partial<ChainSpec>): Case => ({
			...base,
			certificates: [makeChain({ ...spec, ...change }).endorsement, base.chain.intermediate],
		});
		const tcb = Buffer.from(spec.tcb);
		tcb[7] = (tcb[7] ?? 0) - 1;
		t.match(verify(other({ tcb })).failure, { name: "endorsement.tcb", expected: /microcode/u, got: /microcode/u }, `${name}: TCB`);
		if (spec.key === "vcek") {
			t.equal(verify(other({ chipId: Buffer.alloc(spec.chipId.length, 1) })).failure?.name, "endorsement.chip", `${name}: chip`);
			const masked = makeReport(3, spec, (report) => report.fill(0, 0x1a0, 0x1e0));
			t.match(verify({ ...base, report: masked }).failure, { name: "endorsement.chip", got: /names no chip/u, remedy: /MASK_CHIP_ID/u });
		}
	}
	const foreign = makeReport(3, milan, (report) => report.set([0x19, 0x11], 0x188));
	t.match(verify({ ...genuine(milan), report: foreign }).failure, { name: "report.product", got: /Genoa \(family 0x19, model 0x11\)/u });
	const keyMasked = makeReport(3, milan, (report) => report.writeUInt32LE(2, 0x48));
	t.match(verify({ ...genuine(milan), report: keyMasked }).failure, { name: "report.signing-key", got: /MASK_CHIP_KEY/u });
	const unsigned = makeReport(3, milan, (report) => report.writeUInt32LE(7 << 2, 0x48));
	t.match(verify({ ...genuine(milan), report: unsigned }).failure, { name: "report.signing-key", got: "no key" });
	const short = makeCertificate({ subject: "SEV-VCEK", issuer: "SEV-Milan", key: testKey("vcek"), signer: testKey("ask"), extensions: [] });
	t.match(
		verify({ ...genuine(milan), certificates: [short] }).failure,
		{ name: "certificate.intermediate" },
		"AMD's ASK did not issue the test's",
	);
	t.match(verify({ ...genuine(milan), certificates: [short, makeChain(milan).intermediate] }).failure, {
		name: "report.product",
		got: /3704\.1\.3\.1.*is missing/u,
	});
});

t.test("damaged certificates give errors that say so, and nothing else", async (t) => {
	const random = randomSource(57230);
	const original = fixture("milan.vcek.der");
	for (let round = 0; round < 1500; round++) {
		const bytes = Buffer.from(original.subarray(0, round % 3 === 0 ? random(original.length) : original.length));
		for (let change = 0; change <= random(3) && bytes.length > 0; change++) bytes[random(bytes.length)] = random(256);
		try {
			if (bytes.equals(original)) continue;
			t.notOk(verify({ report: fixture("milan.report"), certificates: [bytes] }).verified);
		} catch (error) {
			if (!(error instanceof ShimError) || error.reason !== "attest.certificate") throw error;
		}
	}
});
