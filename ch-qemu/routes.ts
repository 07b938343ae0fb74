/** The REST API: which path does what, and how its result and its errors are written. */
import { ApiError, VmmError } from "./api-error.ts";
import type { Descriptors } from "./descriptors.ts";
import type { HttpRequest, ReceivedRequest } from "./http-request.ts";
import type { HttpAnswer } from "./http-server.ts";
import { JsonError } from "./json-reader.ts";
import { VmmPanic } from "./payload.ts";
import { decode, type Struct } from "./schema.ts";
import * as table from "./vm-config.ts";
import type { Vmm } from "./vmm.ts";

/** What `vmm.ping` answers. */
export type Identity = {
	readonly build_version: string;
	readonly version: string;
	readonly pid: number;
	readonly features: readonly string[];
};

/** A handler's result: text is the body of a 200, nothing is a 204. */
type Result = string | undefined;

type Route = {
	readonly method: "GET" | "PUT";
	/** The table of the body; undefined: a body is refused. */
	readonly body?: Struct;
	/** The message that stands in front of the cause when the call fails. */
	readonly failed: string;
	run(vmm: Vmm, body: unknown, descriptors: Descriptors): Promise<Result> | Result;
};

const get = (failed: string, run: (vmm: Vmm) => Promise<string>): Route => ({ method: "GET", failed, run });
const put = (failed: string, run: (vmm: Vmm) => Promise<void>): Route => ({
	method: "PUT",
	failed,
	run: async (vmm) => {
		await run(vmm);
		return undefined;
	},
});
/** `T` is the type that `body` describes: the decoder has checked it. */
const putBody = <T>(
	failed: string,
	body: Struct,
	run: (vmm: Vmm, body: T, descriptors: Descriptors) => Promise<unknown> | unknown,
): Route => ({
	method: "PUT",
	body,
	failed,
	run: async (vmm, value, descriptors) => {
		const result = await run(vmm, value as T, descriptors);
		return result === undefined ? undefined : JSON.stringify(result);
	},
});

const ROUTES: Readonly<Record<string, Route>> = {
	"vm.create": putBody<table.VmConfig>("The VM could not be created", table.VM, (vmm, config) => vmm.create(config)),
	"vm.delete": put("The VM could not be deleted", (vmm) => vmm.delete()),
	"vm.boot": put("The VM could not boot", (vmm) => vmm.boot()),
	"vm.shutdown": put("The VM could not shutdown", (vmm) => vmm.shutdown()),
	"vm.reboot": put("The VM could not reboot", (vmm) => vmm.reboot()),
	"vm.pause": put("The VM could not be paused", (vmm) => vmm.pause()),
	"vm.resume": put("The VM could not resume", (vmm) => vmm.resume()),
	"vm.power-button": put("Error triggering power button", (vmm) => vmm.powerButton()),
	"vm.nmi": put("Error triggering NMI", (vmm) => vmm.nmi()),
	"vm.info": get("The VM info is not available", (vmm) => vmm.infoJson()),
	"vm.counters": get("The VM info is not available", (vmm) => vmm.countersJson()),
	"vm.resize": putBody<Parameters<Vmm["resize"]>[0]>("The VM could not be resized", table.RESIZE, (vmm, wanted) => vmm.resize(wanted)),
	"vm.resize-disk": putBody<{ id: string; desired_size: number }>("The disk could not be resized", table.RESIZE_DISK, (vmm, b) =>
		vmm.resizeDisk(b.id, b.desired_size),
	),
	"vm.resize-zone": putBody("The memory zone could not be resized", table.RESIZE_ZONE, (vmm) => vmm.resizeZone()),
	"vm.add-disk": putBody<table.DiskConfig>("The disk could not be added to the VM", table.DISK, (vmm, disk) => vmm.addDisk(disk)),
	"vm.add-net": putBody<table.NetConfig>("The network device could not be added to the VM", table.NET, (vmm, net, descriptors) =>
		vmm.addNet(net, descriptors),
	),
	"vm.add-vsock": putBody<table.VsockConfig>("The vsock device could not be added to the VM", table.VSOCK, (vmm, vsock) =>
		vmm.addVsock(vsock),
	),
	"vm.add-fs": putBody<table.FsConfig>("The fs could not be added to the VM", table.FS, (vmm, fs) => vmm.addFs(fs)),
	"vm.add-pmem": putBody<never>("The pmem device could not be added to the VM", table.PMEM, (vmm, pmem) =>
		vmm.addUnsupported("pmem", pmem, "persistent memory devices"),
	),
	"vm.add-device": putBody<never>("The device could not be added to the VM", table.DEVICE, (vmm, d) =>
		vmm.addUnsupported("devices", d, "passed-through devices"),
	),
	"vm.add-vdpa": putBody("The vDPA device could not be added to the VM", table.VDPA, (vmm) => vmm.refuseDevice("vDPA devices")),
	"vm.add-user-device": putBody("The user device could not be added to the VM", table.USER_DEVICE, (vmm) =>
		vmm.refuseDevice("vfio-user devices"),
	),
	"vm.add-generic-vhost-user": putBody("The generic vhost-user device could not be added to the VM", table.GENERIC_VHOST_USER, (vmm) =>
		vmm.refuseDevice("vhost-user devices"),
	),
	"vm.remove-device": putBody<{ id: string }>("The device could not be removed from the VM", table.REMOVE_DEVICE, (vmm, { id }) =>
		vmm.removeDevice(id),
	),
	"vm.snapshot": putBody<{ destination_url: string }>("The VM could not be snapshotted", table.SNAPSHOT, (vmm, b) =>
		vmm.snapshot(b.destination_url),
	),
	"vm.restore": putBody<table.RestoreConfig>("The VM could not be restored", table.RESTORE, (vmm, config) => vmm.restore(config)),
	"vm.send-migration": putBody("Error dispatching the migration worker", table.SEND_MIGRATION, (vmm) => vmm.sendMigration()),
	"vm.receive-migration": putBody("Error receiving migration", table.RECEIVE_MIGRATION, (vmm) => vmm.sendMigration()),
};

