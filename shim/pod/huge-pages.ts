/** Huge pages that a container may use: by its limits, which the guest has reserved while it is there, or in an emptyDir of them. */

import { statfs } from "node:fs/promises";

import { bindMounts } from "../agent/guest-spec.ts";
import type { OciResources, OciSpec } from "../agent/oci-spec.ts";
import { ShimError } from "../base/errors.ts";

/** The name of a VM's huge pages in an OCI specification (config-linux, hugepage limits). */
const PAGE_SIZE = "2MB";
/** The type of a hugetlbfs (statfs(2)). */
const HUGETLBFS = 0x958458f6;

/**
 * Bytes in huge pages that a container may use.
 * @throws ShimError `spec.unsupported` for pages of another size
 */
export function hugePageBytes(resources: OciResources): number {
	const wanted = (resources.hugepageLimits ?? []).filter(({ limit }) => limit > 0);
	const other = wanted.find(({ pageSize }) => pageSize !== PAGE_SIZE);
	if (other !== undefined) {
		throw new ShimError("spec.unsupported", `the container asks for huge pages of ${other.pageSize}: a VM has those of ${PAGE_SIZE}`, {
			remedy: "use hugepages-2Mi",
		});
	}
	return wanted.reduce((sum, { limit }) => sum + limit, 0);
}

/** Bytes of the emptyDirs of huge pages that a container mounts. What can't be looked at counts nothing: whoever brings it tells why. */
export async function hugeVolumeBytes(spec: OciSpec): Promise<number> {
	const sources = new Set(bindMounts(spec).map(({ source }) => source ?? ""));
	let bytes = 0;
	for (const source of sources) {
		const stats = await statfs(source).catch(() => undefined);
		if (stats?.type === HUGETLBFS) bytes += stats.blocks * stats.bsize;
	}
	return bytes;
}
