/** What a container is made of, and what it needs of its pod. */

import type { OciSpec } from "../agent/oci-spec.ts";
import type { VerityLayer } from "../agent/storages.ts";
import type { Log } from "../base/log.ts";
import type { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import type { ContainerDisk } from "./container-disk.ts";
import type { Machine } from "./machine.ts";
import type { Mover, PodEvent } from "./ports.ts";
import type { Stdio } from "./process.ts";
import type { Timeline } from "./timeline.ts";
import type { PodVolumes } from "./volumes.ts";

/** What a container needs of its pod. */
export interface ContainerHost {
	readonly config: Config;
	readonly log: Log;
	readonly timeline: Timeline;
	/** What is reported as every process's PID: the VM is what the host sees of it. */
	readonly pid: number;
	/** The control group of the VMM on the host. */
	readonly cgroup: HostCgroup | undefined;
	/** Kernel parameters that the pod asks for. */
	readonly sysctls: Readonly<Record<string, string>>;
	/** The pod has a writable disk that its guest has put a file system on. */
	readonly hasScratch: boolean;
	/** What containers of the pod mount from the host. */
	readonly volumes: PodVolumes;
	/** @throws ShimError `pod.lost` when the VM is gone */
	machine(): Machine;
	/** @throws ShimError when the keeper is not connected */
	mover(): Mover;
	/** Settles when the keeper is connected. */
	keeperHere(): Promise<undefined>;
	nextNumber(): number;
	/** Ends the VM, when no container but the one with this id is left. */
	endAlone(id: string): void;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
	publish(event: PodEvent): void;
	/** The guest found something changed on the disk with this identity. */
	imageDamaged(file: string): void;
}

/** What a container is made of. */
export interface ContainerParts {
	readonly id: string;
	readonly bundle: string;
	readonly spec: OciSpec;
	readonly stdio: Stdio;
	readonly disk: ContainerDisk | null;
	/** The layers on the disk, topmost first; null when it holds one file system. */
	readonly layers: readonly VerityLayer[] | null;
	readonly scope: Scope;
}
