/** What a new snpd does with the journals that an earlier one left: take up pods whose VM lives, clear away the rest. */

import { existsSync } from "node:fs";
import { basename } from "node:path";

import { AgentClient } from "../agent/client.ts";
import { parseJson, parseSpec, processSchema } from "../agent/oci-spec.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { AGENT_PORT } from "../base/names.ts";
import { cgroupsApart, HostCgroup } from "../host/cgroups.ts";
import { unmountUnder } from "../host/mounts.ts";
import { findProcesses, ProcessHandle } from "../host/processes.ts";
import { clearSpace } from "../network/space.ts";
import { removeScratchFile } from "../storage/scratch-file.ts";
import { adoptVmm, API_SOCKET_OPTION } from "../vmm/launcher.ts";
import { SHARE_OPTION } from "../vmm/share-daemon.ts";
import type { Vmm } from "../vmm/launcher.ts";
import { dialGuest } from "../vmm/vsock.ts";
import { TtrpcClient } from "../wire/client.ts";
import { agentHooks } from "./denials.ts";
import { GuestEnd } from "./boot.ts";
import { Container } from "./container.ts";
import { SandboxContainer } from "./sandbox-container.ts";
import { isSandboxContainer } from "./plan.ts";
import { Journal } from "./journal.ts";
import type { ContainerRecord, PodRecord, ProcessRecord } from "./journal.ts";
import { watchMachine } from "./machine.ts";
import type { Machine } from "./machine.ts";
import { pullDisk } from "./container-disk.ts";
import { releaseContainer, releaseVolumes } from "./making.ts";
import type { Pod } from "./pod.ts";
import { GuestProcess } from "./process.ts";
import type { ExitRecord, ProcessState } from "./process.ts";
import { Timeline } from "./timeline.ts";

const KILLED = 137;
const KILL_WAIT_MS = 10_000;

/**
 * Kills the VMM that was started in a pod folder, and removes the folder with its mounts. The VMM's own helpers end with it.
 * @param record the pod's journal, if it can be read: its VMM's control group goes too (else the one that the VMM is found in), and what its VM had in a
 * network namespace
 */
export async function clearAway(folder: string, record: PodRecord | null, log: Log): Promise<void> {
	const groups = new Set([record?.cgroup ?? null, record?.poolCgroup ?? null].filter((path) => path !== null));
	for (const found of [...findProcesses(folder, API_SOCKET_OPTION), ...findProcesses(folder, SHARE_OPTION)]) {
		if (found.pid === process.pid) continue;
		if (record === null) for (const group of cgroupsApart(found.pid)) groups.add(group);
		const handle = ProcessHandle.open(found.pid, found.startTime);
		if (handle === undefined) continue;
		log.warn("killing a process of a VM that an earlier snpd left", { pid: found.pid, folder });
		handle.kill("SIGKILL");
		await endOf(handle, log);
	}
	let whole = await ended(record?.vmm ?? null, log);
	const stays =
		(what: string) =>
		(error: unknown): void => {
			whole = false;
			log.error(what, error, { folder });
		};
	for (const group of groups) await new HostCgroup(group).remove().catch(stays("a control group stays"));
	const network = record?.network ?? null;
	const files = [record?.scratch ?? "", ...(record?.emptyDirs ?? []).map(({ file }) => file)].filter((path) => path !== "");
	for (const path of files) await removeScratchFile(path).catch((error: unknown) => log.error("a file stays", error, { path }));
	if (network !== null) await clearSpace(network).catch(stays("a network namespace keeps what a VM had there"));
	await unmountUnder(folder);
	// What stays is tried again by the next snpd, which must not take the pod up.
	if (whole || record === null) new Journal(folder).remove();
	else new Journal(folder).write({ ...record, state: "gone" });
}

/** Waits for a VMM that gives its memory back: it has no command line any more by which it could be found. @returns whether it has ended */
async function ended(vmm: PodRecord["vmm"], log: Log): Promise<boolean> {
	// Without the time: a first thread that has ended (a zombie) says nothing of the others.
	const handle = vmm === null ? undefined : ProcessHandle.open(vmm.pid);
	if (handle === undefined) return true;
	if (handle.startTime.toString() === vmm?.startTime) return endOf(handle, log);
	handle.close();
	return true;
}

