/** The errors of the REST API: a status and a chain of messages, outermost first, as Cloud Hypervisor answers them. */

/** HTTP statuses that the API uses for failures. */
export type FailureStatus = 400 | 404 | 409 | 429 | 500;

/**
 * A request that failed. `chain` is the body of the answer: a JSON array of strings, outermost message first, the cause last.
 */
export class ApiError extends Error {
	readonly status: FailureStatus;
	readonly chain: readonly string[];

	constructor(status: FailureStatus, chain: readonly string[]) {
		super(chain.join(": "));
		this.name = "ApiError";
		this.status = status;
		this.chain = chain;
	}
}

/** The cause inside the VMM: what went wrong, before the endpoint puts its own messages in front. */
export class VmmError extends Error {
	readonly status: FailureStatus;
	readonly chain: readonly string[];

	constructor(status: FailureStatus, ...chain: string[]) {
		super(chain.join(": "));
		this.name = "VmmError";
		this.status = status;
		this.chain = chain;
	}
}

/** The failures that many endpoints share; the texts are the wire strings of the real VMM. */
export const vmNotCreated = (): VmmError => new VmmError(404, "VM is not created");
export const vmNotRunning = (): VmmError => new VmmError(500, "VM is not running");
export const vmAlreadyCreated = (): VmmError => new VmmError(500, "VM is already created");
export const vmConfigMissing = (): VmmError => new VmmError(404, "VM config is missing");
export const deviceManagerError = (...chain: string[]): VmmError => new VmmError(500, "Error from device manager", ...chain);

/** The text of an unknown thrown value. */
export function messageOf(error: unknown): string {
	return error instanceof Error ? error.message : String(error);
}

const OS_ERRORS: Readonly<Record<string, string>> = {
	EPERM: "Operation not permitted (os error 1)",
	ENOENT: "No such file or directory (os error 2)",
	EACCES: "Permission denied (os error 13)",
	EBUSY: "Device or resource busy (os error 16)",
	EEXIST: "File exists (os error 17)",
	ENODEV: "No such device (os error 19)",
	ENOTDIR: "Not a directory (os error 20)",
	EISDIR: "Is a directory (os error 21)",
	EINVAL: "Invalid argument (os error 22)",
	ENOSPC: "No space left on device (os error 28)",
	ENAMETOOLONG: "File name too long (os error 36)",
	EADDRINUSE: "Address in use (os error 98)",
};

/** The operating system's error as Rust prints it, from a Node error with a `code`. */
export function osErrorText(error: unknown): string {
	const code = error instanceof Error && "code" in error ? String(error.code) : "";
	return OS_ERRORS[code] ?? messageOf(error);
}
