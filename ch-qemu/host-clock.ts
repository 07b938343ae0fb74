/**
 * The rate of the host's time-stamp counter. Emulated guests read that very counter, but can't measure its rate when the machine is busy:
 * their clock then runs several times too fast or too slow. Telling them is the cure.
 */
import { readFileSync } from "node:fs";

const CPU_INFO = "/proc/cpuinfo";
/** The rate without boost, which is the counter's, in kHz; only where the host scales its clock. */
const BASE_FREQUENCY = "/sys/devices/system/cpu/cpu0/cpufreq/base_frequency";
const SCALING = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq";

/** The counter's rate in kHz; undefined when the host does not tell it for sure. */
export function hostCounterKhz(): number | undefined {
	const base = Number(read(BASE_FREQUENCY) ?? Number.NaN);
	if (base > 0) return base;
	return read(SCALING) === undefined ? counterKhzOf(read(CPU_INFO) ?? "") : undefined;
}

/** The rate that /proc/cpuinfo tells, in kHz, when the counter is constant; its first processor speaks for all. */
export function counterKhzOf(cpuInfo: string): number | undefined {
	if (!/^flags\s*:.*\bconstant_tsc\b/mu.test(cpuInfo)) return undefined;
	const mhz = Number(/^cpu MHz\s*:\s*(.*)$/mu.exec(cpuInfo)?.[1] ?? Number.NaN);
	return mhz > 0 ? Math.round(mhz * 1000) : undefined;
}

function read(path: string): string | undefined {
	try {
		return readFileSync(path, "utf8").trim();
	} catch {
		return undefined;
	}
}
