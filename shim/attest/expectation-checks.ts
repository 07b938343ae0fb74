/** Is a genuine report what was expected? Each expectation is one check with a name of its own. */

import { failed, notAsked, passed } from "./checklist.ts";
import type { Checklist, Outcome } from "./checklist.ts";
import type { Evidence } from "./evidence.ts";
import { TCB_KINDS } from "./expectations.ts";
import type { Expectations } from "./expectations.ts";
import { GUEST_POLICY_BITS, GUEST_POLICY_NAMES } from "./guest-policy.ts";
import type { GuestPolicyBit } from "./guest-policy.ts";
import { checkLateHostData, checkLateReportData } from "./late-binding.ts";
import type { LateBinding } from "./late-binding.ts";
import { PLATFORM_BITS, PLATFORM_NAMES } from "./platform-info.ts";
import { HOST_VMPL } from "./report.ts";
import type { Report } from "./report.ts";
import { decodeTcb, describeTcb, partsBelow } from "./tcb.ts";

type TcbKind = (typeof TCB_KINDS)[number];

/** Bits of the guest policy that are refused unless the expectations say otherwise: each of them lets the host in. */
const REFUSED_UNASKED: readonly GuestPolicyBit[] = ["debug", "migrationAgent"];

/**
 * Runs the checks.
 * @param evidence undefined when the report is not genuine: the checks are then listed as not reached
 * @param late the policy was bound late, and what is expected of it; without it such a guest is refused
 */
export function checkExpectations(list: Checklist, evidence: Evidence | undefined, expected: Expectations, late?: LateBinding): void {
	const check = (name: string, title: string, run: (evidence: Evidence) => Outcome): void => {
		list.check("expectation", name, title, () => (evidence === undefined ? notAsked("the report is not genuine") : run(evidence)));
	};
	for (const bit of GUEST_POLICY_NAMES) {
		check(`guest-policy.${bit}`, `guest policy: ${GUEST_POLICY_BITS[bit].title}`, ({ report }) => checkPolicyBit(report, bit, expected));
	}
	check("guest-policy.abi", "guest policy: the least firmware ABI", ({ report }) => checkAbi(report, expected.minimumAbi));
	check("vmpl", "the privilege level that asked for the report", ({ report }) => checkVmpl(report, expected.vmpl));
	check("measurement", "what was launched", ({ report }) =>
		oneOf(
			report.measurement,
			expected.measurements,
			"--measurement or --reference",
			"this is another guest, or one that was started in another way",
		),
	);
	check(
		"host-data",
		"what the host gave along at launch",
		({ report }) =>
			checkLateHostData(report, late) ??
			oneOf(report.hostData, expected.hostData, "--host-data", "the guest was started with other initial data (HOST_DATA is its digest)"),
	);
	check("report-data", "what the guest put into the report", ({ report }) =>
		late === undefined
			? oneOf(
					report.reportData,
					expected.reportData && [expected.reportData],
					"--report-data",
					"the report was not made for this question: ask again with a new nonce",
				)
			: checkLateReportData(report, late),
	);
	checkIdentity(check, expected);
	check("product", "the product line", ({ product }) => memberOf(product, expected.products, "products of --policy"));
	check("signing-key", "the kind of the signing key", ({ report }) =>
		memberOf(report.signingKey, expected.signingKeys, "signingKeys of --policy"),
	);
	check("chip-id", "the chip", ({ report }) =>
		oneOf(report.chipId, expected.chipIds, "chipIds of --policy", "the report is of another machine"),
	);
	check("provider", "the provider that holds the VLEK", ({ endorsement }) =>
		memberOf(endorsement.provider ?? "none", expected.providers, "providers of --policy"),
	);
	check("report-version", "the report's version", ({ report }) => checkVersion(report, expected.minimumReportVersion));
	check("tcb.order", "no TCB version is above the current one", checkTcbOrder);
	for (const kind of TCB_KINDS) check(`tcb.${kind}`, `the least ${kind} TCB version`, (found) => checkTcb(found, kind, expected));
	check("firmware", "the least committed firmware", ({ report }) => checkFirmware(report, expected.minimumFirmware));
	for (const bit of PLATFORM_NAMES) {
		check(`platform.${bit}`, `platform: ${PLATFORM_BITS[bit].title}`, ({ report }) => {
			const wanted = expected.platform?.[bit];
			if (wanted === undefined || wanted === "any") return notAsked(`${report.platform.bits[bit]}; platform of --policy asks`);
			return equal(String(report.platform.bits[bit]), String(wanted), "run on a machine that is set up as expected");
		});
	}
	check("mitigations.launch", "mitigations at launch", ({ report }) =>
		checkMitigations(report.launchMitigations, expected.launchMitigations, "launchMitigations"),
	);
	check("mitigations.current", "mitigations now", ({ report }) =>
		checkMitigations(report.currentMitigations, expected.currentMitigations, "currentMitigations"),
	);
}

