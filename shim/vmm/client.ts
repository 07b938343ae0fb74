/**
 * Cloud Hypervisor's REST API, one method per endpoint, over its unix socket. Requests run one at a time in the order of the calls, as the VMM
 * handles them, and are never repeated: an answer that is lost leaves the outcome unknown, and most requests are not idempotent.
 */

import { withDeadline } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { Mailbox } from "../base/mailbox.ts";
import type {
	PciDeviceInfo,
	ReceiveMigrationData,
	RestoreConfig,
	SendMigrationData,
	VmAddUserDevice,
	VmCoredumpData,
	VmCounters,
	VmInfo,
	VmmPingResponse,
	VmResize,
	VmResizeDisk,
	VmResizeZone,
	VmSnapshotConfig,
} from "./api-types.ts";
import { errorChain, VmmApiError } from "./api-error.ts";
import type {
	DeviceConfig,
	DiskConfig,
	FsConfig,
	GenericVhostUserConfig,
	NetConfig,
	PmemConfig,
	VdpaConfig,
	VmConfig,
	VsockConfig,
} from "./config-types.ts";
import { parseCounters } from "./counters.ts";
import { ApiConnection, ConnectionLost, MalformedAnswer, MAX_REQUEST_BODY_BYTES } from "./http.ts";
import type { HttpRequest } from "./http.ts";

/** How one call is bounded. */
export interface CallOptions {
	readonly signal?: AbortSignal | undefined;
	/** From the call to its answer, waiting for earlier calls included; the client's default unless given. */
	readonly timeoutMs?: number | undefined;
}

/** How a client behaves. */
export interface VmmClientOptions {
	/** Default bound of a call: 30 s unless given. */
	readonly timeoutMs?: number;
	/** How many calls may wait or run: 32 unless given. One more fails with `busy`. */
	readonly queueLimit?: number;
	/** Asked when the connection is lost during a call: gives a better error, for example that the process has ended and why. */
	readonly onLost?: (endpoint: string, lost: Error) => Promise<ShimError>;
}

const DEFAULT_TIMEOUT_MS = 30_000;
const DEFAULT_QUEUE_LIMIT = 32;
const PREFIX = "/api/v1/";

/**
 * A client of one VMM. Every method fails with a ShimError: `vmm.api` when the VMM refuses (its cause is the VmmApiError) or breaks the protocol,
 * `wait.deadline`, `wait.canceled`, `busy`, or what `onLost` gives.
 */
export class VmmClient {
	#socketPath: string;
	readonly #options: VmmClientOptions;
	readonly #connection: ApiConnection;
	readonly #queue: Mailbox;
	#answered = false;

	constructor(socketPath: string, options: VmmClientOptions = {}) {
		this.#socketPath = socketPath;
		this.#options = options;
		this.#connection = new ApiConnection(socketPath);
		this.#queue = new Mailbox(`the hypervisor at ${socketPath}`, options.queueLimit ?? DEFAULT_QUEUE_LIMIT);
	}

	get socketPath(): string {
		return this.#socketPath;
	}

	/** The socket was renamed: calls go there from now on, and one that runs is not touched. */
	moveTo(socketPath: string): void {
		this.#socketPath = socketPath;
		this.#connection.moveTo(socketPath);
	}

	/** True once the VMM has answered a call, in whatever way. */
	get answered(): boolean {
		return this.#answered;
	}

