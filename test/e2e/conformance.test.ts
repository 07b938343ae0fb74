/**
 * The conformance cases under us, on the newest containerd, and those that touch the pod itself through containerd's Sandbox API as well;
 * `npm run conformance` runs all of them on every containerd and beside runc. `SNP_E2E_CONTAINERD` and `SNP_E2E_CASE` narrow them while developing.
 */
import t from "tap";
import { CASES } from "../conformance/cases.ts";
import { isListed, judge, readDifferences, runSuite } from "../conformance/suite.ts";
import { SNP_HANDLER, SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { isContainerdVersion, requireBuilt } from "../support/paths.ts";

/** What a pause container has to do with elsewhere. */
const CASES_OF_PODS: readonly string[] = [
	"pod-ready",
	"pod-stop-with-containers",
	"pod-remove-running",
	"restart",
	"hostname",
	"resolv-conf",
	"hosts-file",
	"shm-size",
	"ipc-shared",
	"pid-shared",
	"host-pid",
	"sysctls",
	"size-memory",
	"stats-pod",
	"network-pod-to-pod",
	"removal-during-creation",
	"daemon-killed",
];

const versions = (process.env["SNP_E2E_CONTAINERD"] ?? "2").split(",").filter(isContainerdVersion);
const only = process.env["SNP_E2E_CASE"] ?? "";
const chosen = CASES.filter(({ id, name }) => id.includes(only) || name.includes(only));

requireBuilt();
const differences = readDifferences();
for (const [handler, cases] of [
	[SNP_HANDLER, chosen],
	[SNP_SANDBOX_HANDLER, chosen.filter(({ id }) => CASES_OF_PODS.includes(id))],
] as const) {
	const outcomes = await runSuite({
		versions: versions.slice(-1),
		handlers: [handler],
		cases,
		onOutcome: (outcome) => {
			const listed = isListed(outcome, differences);
			const name = `${outcome.caseId} on containerd ${outcome.version} (${handler})`;
			t.equal(outcome.failure === undefined, !listed, listed ? `${name} differs, as is known` : name, { failure: outcome.failure ?? "" });
		},
	});
	t.strictSame(judge(outcomes, differences, CASES), [], `${handler}: every difference is listed, and every listed one is a difference`);
}
