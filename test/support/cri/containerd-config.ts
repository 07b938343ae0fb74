/** containerd's configuration with its CRI plugin on, and the network that its pods get. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { isFirstGeneration, type ContainerdVersion } from "../paths.ts";

/** The image of a pod's first container; built by `buildPauseImage`. */
export const PAUSE_IMAGE = "registry.invalid/snp-pause:1";
/** Runtime handlers of the pods. */
export const SNP_HANDLER = "snp";
/** The same through containerd's Sandbox API, which containerd 2.x has. */
export const SNP_SANDBOX_HANDLER = "snp-sandbox";
export const RUNC_HANDLER = "runc";
/** The bridge in containerd's own network namespace that every pod is plugged into. */
export const BRIDGE = "snp-cni0";
export const BRIDGE_ADDRESS = "10.88.0.1";

/** Where Debian's containernetworking-plugins puts its programs. */
const CNI_BIN_DIR = "/usr/lib/cni";

/** The annotations that handlers pass on from pod to specification, as a node would be set up. */
const PASSED_ANNOTATIONS = ["io.containerd.snp.*", "io.katacontainers.config.*"];

/** Our two handlers; all of it that a pod could notice is the same. */
function ours(table: string, handler: string, more: string): string {
	return `[plugins.${table}.containerd.runtimes.${handler}]
  runtime_type = "io.containerd.snp.v2"
  privileged_without_host_devices = true
  pod_annotations = ${JSON.stringify(PASSED_ANNOTATIONS)}
${more}`;
}

/** A further runtime of the node. */
export type ExtraRuntime = { readonly name: string; readonly type: string; readonly config: string | undefined };

function extraRuntime(table: string, { name, type, config }: ExtraRuntime): string {
	const place = `plugins.${table}.containerd.runtimes.${name}`;
	const options = config === undefined ? "" : `[${place}.options]\n  ConfigPath = ${JSON.stringify(config)}\n`;
	return `[${place}]\n  runtime_type = ${JSON.stringify(type)}\n  privileged_without_host_devices = true\n${options}`;
}

function runtimes(table: string, version: ContainerdVersion, extra: readonly ExtraRuntime[]): string {
	return `[plugins.${table}.containerd]
  default_runtime_name = "${RUNC_HANDLER}"
[plugins.${table}.containerd.runtimes.${RUNC_HANDLER}]
  runtime_type = "io.containerd.runc.v2"
${ours(table, SNP_HANDLER, "")}${isFirstGeneration(version) ? "" : ours(table, SNP_SANDBOX_HANDLER, SANDBOX_KEYS)}${extra.map((one) => extraRuntime(table, one)).join("")}`;
}

/** containerd 2.4 and later look for a pause image all the same, unless they are told. */
const SANDBOX_KEYS = `  sandboxer = "shim"
  disable_pause_image_pull = true
`;

/** Without CAP_SYS_RESOURCE runc can't lower an out-of-memory score: containerd then must not ask for it. */
const PLUGIN_KEYS = `  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
`;

function cni(table: string, dir: string): string {
	return `[plugins.${table}.cni]
  conf_dir = ${JSON.stringify(join(dir, "net.d"))}
`;
}

/** containerd's own keys for CRI (config version 2 for 1.x, version 3 for 2.x). `dir`: a private folder for CNI's files. */
export function criToml(version: ContainerdVersion, dir: string, extra: readonly ExtraRuntime[] = []): string {
	if (isFirstGeneration(version)) {
		const table = '"io.containerd.grpc.v1.cri"';
		return `[plugins.${table}]
  sandbox_image = "${PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
${PLUGIN_KEYS}${cni(table, dir)}  bin_dir = "${CNI_BIN_DIR}"
${runtimes(table, version, extra)}`;
	}
	const table = '"io.containerd.cri.v1.runtime"';
	return `[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "${PAUSE_IMAGE}"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins.${table}]
${PLUGIN_KEYS}${cni(table, dir)}  bin_dirs = ["${CNI_BIN_DIR}"]
${runtimes(table, version, extra)}`;
}

/** Writes the network's configuration: a bridge with addresses from a small range, whose leases are kept in `dir`. */
export async function writeNetwork(dir: string): Promise<void> {
	await mkdir(join(dir, "net.d"), { recursive: true });
	const network = {
		cniVersion: "0.4.0",
		name: "snp-tests",
		plugins: [
			{
				type: "bridge",
				bridge: BRIDGE,
				isGateway: true,
				ipMasq: false,
				ipam: {
					type: "host-local",
					dataDir: join(dir, "leases"),
					ranges: [[{ subnet: "10.88.0.0/16", gateway: BRIDGE_ADDRESS }]],
					routes: [{ dst: "0.0.0.0/0" }],
				},
			},
		],
	};
	await writeFile(join(dir, "net.d/10-snp.conflist"), JSON.stringify(network));
}
