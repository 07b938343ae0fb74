/** `snpctl attest` as a program: what it prints, and its exit codes. */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { explain } from "../../shim/base/errors.ts";
import { attest } from "../../shim/command/attest.ts";
import { fixture, makeChain, makeReport, makeRevocationList, testKey } from "../support/amd-chain.ts";

const path = (name: string): string => fileURLToPath(new URL(`../attest/fixtures/${name}`, import.meta.url));
const program = fileURLToPath(new URL("../../shim/command/snpctl.ts", import.meta.url));

function run(...args: readonly string[]): { code: number | null; out: string; err: string } {
	const { status, stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", program, ...args], { encoding: "utf8" });
	return { code: status, out: stdout, err: stderr };
}

const real = [path("milan.report"), "--certificates", path("milan.vcek.der"), "--at", "2026-01-15"];
const measurement = fixture("milan.report").subarray(0x90, 0xc0).toString("hex");

t.test("verify: 0 when genuine and as expected", async (t) => {
	const folder = t.testdir({ "policy.json": JSON.stringify({ minimumTcb: { Milan: { snp: 8 } }, guestPolicy: { smt: true } }) });
	const verified = run("attest", "verify", ...real, "--measurement", measurement, "--policy", join(folder, "policy.json"), "--vmpl", "0");
	t.match(verified, { code: 0, err: "", out: /^VERIFIED: .*milan\.report is genuine and as expected\n/u });
	t.match(verified.out, /^passed\s+measurement\s/mu);
	t.match(verified.out, /^passed\s+tcb\.launch\s+.*snp 8/mu);
	t.match(verified.out, /^not asked for: certificate\.revocation, /mu);
	t.match(run("attest", "verify", ...real), { code: 0, out: /^VERIFIED: .* is genuine; what runs in the guest was not asked for/u });
});

t.test("verify: a policy that was bound late needs all that its proof rests on", async (t) => {
	const asked = ["--host-data", "00".repeat(32), "--report-data", "00"];
	const [needs, without] = [/--late-bound needs the initdata's digest and the question/, /--late-bound needs --measurement or --reference/];
	await t.rejects(attest(["verify", ...real, "--late-bound", "--measurement", measurement]), { message: needs });
	await t.rejects(attest(["verify", ...real, "--late-bound", "--measurement", measurement, ...asked.slice(2)]), { message: needs });
	await t.rejects(attest(["verify", ...real, "--late-bound", ...asked]), { message: without });
});

t.test("verify: 3 when genuine but not as expected, with the first thing that failed", async (t) => {
	const other = "ab".repeat(48);
	const refused = run("attest", "verify", ...real, "--measurement", other, "--host-data", "00".repeat(32));
	t.equal(refused.code, 3);
	t.match(
		refused.out,
		new RegExp(
			`^REFUSED: .* is genuine, but not what was expected\n  failed    measurement: .*\n  expected  ${other}\n  got       ${measurement}\n  to do     `,
			"u",
		),
	);
	const json = JSON.parse(run("--json", "attest", "verify", ...real, "--min-tcb", "snp=9,microcode=115").out) as Record<string, unknown>;
	t.match(json, {
		verified: false,
		failure: { name: "tcb.reported", kind: "expectation", expected: "at least snp 9, microcode 115", got: /snp 8.*: snp below/u },
	});
	t.match(json, { checks: [{ name: "report.format", status: "passed" }] });
	const debug = [path("milan-debug.report"), "--certificates", path("milan-debug.vcek.der"), "--at", "2026-01-15"];
	t.match(run("attest", "verify", ...debug), { code: 3, out: /failed {4}guest-policy\.debug/u });
	t.match(run("attest", "verify", ...debug, "--allow-debug"), { code: 0 });
});

t.test("verify: 2 when the report can't be relied on", async (t) => {
	const spec = { line: "Turin", key: "vcek", tcb: Buffer.from("0102030400000005", "hex"), chipId: Buffer.alloc(8, 9) } as const;
	const chain = makeChain(spec);
	const folder = t.testdir();
	const at = (name: string): string => join(folder, name);
	writeFileSync(at("report"), makeReport(5, spec));
	writeFileSync(at("vcek"), chain.endorsement);
	writeFileSync(at("ask"), chain.intermediate);
	writeFileSync(at("ark"), chain.ark);
	writeFileSync(at("crl"), makeRevocationList("ARK-Turin", testKey("ark"), [2]));
	const own = ["attest", "verify", at("report"), "--certificates", at("vcek"), "--certificates", at("ask")];
	t.match(run(...own), { code: 2, out: /can't be relied on\n {2}failed {4}certificate\.intermediate/u });
	t.match(run(...own, "--trust-root", at("ark")), { code: 0 });
	t.match(run(...own, "--trust-root", at("ark"), "--crl", at("crl")), {
		code: 2,
		out: /failed {4}certificate\.revocation.*\n.*\n.*SEV-Turin \(serial 2\) was revoked/u,
	});
	t.match(run("attest", "verify", path("milan.report")), { code: 2, out: /failed {4}certificate\.endorsement/u });
	t.match(run("attest", "verify", ...real.slice(0, 3), "--at", "2019-01-01"), { code: 2, out: /failed {4}certificate\.dates/u });
});

t.test("show prints every field", async (t) => {
	const shown = run("attest", "show", path("milan.report"));
	t.match(shown, { code: 0, err: "" });
	t.match(shown.out, new RegExp(`^measurement\\s+${measurement}$`, "mu"));
	t.match(shown.out, /^guestPolicy\.debug\s+false$/mu);
	t.match(shown.out, /^reportedTcb\.microcode\s+115$/mu);
	t.match(JSON.parse(run("attest", "show", path("milan.report"), "--json").out), {
		version: 2,
		measurement,
		signingKey: "vcek",
		problems: [],
	});
});

t.test("wrong use and wrong files: 1, with what is wrong and what to do", async (t) => {
	const folder = t.testdir({ "report.hex": fixture("milan.report").toString("hex"), "policy.json": '{"measurments":[]}', "ca.pem": "x" });
	const wrong: readonly (readonly [readonly string[], RegExp])[] = [
		[[], /attest needs a verb \(usage: snpctl attest/u],
		[["prove"], /attest has no verb prove/u],
		[["verify"], /needs a REPORT/u],
		[["show", "a", "b"], /takes one REPORT/u],
		[["show", path("milan.report"), "--vmpl", "0"], /does not take --vmpl/u],
		[["verify", "x", "--mesurement", "00"], /--mesurement/u],
		[["verify", join(folder, "none")], /the report .*none does not exist \(check the path\)/u],
		[["verify", folder], /is a folder/u],
		[["verify", join(folder, "report.hex")], /report\.hex is hexadecimal text, not an SEV-SNP report \(xxd/u],
		[["verify", path("milan.vcek.der")], /is DER, perhaps a certificate.*, not an SEV-SNP report/u],
		[["verify", path("milan.report"), "--certificates", join(folder, "ca.pem")], /ca\.pem is of no kind that is known, not a certificate/u],
		[["verify", path("milan.report"), "--certificates", path("milan.report")], /an attestation report, perhaps, not a certificate/u],
		[["verify", ...real, "--measurement", "00"], /measurements\.0 must have 96 hexadecimal digits/u],
		[["verify", ...real, "--policy", join(folder, "policy.json")], /policy\.json: measurments is no field that is known/u],
		[["verify", ...real, "--vmpl", "9"], /vmpl/u],
		[["verify", ...real, "--vmpl", "one"], /--vmpl one is no number/u],
		[["verify", ...real, "--min-tcb", "snp:3"], /snp:3 is not of the form PART=NUMBER/u],
		[["verify", path("milan.report"), "--at", "yesterday"], /--at yesterday is no time/u],
		[["verify", path("milan.report"), "--at", "2026-02-31"], /--at 2026-02-31 is no time/u],
		[["verify", ...real, "--min-tcb", "snp=8,snp=1"], /--min-tcb snp=8,snp=1 names snp twice/u],
		[["verify", "/dev/zero"], /is larger than 1048576 bytes/u],
	];
	for (const [args, text] of wrong) {
		const error: unknown = await attest(args).then(
			(code) => `ended with ${code}`,
			(thrown: unknown) => thrown,
		);
		t.match(explain(error), text, args.join(" "));
	}
	t.match(run("attest", "verify", join(folder, "report.hex")), { code: 1, out: "", err: /^snpctl: .*is hexadecimal text/u });
	t.match(run("attest", "--help"), { code: 0, out: /^usage: snpctl attest show/u });
});
