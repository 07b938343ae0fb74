/** A pod of Kubernetes as kubelet asks a runtime for it: from its YAML to the messages of CRI, with its volumes laid out on the node. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import { removePodCgroups } from "./cgroups.ts";
import type { CriBed } from "./cri/bed.ts";
import type { ContainerConfig, CriMount, PodConfig, SecurityContext } from "./cri/types.ts";
import { PodVolumeFolders } from "./kubelet.ts";

type Named = { readonly name: string };
type EnvVar = Named & {
	readonly value?: string;
	readonly valueFrom?: {
		readonly configMapKeyRef?: Named & { readonly key: string };
		readonly secretKeyRef?: Named & { readonly key: string };
		readonly fieldRef?: { readonly fieldPath: string };
		readonly resourceFieldRef?: { readonly resource: string };
	};
};
type Context = {
	readonly runAsUser?: number;
	readonly runAsGroup?: number;
	readonly privileged?: boolean;
	readonly readOnlyRootFilesystem?: boolean;
	readonly allowPrivilegeEscalation?: boolean;
	readonly capabilities?: { readonly add?: readonly string[]; readonly drop?: readonly string[] };
	readonly seccompProfile?: { readonly type: "RuntimeDefault" | "Unconfined" };
};
type PodContainer = Named & {
	readonly image: string;
	readonly command?: readonly string[];
	readonly args?: readonly string[];
	readonly workingDir?: string;
	readonly env?: readonly EnvVar[];
	readonly stdin?: boolean;
	readonly tty?: boolean;
	readonly securityContext?: Context;
	readonly volumeMounts?: readonly (Named & { readonly mountPath: string; readonly readOnly?: boolean; readonly subPath?: string })[];
};
type Volume = Named & { readonly emptyDir?: { readonly medium?: string }; readonly configMap?: Named };

/** The parts of a pod that this kubelet knows. */
export type KubePod = {
	readonly metadata: Named & { readonly namespace?: string; readonly annotations?: Readonly<Record<string, string>> };
	readonly spec: {
		readonly hostname?: string;
		readonly securityContext?: Context & {
			readonly fsGroup?: number;
			readonly supplementalGroups?: readonly number[];
			readonly sysctls?: readonly (Named & { readonly value: string })[];
		};
		readonly initContainers?: readonly PodContainer[];
		readonly containers: readonly PodContainer[];
		readonly volumes?: readonly Volume[];
	};
};

type Document = {
	readonly kind?: string;
	readonly metadata?: Named;
	readonly data?: Record<string, string>;
	readonly stringData?: Record<string, string>;
};

const MEMORY_BYTES = 16 * 1024 * 1024;
const SERVICES: Readonly<Record<string, string>> = {
	KUBERNETES_SERVICE_HOST: "10.96.0.1",
	KUBERNETES_SERVICE_PORT: "443",
	KUBERNETES_SERVICE_PORT_HTTPS: "443",
	KUBERNETES_PORT: "tcp://10.96.0.1:443",
	KUBERNETES_PORT_443_TCP: "tcp://10.96.0.1:443",
	KUBERNETES_PORT_443_TCP_PROTO: "tcp",
	KUBERNETES_PORT_443_TCP_PORT: "443",
	KUBERNETES_PORT_443_TCP_ADDR: "10.96.0.1",
	DB_SERVICE_HOST: "10.96.3.4",
	DB_SERVICE_PORT: "5432",
};

/** Starts pods on a bed. Its owner calls `release` after their removal. */
export class KubeletPod {
	readonly pod: KubePod;
	readonly config: PodConfig;
	readonly #bed: CriBed;
	readonly #documents: readonly Document[];
	readonly #folders: PodVolumeFolders;
	readonly #dir: string;
	#podId = "";
	#ip = "";
	readonly #places = new Map<string, string>();

	/** @param text YAML: one pod, and what it refers to */
	constructor(bed: CriBed, text: string, uid: string, annotations: Readonly<Record<string, string>> = {}) {
		this.#bed = bed;
		this.#documents = parseAllDocuments(text).map((document) => document.toJS() as Document);
		const pod = this.#documents.find(({ kind }) => kind === "Pod");
		if (pod === undefined) throw new Error("the YAML has no pod");
		this.pod = pod as unknown as KubePod;
		this.#dir = bed.podDir(uid);
		mkdirSync(this.#dir, { recursive: true });
		this.#folders = new PodVolumeFolders(bed.containerd, this.#dir);
		const { spec, metadata } = this.pod;
		const context = spec.securityContext;
		this.config = {
			metadata: { name: metadata.name, uid, namespace: metadata.namespace ?? "default" },
			hostname: spec.hostname ?? metadata.name,
			log_directory: this.#dir,
			annotations: { ...metadata.annotations, ...annotations },
			linux: {
				cgroup_parent: `/${bed.containerd.cgroupMark}/${uid}`,
				sysctls: Object.fromEntries((context?.sysctls ?? []).map(({ name, value }) => [name, value])),
				security_context: {
					namespace_options: { pid: "CONTAINER" },
					privileged: spec.containers.some(({ securityContext }) => securityContext?.privileged === true),
				},
			},
		};
	}

	/** Starts the pod with its volumes. @returns its id */
	async start(handler: string): Promise<string> {
		this.#podId = await this.#bed.client.runPod(this.config, handler);
		this.#ip = (await this.#bed.client.podStatus(this.#podId)).network?.ip ?? "";
		const gid = this.pod.spec.securityContext?.fsGroup ?? 0;
		for (const volume of this.pod.spec.volumes ?? []) this.#places.set(volume.name, await this.#layOut(volume, gid));
		return this.#podId;
	}

	async #layOut({ name, emptyDir, configMap }: Volume, gid: number): Promise<string> {
		if (configMap !== undefined) return this.#folders.configuration("configmap", name, this.#dataOf("ConfigMap", configMap.name), gid);
		if (emptyDir?.medium === "Memory") return await this.#folders.memory(name, MEMORY_BYTES);
		return this.#folders.emptyDir(name, { gid });
	}