function checkIdentity(check: (name: string, title: string, run: (evidence: Evidence) => Outcome) => void, expected: Expectations): void {
	check("id-key", "the key that signed the ID block", ({ report }) =>
		oneOf(report.idKeyDigest, expected.idKeyDigests, "--id-key-digest", "the guest was started with another ID block, or none"),
	);
	check("author-key", "the key that signed the ID key", ({ report }) => {
		if (expected.authorKeyDigests !== undefined && !report.authorKeyEnabled) {
			return failed("an author key", "none was used at launch", "start the guest with an ID block that has an author key");
		}
		return oneOf(
			report.authorKeyDigest,
			expected.authorKeyDigests,
			"--author-key-digest",
			"the guest's ID key was signed by another author",
		);
	});
	check("family-id", "the family of the guest (ID block)", ({ report }) =>
		oneOf(report.familyId, expected.familyId && [expected.familyId], "familyId of --policy", "the ID block names another family"),
	);
	check("image-id", "the image of the guest (ID block)", ({ report }) =>
		oneOf(report.imageId, expected.imageId && [expected.imageId], "imageId of --policy", "the ID block names another image"),
	);
	check("guest-svn", "the guest's security version (ID block)", ({ report }) => {
		const minimum = expected.minimumGuestSvn;
		if (minimum === undefined) return notAsked(`${report.guestSvn}; minimumGuestSvn of --policy asks`);
		return report.guestSvn >= minimum
			? passed(String(report.guestSvn))
			: failed(`at least ${minimum}`, String(report.guestSvn), "start a later version of the guest");
	});
}

function checkPolicyBit({ policy }: Report, bit: GuestPolicyBit, { guestPolicy }: Expectations): Outcome {
	const got = policy.bits[bit];
	const wanted = guestPolicy?.[bit] ?? (REFUSED_UNASKED.includes(bit) ? false : undefined);
	if (wanted === undefined) return notAsked(`${got}; guestPolicy of --policy asks`);
	if (wanted === "any") return notAsked(`${got}; any is allowed`);
	return equal(String(got), String(wanted), `start the guest with another policy, or allow it: guestPolicy.${bit} of --policy`);
}

function checkAbi({ policy }: Report, minimum: readonly number[] | undefined): Outcome {
	const got = [policy.abiMajor, policy.abiMinor];
	if (minimum === undefined) return notAsked(`${got.join(".")}; minimumAbi of --policy asks`);
	return compareVersions(got, minimum) >= 0
		? passed(got.join("."))
		: failed(`at least ${minimum.join(".")}`, got.join("."), "start the guest with a policy that asks for a later ABI");
}

function checkVmpl({ vmpl }: Report, wanted: number | undefined): Outcome {
	if (vmpl === HOST_VMPL)
		return failed("a report that the guest asked for", "one that the host asked for", "let the guest ask for the report itself");
	if (vmpl > 3) return failed("a level from 0 to 3", String(vmpl), "this is no report of a guest");
	if (wanted === undefined) return passed(`${vmpl}; --vmpl asks for one`);
	return equal(String(vmpl), String(wanted), "the report was asked for from another privilege level of the guest");
}

