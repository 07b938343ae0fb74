/** The states of a pod, and which may follow which. */

import { ShimError } from "../base/errors.ts";
import type { Machine } from "./machine.ts";

/** The states of a pod. A pod without a VM is `new`; one whose VM has died by itself is `lost`; `gone` is the end. */
export type PodState =
	| { readonly kind: "new" }
	| { readonly kind: "booting" }
	| { readonly kind: "running"; readonly machine: Machine }
	| { readonly kind: "lost"; readonly death: ShimError }
	| { readonly kind: "gone" };

const NEXT: Readonly<Record<PodState["kind"], readonly PodState["kind"][]>> = {
	new: ["booting", "running", "lost", "gone"],
	booting: ["running", "new", "gone"],
	running: ["lost", "gone"],
	lost: ["gone"],
	gone: [],
};

/** @throws ShimError `pod.state` when `to` may not follow `from` */
export function checkTransition(podId: string, from: PodState["kind"], to: PodState["kind"]): void {
	if (!NEXT[from].includes(to)) throw new ShimError("pod.state", `pod ${podId} is ${from}: it can't become ${to}`);
}
