/** One container's part of a policy, from its YAML and its image. */

import { ShimError } from "../base/errors.ts";
import { environmentOf } from "./environment.ts";
import type { Environment } from "./environment.ts";
import { userOf } from "./identity.ts";
import type { Accounts } from "./identity.ts";
import type { Manifest, PodSource } from "./manifest.ts";
import { mountsOf } from "./mounts.ts";
import type { ContainerData, Expected, LayerData } from "./policy-data.ts";
import type { Note } from "./pod-fields.ts";
import type { ContainerYaml } from "./pod-schema.ts";
import { expand, isFree } from "./text-template.ts";
import type { Settle } from "./text-template.ts";

/** An image, as far as a policy needs it. */
export interface ImageFacts extends Accounts {
	/** Topmost first. */
	readonly layers: readonly LayerData[];
	readonly env: readonly string[];
	readonly entrypoint: readonly string[];
	readonly command: readonly string[];
	readonly workingDir: string;
	readonly user: string;
}

/** What a container's part is made of besides its YAML. */
export interface ContainerSources {
	readonly pod: PodSource;
	readonly manifest: Manifest;
	readonly image: ImageFacts;
	readonly hostname: Expected;
	readonly settle: Settle;
	readonly pinSecrets: boolean;
	readonly notes: Note[];
}

/** What containerd gives containers that name none (OCI runtime tools; containerd, `oci.defaultUnixCaps`). */
const DEFAULT_CAPABILITIES: readonly string[] = [
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FSETID",
	"CAP_FOWNER",
	"CAP_MKNOD",
	"CAP_NET_RAW",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETFCAP",
	"CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT",
	"CAP_KILL",
	"CAP_AUDIT_WRITE",
];

/** What every kubelet hides since 1.12 (k8s.io/kubernetes, pkg/securitycontext). */
const MASKED: readonly string[] = [
	"/proc/acpi",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/sys/firmware",
];
const READONLY: readonly string[] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/**
 * A container's part of a policy.
 * @throws ShimError `policy.input` that names the container and the field
 */
export function containerData(container: ContainerYaml, sources: ContainerSources): ContainerData {
	const { pod, image, notes } = sources;
	const where = `${pod.where}: container ${container.name}`;
	const security = container.securityContext ?? {};
	const podSecurity = pod.spec.securityContext ?? {};
	const privileged = security.privileged === true;
	const environment = environmentOf({ ...sources, container, image: image.env });
	const profile = security.seccompProfile ?? podSecurity.seccompProfile;
	if (profile?.type === "Localhost")
		notes.push({
			where: `${where}: seccompProfile`,
			text: "is a file of the node: the policy asks only that the container's calls are denied by default",
		});
	const unmasked = privileged || security.procMount === "Unmasked";
	return {
		name: container.name,
		layers: image.layers,
		process: {
			terminal: container.tty ?? false,
			args: argsOf(container, sources, environment, where),
			env: environment.env,
			env_patterns: environment.patterns,
			cwd: nonEmpty(container.workingDir) ?? nonEmpty(image.workingDir) ?? "/",
			user: userOf(
				{
					uid: security.runAsUser ?? podSecurity.runAsUser ?? undefined,
					gid: security.runAsGroup ?? podSecurity.runAsGroup ?? undefined,
					groups: [...(podSecurity.supplementalGroups ?? []), ...(podSecurity.fsGroup == null ? [] : [podSecurity.fsGroup])],
					strict: podSecurity.supplementalGroupsPolicy === "Strict",
				},
				image.user,
				image,
				where,
			),
			capabilities: privileged ? [] : capabilitiesOf(security.capabilities ?? {}, where),
			no_new_privileges: security.allowPrivilegeEscalation === false && !privileged,
		},
		root_readonly: security.readOnlyRootFilesystem ?? false,
		mounts: mountsOf(pod, container, environment.valueOf, sources.settle),
		devices: (container.volumeDevices ?? []).map(({ devicePath }) => devicePath),
		privileged,
		sysctls: Object.fromEntries((podSecurity.sysctls ?? []).map(({ name, value }) => [name, value])),
		seccomp: !privileged && (profile?.type === "RuntimeDefault" || profile?.type === "Localhost") ? "required" : "any",
		masked_paths: unmasked ? [] : MASKED,
		readonly_paths: unmasked ? [] : READONLY,
	};
}

function nonEmpty(text: string | null | undefined): string | undefined {
	return text === "" ? undefined : (text ?? undefined);
}

/** The pod's command takes the place of the image's entrypoint and command, its arguments that of the image's command. */
function argsOf(container: ContainerYaml, { image, settle, notes }: ContainerSources, { valueOf }: Environment, where: string): Expected[] {
	const own = (words: readonly string[] | null | undefined): Expected[] =>
		(words ?? []).map((word) => {
			const template = expand(word, valueOf);
			if (isFree(template))
				notes.push({
					where: `${where}: ${JSON.stringify(word)}`,
					text: "has a variable whose value the node chooses: any text will do, which is any command where a shell reads it (read the variable there, as $NAME)",
				});
			return settle(template);
		});
	const [command, args] = [own(container.command), own(container.args)];
	const words = command.length > 0 ? [...command, ...args] : [...image.entrypoint, ...(args.length > 0 ? args : image.command)];
	if (words.length === 0) throw new ShimError("policy.input", `${where} has no command, and its image has none`);
	return words;
}

function capabilitiesOf(
	{ add, drop }: { readonly add?: readonly string[] | null | undefined; readonly drop?: readonly string[] | null | undefined },
	where: string,
): string[] {
	const full = (name: string): string => (name.toUpperCase().startsWith("CAP_") ? name.toUpperCase() : `CAP_${name.toUpperCase()}`);
	const [added, dropped] = [(add ?? []).map(full), (drop ?? []).map(full)];
	if (added.includes("CAP_ALL")) {
		throw new ShimError("policy.input", `${where}: capabilities.add: ALL means those of the node's kernel, which differ`, {
			remedy: "name the capabilities, or make the container privileged",
		});
	}
	const kept = dropped.includes("CAP_ALL") ? [] : DEFAULT_CAPABILITIES.filter((name) => !dropped.includes(name));
	return [...new Set([...kept, ...added])].sort();
}