	/** Version, pid and compile-time features. */
	async ping(call?: CallOptions): Promise<VmmPingResponse> {
		return parsed("vmm.ping", await this.#call("GET", "vmm.ping", undefined, call));
	}
	/** Ends the VMM process, and with it the VM: exit code 0. */
	async vmmShutdown(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vmm.shutdown", undefined, call);
	}

	/** Stores a configuration. Nearly all of its validation happens in `boot`. */
	async create(config: VmConfig, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.create", config, call);
	}
	/** Makes and starts the VM. After a failure never boot again: devices were dropped from the stored configuration. */
	async boot(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.boot", undefined, call);
	}
	async info(call?: CallOptions): Promise<VmInfo> {
		return parsed("vm.info", await this.#call("GET", "vm.info", undefined, call));
	}
	/** Counters of the running VM's devices, exact up to 2^64-1. */
	async counters(call?: CallOptions): Promise<VmCounters> {
		const body = await this.#call("GET", "vm.counters", undefined, call);
		try {
			return parseCounters(body.toString("utf8"));
		} catch (error) {
			throw malformed("vm.counters", error);
		}
	}
	/** Stops the VM at once; the configuration stays and may be booted again. */
	async shutdown(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.shutdown", undefined, call);
	}
	/** Stops the VM if it runs and forgets the configuration. */
	async delete(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.delete", undefined, call);
	}
	async reboot(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.reboot", undefined, call);
	}
	async pause(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.pause", undefined, call);
	}
	async resume(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.resume", undefined, call);
	}
	/** Presses the ACPI power button: whether anything follows is up to the guest. */
	async powerButton(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.power-button", undefined, call);
	}
	/** Sends a non-maskable interrupt. */
	async nmi(call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.nmi", undefined, call);
	}
	/** Changes vCPUs, memory or balloon; status 429 while an earlier removal of vCPUs waits for the guest. */
	async resize(request: VmResize, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.resize", request, call);
	}
	async resizeDisk(request: VmResizeDisk, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.resize-disk", request, call);
	}
	async resizeZone(request: VmResizeZone, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.resize-zone", request, call);
	}

	/** Adds a disk. All `add` methods give where the device is, or undefined when the VM is not booted yet. */
	addDisk(config: DiskConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-disk", config, call);
	}
	/** Adds a network device, over `fds` when they are given (tap descriptors, one per queue pair; they stay open here). */
	addNet(config: NetConfig, fds: readonly number[] = [], call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-net", config, call, fds);
	}
	addVsock(config: VsockConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-vsock", config, call);
	}
	/** Adds a virtio-fs share: its back end must listen already, or everything waits for a minute. */
	addFs(config: FsConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-fs", config, call);
	}
	addPmem(config: PmemConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-pmem", config, call);
	}
	/** Adds a VFIO device. */
	addDevice(config: DeviceConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-device", config, call);
	}
	addUserDevice(config: VmAddUserDevice, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-user-device", config, call);
	}
	addVdpa(config: VdpaConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-vdpa", config, call);
	}
	addGenericVhostUser(config: GenericVhostUserConfig, call?: CallOptions): Promise<PciDeviceInfo | undefined> {
		return this.#add("vm.add-generic-vhost-user", config, call);
	}
	/** Asks the guest to let a device go. The answer comes first; the id is free after the event `device-removed`. */
	async removeDevice(id: string, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.remove-device", { id }, call);
	}

	async snapshot(request: VmSnapshotConfig, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.snapshot", request, call);
	}
	async restore(request: RestoreConfig, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.restore", request, call);
	}
	async coredump(request: VmCoredumpData, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.coredump", request, call);
	}
	async receiveMigration(request: ReceiveMigrationData, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.receive-migration", request, call);
	}
	async sendMigration(request: SendMigrationData, call?: CallOptions): Promise<void> {
		await this.#call("PUT", "vm.send-migration", request, call);
	}

	/** Closes the kept connection, for good. A call that runs goes on; those after it fail. */
	close(): void {
		this.#connection.close();
	}

	async #add(
		endpoint: string,
		config: object,
		call: CallOptions | undefined,
		fds: readonly number[] = [],
	): Promise<PciDeviceInfo | undefined> {
		const body = await this.#call("PUT", endpoint, config, call, fds);
		return body.byteLength === 0 ? undefined : parsed(endpoint, body);
	}

	/** One request in its turn, within its deadline. */
	async #call(
		method: "GET" | "PUT",
		endpoint: string,
		body: object | undefined,
		call: CallOptions = {},
		fds: readonly number[] = [],
	): Promise<Buffer> {
		const bytes = body === undefined ? undefined : Buffer.from(JSON.stringify(body), "utf8");
		if (bytes !== undefined && bytes.byteLength > MAX_REQUEST_BODY_BYTES) {
			const text = `${endpoint} would take ${bytes.byteLength} bytes, and the hypervisor takes ${MAX_REQUEST_BODY_BYTES}`;
			throw new ShimError("vmm.api", text, {
				remedy: "use fewer or shorter values: the kernel command line and the list of devices are the long ones",
			});
		}
		const request: HttpRequest = { method, path: PREFIX + endpoint, body: bytes, fds };
		const wait = {
			what: `${endpoint} of the hypervisor at ${this.socketPath}`,
			timeoutMs: call.timeoutMs ?? this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
			signal: call.signal,
		};
		return withDeadline(wait, (signal) => this.#queue.run(() => this.#exchange(endpoint, request, signal)));
	}

	async #exchange(endpoint: string, request: HttpRequest, signal: AbortSignal): Promise<Buffer> {
		try {
			const response = await this.#connection.exchange(request, signal);
			this.#answered = true;
			if (response.status >= 200 && response.status <= 299) return response.body;
			const refusal = new VmmApiError(endpoint, response.status, errorChain(response.body));
			throw new ShimError("vmm.api", `the hypervisor refused ${endpoint} (HTTP ${response.status}): ${refusal.message}`, {
				cause: refusal,
			});
		} catch (error) {
			if (error instanceof MalformedAnswer) throw malformed(endpoint, error);
			if (!(error instanceof ConnectionLost)) throw error;
			if (this.#options.onLost !== undefined) throw await this.#options.onLost(endpoint, error);
			throw new ShimError("vmm.api", `${endpoint} of the hypervisor at ${this.socketPath}: ${error.message}`, { cause: error });
		}
	}
}

/** Parses the body of a success; its form is the VMM's word, which the host trusts. */
function parsed<T extends object>(endpoint: string, body: Buffer): T {
	let value: unknown;
	try {
		value = JSON.parse(body.toString("utf8"));
	} catch (error) {
		throw malformed(endpoint, error);
	}
	if (typeof value !== "object" || value === null || Array.isArray(value)) throw malformed(endpoint, "no JSON object");
	return value as T;
}

function malformed(endpoint: string, cause: unknown): ShimError {
	const text = `the hypervisor's answer to ${endpoint} is malformed: ${messageOf(cause)}`;
	return new ShimError("vmm.api", text, { cause, remedy: "check that hypervisor.path is Cloud Hypervisor v53 or a later one" });
}
