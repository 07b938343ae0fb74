import { readFileSync } from "node:fs";
import t from "tap";
import { readCertificates } from "../../shim/attest/evidence-input.ts";
import { checkExpectationsForm, expectationsSchema, parseExpectations } from "../../shim/attest/expectations.ts";
import type { ExpectationsInput } from "../../shim/attest/expectations.ts";
import { GUEST_POLICY_NAMES } from "../../shim/attest/guest-policy.ts";
import { PLATFORM_NAMES } from "../../shim/attest/platform-info.ts";
import { parseReport } from "../../shim/attest/report.ts";
import { verifyReport } from "../../shim/attest/verify.ts";
import type { Verdict } from "../../shim/attest/verify.ts";
import { fixture, makeChain, makeReport } from "../support/amd-chain.ts";
import type { ChainSpec } from "../support/amd-chain.ts";

const AT = new Date("2026-01-15T00:00:00Z");
const milan: ChainSpec = { line: "Milan", key: "vcek", tcb: Buffer.from("0300000000000873", "hex"), chipId: Buffer.alloc(64, 7) };
const turin: ChainSpec = { line: "Turin", key: "vcek", tcb: Buffer.from("0102030400000005", "hex"), chipId: Buffer.alloc(8, 9) };
const vlek: ChainSpec = { ...milan, key: "vlek" };
const hex = (byte: number, length: number): string => Buffer.alloc(length, byte).toString("hex");

function verify(expected: ExpectationsInput, spec = milan, change?: (report: Buffer) => void): Verdict {
	const { ark, endorsement, intermediate } = makeChain(spec);
	const parse = (bytes: Buffer) => readCertificates({ name: "file", bytes });
	return verifyReport(
		{
			report: parseReport(makeReport(5, spec, change)),
			certificates: [...parse(endorsement), ...parse(intermediate)],
			trustedRoots: parse(ark),
			revocationLists: [],
			at: AT,
		},
		checkExpectationsForm(expected, "test"),
	);
}

const policyBit = (bit: number) => (report: Buffer) => report.writeBigUInt64LE(report.readBigUInt64LE(8) ^ (1n << BigInt(bit)), 8);

t.test("expectations that hold are passed", async (t) => {
	const verdict = verify({
		measurements: [hex(9, 48), hex(0x22, 48).toUpperCase()],
		hostData: [`0x${hex(0x33, 32)}`],
		reportData: hex(0x11, 64),
		familyId: hex(0, 16),
		imageId: hex(0, 16),
		minimumGuestSvn: 0,
		idKeyDigests: [hex(0, 48)],
		vmpl: 0,
		products: ["Genoa", "Milan"],
		signingKeys: ["vcek"],
		chipIds: [hex(7, 64)],
		minimumReportVersion: 5,
		minimumTcb: { Milan: { bootloader: 3, snp: 8, microcode: 115 }, Genoa: { snp: 200 } },
		minimumFirmware: "1.55.21",
		minimumAbi: "0.0",
		guestPolicy: { smt: true, debug: false, singleSocket: false, cxl: "any" },
		platform: { smt: false, ecc: false },
		launchMitigations: "0x1",
		currentMitigations: "0x7",
	});
	t.match(verdict, { verified: true, failure: undefined });
	t.equal(
		verify({ reportData: "11" }, milan, (report) => report.fill(0, 0x51, 0x90)).verified,
		true,
		"short REPORT_DATA is filled up with zeros",
	);
});

