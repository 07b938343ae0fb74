/** `vm.counters`: what disks and network cards have moved. */
import { readFileSync } from "node:fs";
import type { Machine } from "./machine.ts";
import type { QemuDevice } from "./qemu-devices.ts";

/** What the real VMM shows where nothing was measured: all bits of a u64; its average divides them. */
const NEVER = "18446744073709551615";
const NEVER_AVERAGE = "1844674407370955";

type BlockStats = {
	rd_bytes: number;
	wr_bytes: number;
	rd_operations: number;
	wr_operations: number;
	rd_total_time_ns: number;
	wr_total_time_ns: number;
};

/** The JSON text of the answer: written by hand, since 2^64-1 does not fit a number of JavaScript. Latencies are in microseconds. */
export async function countersJson(machine: Machine): Promise<string> {
	const blocks = (await machine.qmp.run("query-blockstats")) as { qdev?: string; stats: BlockStats }[];
	const parts: string[] = [];
	for (const device of machine.devices.all.values()) {
		const values =
			device.type === "net"
				? netCounters(device)
				: device.type === "block"
					? blockCounters(blocks.find((b) => b.qdev?.split("/").includes(device.name))?.stats)
					: undefined;
		if (values !== undefined)
			parts.push(
				`${JSON.stringify(device.id)}:{${Object.entries(values)
					.map(([key, value]) => `"${key}":${value}`)
					.join(",")}}`,
			);
	}
	return `{${parts.join(",")}}`;
}

function blockCounters(stats: BlockStats | undefined): Record<string, string> {
	const side = (operations: number, totalNs: number): [string, string] =>
		operations === 0
			? [NEVER, NEVER_AVERAGE]
			: [String(Math.round(totalNs / operations / 1000)), String(Math.round(totalNs / operations / 1000))];
	const s = stats ?? { rd_bytes: 0, wr_bytes: 0, rd_operations: 0, wr_operations: 0, rd_total_time_ns: 0, wr_total_time_ns: 0 };
	// QEMU keeps sums only: the average stands for the smallest and the largest latency too.
	const [read, readAverage] = side(s.rd_operations, s.rd_total_time_ns);
	const [write, writeAverage] = side(s.wr_operations, s.wr_total_time_ns);
	return {
		read_bytes: String(s.rd_bytes),
		read_ops: String(s.rd_operations),
		write_bytes: String(s.wr_bytes),
		write_ops: String(s.wr_operations),
		read_latency_min: read,
		read_latency_max: read,
		read_latency_avg: readAverage,
		write_latency_min: write,
		write_latency_max: write,
		write_latency_avg: writeAverage,
	};
}

/** The guest's side of a tap: what the host sent the guest received. */
function netCounters(device: QemuDevice): Record<string, string> {
	const backend = device.backends.find((b) => b.kind === "netdev");
	const tap = backend?.kind === "netdev" ? String(backend.properties["ifname"]) : "";
	const count = (name: string): string => {
		try {
			return readFileSync(`/sys/class/net/${tap}/statistics/${name}`, "utf8").trim();
		} catch {
			return "0";
		}
	};
	return { rx_bytes: count("tx_bytes"), rx_frames: count("tx_packets"), tx_bytes: count("rx_bytes"), tx_frames: count("rx_packets") };
}
