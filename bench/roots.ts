/** Root file systems from containerd's snapshotter, for containers that containerd does not start. */
import { ContainerdApi, type SnapshotMount } from "../test/support/containerd-api.ts";
import type { CriBed } from "../test/support/cri/bed.ts";
import { Ctr, RUNC_RUNTIME } from "../test/support/ctr.ts";

const SNAPSHOTTER = "overlayfs";

/** Snapshots of the bed's image. Its owner calls `close`. */
export class Roots {
	readonly #bed: CriBed;
	readonly #ctr: Ctr;
	readonly #api: ContainerdApi;

	constructor(bed: CriBed) {
		this.#bed = bed;
		this.#ctr = new Ctr(bed.containerd, RUNC_RUNTIME, bed.image);
		this.#api = new ContainerdApi(bed.containerd.address, bed.containerd.namespace);
	}

	/** A snapshot for a container; it goes with `give`. */
	async take(id: string): Promise<readonly SnapshotMount[]> {
		await this.#ctr.callOk(["container", "create", "--snapshotter", SNAPSHOTTER, this.#bed.image.name, id, "true"]);
		return await this.#api.mounts(id, SNAPSHOTTER);
	}

	async give(id: string): Promise<void> {
		await this.#ctr.callOk(["container", "rm", id]);
	}

	close(): void {
		this.#api.close();
	}
}
