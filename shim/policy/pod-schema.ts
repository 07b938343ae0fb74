/**
 * The fields of Kubernetes' pods that a policy follows from (Kubernetes API reference, core/v1 PodSpec). Other fields are kept, so that
 * `pod-fields.ts` can name them.
 */

import * as v from "valibot";

const maybe = <T extends v.GenericSchema>(schema: T) => v.optional(v.nullable(schema));
const named = { name: v.string() };
const integer = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(0xffff_ffff));
const strings = v.array(v.string());

const keyRef = v.looseObject({ name: v.optional(v.string(), ""), key: v.string(), optional: maybe(v.boolean()) });
const objectRef = v.looseObject({ name: v.optional(v.string(), ""), optional: maybe(v.boolean()) });

const envVar = v.looseObject({
	...named,
	value: maybe(v.string("is not a text: put numbers and booleans in quotes")),
	valueFrom: maybe(
		v.looseObject({
			configMapKeyRef: maybe(keyRef),
			secretKeyRef: maybe(keyRef),
			fieldRef: maybe(v.looseObject({ fieldPath: v.string() })),
			resourceFieldRef: maybe(v.looseObject({ resource: v.string() })),
		}),
	),
});

const seccompProfile = v.looseObject({ type: v.picklist(["RuntimeDefault", "Unconfined", "Localhost"]) });

const containerSecurity = v.looseObject({
	runAsUser: maybe(integer),
	runAsGroup: maybe(integer),
	runAsNonRoot: maybe(v.boolean()),
	privileged: maybe(v.boolean()),
	allowPrivilegeEscalation: maybe(v.boolean()),
	readOnlyRootFilesystem: maybe(v.boolean()),
	procMount: maybe(v.picklist(["Default", "Unmasked"])),
	capabilities: maybe(v.looseObject({ add: maybe(strings), drop: maybe(strings) })),
	seccompProfile: maybe(seccompProfile),
});

const container = v.looseObject({
	...named,
	image: v.string(),
	command: maybe(strings),
	args: maybe(strings),
	workingDir: maybe(v.string()),
	env: maybe(v.array(envVar)),
	envFrom: maybe(v.array(v.looseObject({ prefix: maybe(v.string()), configMapRef: maybe(objectRef), secretRef: maybe(objectRef) }))),
	stdin: maybe(v.boolean()),
	tty: maybe(v.boolean()),
	terminationMessagePath: maybe(v.string()),
	securityContext: maybe(containerSecurity),
	volumeMounts: maybe(
		v.array(
			v.looseObject({
				...named,
				mountPath: v.string(),
				readOnly: maybe(v.boolean()),
				subPath: maybe(v.string()),
				subPathExpr: maybe(v.string()),
			}),
		),
	),
	volumeDevices: maybe(v.array(v.looseObject({ ...named, devicePath: v.string() }))),
});

const volume = v.looseObject({
	...named,
	emptyDir: maybe(v.looseObject({ medium: maybe(v.string()) })),
	hostPath: maybe(v.looseObject({ path: v.string(), type: maybe(v.string()) })),
	persistentVolumeClaim: maybe(v.looseObject({ claimName: v.string(), readOnly: maybe(v.boolean()) })),
});

/** A pod's `spec`. */
export const PodSpecSchema = v.looseObject({
	containers: v.pipe(v.array(container), v.minLength(1, "has no container")),
	initContainers: maybe(v.array(container)),
	volumes: maybe(v.array(volume)),
	hostname: maybe(v.string()),
	subdomain: maybe(v.string()),
	setHostnameAsFQDN: maybe(v.boolean()),
	serviceAccountName: maybe(v.string()),
	automountServiceAccountToken: maybe(v.boolean()),
	enableServiceLinks: maybe(v.boolean()),
	shareProcessNamespace: maybe(v.boolean()),
	hostNetwork: maybe(v.boolean()),
	hostPID: maybe(v.boolean()),
	hostIPC: maybe(v.boolean()),
	hostUsers: maybe(v.boolean()),
	securityContext: maybe(
		v.looseObject({
			runAsUser: maybe(integer),
			runAsGroup: maybe(integer),
			fsGroup: maybe(integer),
			supplementalGroups: maybe(v.array(integer)),
			supplementalGroupsPolicy: maybe(v.string()),
			sysctls: maybe(v.array(v.looseObject({ ...named, value: v.string() }))),
			seccompProfile: maybe(seccompProfile),
		}),
	),
});

export type PodSpecYaml = v.InferOutput<typeof PodSpecSchema>;
export type ContainerYaml = v.InferOutput<typeof container>;
export type VolumeYaml = v.InferOutput<typeof volume>;
export type EnvVarYaml = v.InferOutput<typeof envVar>;
