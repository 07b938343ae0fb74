/** The messages of the container runtime interface as the tests use them; names and units are the interface's own (see cri.proto). */

/** Whose namespace a container gets. */
export type NamespaceMode = "POD" | "CONTAINER" | "NODE" | "TARGET";

export type NamespaceOptions = {
	readonly network?: NamespaceMode;
	readonly pid?: NamespaceMode;
	readonly ipc?: NamespaceMode;
	readonly target_id?: string;
};

/** Limits: CPU times in microseconds, memory in bytes. */
export type ContainerResources = {
	readonly cpu_period?: number;
	readonly cpu_quota?: number;
	readonly cpu_shares?: number;
	readonly memory_limit_in_bytes?: number;
	readonly memory_swap_limit_in_bytes?: number;
	readonly oom_score_adj?: number;
	readonly cpuset_cpus?: string;
	readonly cpuset_mems?: string;
	readonly hugepage_limits?: readonly { readonly page_size: string; readonly limit: number }[];
	readonly unified?: Readonly<Record<string, string>>;
};

export type SecurityProfile = { readonly profile_type: "RuntimeDefault" | "Unconfined" | "Localhost"; readonly localhost_ref?: string };
type Int64Value = { readonly value: number };

export type PodConfig = {
	readonly metadata: { readonly name: string; readonly uid: string; readonly namespace: string; readonly attempt?: number };
	readonly hostname?: string;
	readonly log_directory?: string;
	readonly dns_config?: {
		readonly servers?: readonly string[];
		readonly searches?: readonly string[];
		readonly options?: readonly string[];
	};
	readonly labels?: Readonly<Record<string, string>>;
	readonly annotations?: Readonly<Record<string, string>>;
	readonly linux?: {
		readonly cgroup_parent?: string;
		readonly security_context?: {
			readonly namespace_options?: NamespaceOptions;
			readonly run_as_user?: Int64Value;
			readonly privileged?: boolean;
			readonly seccomp?: SecurityProfile;
			readonly readonly_rootfs?: boolean;
			readonly supplemental_groups?: readonly number[];
		};
		readonly sysctls?: Readonly<Record<string, string>>;
		readonly overhead?: ContainerResources;
		readonly resources?: ContainerResources;
	};
};

export type SecurityContext = {
	readonly capabilities?: {
		readonly add_capabilities?: readonly string[];
		readonly drop_capabilities?: readonly string[];
		readonly add_ambient_capabilities?: readonly string[];
	};
	readonly privileged?: boolean;
	readonly namespace_options?: NamespaceOptions;
	readonly run_as_user?: Int64Value;
	readonly run_as_group?: Int64Value;
	readonly run_as_username?: string;
	readonly readonly_rootfs?: boolean;
	readonly supplemental_groups?: readonly number[];
	readonly no_new_privs?: boolean;
	readonly masked_paths?: readonly string[];
	readonly readonly_paths?: readonly string[];
	readonly seccomp?: SecurityProfile;
};

export type CriMount = {
	readonly container_path: string;
	readonly host_path: string;
	readonly readonly?: boolean;
	readonly propagation?: "PROPAGATION_PRIVATE" | "PROPAGATION_HOST_TO_CONTAINER" | "PROPAGATION_BIDIRECTIONAL";
};

export type ContainerConfig = {
	readonly metadata: { readonly name: string; readonly attempt?: number };
	readonly image: { readonly image: string };
	readonly command?: readonly string[];
	readonly args?: readonly string[];
	readonly working_dir?: string;
	readonly envs?: readonly { readonly key: string; readonly value: string }[];
	readonly mounts?: readonly CriMount[];
	readonly devices?: readonly { readonly container_path: string; readonly host_path: string; readonly permissions: string }[];
	readonly labels?: Readonly<Record<string, string>>;
	readonly annotations?: Readonly<Record<string, string>>;
	readonly log_path?: string;
	readonly stdin?: boolean;
	readonly stdin_once?: boolean;
	readonly tty?: boolean;
	readonly linux?: { readonly resources?: ContainerResources; readonly security_context?: SecurityContext };
};

export type ContainerState = "CONTAINER_CREATED" | "CONTAINER_RUNNING" | "CONTAINER_EXITED" | "CONTAINER_UNKNOWN";

/** Times are nanoseconds since 1970; 0 for what has not happened. */
export type ContainerStatus = {
	readonly id: string;
	readonly state: ContainerState;
	readonly created_at: number;
	readonly started_at: number;
	readonly finished_at: number;
	readonly exit_code: number;
	readonly reason: string;
	readonly message: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly annotations: Readonly<Record<string, string>>;
	readonly mounts: readonly CriMount[];
	readonly log_path: string;
	readonly resources?: { readonly linux?: ContainerResources } | null;
};

export type PodStatus = {
	readonly id: string;
	readonly state: "SANDBOX_READY" | "SANDBOX_NOTREADY";
	readonly network?: { readonly ip: string } | null;
	readonly labels: Readonly<Record<string, string>>;
	readonly runtime_handler: string;
};

export type ExecSyncResult = { readonly stdout: string; readonly stderr: string; readonly exitCode: number };

export type StreamOptions = { readonly stdin?: boolean; readonly stdout?: boolean; readonly stderr?: boolean; readonly tty?: boolean };

type Value = { readonly value: number } | null;

export type ContainerStats = {
	readonly attributes?: { readonly id: string } | null;
	readonly cpu?: { readonly usage_core_nano_seconds?: Value } | null;
	readonly memory?: { readonly working_set_bytes?: Value; readonly usage_bytes?: Value; readonly available_bytes?: Value } | null;
	readonly writable_layer?: { readonly used_bytes?: Value } | null;
};

export type PodStats = {
	readonly linux?: {
		readonly cpu?: { readonly usage_core_nano_seconds?: Value } | null;
		readonly memory?: { readonly working_set_bytes?: Value } | null;
		readonly process?: { readonly process_count?: Value } | null;
		readonly containers: readonly ContainerStats[];
	} | null;
};

export type RuntimeStatus = {
	readonly conditions: readonly { readonly type: string; readonly status: boolean; readonly message: string }[];
};
