/**
 * What the pod room needs from the processes around it, as types: who moves stdio, who hears events. The rooms above hand the real
 * ones in; nothing here knows of containerd's encoding.
 */

import type { Stdio } from "./process.ts";

/** A stdio stream that the keeper moves. */
export interface MovedStream {
	readonly id: number;
	/** Settles when the guest's end is connected. */
	readonly opened: Promise<{ readonly hostPort: number }>;
	/** Settles when everything was moved, and read if somebody reads; rejects when the stream failed. */
	readonly done: Promise<{ readonly bytes: number }>;
	/** How far an output's reader is: bytes moved, bytes on the host that were not read, whether there is a reader. May never settle. */
	ask(): Promise<{ readonly bytes: number; readonly unread: number; readonly reader: boolean }>;
	/** `drain` and `abort` end it, and `done` tells when; `linger` leaves what is left of an output to its reader, and nothing is told. */
	close(mode: "drain" | "abort" | "linger"): void;
}

/** What to move where. */
export interface StreamRequest {
	readonly id: number;
	readonly direction: "in" | "out";
	/** A FIFO's path, or `file:///path` for output. */
	readonly fifo: string;
	/** The VM's hybrid vsock socket. */
	readonly vsock: string;
	readonly port: number;
	readonly token: string;
}

/** The pod's keeper, as the pod sees it. */
export interface Mover {
	readonly pid: number;
	openStream(request: StreamRequest): MovedStream;
	/** A stream that the keeper still knows from an earlier snpd. */
	stream(id: number): MovedStream | undefined;
	/** Leaves the streams that are not among `known` to their readers. */
	lingerOthers(known: ReadonlySet<number>): void;
	/** Tells the keeper that its pod is no more. */
	end(): void;
}

/** Who a pod is. */
export interface PodIdentity {
	readonly key: string;
	readonly namespace: string;
	readonly podId: string;
	/** containerd's gRPC socket. */
	readonly address: string;
	/** containerd's ttrpc socket for events; empty when it has none. */
	readonly ttrpcAddress: string;
	/** containerd's program, which publishes events when there is no ttrpc socket. */
	readonly publishBinary: string;
	/** The configuration file that the pod was started with. */
	readonly configFile: string | null;
}

/** A file system to mount, as containerd says it. */
export interface RootfsMount {
	readonly type: string;
	readonly source: string;
	readonly target: string;
	readonly options: readonly string[];
}

/** What containerd asks when it wants a container. */
export interface CreateRequest {
	readonly id: string;
	readonly bundle: string;
	readonly rootfs: readonly RootfsMount[];
	readonly stdio: Stdio;
	/** A configuration file named in the runtime options, which wins over the pod's own. */
	readonly configFile?: string | undefined;
}

/** How a deleted process ended. */
export interface DeleteResult {
	readonly pid: number;
	readonly exitStatus: number;
	readonly exitedAtMs: number;
}

/** What happened, in the order in which containerd's clients rely on. */
export type PodEvent =
	| {
			readonly kind: "create";
			readonly containerId: string;
			readonly bundle: string;
			readonly rootfs: readonly RootfsMount[];
			readonly stdio: Stdio;
			readonly pid: number;
	  }
	| { readonly kind: "start"; readonly containerId: string; readonly pid: number }
	| { readonly kind: "exec-added"; readonly containerId: string; readonly execId: string }
	| { readonly kind: "exec-started"; readonly containerId: string; readonly execId: string; readonly pid: number }
	| {
			readonly kind: "exit";
			readonly containerId: string;
			readonly execId: string;
			readonly pid: number;
			readonly status: number;
			readonly atMs: number;
	  }
	| {
			readonly kind: "delete";
			readonly containerId: string;
			readonly execId: string;
			readonly pid: number;
			readonly status: number;
			readonly atMs: number;
	  }
	| { readonly kind: "oom"; readonly containerId: string }
	| { readonly kind: "paused"; readonly containerId: string }
	| { readonly kind: "resumed"; readonly containerId: string };

/**
 * Takes events in order; must not fail and must not wait. An end is on disk when it returns, and sent after the caller's turn: the journal, written in
 * the same turn, then never says more than the events that will come.
 */
export type PublishEvent = (identity: PodIdentity, event: PodEvent) => void;
