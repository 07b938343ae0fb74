/**
 * The certificate table that a host hands to its guests beside a report (the `auxblob` of Linux's configfs-tsm): AMD document 56421 ("SEV-ES Guest-Hypervisor
 * Communication Block Standardization"), section "SNP Extended Guest Request". Entries of 24 bytes, GUID, offset and length, up to one of zeros.
 */

import { ShimError } from "../base/errors.ts";

const ENTRY_BYTES = 24;
const GUID_BYTES = 16;
/** The table holds a handful; more is not one. */
const MAX_ENTRIES = 32;

/** GUIDs of the table, in the order of bytes in which they are stored. */
const CERTIFICATE_GUIDS: Readonly<Record<string, string>> = {
	"63da758de6644564adc5f4b93be8accd": "VCEK",
	a8074bc2a25a483eaae639c045a0b8a1: "VLEK",
	"4ab7b379bbac4fe4a02f05aef327c782": "ASK",
	c0b406a4a803495297433fb6014cd0ae: "ARK",
};

/** A certificate of the table. */
export interface TableEntry {
	readonly name: string;
	readonly bytes: Buffer;
}

/** True when the bytes begin as a certificate table does. */
export function isCertificateTable(bytes: Buffer): boolean {
	return bytes.length >= ENTRY_BYTES && nameOf(bytes.subarray(0, GUID_BYTES)) !== undefined;
}

/**
 * The certificates of a table; entries of other kinds are passed over.
 * @throws ShimError `attest.certificate` when it is cut or an entry leads out of it
 */
export function readCertificateTable(bytes: Buffer, source: string): TableEntry[] {
	const entries: TableEntry[] = [];
	for (let index = 0; index <= MAX_ENTRIES; index++) {
		const entry = bytes.subarray(index * ENTRY_BYTES, (index + 1) * ENTRY_BYTES);
		if (entry.length < ENTRY_BYTES) throw new ShimError("attest.certificate", `${source}: the certificate table is cut`);
		if (entry.every((byte) => byte === 0)) return entries;
		const [offset, length] = [entry.readUInt32LE(GUID_BYTES), entry.readUInt32LE(GUID_BYTES + 4)];
		const name = nameOf(entry.subarray(0, GUID_BYTES));
		if (name === undefined || length === 0) continue;
		if (offset + length > bytes.length) {
			throw new ShimError(
				"attest.certificate",
				`${source}: the table's ${name} (${length} bytes at ${offset}) leads out of its ${bytes.length} bytes`,
			);
		}
		entries.push({ name, bytes: bytes.subarray(offset, offset + length) });
	}
	throw new ShimError("attest.certificate", `${source}: the certificate table has more than ${MAX_ENTRIES} entries`);
}

function nameOf(guid: Buffer): string | undefined {
	return CERTIFICATE_GUIDS[guid.toString("hex")];
}