const ROOT = "/api/v1/";

/** The API of one VMM. `onExit` is called after the answer of `vmm.shutdown` (code 0), or of a call that panics the real VMM (code 1). */
export class Api {
	readonly #vmm: Vmm;
	readonly #identity: Identity;
	readonly #onExit: (code: number) => void;
	/** A VMM that panicked answers nothing more. */
	#panicked = false;

	constructor(vmm: Vmm, identity: Identity, onExit: (code: number) => void) {
		this.#vmm = vmm;
		this.#identity = identity;
		this.#onExit = onExit;
	}

	/** Answers one request. A failure is an answer too; only a VMM that panicked throws. */
	async handle(request: ReceivedRequest): Promise<HttpAnswer> {
		if (this.#panicked) throw new Error("the VMM has panicked");
		try {
			return await this.#route(request);
		} catch (error) {
			if (error instanceof JsonError) return failure(new ApiError(400, ["Failed to deserialize JSON", error.message]));
			if (error instanceof ApiError) return failure(error);
			return failure(new ApiError(500, ["Internal Server Error", String(error)]));
		}
	}

	async #route(request: ReceivedRequest): Promise<HttpAnswer> {
		if (!request.path.startsWith(ROOT)) throw new ApiError(404, ["Not Found"]);
		const name = request.path.slice(ROOT.length);
		if (name === "vmm.ping") return this.#ping(request);
		if (name === "vmm.shutdown") return this.#shutdown(request);
		const route = Object.hasOwn(ROUTES, name) ? ROUTES[name] : undefined;
		if (route === undefined) throw new ApiError(404, ["Not Found"]);
		if (request.method === "PATCH") return { status: 400 };
		if (request.method !== route.method) throw new ApiError(400, ["Bad Request"]);
		if (route.body === undefined && request.body !== undefined) throw new ApiError(400, ["Bad Request"]);
		if (route.body !== undefined && request.body === undefined) {
			if (name === "vm.create") return { status: 400 };
			throw new ApiError(400, ["Bad Request"]);
		}
		const body = route.body === undefined ? undefined : decode(route.body, request.body ?? "");
		return this.#run(route, body, request.descriptors);
	}

	async #run(route: Route, body: unknown, descriptors: Descriptors): Promise<HttpAnswer> {
		try {
			const text = await route.run(this.#vmm, body, descriptors);
			return text === undefined ? { status: 204 } : { status: 200, body: text };
		} catch (error) {
			if (error instanceof VmmPanic) {
				process.stderr.write(`ch-qemu: ${error.message}\n`);
				this.#panicked = true;
				this.#onExit(1);
				throw new ApiError(500, ["Error from API", "API response receive error", "receiving on a closed channel"]);
			}
			if (error instanceof VmmError && error.status === 429) throw new ApiError(429, ["Too Many Requests"]);
			const [status, chain] =
				error instanceof VmmError
					? [error.status, error.chain]
					: ([500, [error instanceof Error ? error.message : String(error)]] as const);
			throw new ApiError(status, ["Error from API", route.failed, ...chain]);
		}
	}

	#ping(request: HttpRequest): HttpAnswer {
		if (request.method !== "GET") throw new ApiError(400, ["Bad Request"]);
		return { status: 200, body: JSON.stringify(this.#identity) };
	}

	async #shutdown(request: HttpRequest): Promise<HttpAnswer> {
		if (request.method !== "PUT") throw new ApiError(400, ["Bad Request"]);
		await this.#vmm.vmmShutdown();
		this.#onExit(0);
		return { status: 200 };
	}
}

function failure(error: ApiError): HttpAnswer {
	return { status: error.status, body: JSON.stringify(error.chain) };
}
