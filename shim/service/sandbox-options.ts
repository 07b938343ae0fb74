/** From the options of a CreateSandbox call to the pod that they describe: Kubernetes' own configuration of it (CRI, `runtime.v1.PodSandboxConfig`). */

import { runtime } from "../../proto/gen/containerd.js";
import { ShimError } from "../base/errors.ts";
import type { PodConfig, PodNamespace } from "../pod/pod-config.ts";
import type { Limits } from "../pod/sizing.ts";
import { decode } from "./decode.ts";

const { NamespaceMode, PodSandboxConfig } = runtime.v1;

/** An `Any` of protobuf. */
interface AnyMessage {
	readonly type_url?: string | null;
	readonly value?: Uint8Array | null;
}

/** The message's name, whatever host stands before it. */
const POD_SANDBOX_CONFIG = /(^|[./])runtime\.v1\.PodSandboxConfig$/u;
const NAMESPACES: readonly PodNamespace[] = ["network", "pid", "ipc"];

/**
 * The pod that options describe.
 * @returns undefined when there are no options
 * @throws ShimError `call.invalid` for options of another kind, or that can't be decoded
 */
export function podOptions(sandboxId: string, options: AnyMessage | null | undefined): PodConfig | undefined {
	const type = options?.type_url ?? "";
	if (options == null || (type === "" && (options.value?.length ?? 0) === 0)) return undefined;
	if (!POD_SANDBOX_CONFIG.test(type)) {
		throw new ShimError("call.invalid", `the options of sandbox ${sandboxId} are a ${type}: a runtime.v1.PodSandboxConfig is understood`);
	}
	const config = decode(PodSandboxConfig, options.value ?? new Uint8Array(0));
	const { linux, dns_config: dns } = config;
	const namespaces = linux?.security_context?.namespace_options;
	return {
		hostname: config.hostname,
		dns: dns == null ? undefined : { servers: dns.servers ?? [], searches: dns.searches ?? [], options: dns.options ?? [] },
		annotations: config.annotations,
		cgroupParent: linux?.cgroup_parent ?? "",
		ofNode: NAMESPACES.filter((type) => namespaces?.[type] === NamespaceMode.NODE),
		userNamespace: namespaces?.userns_options != null && namespaces.userns_options.mode !== NamespaceMode.NODE,
		sysctls: linux?.sysctls ?? {},
		limits: limitsOf(linux?.resources),
	};
}

function limitsOf(resources: runtime.v1.LinuxContainerResources.$Properties | null | undefined): Limits | undefined {
	if (resources == null) return undefined;
	return {
		cpuPeriodUs: Number(resources.cpu_period ?? 0),
		cpuQuotaUs: Number(resources.cpu_quota ?? 0),
		memoryBytes: Number(resources.memory_limit_in_bytes ?? 0),
		// The VM grows when a container comes that has some.
		hugeBytes: 0,
	};
}
