/** What the guest finds changed of what the node keeps for it: whoever looks at the container hears which layer, and no other pod gets that file. */

import { explain, ShimError } from "../base/errors.ts";
import { readDisk } from "../storage/layer-cache.ts";
import type { ContainerDisk } from "./container-disk.ts";
import type { ContainerHost } from "./container-host.ts";

/** How the agent names a layer. Users know it by its digest. */
const ROOT_HASH = /\(root hash ([0-9a-f]{64})\)/g;
const MAX_CHARACTERS = 1_000;

/** What is damaged and where. */
interface Damaged {
	readonly id: string;
	readonly disk: ContainerDisk | null;
}

/**
 * What a failed call of the guest is to be taken for: when it failed for a changed disk, the error names the layers' digests, and the node's file is
 * checked.
 */
export async function explainDamage(error: unknown, { disk }: Damaged, host: ContainerHost): Promise<unknown> {
	if (!(error instanceof ShimError && error.reason === "guest.damage") || disk === null) return error;
	const text = await withDigests(error.message, disk);
	host.imageDamaged(disk.file);
	return new ShimError("guest.damage", text, { cause: error.cause });
}

/** A sentence about what was found changed of what a container stands on; empty when all is well or nothing is known. */
export async function damageOf({ id, disk }: Damaged, host: ContainerHost): Promise<string> {
	const { agent, details } = host.machine();
	if (!details.damage) return "";
	try {
		const text = (await agent.containerDamage(id)).slice(0, MAX_CHARACTERS);
		return text === "" || disk === null ? text : await withDigests(text, disk);
	} catch (error) {
		host.log.debug("the guest does not say whether its disks were changed", { container: id, reason: explain(error) });
		return "";
	}
}

/** What the guest says of a layer, in the log; the disk that has the layer is checked on the node. */
export async function reportDamage(said: string, containers: readonly Damaged[], host: ContainerHost): Promise<void> {
	let text = said.slice(0, MAX_CHARACTERS);
	for (const { disk } of containers) {
		const named = disk === null ? text : await withDigests(text, disk);
		if (named !== text && disk !== null) host.imageDamaged(disk.file);
		text = named;
	}
	host.log.error("what the guest has of the node is not what it was", new ShimError("guest.damage", text));
}

/** Puts the digests of layers beside their root hashes. */
async function withDigests(text: string, { path }: ContainerDisk): Promise<string> {
	const layers = await readDisk(path).catch(() => []);
	return text.replace(ROOT_HASH, (whole, rootHash: string) => {
		const layer = layers.find((one) => one.rootHash === rootHash);
		return layer === undefined ? whole : `(root hash ${rootHash}, of the image's layer ${layer.diffId})`;
	});
}
