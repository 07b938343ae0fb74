/** What snpd made of a scenario's images. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { PrivateContainerd } from "../test/support/containerd.ts";

/**
 * Requires that containers got their images as layers, as pods of the default configuration do: a guest that did not announce what this takes would be measured on
 * a way that they don't take.
 * @throws Error that names the other files
 */
export function requireLayers(containerd: Pick<PrivateContainerd, "rootDir">): void {
	const folder = join(containerd.rootDir, "images/rootfs");
	const disks = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".erofs")) : [];
	if (disks.length === 0) throw new Error("no container had a disk");
	const others = disks.filter((name) => !name.startsWith("layers-"));
	if (others.length > 0) throw new Error(`containers had flattened images instead of layers: ${others.join(", ")}`);
}
