/** Makes a policy: the fixed rules, and the data of the pods that it is for. */

import { readFileSync } from "node:fs";

import { messageOf, ShimError } from "../base/errors.ts";
import { containerData } from "./container-data.ts";
import type { ImageFacts } from "./container-data.ts";
import type { Manifest, PodSource } from "./manifest.ts";
import { fieldNotes } from "./pod-fields.ts";
import type { Note } from "./pod-fields.ts";
import type { AllowData, MountKind, PolicyData } from "./policy-data.ts";
import { hostnameOf } from "./run-values.ts";
import { expectedOf, sampleOf } from "./text-template.ts";
import type { Settle } from "./text-template.ts";

/** What the host may do beside running the pod: nothing. */
export const ALLOW_NOTHING: AllowData = { exec: [], logs: false, stdin: false, ports: [], termination_message: false };

/** What a policy is made with. */
export interface GenerateOptions {
	readonly manifest: Manifest;
	/** By the name that the pod has for it. */
	readonly images: ReadonlyMap<string, ImageFacts>;
	readonly allow: AllowData;
	readonly pinSecrets: boolean;
}

/** A policy for one pod. */
export interface GeneratedPolicy {
	readonly text: string;
	readonly data: PolicyData;
	readonly notes: readonly Note[];
}

/** Kinds of mounts that the host fills file by file while the pod runs. */
const COPIED: ReadonlySet<MountKind> = new Set(["config", "copy", "own-copy"]);

/** The images that a pod needs, by the names that it has for them. */
export function imagesOf({ spec }: PodSource): string[] {
	return [...new Set([...(spec.initContainers ?? []), ...spec.containers].map(({ image }) => image))];
}

/**
 * Makes the policy of a pod.
 * @throws ShimError `policy.input` for what a policy can't be made of
 */
export function generatePolicy(pod: PodSource, options: GenerateOptions): GeneratedPolicy {
	const notes = fieldNotes(pod);
	const data = dataOf(pod, options, expectedOf, notes);
	return { text: policyText(data), data, notes };
}

/** The data that a policy would have if everything were known that only the run tells: an example of a pod. @throws ShimError as `generatePolicy` */
export function samplePod(pod: PodSource, options: GenerateOptions): PolicyData {
	return dataOf(pod, { ...options, pinSecrets: true }, sampleOf, fieldNotes(pod));
}

function dataOf(pod: PodSource, { manifest, images, allow, pinSecrets }: GenerateOptions, settle: Settle, notes: Note[]): PolicyData {
	const hostname = hostnameOf(pod, settle);
	const containers = [...(pod.spec.initContainers ?? []), ...pod.spec.containers].map((container) => {
		const image = images.get(container.image);
		if (image === undefined)
			throw new ShimError("policy.input", `${pod.where}: container ${container.name}: the image ${container.image} is not there`);
		return containerData(container, { pod, manifest, image, hostname, settle, pinSecrets, notes });
	});
	for (const { container } of allow.exec) {
		if (container !== "" && !containers.some(({ name }) => name === container))
			throw new ShimError("policy.input", `--allow-exec: ${pod.where} has no container ${container}`);
	}
	return {
		pod: {
			hostname,
			share_pid: pod.spec.shareProcessNamespace ?? false,
			copies: containers.some(({ mounts }) => mounts.some(({ kinds }) => kinds.some((kind) => COPIED.has(kind)))),
		},
		allow: { ...allow, stdin: allow.stdin || pod.spec.containers.some(({ stdin }) => stdin === true) },
		containers,
	};
}

/** What is between the fixed rules and their data; the guest's agent knows it as well (late.rs). */
const BEFORE_DATA = "\n# --- What this policy is for\n\npolicy_data := ";

/** The text of a policy. */
export function policyText(data: PolicyData): string {
	return `${rulesText()}${BEFORE_DATA}${JSON.stringify(data, undefined, "\t")}\n`;
}

/** The data of a policy with the fixed rules of this release, as JSON; undefined for any other policy: what its rules make of its data is not known. */
export function dataText(policy: string): string | undefined {
	const head = `${rulesText()}${BEFORE_DATA}`;
	return policy.startsWith(head) ? policy.slice(head.length) : undefined;
}

/** The fixed rules: beside this file in the sources, in `lib` beside the folder of a built program. */
function rulesText(): string {
	const problems: string[] = [];
	for (const place of ["rules.rego", "../lib/rules.rego"]) {
		try {
			return readFileSync(new URL(place, import.meta.url), "utf8");
		} catch (error) {
			problems.push(messageOf(error));
		}
	}
	throw new ShimError("policy.program", `the fixed rules can't be read: ${problems.join("; ")}`);
}
