/** The guest agent in a VM of its own, without containerd and snpd: for tests of what it does with disks. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AgentClient } from "../../shim/agent/client.ts";
import { guestRootfs, guestSpec } from "../../shim/agent/guest-spec.ts";
import { parseSpec, specSchema } from "../../shim/agent/oci-spec.ts";
import type { StorageRequest } from "../../shim/agent/storages.ts";
import { deviceSource, scratchStorage, shmStorage } from "../../shim/agent/storages.ts";
import { Log } from "../../shim/base/log.ts";
import { AGENT_PORT } from "../../shim/base/names.ts";
import { launchVmm } from "../../shim/vmm/launcher.ts";
import type { Vmm } from "../../shim/vmm/launcher.ts";
import { diskAddress, planVm } from "../../shim/vmm/plan.ts";
import type { DiskSpec } from "../../shim/vmm/plan.ts";
import { dialGuest } from "../../shim/vmm/vsock.ts";
import { TtrpcClient } from "../../shim/wire/client.ts";
import { buildScript } from "./guest.ts";
import { distBinDir, distShareDir, requireBuilt } from "./paths.ts";

/** docs/contracts.md, "The guest agent". */
const AGENT_LOG_PORT = 1025;
const MEMORY_MIB = 256;
const BOOT_MS = 60_000;
const CALL_MS = 60_000;
const READ_BYTES = 1 << 20;
const NAMESPACES = ["pid", "ipc", "uts", "mount", "network"].map((type) => ({ type }));
const PARAMETERS = "reboot=t panic=-1 tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 quiet";

/** What a container said and how it ended. */
export interface Outcome {
	readonly status: number;
	readonly out: string;
	readonly err: string;
}

/** What is not as in an ordinary guest. */
export interface GuestKind {
	/** The kernel; `dist/share/vmlinux` unless given. */
	readonly kernel?: string;
	/** The initramfs; `dist/share/initramfs` unless given. */
	readonly initramfs?: string;
	/** Further kernel parameters. */
	readonly parameters?: string;
}

/** A VM with the agent in it. */
export class GuestVm {
	readonly folder: string;
	readonly vmm: Vmm;
	readonly agent: AgentClient;
	/** When its VMM was asked to boot it, and when its agent had answered for the first time; of `performance.now()`. */
	readonly booted: { readonly askedMs: number; readonly answeredMs: number };
	/** What the agent has logged so far. */
	log = "";
	#count = 0;

	private constructor(folder: string, vmm: Vmm, agent: AgentClient, booted: GuestVm["booted"]) {
		this.folder = folder;
		this.vmm = vmm;
		this.agent = agent;
		this.booted = booted;
	}

	/**
	 * Boots a VM with these disks; it ends with the test.
	 * @param scratch the disk that is the pod's for writable layers; none unless given
	 */
	static async boot(t: Tap, disks: readonly DiskSpec[], scratch?: string): Promise<GuestVm> {
		const vm = await GuestVm.bootBare(t, disks);
		const storages = [shmStorage(), ...(scratch === undefined ? [] : [scratchStorage(await vm.slot(scratch))])];
		await vm.agent.createSandbox({ hostname: "vm", dns: [], storages, sandbox_pidns: false, sandbox_id: "vm" });
		return vm;
	}