t.test("each wrong expectation is refused by its own name, with expected, got and a remedy", async (t) => {
	const table: readonly (readonly [name: string, expected: ExpectationsInput, spec?: ChainSpec, change?: (report: Buffer) => void])[] = [
		["measurement", { measurements: [hex(0x23, 48), hex(0x24, 48)] }],
		["host-data", { hostData: [hex(0x34, 32)] }],
		["report-data", { reportData: hex(0x12, 64) }],
		["report-data", { reportData: "11" }],
		["family-id", { familyId: hex(1, 16) }],
		["image-id", { imageId: hex(1, 16) }],
		["guest-svn", { minimumGuestSvn: 1 }],
		["id-key", { idKeyDigests: [hex(1, 48)] }],
		["author-key", { authorKeyDigests: [hex(0, 48)] }],
		["author-key", { authorKeyDigests: [hex(1, 48)] }, milan, (report) => report.writeUInt32LE(1, 0x48)],
		["vmpl", { vmpl: 1 }],
		["vmpl", {}, milan, (report) => report.writeUInt32LE(0xffff_ffff, 0x30)],
		["vmpl", {}, milan, (report) => report.writeUInt32LE(4, 0x30)],
		["product", { products: ["Genoa", "Turin"] }],
		["signing-key", { signingKeys: ["vlek"] }],
		["signing-key", { signingKeys: ["vcek"] }, vlek],
		["chip-id", { chipIds: [hex(8, 64)] }],
		["provider", { providers: ["another"] }, vlek],
		["provider", { providers: ["example-cloud"] }],
		["tcb.order", {}, milan, (report) => report.writeUInt8(4, 0x1e0)],
		["tcb.order", {}, milan, (report) => report.writeUInt8(2, 0x38)],
		["tcb.reported", { minimumTcb: { all: { microcode: 116 } } }],
		["tcb.reported", { minimumTcb: { Genoa: { microcode: 1 } } }],
		["tcb.reported", { minimumTcb: { all: { fmc: 0 } } }],
		["tcb.reported", { minimumTcb: { all: { fmc: 2 } } }, turin],
		["tcb.committed", { minimumTcb: { Milan: { snp: 8 } } }, milan, (report) => report.writeUInt8(7, 0x1e6)],
		["tcb.launch", { minimumTcb: { all: { bootloader: 3 } } }, milan, (report) => report.writeUInt8(2, 0x1f0)],
		["tcb.launch", { minimumTcb: { all: { tee: 3 } }, minimumTcbOf: ["launch"] }, turin, (report) => report.writeUInt8(2, 0x1f2)],
		["firmware", { minimumFirmware: "1.55.22" }],
		["firmware", { minimumFirmware: "2.0.0" }],
		["guest-policy.debug", {}, milan, policyBit(19)],
		["guest-policy.debug", { guestPolicy: { debug: true } }],
		["guest-policy.migrationAgent", {}, milan, policyBit(18)],
		["guest-policy.smt", { guestPolicy: { smt: false } }],
		["guest-policy.singleSocket", { guestPolicy: { singleSocket: true } }],
		["guest-policy.cxl", { guestPolicy: { cxl: false } }, milan, policyBit(21)],
		["guest-policy.memoryAes256Xts", { guestPolicy: { memoryAes256Xts: true } }],
		["guest-policy.raplDisabled", { guestPolicy: { raplDisabled: true } }],
		["guest-policy.ciphertextHidingDram", { guestPolicy: { ciphertextHidingDram: true } }],
		["guest-policy.pageSwapDisabled", { guestPolicy: { pageSwapDisabled: true } }],
		["guest-policy.abi", { minimumAbi: "1.55" }, milan, (report) => report.writeUInt16LE(0x0136, 8)],
		["platform.smt", { platform: { smt: false } }, milan, (report) => report.writeUInt8(1, 0x40)],
		["platform.tsme", { platform: { tsme: true } }],
		["platform.ecc", { platform: { ecc: true } }],
		["platform.raplDisabled", { platform: { raplDisabled: true } }],
		["platform.ciphertextHidingDram", { platform: { ciphertextHidingDram: true } }],
		["platform.aliasCheckComplete", { platform: { aliasCheckComplete: true } }],
		["platform.tio", { platform: { tio: true } }],
		["mitigations.launch", { launchMitigations: "0x4" }],
		["mitigations.current", { currentMitigations: "0x8" }],
	];
	for (const [name, expected, spec, change] of table) {
		const { failure, verified } = verify(expected, spec, change);
		t.equal(verified, false);
		t.match(failure, { kind: "expectation", name, expected: /./u, got: /./u, remedy: /./u }, `${name}: ${JSON.stringify(expected)}`);
	}
});