/** Waits for the end of a process, and closes its handle. @returns whether it has ended; that it has not is logged */
async function endOf(handle: ProcessHandle, log: Log): Promise<boolean> {
	try {
		await handle.waitExit({ timeoutMs: KILL_WAIT_MS });
		return true;
	} catch (error) {
		log.error("a process does not end", error, { pid: handle.pid });
		return false;
	} finally {
		handle.close();
	}
}

/**
 * Brings a pod back from its journal. The pod is running afterwards, or lost when its VM is gone.
 * @throws ShimError when a bundle of it can't be read: the pod must then be cleared away
 */
export async function restorePod(pod: Pod, record: PodRecord): Promise<void> {
	pod.sandbox.vmm = record.vmm;
	pod.keeper.restore(record.keeperPid === 0 ? undefined : { pid: record.keeperPid, startTime: record.keeperStartTime });
	pod.nextStream = record.nextNumber;
	pod.sandbox.pciSegments = record.pciSegments;
	pod.sandbox.scratch = record.scratch;
	if (record.scratch !== null) await removeScratchFile(record.scratch);
	pod.sandbox.size = record.size ?? undefined;
	pod.sandbox.cgroup = record.cgroup === null ? undefined : new HostCgroup(record.cgroup);
	pod.sandbox.poolCgroup = record.poolCgroup;
	pod.tombstones.restore(record.tombstones);
	pod.timeline = new Timeline(record);
	// A bundle that is gone means that containerd has removed the container while no snpd could be told.
	const kept = record.containers.filter((container) => container.complete && existsSync(container.bundle));
	const dropped = record.containers.filter((container) => !kept.includes(container));
	if (record.sandbox !== null && !existsSync(record.sandbox.bundle))
		throw new ShimError("pod.not-found", `containerd has removed sandbox ${record.identity.podId}`);
	if (record.sandbox !== null) pod.api.restore(record.sandbox);
	else if (kept.length === 0 && dropped.some((container) => container.complete)) {
		throw new ShimError("pod.not-found", `containerd has removed every container of pod ${record.identity.podId}`);
	}
	for (const container of kept) await restoreContainer(pod, container);
	pod.sandbox.adoptVolumes(record);
	if (record.network !== null) pod.sandbox.adoptNetwork(record.network);
	const machine = await adoptMachine(pod, record);
	if (machine === undefined) {
		pod.sandbox.transition({
			kind: "lost",
			death: new ShimError("pod.lost", `the VM of pod ${record.identity.podId} ended while snpd was away`),
		});
		endAll(pod);
		pod.vmEnded();
		await Promise.all([pod.volumes.emptyDirs.end(), pod.sandbox.leaveNetwork()]);
		pod.saveQuietly();
		const pool = record.poolCgroup === null ? undefined : new HostCgroup(record.poolCgroup);
		for (const group of [pod.sandbox.cgroup, pool])
			await group?.remove().catch((error: unknown) => pod.log.error("a control group stays", error));
		return;
	}
	pod.adopt(machine, async () => {
		machine.agent.close();
		await machine.vmm.kill();
	});
	for (const container of dropped) await drop(pod, machine, container);
	await pod.volumes.keepOnly(new Set(pod.containers.keys()), machine);
	pod.log.info("pod taken up again", { vmm: machine.vmm.pid, containers: pod.containers.size });
}

/** Removes what the VM has of a container that was not made altogether, or that containerd has removed. */
async function drop(pod: Pod, machine: Machine, { id, disk }: ContainerRecord): Promise<void> {
	await machine.agent
		.removeContainer(id)
		.catch((error: unknown) => pod.log.debug("nothing in the guest of a container that is gone", { reason: explain(error) }));
	const shared = [...pod.containers.values()].some((container) => container.disk?.id === disk?.id);
	if (disk !== null && !shared) await pullDisk(pod, disk.id).catch((error: unknown) => pod.log.error("a disk stays in the VM", error));
	await pod.images.release(pod.owner, id).catch((error: unknown) => pod.log.error("an image stays", error));
}

