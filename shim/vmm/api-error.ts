/** What the VMM says when it refuses. */

const MAX_TEXT_CHARACTERS = 2048;

/** The VMM's own refusal of a request. */
export class VmmApiError extends Error {
	override readonly name = "VmmApiError";
	/** `vm.boot`. */
	readonly endpoint: string;
	/** HTTP status. 404: no VM, or no such device; 409: the id is taken; 429: later; 500: everything else. */
	readonly status: number;
	/** The VMM's messages, outermost first, the cause last. */
	readonly chain: readonly string[];

	constructor(endpoint: string, status: number, chain: readonly string[]) {
		super(joined(chain));
		this.endpoint = endpoint;
		this.status = status;
		this.chain = chain;
	}
}

/** The link of a refusal for want of a free PCI slot (Cloud Hypervisor v53, `DeviceManagerError::AllocatePciDeviceId`). */
const NO_SLOT = "Failed to find an available PCI device ID";

/** True when the VMM refused a device because its PCI segment is full. */
export function isNoSlot(error: unknown): boolean {
	return error instanceof VmmApiError && error.chain.includes(NO_SLOT);
}

const NOT_FOUND = 404;
/** The last link of a refusal for want of the device: v53 and older answer it with 500, before and after boot. */
const UNKNOWN_DEVICE = /^(?:No device with id .* to remove|Failed to find device corresponding to the given identifier: .*)$/;

/** True when the VMM has no device, or no VM, that the request was for. */
export function isUnknownDevice(error: unknown): boolean {
	return error instanceof VmmApiError && (error.status === NOT_FOUND || UNKNOWN_DEVICE.test(error.chain.at(-1) ?? ""));
}

/** The link of a refusal to bring memory back page by page (Cloud Hypervisor v53, `MigratableError::OnDemandRestore`). */
const NO_ON_DEMAND = "On-demand restore failed";
/** How a VMM that does not know the mode says so. */
const UNKNOWN_MODE = /unknown (?:variant|field) `(?:OnDemand|memory_restore_mode)`/u;

/** True when the VMM can't bring a snapshot's memory back page by page. */
export function isNoOnDemand(error: unknown): boolean {
	return error instanceof VmmApiError && error.chain.some((link) => link === NO_ON_DEMAND || UNKNOWN_MODE.test(link));
}

/** The first link is always the same and says nothing. */
const NOISE = "Error from API";

function joined(chain: readonly string[]): string {
	const links = chain.filter((link, index) => link !== NOISE && chain.indexOf(link) === index);
	return links.length === 0 ? "no reason was given" : links.join(": ");
}

/**
 * Reads the body of an error answer: a JSON array of strings from the API, an object with a raw newline in it (which is no JSON)
 * from the HTTP layer below, or nothing.
 */
export function errorChain(body: Buffer): string[] {
	const text = body.toString("utf8").trim();
	if (text === "") return [];
	try {
		const value: unknown = JSON.parse(text);
		if (Array.isArray(value)) return value.slice(0, 32).map((link) => cut(typeof link === "string" ? link : JSON.stringify(link)));
	} catch {
		// Not JSON: the text itself is the message.
	}
	const message = /^\{\s*"error"\s*:\s*"([^]*)"\s*\}$/.exec(text)?.[1] ?? text;
	return [cut(message.replace(/\s+/g, " ").trim())];
}

function cut(text: string): string {
	return text.length <= MAX_TEXT_CHARACTERS ? text : `${text.slice(0, MAX_TEXT_CHARACTERS)}...`;
}
