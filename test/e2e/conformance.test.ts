/**
 * The conformance cases under us, on the newest containerd; `npm run conformance` runs them on every containerd and beside runc.
 * `SNP_E2E_CONTAINERD` and `SNP_E2E_CASE` narrow them while developing.
 */
import t from "tap";
import { CASES } from "../conformance/cases.ts";
import { judge, readDifferences, runSuite } from "../conformance/suite.ts";
import { SNP_HANDLER } from "../support/cri/containerd-config.ts";
import { isContainerdVersion, requireBuilt } from "../support/paths.ts";

const versions = (process.env["SNP_E2E_CONTAINERD"] ?? "2").split(",").filter(isContainerdVersion);
const only = process.env["SNP_E2E_CASE"] ?? "";

requireBuilt();
const outcomes = await runSuite({
	versions: versions.slice(-1),
	handlers: [SNP_HANDLER],
	cases: CASES.filter(({ id, name }) => id.includes(only) || name.includes(only)),
	onOutcome: (outcome) => {
		const listed = readDifferences().some((entry) => entry.case === outcome.caseId);
		const name = `${outcome.caseId} on containerd ${outcome.version}`;
		t.equal(outcome.failure === undefined, !listed, listed ? `${name} differs, as is known` : name, { failure: outcome.failure ?? "" });
	},
});
t.strictSame(judge(outcomes, readDifferences(), CASES), [], "every difference is listed, and every listed one is a difference");