	/** The same without a sandbox: the agent was not asked for anything yet. */
	static async bootBare(t: Tap, disks: readonly DiskSpec[], kind: GuestKind = {}): Promise<GuestVm> {
		requireBuilt();
		const folder = mkdtempSync(join(tmpdir(), "snp-vm-"));
		t.teardown(() => rmSync(folder, { recursive: true, force: true }));
		// tap adds to the environment of every program what only its own can use.
		const program = await buildScript(folder, "hypervisor", `exec /usr/bin/env -i ${join(distBinDir, "ch-qemu")} "$@"`);
		const vmm = await launchVmm({ hypervisorPath: program, folder });
		t.teardown(() => vmm.kill());
		const vsock = join(folder, "vsock.sock");
		await vmm.client.create(
			planVm({
				vcpus: 1,
				memoryMiB: MEMORY_MIB,
				kernelPath: kind.kernel ?? join(distShareDir, "vmlinux"),
				initramfsPath: kind.initramfs ?? join(distShareDir, "initramfs"),
				cmdline: [PARAMETERS, kind.parameters ?? ""].join(" ").trim(),
				disks,
				vsock: { cid: 3, socketPath: vsock },
			}),
		);
		const askedMs = performance.now();
		await vmm.client.boot();
		const { socket } = await dialGuest(vsock, AGENT_PORT, { timeoutMs: BOOT_MS });
		const agent = new AgentClient(new TtrpcClient(socket, { name: "the agent", log: new Log(() => undefined) }), CALL_MS);
		t.teardown(() => agent.close());
		await agent.check();
		const vm = new GuestVm(folder, vmm, agent, { askedMs, answeredMs: performance.now() });
		const { socket: log } = await dialGuest(vsock, AGENT_LOG_PORT, { timeoutMs: CALL_MS });
		t.teardown(() => log.destroy());
		log.on("error", () => undefined);
		log.on("data", (text) => (vm.log += text.toString()));
		log.resume();
		return vm;
	}

	/** A disk that the VM has from its start, as the agent finds it. */
	async slot(diskId: string): Promise<string> {
		const slot = diskAddress(await this.vmm.client.info(), diskId);
		if (slot === undefined) throw new Error(`the VM has no disk ${diskId}`);
		const source = deviceSource(slot, true);
		if (source === undefined) throw new Error(`disk ${diskId} is at ${slot}`);
		return source;
	}

	/** An id that no container had, and where its root file system goes. */
	newContainer(): { id: string; rootfs: string } {
		const id = `c${++this.#count}`;
		return { id, rootfs: guestRootfs(id) };
	}

	/** Makes a container, which does not run yet. `volumes`: folders of the guest by destination. */
	async create(id: string, storages: StorageRequest[], script: string, volumes: Readonly<Record<string, string>> = {}): Promise<void> {
		const spec = parseSpec(
			specSchema,
			{
				ociVersion: "1.1.0",
				process: { args: ["/bin/sh", "-c", script], cwd: "/", env: ["PATH=/bin"], user: { uid: 0, gid: 0 } },
				root: { path: "rootfs" },
				mounts: [
					{ destination: "/proc", type: "proc", source: "proc" },
					{ destination: "/sys", type: "sysfs", source: "sysfs", options: ["ro"] },
					...Object.keys(volumes).map((destination) => ({ destination, type: "bind", source: "/", options: ["rbind"] })),
				],
				linux: { namespaces: NAMESPACES },
			},
			"a test",
		);
		const guestSources = new Map(Object.entries(volumes).map(([destination, path]) => [destination, { path }]));
		const guest = guestSpec(spec, { containerId: id, podPid: 0, sandbox: false, seccomp: false, limits: false, guestSources });
		await this.agent.createContainer({ container_id: id, exec_id: id, storages, OCI: guest, sandbox_pidns: false });
	}

	/** Runs a container that was made to its end. */
	async finish(id: string): Promise<Outcome> {
		await this.agent.startContainer(id);
		const [out, err] = await Promise.all([this.#read(id, "stdout"), this.#read(id, "stderr")]);
		return { status: await this.agent.waitProcess({ containerId: id, execId: "" }), out, err };
	}

	/** Makes a container, runs it to its end, and removes it. */
	async run(
		storages: (rootfs: string) => StorageRequest[],
		script: string,
		volumes: Readonly<Record<string, string>> = {},
	): Promise<Outcome> {
		const { id, rootfs } = this.newContainer();
		await this.create(id, storages(rootfs), script, volumes);
		try {
			return await this.finish(id);
		} finally {
			await this.agent.removeContainer(id);
		}
	}

	async #read(id: string, stream: "stdout" | "stderr"): Promise<string> {
		const parts: Uint8Array[] = [];
		for (;;) {
			const part = await this.agent.readOutput({ containerId: id, execId: "" }, stream, READ_BYTES);
			if (part.length === 0) return Buffer.concat(parts).toString();
			parts.push(part);
		}
	}
}

/** What this needs of tap's test object. Teardowns run newest first. */
export interface Tap {
	teardown(release: () => unknown): void;
}
