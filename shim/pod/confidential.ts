/**
 * What makes a pod confidential, decided from its annotations and the configuration: the initdata that its owner gives the guest, and how the VM is
 * launched. An annotation can only take a pod away, never weaken it. Pure.
 */

import { ShimError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { decodeInitdata, INITDATA_ANNOTATION, POLICY_ENTRY } from "../policy/initdata.ts";

/** How a pod is kept from its node: not at all, by SEV-SNP, or for trials as if (INSECURE). */
export type ConfidentialMode = Config["confidential"]["mode"];

/** A confidential pod's part of its plan. */
export interface ConfidentialPlan {
	readonly mode: Exclude<ConfidentialMode, "off">;
	/** gzip of the initdata, for the guest's disk. */
	readonly initdata: Uint8Array;
	/** 64 hexadecimal digits: the digest of the initdata. */
	readonly hostData: string;
	/** The IGVM file; empty with sample. */
	readonly igvm: string;
}

/** Annotations that Kata Containers takes; of these only the initdata has a meaning here. */
const KATA_PREFIX = "io.katacontainers.config.";
/** Older places of what is in the initdata now, and what to do about them. */
const MOVED: Readonly<Record<string, string>> = {
	"io.katacontainers.config.agent.policy": `put the policy into the initdata, as ${POLICY_ENTRY} (snpctl policy)`,
	"io.katacontainers.config.runtime.cc_init_data": `name the annotation ${INITDATA_ANNOTATION}`,
};
const VCPUS_PLACE = "{vcpus}";
const MAX_NAMED = 5;

type Annotations = Readonly<Record<string, string>>;

/**
 * Refuses annotations that promise what this runtime class does not keep, and in a confidential pod those that would change how it runs.
 * @param what whose they are: `pod p1`
 * @throws ShimError `confidential.annotation` that names them
 */
export function checkAnnotations(what: string, annotations: Annotations, mode: ConfidentialMode): void {
	const names = Object.keys(annotations).toSorted();
	if (mode === "off") {
		const promise = names.find((name) => name === INITDATA_ANNOTATION || Object.hasOwn(MOVED, name));
		if (promise === undefined) return;
		throw new ShimError(
			"confidential.annotation",
			`${what} has the annotation ${promise}: this runtime class is not confidential, and nothing would obey it`,
			{
				remedy: 'use the runtime class whose configuration says confidential.mode = "snp", or take the annotation out',
			},
		);
	}
	const refused = names.filter((name) => name.startsWith(KATA_PREFIX) && name !== INITDATA_ANNOTATION);
	const [first] = refused;
	if (first === undefined) return;
	const more = refused.length > MAX_NAMED ? ` and ${refused.length - MAX_NAMED} more` : "";
	throw new ShimError(
		"confidential.annotation",
		`${what} is confidential and has ${refused.length === 1 ? "the annotation" : "the annotations"} ${refused.slice(0, MAX_NAMED).join(", ")}${more}: annotations can't change how it runs`,
		{ remedy: MOVED[first] ?? "take it out; the node's configuration and the pod's initdata say how a confidential pod runs" },
	);
}

/**
 * Decides a pod's confidential part.
 * @param vcpus the VM's processors
 * @returns undefined for an ordinary pod
 * @throws ShimError `confidential.annotation`, `confidential.initdata`, `initdata.invalid`
 */
export function planConfidential(podId: string, annotations: Annotations, config: Config, vcpus: number): ConfidentialPlan | undefined {
	const { mode, igvm } = config.confidential;
	checkAnnotations(`pod ${podId}`, annotations, mode);
	if (mode === "off") return undefined;
	const annotation = annotations[INITDATA_ANNOTATION] ?? "";
	if (annotation === "")
		throw new ShimError(
			"confidential.initdata",
			`pod ${podId} is confidential and has no annotation ${INITDATA_ANNOTATION}: its guest would refuse everything`,
		);
	const { gzip, hostData, data } = decodeInitdata(annotation);
	if (!Object.hasOwn(data, POLICY_ENTRY))
		throw new ShimError("confidential.initdata", `the initdata of pod ${podId} has no ${POLICY_ENTRY}: its guest would refuse everything`);
	return { mode, initdata: gzip, hostData, igvm: mode === "snp" ? igvm.replaceAll(VCPUS_PLACE, String(vcpus)) : "" };
}

/** A failure of a pod in sample mode says so: nobody shall take it for a confidential one. */
export function marked(error: unknown, mode: ConfidentialMode): unknown {
	if (mode !== "sample" || !(error instanceof ShimError) || error.message.startsWith(MARK)) return error;
	return new ShimError(error.reason, `${MARK}: ${error.message}`, { remedy: error.remedy, cause: error.cause });
}

const MARK = "sample mode, INSECURE";
