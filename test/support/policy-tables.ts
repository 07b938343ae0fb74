/** Tables of requests, each with what a generated policy says of it. */
import type { Test } from "tap";
import { decide } from "../../shim/policy/engine.ts";
import type { AllowData } from "../../shim/policy/policy-data.ts";
import { DECIDE_MS, recorded, recordedContainer, recordedPolicy, type Json } from "./policy.ts";

/** A request, and the field that its denial names; undefined: it is allowed. */
export type Case = readonly [what: string, name: string, input: unknown, denied?: string | undefined];

/** A container's id, and places in the guest as they come in requests. */
export const CID = "482ad96f89f3dc007d1f1863c8702812ab416b8401e1cdb96417130cccb76a3b";
export const VOLUME = `/run/kata-containers/volumes/${"0".repeat(32)}`;
export const MOUNT = `/run/kata-containers/sandbox/volumes/${"0".repeat(32)}`;
export const FILE = `/run/kata-containers/snp/${CID}/0`;

/** Has the recorded pod's policy decide on requests, in their order, and compares. @param allow what the policy allows besides */
export async function judge(t: Test, cases: readonly Case[], allow: Partial<AllowData> = {}): Promise<void> {
	const { text } = recordedPolicy(allow);
	const requests = cases.map(([, name, input]) => ({ name, input }));
	const decisions = await decide({ name: "policy", text }, requests, { timeoutMs: DECIDE_MS });
	for (const [index, [what, name, , denied]] of cases.entries()) {
		const decision = decisions[index];
		const label = `${name}: ${what}`;
		if (denied === undefined) t.match(decision, { allowed: true }, `${label} is allowed`);
		else {
			t.equal(decision?.allowed, false, `${label} is denied`);
			t.ok(
				decision?.reasons.some(({ path }) => path.startsWith(denied)),
				`${label}: ${denied} is named, of ${decision?.reasons.map(({ path }) => path).join(", ")}`,
			);
		}
	}
}

/** A recorded request with a change. */
export function changed(container: string, change: (input: Json) => void): Json {
	const input = recordedContainer("2-snp", container);
	change(input);
	return input;
}

/** The first recorded request of this name. */
export function first(name: string): Json {
	return structuredClone<unknown>(recorded("2-snp").find((request) => request.name === name)?.input) as Json;
}

/** The same with a change. */
export function but(name: string, change: (input: Json) => void): Json {
	const input = first(name);
	change(input);
	return input;
}

/** A container's recorded creation with a change. @param denied see `Case` */
export const create = (what: string, denied: string | undefined, change: (input: Json) => void, container = "web"): Case => [
	what,
	"CreateContainerRequest",
	changed(container, change),
	denied,
];

/** Where a mount goes. */
export const placeOf = (mount: Json): unknown => mount.destination;
/** Where a storage is mounted in the guest. */
export const volumeOf = (storage: Json): unknown => (storage as unknown as { mount_point: unknown }).mount_point;

/** Sets a field that the type of JSON here does not know the type of. */
export const set = (at: Json, key: string | number, value: unknown): void =>
	void ((at as unknown as Record<string | number, unknown>)[key] = value);
/** Adds to a list. */
export const push = (list: Json, value: unknown): void => void list.push(value);

/** Options of a disk that the guest encrypts. */
export const ENCRYPTED: readonly string[] = ["encryption_key=ephemeral", "create_filesystem"];

/** Makes a volume's storage a disk of its own, on which the guest makes a file system. */
export function ownDisk(storage: Json, driverOptions: readonly string[]): void {
	const fields = {
		driver: "blk",
		source: "0001:00:05.0",
		fstype: "btrfs",
		options: ["fsgid=2000", "mode=777"],
		driver_options: [...driverOptions],
	};
	for (const [field, value] of Object.entries(fields)) set(storage, field, value);
}