t.test("what can be allowed is allowed", async (t) => {
	t.ok(verify({ guestPolicy: { debug: "any" } }, milan, policyBit(19)).verified);
	t.ok(verify({ guestPolicy: { migrationAgent: true } }, milan, policyBit(18)).verified);
	t.ok(
		verify({ minimumTcb: { all: { bootloader: 3 } }, minimumTcbOf: ["reported"] }, milan, (report) => report.writeUInt8(2, 0x1f0)).verified,
	);
	t.ok(verify({ providers: ["example-cloud"] }, vlek).verified);
	t.ok(verify({ minimumTcb: { Turin: { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 5 } } }, turin).verified);
});

t.test("what follows a failure is not run, and what was not asked is said", async (t) => {
	const { checks } = verify({ measurements: [hex(0, 48)] });
	const status = (name: string) => checks.find((check) => check.name === name)?.status;
	t.equal(status("certificate.revocation"), "not-asked");
	t.equal(status("guest-policy.cxl"), "not-asked");
	t.equal(status("measurement"), "failed");
	t.equal(status("host-data"), "not-reached");
	t.equal(status("mitigations.current"), "not-reached");
	t.equal(new Set(checks.map(({ name }) => name)).size, checks.length, "names are unique");
	const parsed = verifyReport(
		{ report: parseReport(fixture("milan.report")), certificates: [], trustedRoots: [], revocationLists: [], at: AT },
		checkExpectationsForm({}, "test"),
	);
	t.same(
		parsed.checks.map(({ name }) => name),
		checks.map(({ name }) => name),
		"the list is the same whatever failed",
	);
});

t.test("the manual names every check and every field of the policy", async (t) => {
	const manual = readFileSync(new URL("../../docs/attestation.md", import.meta.url), "utf8");
	for (const { name } of verify({}).checks) {
		const group = `\`${name.split(".")[0]}.*\``;
		t.ok(manual.includes(`\`${name}\``) || manual.includes(group), name);
	}
	for (const field of Object.keys(expectationsSchema.entries)) t.match(manual, `\`${field}\``);
	for (const bit of [...GUEST_POLICY_NAMES, ...PLATFORM_NAMES]) t.match(manual, `\`${bit}\``);
});

t.test("a malformed policy names the field", async (t) => {
	const wrong: readonly (readonly [unknown, RegExp])[] = [
		[{ measurement: "00" }, /measurement is no field that is known/u],
		[{ measurements: ["00"] }, /measurements\.0 must have 96 hexadecimal digits/u],
		[{ measurements: [] }, /measurements must name at least one/u],
		[{ hostData: "00" }, /hostData/u],
		[{ reportData: "0" }, /reportData must have 2 to 128/u],
		[{ reportData: "00".repeat(65) }, /at most 64 bytes/u],
		[{ guestPolicy: { debug: "yes" } }, /guestPolicy\.debug must be true, false or "any"/u],
		[{ guestPolicy: { debugging: true } }, /guestPolicy\.debugging is no field/u],
		[{ minimumTcb: { all: { snp: 256 } } }, /minimumTcb\.all\.snp/u],
		[{ minimumTcb: { Rome: {} } }, /minimumTcb\.Rome is no field/u],
		[{ minimumFirmware: "1.55" }, /minimumFirmware must be a version of 3 numbers/u],
		[{ launchMitigations: 3 }, /launchMitigations/u],
		[{ vmpl: 4 }, /vmpl/u],
	];
	for (const [value, message] of wrong) {
		t.throws(() => parseExpectations(JSON.stringify(value), "policy.json"), { reason: "attest.policy", message });
	}
	t.throws(() => parseExpectations("{", "policy.json"), { reason: "attest.policy", message: "policy.json is no JSON" });
	t.throws(() => parseExpectations("[]", "policy.json"), { message: /one JSON object/u });
});