async function adoptMachine(pod: Pod, record: PodRecord): Promise<Machine | undefined> {
	if (record.vmm === null || record.agent === null) return undefined;
	const guestEnd = new GuestEnd();
	const { pid, startTime } = record.vmm;
	const vmm = adoptVmm({ pid, startTime: BigInt(startTime), folder: pod.folder, onEvent: (event) => guestEnd.accept(event) });
	if (vmm === undefined) return undefined;
	const vsock = `${pod.folder}/vsock.sock`;
	const agent = await greet(pod, vmm, vsock);
	if (agent === undefined) return undefined;
	const died = watchMachine(pod.identity.podId, vmm, agent, guestEnd.ended);
	return { vmm, agent, details: record.agent, vsock, removals: guestEnd.removals, died };
}

async function greet(pod: Pod, vmm: Vmm, vsock: string): Promise<AgentClient | undefined> {
	const { agent_call_ms } = pod.config.timeouts;
	try {
		const { socket } = await dialGuest(vsock, AGENT_PORT, { timeoutMs: agent_call_ms });
		const agent = new AgentClient(
			new TtrpcClient(socket, { name: `the guest agent of pod ${pod.identity.podId}`, log: pod.log }),
			agent_call_ms,
			agentHooks(pod.folder, pod.config, pod.log),
		);
		await agent.check();
		return agent;
	} catch (error) {
		pod.log.error("the guest does not answer any more", error);
		await vmm.kill();
		return undefined;
	}
}

async function restoreContainer(pod: Pod, record: ContainerRecord): Promise<void> {
	const spec = await pod.readSpec(record.bundle);
	const init = record.processes.find((process) => process.execId === "");
	if (init === undefined)
		throw new ShimError("journal.invalid", `container ${record.id} in the journal of pod ${basename(pod.folder)} has no first process`);
	const scope = pod.adoptScope(`container ${record.id}`);
	scope.defer(`disks of the volumes of container ${record.id}`, () => releaseVolumes(pod, record.id));
	const parts = { id: record.id, bundle: record.bundle, spec, stdio: init.stdio, scope };
	const container = isSandboxContainer(spec)
		? new SandboxContainer(parts, pod)
		: new Container({ ...parts, disk: record.disk, layers: null }, pod);
	scope.defer(`disk of container ${record.id}`, () => releaseContainer(pod, container));
	scope.defer(`stdio of container ${record.id}`, () => container.releaseStdio());
	container.complete = true;
	container.paused = record.paused;
	container.newLimits = record.limits ?? undefined;
	fill(container.init, init);
	for (const exec of record.processes) {
		if (exec.execId === "") continue;
		const process = new GuestProcess(record.id, exec.execId, exec.stdio);
		fill(process, exec);
		container.execs.set(exec.execId, process);
		if (exec.spec !== null)
			container.execSpecs.set(exec.execId, parseSpec(processSchema, parseJson(exec.spec, "the journal"), "the journal"));
	}
	pod.containers.set(record.id, container);
}

function fill(process: GuestProcess, record: ProcessRecord): void {
	process.streams = record.streams;
	process.stdinClosed = record.stdinClosed;
	process.killed = record.killed;
	process.restore(stateOf(record));
}

/** A start that was under way is asked for again by its caller: it counts as not begun. */
function stateOf(record: ProcessRecord): ProcessState {
	if (record.state === "stopped") return { kind: "stopped", exit: record.exit ?? { status: KILLED, atMs: Date.now() } };
	return record.state === "running" ? { kind: "running" } : { kind: "created" };
}

/** Every process of a lost pod has ended: tell it. */
function endAll(pod: Pod): void {
	const exit: ExitRecord = { status: KILLED, atMs: Date.now() };
	for (const container of pod.containers.values()) {
		for (const process of [...container.execs.values(), container.init]) {
			if (process.state.kind !== "running") continue;
			process.transition({ kind: "stopped", exit });
			pod.publish({ kind: "exit", containerId: container.id, execId: process.execId, pid: pod.pid, status: exit.status, atMs: exit.atMs });
		}
	}
}