function checkVersion({ version }: Report, minimum: number | undefined): Outcome {
	if (minimum === undefined) return notAsked(`${version}; minimumReportVersion of --policy asks`);
	return version >= minimum ? passed(String(version)) : failed(`at least ${minimum}`, String(version), "update the machine's firmware");
}

function checkTcbOrder({ report, product }: Evidence): Outcome {
	const current = decodeTcb(report.currentTcb, product);
	for (const kind of ["reported", "committed"] as const) {
		const other = decodeTcb(rawTcb(report, kind), product);
		if (partsBelow(current, other).length > 0) {
			return failed(
				`a ${kind} TCB version up to ${describeTcb(current)}`,
				describeTcb(other),
				"the firmware reports what can't be: trust nothing of this machine",
			);
		}
	}
	return passed(`current: ${describeTcb(current)}`);
}

function rawTcb(report: Report, kind: TcbKind): Buffer {
	return { reported: report.reportedTcb, committed: report.committedTcb, launch: report.launchTcb }[kind];
}

function checkTcb({ report, product }: Evidence, kind: TcbKind, { minimumTcb, minimumTcbOf }: Expectations): Outcome {
	const tcb = decodeTcb(rawTcb(report, kind), product);
	if (minimumTcb === undefined) return notAsked(`${describeTcb(tcb)}; --min-tcb asks`);
	if (minimumTcbOf !== undefined && !minimumTcbOf.includes(kind)) return notAsked(`${describeTcb(tcb)}; minimumTcbOf leaves it out`);
	const minimum = minimumTcb[product] ?? minimumTcb.all;
	if (minimum === undefined) return failed(`a product line for which minimumTcb is given`, product, `add minimumTcb.${product}`);
	const below = partsBelow(tcb, minimum);
	if (below.length === 0) return passed(describeTcb(tcb));
	return failed(
		`at least ${describeTcb(minimum)}`,
		`${describeTcb(tcb)}: ${below.join(", ")} below`,
		"update the machine's firmware and microcode",
	);
}

function checkFirmware({ committed }: Report, minimum: readonly number[] | undefined): Outcome {
	const got = [committed.major, committed.minor, committed.build];
	if (minimum === undefined) return notAsked(`${got.join(".")}; minimumFirmware of --policy asks`);
	return compareVersions(got, minimum) >= 0
		? passed(got.join("."))
		: failed(`at least ${minimum.join(".")}`, got.join("."), "update the machine's firmware and commit it");
}

function checkMitigations(got: bigint | undefined, wanted: bigint | undefined, field: string): Outcome {
	const text = got === undefined ? "not told before version 5" : `0x${got.toString(16)}`;
	if (wanted === undefined) return notAsked(`${text}; ${field} of --policy asks`);
	if (got !== undefined && (got & wanted) === wanted) return passed(text);
	return failed(`the bits 0x${wanted.toString(16)}`, text, "update the machine's firmware");
}

function oneOf(got: Buffer, wanted: readonly Buffer[] | undefined, option: string, remedy: string): Outcome {
	const text = got.toString("hex");
	if (wanted === undefined) return notAsked(`${text}; ${option} asks`);
	if (wanted.some((one) => one.equals(got))) return passed(text);
	return failed(
		wanted.length === 1 ? (wanted[0]?.toString("hex") ?? "") : `one of ${wanted.length}, the first ${wanted[0]?.toString("hex") ?? ""}`,
		text,
		remedy,
	);
}

function memberOf(got: string, wanted: readonly string[] | undefined, option: string): Outcome {
	if (wanted === undefined) return notAsked(`${got}; ${option} asks`);
	return wanted.includes(got) ? passed(got) : failed(wanted.join(" or "), got, "the report is of another machine than was expected");
}

function equal(got: string, wanted: string, remedy: string): Outcome {
	return got === wanted ? passed(got) : failed(wanted, got, remedy);
}

/** Compares versions number by number: negative when `left` is the earlier one. */
function compareVersions(left: readonly number[], right: readonly number[]): number {
	const index = left.findIndex((number, at) => number !== (right[at] ?? 0));
	return index < 0 ? 0 : (left[index] ?? 0) - (right[index] ?? 0);
}
