/** The images that pods are made of. */
import { buildImage, busyboxMembers, type TestImage } from "../image.ts";
import { PAUSE_IMAGE } from "./containerd-config.ts";

/** Waits for ever, reaps orphans (a pod may share its PID namespace) and ends on SIGTERM. */
const PAUSE_SCRIPT = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done";

/** The image of a pod's first container. */
export async function buildPauseImage(dir: string): Promise<TestImage> {
	return await buildImage(dir, { name: PAUSE_IMAGE, members: busyboxMembers(), entrypoint: ["/bin/sh", "-c", PAUSE_SCRIPT], command: [] });
}
