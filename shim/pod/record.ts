/** From a live pod to what its journal says of it. Pure. */

import type { Container } from "./container.ts";
import type { ContainerRecord, PodRecord, ProcessRecord } from "./journal.ts";
import type { Pod } from "./pod.ts";
import type { GuestProcess } from "./process.ts";

/** The journal's document for a pod as it is now: to be written at once, since it shares what it tells with the pod. */
export function podRecord(pod: Pod): PodRecord {
	const state = pod.state;
	return {
		version: 1,
		identity: pod.identity,
		config: pod.config,
		keeperPid: pod.keeper.process?.pid ?? 0,
		keeperStartTime: pod.keeper.process?.startTime ?? null,
		sandbox: pod.api.record ?? null,
		state: state.kind === "new" ? "booting" : state.kind,
		network: networkRecord(pod),
		vmm: pod.sandbox.vmm,
		size: pod.sandbox.size ?? null,
		scratch: pod.sandbox.scratch,
		pciSegments: pod.sandbox.pciSegments,
		cgroup: pod.sandbox.cgroup?.path ?? null,
		poolCgroup: pod.sandbox.poolCgroup,
		agent: state.kind === "running" ? state.machine.details : null,
		volumes: pod.sandbox.volumes.copies.record(),
		shares: pod.sandbox.volumes.shares.record().map((share) => ({ ...share, users: [...share.users] })),
		disks: pod.sandbox.volumes.disks.record().map((disk) => ({ ...disk, users: [...disk.users] })),
		emptyDirs: [...pod.sandbox.volumes.emptyDirs.record()],
		nextNumber: pod.nextStream,
		containers: [
			...[...pod.containers.values()].map(containerRecord),
			...[...pod.leaving].map((container) => ({ ...containerRecord(container), complete: false })),
		],
		tombstones: [...pod.tombstones.list],
		beganAtMs: pod.timeline.beganAtMs,
		spans: [...pod.timeline.spans],
	};
}

function networkRecord(pod: Pod): PodRecord["network"] {
	const record = pod.sandbox.network?.record ?? null;
	return record === null ? null : { ...record, told: [...record.told] };
}

function containerRecord(container: Container): ContainerRecord {
	return {
		id: container.id,
		bundle: container.bundle,
		complete: container.complete,
		paused: container.paused,
		limits: container.newLimits ?? null,
		disk: container.disk,
		processes: [container.init, ...container.execs.values()].map((process) => processRecord(process, container)),
	};
}

function processRecord(process: GuestProcess, container: Container): ProcessRecord {
	const spec = container.execSpecs.get(process.execId);
	return {
		execId: process.execId,
		stdio: process.stdio,
		streams: process.streams,
		state: process.state.kind,
		exit: process.exit ?? null,
		stdinClosed: process.stdinClosed,
		killed: process.killed,
		spec: spec === undefined ? null : JSON.stringify(spec),
	};
}
