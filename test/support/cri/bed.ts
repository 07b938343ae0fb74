/** A containerd that serves pods, its images, and a client: what tests of pods work with. */
import { join } from "node:path";
import { PrivateContainerd, type ContainerdOptions } from "../containerd.ts";
import { Ctr, SNP_RUNTIME } from "../ctr.ts";
import { buildBusyboxImage, type TestImage } from "../image.ts";
import { CriClient } from "./client.ts";
import { buildPauseImage } from "./images.ts";

/** One containerd with its CRI plugin on. Its owner calls `stop`. */
export class CriBed {
	readonly containerd: PrivateContainerd;
	readonly client: CriClient;
	/** The everyday image, busybox. */
	readonly image: TestImage;
	readonly #ctr: Ctr;

	private constructor(containerd: PrivateContainerd, image: TestImage) {
		this.containerd = containerd;
		this.client = new CriClient(containerd.address);
		this.image = image;
		this.#ctr = new Ctr(containerd, SNP_RUNTIME, image);
	}

	/** Starts containerd and imports the images. @param pauseImage whether there is one for pods' first containers */
	static async start({
		pauseImage = true,
		...options
	}: Omit<ContainerdOptions, "cri"> & { readonly pauseImage?: boolean }): Promise<CriBed> {
		const containerd = await PrivateContainerd.start({ ...options, cri: true });
		try {
			const bed = new CriBed(containerd, await buildBusyboxImage(containerd.rootDir));
			await bed.importImage(bed.image);
			if (pauseImage) await bed.importImage(await buildPauseImage(containerd.rootDir));
			return bed;
		} catch (error) {
			await containerd.stop();
			throw error;
		}
	}

	/** Makes an image known to the runtime. */
	async importImage(image: TestImage): Promise<void> {
		await this.#ctr.importImage(image);
	}

	/** Folder for the files of a pod, such as its logs. */
	podDir(uid: string): string {
		return join(this.containerd.rootDir, "pods", uid);
	}

	async stop(): Promise<void> {
		this.client.close();
		await this.containerd.stop();
	}
}
