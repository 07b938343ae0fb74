/**
 * From a report to where the guest comes from: its measurement to the manifest of the guest's files, that to a commit; HOST_DATA to the pod's policy, that to
 * the layers of its images. Pure.
 */

import { failed, notAsked, passed } from "./checklist.ts";
import type { Checklist, Outcome } from "./checklist.ts";
import { outputHash } from "./guest-manifest.ts";
import type { GuestManifest } from "./guest-manifest.ts";
import type { Report } from "./report.ts";

/** The images of one container that a policy allows. */
export interface PolicyLayers {
	readonly container: string;
	/** dm-verity root hashes, topmost first. */
	readonly rootHashes: readonly string[];
}

/** The pod's policy, from its initdata. */
export interface PolicyFacts {
	/** SHA-256 of `policy.rego`. */
	readonly sha256: string;
	/** Undefined for a policy with rules of its own: it may allow anything. */
	readonly layers: readonly PolicyLayers[] | undefined;
}

/** What a report is followed to. */
export interface Provenance {
	readonly manifest: GuestManifest;
	/** The manifest's file, for messages. */
	readonly manifestName: string;
	/** The guest's files among the manifest's. */
	readonly kernel: string;
	readonly initramfs: string;
	/** Measurements that the manifest's files give, in hexadecimal, by what they are for: `2 processors`. */
	readonly measurements: ReadonlyMap<string, string>;
	/** Undefined when no initdata were given. */
	readonly policy: PolicyFacts | undefined;
	/** Root hashes of the layers that the guest says it has opened; undefined when it was not asked. */
	readonly opened: readonly string[] | undefined;
}

/** Runs the checks, after those of the report itself. */
export function checkProvenance(list: Checklist, report: Report, facts: Provenance): void {
	const check = (name: string, title: string, run: () => Outcome): void => list.check("expectation", name, title, run);
	check("guest", "the guest was started from the manifest's files", () => checkGuest(report, facts));
	check("source", "they were built from a commit without changes", () => checkSource(facts));
	check("policy", "the pod's policy is the one that was given along", () =>
		facts.policy === undefined ? notAsked("--initdata") : passed(`policy.rego, SHA-256 ${facts.policy.sha256}`),
	);
	check("layers", "the images are held to root hashes by the policy", () => checkLayers(facts));
}

function checkGuest(report: Report, { manifest, manifestName, kernel, initramfs, measurements }: Provenance): Outcome {
	const got = report.measurement.toString("hex");
	const launch = [...measurements].find(([, measurement]) => measurement === got)?.[0];
	if (launch === undefined)
		return failed(
			`a measurement of the files in ${manifestName}: ${[...measurements]
				.slice(0, 2)
				.map(([name, value]) => `${value} (${name})`)
				.join(", ")}`,
			got,
			"this is another guest, or one that was started with another command line, IGVM file or number of processors (--cmdline, --igvm, --vcpus)",
		);
	const files = [
		[kernel, outputHash(manifest.kernel, kernel, manifestName)],
		[initramfs, outputHash(manifest.initramfs, initramfs, manifestName)],
	] as const;
	return passed(`${launch}; ${files.map(([name, hash]) => `${name} ${hash.toString("hex")}`).join(", ")}`);
}

function checkSource({ manifest, manifestName }: Provenance): Outcome {
	const { revision, changed } = manifest.source;
	if (revision === null)
		return failed("a commit", `none: ${manifestName} was not made in a git checkout`, "use a guest that was built from a clean checkout");
	if (changed.length === 0) return passed(revision);
	return failed(
		`files as in the commit ${revision}`,
		`${changed.length} that differ: ${changed.slice(0, 3).join(", ")}`,
		"use a guest that was built from a clean checkout",
	);
}

function checkLayers({ policy, opened }: Provenance): Outcome {
	if (policy === undefined) return notAsked("--initdata");
	if (policy.layers === undefined)
		return notAsked("the policy's rules are not those that this snpctl generates: read it to see which images it allows");
	const known = new Set(policy.layers.flatMap(({ rootHashes }) => rootHashes));
	const stranger = opened?.find((hash) => !known.has(hash));
	if (stranger !== undefined)
		return failed("layers that the policy names", stranger, "the guest runs an image that its policy does not allow: do not trust it");
	return passed(policy.layers.map(({ container, rootHashes }) => `${container}: ${rootHashes.join(" ")}`).join("; "));
}
