/** QEMU's whole command line for a VM: pure, so that what a configuration becomes can be read and tested. */
import { emulationParameters } from "./emulation.ts";
import { bridgeDevices, chardevOption, memoryBackend, type QemuBackend, type QemuDevice } from "./qemu-devices.ts";
import type { VmConfig } from "./vm-config.ts";

/** How guest code runs. */
export type Accelerator = "tcg" | "kvm";

/** The descriptor on which QEMU finds its monitor. */
export const MONITOR_FD = 3;
/** The descriptor on which an emulated machine finds its routing table. */
export const ROUTES_FD = 5;

/** Memory that can be added in pieces: as many as the real VMM allows. */
const MEMORY_SLOTS = 8;
/** Translated code: the default is a quarter of the guest's memory at most; a small guest would throw its translations away again and again. */
const TB_SIZE_MIB = 128;

export type MachinePlan = {
	readonly config: VmConfig;
	readonly devices: readonly QemuDevice[];
	readonly accelerator: Accelerator;
	/** The small firmware's file, when QEMU has it: half a second faster than its default. */
	readonly firmware: string | undefined;
	/** The machine waits for a snapshot instead of running. */
	readonly waits?: boolean;
	/** The host's counter in kHz, told to emulated guests; undefined: they measure it. */
	readonly counterKhz: number | undefined;
};

/** The arguments behind QEMU's name. */
export function qemuArguments({ config, devices, accelerator, firmware, counterKhz, waits }: MachinePlan): string[] {
	const { cpus, memory, payload, serial } = config;
	const told = accelerator === "tcg" ? emulationParameters(counterKhz, cpus.max_vcpus) : "";
	const json = (value: unknown): string => JSON.stringify(value);
	const hotplugBytes = memory.hotplug_size ?? 0;
	return [
		...(waits === true ? ["-S", "-incoming", "defer"] : []),
		...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "ch-qemu"],
		...["-machine", "pc,usb=off,vmport=off,smbus=off,hpet=off,i8042=off,memory-backend=ram"],
		...["-accel", accelerator === "kvm" ? "kvm" : `tcg,thread=multi,tb-size=${TB_SIZE_MIB}`],
		...["-cpu", accelerator === "kvm" ? "host" : "max"],
		...["-smp", `cpus=${cpus.boot_vcpus},maxcpus=${cpus.max_vcpus}${topology(config)}`],
		...["-m", `size=${memory.size}B${hotplugBytes > 0 ? `,slots=${MEMORY_SLOTS},maxmem=${memory.size + hotplugBytes}B` : ""}`],
		...["-object", json(memoryBackend("ram", memory.size, memory))],
		...(firmware === undefined ? [] : ["-bios", firmware]),
		...(accelerator === "tcg" ? ["-acpitable", `file=/dev/fd/${ROUTES_FD}`] : []),
		...(payload?.kernel === undefined ? [] : ["-kernel", payload.kernel]),
		...(payload?.initramfs === undefined ? [] : ["-initrd", payload.initramfs]),
		...(payload?.kernel === undefined ? [] : ["-append", `${payload.cmdline ?? ""}${told}`]),
		...["-chardev", `socket,id=monitor,fd=${MONITOR_FD}`, "-mon", "chardev=monitor,mode=control"],
		...(serial.mode === "Off" ? ["-serial", "none"] : ["-chardev", chardevOption("serial", serial), "-serial", "chardev:serial"]),
		...(config.pvpanic ? ["-action", "panic=none"] : []),
		...bridgeDevices(config.platform?.num_pci_segments ?? 1).flatMap((device) => ["-device", json(device)]),
		...devices.flatMap((device) => [
			...device.backends.flatMap(backendArguments),
			...["-device", json(device.properties)],
			...device.ports.flatMap((port) => ["-device", json(port)]),
		]),
	];
}

function backendArguments(backend: QemuBackend): string[] {
	return backend.kind === "chardev" ? ["-chardev", backend.option] : [`-${backend.kind}`, JSON.stringify(backend.properties)];
}

function topology({ cpus }: VmConfig): string {
	const t = cpus.topology;
	return t === undefined ? "" : `,sockets=${t.packages},dies=${t.dies_per_package},cores=${t.cores_per_die},threads=${t.threads_per_core}`;
}
