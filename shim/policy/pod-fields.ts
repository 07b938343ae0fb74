/** Fields of a pod that a policy can't or need not follow: each is named, none is passed over in silence. */

import { ShimError } from "../base/errors.ts";
import type { PodSource } from "./manifest.ts";
import type { VolumeYaml } from "./pod-schema.ts";

/** Something that the pod's owner should know of the policy. */
export interface Note {
	/** The field, with what it belongs to. */
	readonly where: string;
	readonly text: string;
}

/** What takes part in the policy, and what has no effect on what the guest is asked for. */
const POD_FIELDS: ReadonlySet<string> = new Set(
	`containers initContainers volumes hostname subdomain setHostnameAsFQDN serviceAccountName serviceAccount automountServiceAccountToken
	enableServiceLinks shareProcessNamespace hostNetwork hostPID hostIPC hostUsers securityContext
	activeDeadlineSeconds affinity dnsConfig dnsPolicy hostAliases imagePullSecrets nodeName nodeSelector os overhead preemptionPolicy priority
	priorityClassName readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates
	terminationGracePeriodSeconds tolerations topologySpreadConstraints`.split(/\s+/u),
);
const CONTAINER_FIELDS: ReadonlySet<string> = new Set(
	`name image command args workingDir env envFrom stdin stdinOnce tty terminationMessagePath terminationMessagePolicy securityContext volumeMounts
	volumeDevices imagePullPolicy ports resources resizePolicy restartPolicy restartPolicyRules livenessProbe readinessProbe startupProbe lifecycle`.split(
		/\s+/u,
	),
);
const SECURITY_FIELDS: ReadonlySet<string> = new Set(
	`runAsUser runAsGroup runAsNonRoot privileged allowPrivilegeEscalation readOnlyRootFilesystem procMount capabilities seccompProfile fsGroup
	fsGroupChangePolicy supplementalGroups supplementalGroupsPolicy sysctls appArmorProfile seLinuxOptions seLinuxChangePolicy`.split(/\s+/u),
);

/** Kinds of volumes that the runtime brings (docs/volumes.md). */
export const VOLUME_KINDS = [
	"emptyDir",
	"configMap",
	"secret",
	"projected",
	"downwardAPI",
	"hostPath",
	"persistentVolumeClaim",
	"ephemeral",
	"csi",
] as const;
export type VolumeKind = (typeof VOLUME_KINDS)[number];

/** The kind of a volume; undefined for one that the runtime does not have. */
export function volumeKind(volume: VolumeYaml): VolumeKind | undefined {
	return VOLUME_KINDS.find((kind) => volume[kind] !== undefined && volume[kind] !== null);
}

/**
 * Names the fields that the policy does not follow.
 * @throws ShimError `policy.input` that lists those with which the pod can't run
 */
export function fieldNotes(pod: PodSource): Note[] {
	const refused = refusedFields(pod);
	if (refused.length > 0) {
		throw new ShimError("policy.input", `${pod.where} has what a pod in a VM can't have: ${refused.join("; ")}`, {
			remedy: "take these fields out of the pod, or run it with another runtime class",
		});
	}
	const { spec } = pod;
	const notes = unknown(spec, POD_FIELDS, `${pod.where}: spec`);
	notes.push(...unknown(spec.securityContext, SECURITY_FIELDS, `${pod.where}: spec.securityContext`));
	for (const container of [...(spec.initContainers ?? []), ...spec.containers]) {
		const where = `${pod.where}: container ${container.name}`;
		notes.push(
			...unknown(container, CONTAINER_FIELDS, where),
			...unknown(container.securityContext, SECURITY_FIELDS, `${where}: securityContext`),
		);
		notes.push(...execNotes(container, where));
	}
	return notes;
}

function refusedFields({ spec }: PodSource): string[] {
	const refused: string[] = [];
	for (const field of ["hostNetwork", "hostPID", "hostIPC"] as const) if (spec[field] === true) refused.push(`spec.${field}`);
	if (spec.hostUsers === false) refused.push("spec.hostUsers: false");
	if (Array.isArray(spec["ephemeralContainers"]) && spec["ephemeralContainers"].length > 0) refused.push("spec.ephemeralContainers");
	for (const volume of spec.volumes ?? []) {
		if (volumeKind(volume) !== undefined) continue;
		const kind = Object.keys(volume).find((key) => key !== "name") ?? "no kind";
		refused.push(`volume ${volume.name} (${kind})`);
	}
	return refused;
}

function unknown(value: object | null | undefined, known: ReadonlySet<string>, where: string): Note[] {
	return Object.keys(value ?? {})
		.filter((key) => !known.has(key))
		.map((key) => ({ where: `${where}.${key}`, text: "is not known: the policy does not follow it" }));
}

/** What kubelet runs in a container is an exec like any other. */
function execNotes(container: Readonly<Record<string, unknown>>, where: string): Note[] {
	const places = ["livenessProbe", "readinessProbe", "startupProbe"].map((probe) => [probe, fieldOf(container[probe], "exec")] as const);
	const hooks = ["postStart", "preStop"].map(
		(hook) => [`lifecycle.${hook}`, fieldOf(fieldOf(container["lifecycle"], hook), "exec")] as const,
	);
	return [...places, ...hooks].flatMap(([place, exec]) => {
		if (exec === undefined) return [];
		const command = fieldOf(exec, "command");
		return [{ where: `${where}.${place}.exec`, text: `is denied unless it is allowed: --allow-exec '${JSON.stringify(command ?? [])}'` }];
	});
}

function fieldOf(value: unknown, key: string): unknown {
	return typeof value === "object" && value !== null ? (value as Record<string, unknown>)[key] : undefined;
}
