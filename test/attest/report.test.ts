import t from "tap";
import { layoutOf, reportFields } from "../../shim/attest/report-fields.ts";
import { parseReport } from "../../shim/attest/report.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { fixture, makeReport } from "../support/amd-chain.ts";
import { randomBytes, randomSource } from "../support/random.ts";

const milan = { line: "Milan", key: "vcek", tcb: Buffer.from("0300000000000873", "hex"), chipId: Buffer.alloc(64, 7) } as const;
const turin = { line: "Turin", key: "vcek", tcb: Buffer.from("0102030400000005", "hex"), chipId: Buffer.alloc(8, 9) } as const;

t.test("a real report's fields are read", async (t) => {
	t.match(reportFields(parseReport(fixture("milan.report"))), {
		version: 2,
		guestPolicy: { raw: "0x30000", minimumAbi: "0.0", smt: true, debug: false, migrationAgent: false },
		vmpl: 0,
		signatureAlgorithm: 1,
		platform: { raw: "0x1", smt: true, tsme: false },
		signingKey: "vcek",
		authorKeyEnabled: false,
		reportedTcb: { bootloader: 3, tee: 0, snp: 8, microcode: 115, raw: "0300000000000873" },
		currentFirmware: "1.52.4",
		committedFirmware: "1.52.4",
		processor: undefined,
		launchMitigations: undefined,
		problems: [],
	});
	t.match(reportFields(parseReport(fixture("milan-debug.report"))), {
		guestPolicy: { raw: "0xb0000", debug: true },
		currentTcb: { bootloader: 2, snp: 5, microcode: 68 },
		currentFirmware: "1.49.3",
		chipId: /^3ac3fe21e13fb0990eb28a802e3fb6a2/u,
	});
});

t.test("later versions have more fields, and Turin another TCB layout", async (t) => {
	const fifth = reportFields(parseReport(makeReport(5, turin)));
	t.match(fifth, {
		processor: { family: 0x1a, model: 2, stepping: 1, product: "Turin" },
		launchMitigations: "0x3",
		currentMitigations: "0x7",
		launchTcb: { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 5 },
		problems: [],
	});
	t.match(reportFields(parseReport(makeReport(3, milan))), { processor: { product: "Milan" }, launchMitigations: undefined, problems: [] });
	t.equal(layoutOf(parseReport(makeReport(2, turin))), "Turin", "version 2 tells Turin by the chip's short identifier");
	t.equal(layoutOf(parseReport(makeReport(2, milan))), "Milan");
});

t.test("size and version are bounds", async (t) => {
	for (const length of [0, 1, 0x49f, 0x4a1]) {
		t.throws(() => parseReport(Buffer.alloc(length)), {
			reason: "attest.report",
			message: new RegExp(`1184 bytes, this has ${length}$`, "u"),
		});
	}
	for (const version of [0, 1, 6, 0xffff_ffff]) {
		const report = makeReport(2, milan, (bytes) => bytes.writeUInt32LE(version, 0));
		t.throws(() => parseReport(report), { reason: "attest.report", message: new RegExp(`version is ${version}; known are 2 to 5`, "u") });
	}
});

t.test("what a version reserves must be zero, and is named", async (t) => {
	const cases: readonly (readonly [version: number, offset: number, value: number, problem: RegExp])[] = [
		[2, 0x4c, 1, /bytes 0x4c to 0x4f/u],
		[2, 0x188, 1, /bytes 0x188 to 0x19f must be zero in version 2/u],
		[3, 0x18b, 1, /bytes 0x18b to 0x19f must be zero in version 3/u],
		[4, 0x1f8, 1, /bytes 0x1f8 to 0x29f must be zero in version 4/u],
		[5, 0x208, 1, /bytes 0x208 to 0x29f/u],
		[5, 0x1eb, 1, /bytes 0x1eb to 0x1eb/u],
		[5, 0x1ef, 1, /bytes 0x1ef to 0x1ef/u],
		[2, 0x0a, 0x00, /bit 17/u],
		[2, 0x0b, 0x80, /bits above 25/u],
		[2, 0x48, 0x20, /KEY_INFO 0x20/u],
		[2, 0x34, 2, /signature algorithm is 2/u],
	];
	for (const [version, offset, value, problem] of cases) {
		const report = makeReport(version, milan, (bytes) => {
			bytes[offset] = value;
		});
		t.match(parseReport(report).problems.join("; "), problem, `version ${version}, byte 0x${offset.toString(16)}`);
	}
	const tail = makeReport(2, milan);
	tail[0x49f] = 1;
	t.match(parseReport(tail).problems, [/bytes 0x330 to 0x49f/u]);
});

t.test("no bytes make it fail in another way than by an error that says so", async (t) => {
	const random = randomSource(56860);
	for (let round = 0; round < 2000; round++) {
		const bytes = randomBytes(random, round % 4 === 0 ? random(1300) : 0x4a0);
		if (round % 2 === 0 && bytes.length >= 4) bytes.writeUInt32LE(2 + random(4), 0);
		try {
			reportFields(parseReport(bytes));
		} catch (error) {
			if (!(error instanceof ShimError) || error.reason !== "attest.report") throw error;
		}
	}
	t.pass();
});