	#dataOf(kind: string, name: string): Record<string, string> {
		const found = this.#documents.find((document) => document.kind === kind && document.metadata?.name === name);
		return { ...found?.data, ...found?.stringData };
	}

	/** Makes a container, without starting it. @param changes what the node has made of the YAML @returns its id */
	async create(name: string, changes: Partial<PodContainer> = {}): Promise<string> {
		const { initContainers = [], containers } = this.pod.spec;
		const wanted = [...initContainers, ...containers].find((container) => container.name === name);
		if (wanted === undefined) throw new Error(`the pod has no container ${name}`);
		return await this.#bed.client.createContainer(this.#podId, await this.#containerConfig({ ...wanted, ...changes }), this.config);
	}

	async #containerConfig(container: PodContainer): Promise<ContainerConfig> {
		const env = { ...SERVICES, ...this.#environment(container) };
		const expand = (text: string): string => text.replaceAll(/\$\((?<name>[A-Za-z0-9_]+)\)/gu, (whole, key: string) => env[key] ?? whole);
		const mounts: CriMount[] = [];
		for (const mount of container.volumeMounts ?? []) {
			const place = this.#places.get(mount.name) ?? "";
			const host_path = mount.subPath === undefined ? place : await this.#folders.part(mount.name, join(place, mount.subPath), "file");
			mounts.push({ container_path: mount.mountPath, host_path, readonly: mount.readOnly ?? this.#isConfiguration(mount.name) });
		}
		for (const [destination, file] of [
			["/etc/hosts", "etc-hosts"],
			["/dev/termination-log", `termination-${container.name}`],
		] as const) {
			const host_path = join(this.#dir, file);
			writeFileSync(host_path, file === "etc-hosts" ? "127.0.0.1 localhost\n" : "");
			mounts.push({ container_path: destination, host_path, readonly: false });
		}
		return {
			metadata: { name: container.name },
			image: { image: container.image },
			command: (container.command ?? []).map(expand),
			args: (container.args ?? []).map(expand),
			working_dir: container.workingDir ?? "",
			envs: Object.entries(env).map(([key, value]) => ({ key, value })),
			mounts,
			log_path: `${container.name}.log`,
			stdin: container.stdin ?? false,
			tty: container.tty ?? false,
			linux: { security_context: this.#security(container.securityContext ?? {}) },
		};
	}

	#isConfiguration(name: string): boolean {
		return this.pod.spec.volumes?.some((volume) => volume.name === name && volume.configMap !== undefined) ?? false;
	}

	#environment({ env = [] }: PodContainer): Record<string, string> {
		const values: Record<string, string> = {};
		for (const { name, value, valueFrom } of env) {
			const { configMapKeyRef: map, secretKeyRef: secret, fieldRef } = valueFrom ?? {};
			const fields: Record<string, string> = { "status.podIP": this.#ip, "metadata.name": this.pod.metadata.name };
			if (map !== undefined) values[name] = this.#dataOf("ConfigMap", map.name)[map.key] ?? "";
			else if (secret !== undefined) values[name] = this.#dataOf("Secret", secret.name)[secret.key] ?? "";
			else if (fieldRef !== undefined) values[name] = fields[fieldRef.fieldPath] ?? "";
			else if (valueFrom?.resourceFieldRef !== undefined) values[name] = "1";
			else values[name] = value ?? "";
		}
		return values;
	}

	#security(own: Context): SecurityContext {
		const pod = this.pod.spec.securityContext;
		const user = own.runAsUser ?? pod?.runAsUser;
		const group = own.runAsGroup ?? pod?.runAsGroup;
		const groups = [...(pod?.supplementalGroups ?? []), ...(pod?.fsGroup === undefined ? [] : [pod.fsGroup])];
		return {
			namespace_options: { pid: "CONTAINER" },
			...(user === undefined ? {} : { run_as_user: { value: user } }),
			...(group === undefined ? {} : { run_as_group: { value: group } }),
			supplemental_groups: groups,
			privileged: own.privileged ?? false,
			readonly_rootfs: own.readOnlyRootFilesystem ?? false,
			no_new_privs: own.allowPrivilegeEscalation === false,
			capabilities: { add_capabilities: own.capabilities?.add ?? [], drop_capabilities: own.capabilities?.drop ?? [] },
			...(own.seccompProfile === undefined ? {} : { seccomp: { profile_type: own.seccompProfile.type } }),
			...(own.privileged === true ? {} : { masked_paths: MASKED, readonly_paths: READONLY }),
		};
	}

	/** Removes the pod with all its containers, and its volumes. */
	async release(): Promise<void> {
		if (this.#podId !== "") {
			await this.#bed.client.stopPod(this.#podId);
			await this.#bed.client.removePod(this.#podId);
		}
		await removePodCgroups(this.#bed.containerd.cgroupMark, this.config.metadata.uid);
		await this.#folders.release();
	}
}

/** What kubelet asks for containers with the default of `procMount` (k8s.io/kubernetes, pkg/securitycontext, since 1.12). */
const MASKED: readonly string[] = [
	"/proc/asound",
	"/proc/acpi",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/sys/firmware",
	"/sys/devices/virtual/powercap",
];
const READONLY: readonly string[] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
