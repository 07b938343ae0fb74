/** From what happened in a pod to containerd's events: topics and messages of containerd's `events` package. */

import { containerd } from "../../proto/gen/containerd.js";
import type { PodEvent } from "../pod/ports.ts";
import { timestamp } from "./encode.ts";

const events = containerd.events;

/** An event as containerd takes it. */
export interface EncodedEvent {
	readonly topic: string;
	readonly typeUrl: string;
	readonly value: Uint8Array;
}

/** Encodes one event. */
export function encodeEvent(event: PodEvent): EncodedEvent {
	const make = (topic: string, name: string, writer: { finish(): Uint8Array }): EncodedEvent => ({
		topic,
		typeUrl: `containerd.events.${name}`,
		value: writer.finish(),
	});
	switch (event.kind) {
		case "create": {
			const rootfs = event.rootfs.map((mount) => ({ ...mount, options: [...mount.options] }));
			const message = { container_id: event.containerId, bundle: event.bundle, rootfs, io: { ...event.stdio }, pid: event.pid };
			return make("/tasks/create", "TaskCreate", events.TaskCreate.encode(message));
		}
		case "start":
			return make("/tasks/start", "TaskStart", events.TaskStart.encode({ container_id: event.containerId, pid: event.pid }));
		case "exec-added":
			return make(
				"/tasks/exec-added",
				"TaskExecAdded",
				events.TaskExecAdded.encode({ container_id: event.containerId, exec_id: event.execId }),
			);
		case "exec-started": {
			const message = { container_id: event.containerId, exec_id: event.execId, pid: event.pid };
			return make("/tasks/exec-started", "TaskExecStarted", events.TaskExecStarted.encode(message));
		}
		case "exit": {
			const id = event.execId === "" ? event.containerId : event.execId;
			const message = { container_id: event.containerId, id, pid: event.pid, exit_status: event.status, exited_at: timestamp(event.atMs) };
			return make("/tasks/exit", "TaskExit", events.TaskExit.encode(message));
		}
		case "delete": {
			const message = {
				container_id: event.containerId,
				id: event.execId,
				pid: event.pid,
				exit_status: event.status,
				exited_at: timestamp(event.atMs),
			};
			return make("/tasks/delete", "TaskDelete", events.TaskDelete.encode(message));
		}
		case "oom":
			return make("/tasks/oom", "TaskOOM", events.TaskOOM.encode({ container_id: event.containerId }));
		case "paused":
			return make("/tasks/paused", "TaskPaused", events.TaskPaused.encode({ container_id: event.containerId }));
		case "resumed":
			return make("/tasks/resumed", "TaskResumed", events.TaskResumed.encode({ container_id: event.containerId }));
	}
}
