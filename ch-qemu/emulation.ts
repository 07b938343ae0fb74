/**
 * What an emulated guest is spared: work that is short, or not there, on a processor with KVM and under Cloud Hypervisor, and takes the emulator long.
 * Nothing of it is told to accelerated guests.
 */
import { randomBytes } from "node:crypto";
import { openSync, unlinkSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Kernel parameters (Linux, Documentation/admin-guide/kernel-parameters.txt) behind the guest's own, each with a space before it. The rate of the counter is
 * told as KVM tells it. A guest with one processor for ever keeps the `lock` prefixes of its kernel: to patch nine thousand of them away takes 0.1 s.
 * @param counterKhz the host's counter; undefined: guests measure it
 * @param maxVcpus the processors that the guest may have
 */
export function emulationParameters(counterKhz: number | undefined, maxVcpus: number): string {
	const clock = counterKhz === undefined ? "" : ` tsc_early_khz=${counterKhz}`;
	return maxVcpus === 1 ? `${clock} noreplace-smp` : clock;
}

const HEADER_BYTES = 36;
const CHECKSUM_AT = 9;
const OEM = "CHQEMU";

const ROUTES = "\\\x2f\x03_SB_PCI0_PRT";
const METHOD = "MPRT";
/** The links of interrupts in the order in which pins take turns. */
const LINKS = ["LNKD", "LNKA", "LNKB", "LNKC"] as const;
/** That of the power management in slot 1. */
const SYSTEM_LINK = "LNKS";
const PINS = 4;
const SYSTEM_PIN = 1 * PINS;
const SLOTS = 32;

/**
 * An ACPI table (ACPI 6.5, 5.2.11.2 and chapter 20) that puts a list in the place of the method `\_SB.PCI0._PRT`, which tells what interrupt a device on a pin
 * gets. The method of QEMU's machine `pc` (hw/i386/acpi-build.c, build_prt) makes that same list in a loop each time that it is asked, which a guest does for
 * each device that comes: in emulation 0.1 s. Cloud Hypervisor's is a constant as well.
 */
export function routingTable(): Buffer {
	const list = packageOf(Array.from({ length: SLOTS * PINS }, (_, pin) => route(pin)));
	// CopyObject (list, \_SB.PCI0._PRT), in a method since a list outside of one is complete only when the whole table is loaded.
	const body = Buffer.concat([Buffer.from(METHOD), Buffer.from([0x00, 0x9d]), list, Buffer.from(ROUTES, "latin1")]);
	const definition = Buffer.concat([Buffer.from([0x14]), lengthOf(body.length), body, Buffer.from(METHOD)]);
	const header = Buffer.alloc(HEADER_BYTES);
	header.write("SSDT", 0, "latin1");
	header.writeUInt32LE(HEADER_BYTES + definition.length, 4);
	header.writeUInt8(2, 8);
	header.write(`${OEM}${OEM}RT`, 10, "latin1");
	header.writeUInt32LE(1, 24);
	header.write("CHQE", 28, "latin1");
	header.writeUInt32LE(1, 32);
	const table = Buffer.concat([header, definition]);
	table[CHECKSUM_AT] = -table.reduce((sum, byte) => sum + byte, 0) & 0xff;
	return table;
}

/** Package (4) { slot and all functions, pin, link, 0 } (ACPI 6.5, 6.2.13). */
function route(pin: number): Buffer {
	const slot = Math.floor(pin / PINS);
	const link = pin === SYSTEM_PIN ? SYSTEM_LINK : (LINKS[(slot + pin) % PINS] ?? "");
	const address = Buffer.alloc(5, 0x0c);
	address.writeUInt32LE(slot * 0x1_0000 + 0xffff, 1);
	return packageOf([address, Buffer.from([0x0a, pin % PINS]), Buffer.from(`\\\x2e_SB_${link}`, "latin1"), Buffer.from([0])]);
}

function packageOf(elements: readonly Buffer[]): Buffer {
	const body = Buffer.concat([Buffer.from([elements.length]), ...elements]);
	return Buffer.concat([Buffer.from([0x12]), lengthOf(body.length), body]);
}

/** PkgLength (ACPI 6.5, 20.2.4): counts itself, in one byte up to 63, in two up to 4095. */
function lengthOf(bytes: number): Buffer {
	if (bytes + 1 < 0x40) return Buffer.from([bytes + 1]);
	const all = bytes + 2;
	return Buffer.from([0x40 | (all & 0xf), all >> 4]);
}

/** A file without a name that holds the routing table; the caller closes its descriptor. @throws the operating system's error */
export function openRoutingTable(): number {
	const path = join(tmpdir(), `ch-qemu-${randomBytes(8).toString("hex")}.aml`);
	const fd = openSync(path, "wx+", 0o600);
	unlinkSync(path);
	writeSync(fd, routingTable());
	return fd;
}
