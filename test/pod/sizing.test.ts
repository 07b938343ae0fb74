/** How a VM's size follows its containers' limits. */
import t from "tap";

import { failing } from "../base/failing.ts";
import { checkFixed, checkLimit, grown, limitsOf, mostOf } from "../../shim/pod/sizing.ts";

const MIB = 1024 * 1024;
const memory = (mib: number) => ({ cpuQuotaUs: 0, cpuPeriodUs: 0, memoryBytes: mib * MIB, hugeBytes: 0 });
const base = { vcpus: 1, memoryMib: 256 };

t.test("limitsOf: what an update leaves out stays as it was", async (t) => {
	const before = limitsOf({ memory: { limit: 64 * MIB }, cpu: { quota: 50_000, period: 100_000 } });
	t.strictSame(before, { cpuQuotaUs: 50_000, cpuPeriodUs: 100_000, memoryBytes: 64 * MIB, hugeBytes: 0 });
	t.strictSame(limitsOf({ memory: { limit: 96 * MIB } }, before), { ...before, memoryBytes: 96 * MIB });
	t.strictSame(limitsOf({ cpu: { quota: -1 } }, before), { ...before, cpuQuotaUs: 0 }, "-1 is no limit");
});

t.test("mostOf: growth in whole steps, never below the boot's size", async (t) => {
	t.strictSame(mostOf({ vcpus: 2, memoryMib: 300 }, { vcpus: 0, memoryMib: 0 }), { vcpus: 2, memoryMib: 300 });
	t.strictSame(mostOf({ vcpus: 2, memoryMib: 300 }, { vcpus: 4, memoryMib: 100 }), { vcpus: 4, memoryMib: 428 });
});

t.test("grown: up in steps, as far as it may, never down", async (t) => {
	const most = { vcpus: 3, memoryMib: 256 + 256 };
	t.strictSame(grown(base, base, most, []), base);
	t.strictSame(grown(base, base, most, [memory(10)]), { vcpus: 1, memoryMib: 384 });
	t.strictSame(grown(base, base, most, [memory(100), memory(100)]), { vcpus: 1, memoryMib: 512 });
	t.strictSame(grown(base, base, most, [memory(4000)]), { vcpus: 1, memoryMib: 512 });
	t.strictSame(grown({ vcpus: 3, memoryMib: 512 }, base, most, []), { vcpus: 3, memoryMib: 512 });
	const cpu = { cpuQuotaUs: 150_000, cpuPeriodUs: 100_000, memoryBytes: 0, hugeBytes: 0 };
	t.equal(grown(base, base, most, [cpu]).vcpus, 2);
	t.equal(grown(base, base, most, [cpu, cpu, cpu]).vcpus, 3);
});

t.test("checkLimit: a limit over the VM's memory is refused by name", async (t) => {
	checkLimit("c1", memory(256), base);
	t.throws(() => checkLimit("c1", memory(257), base), { reason: "pod.too-large", message: /c1.*257 MiB.*256 MiB/ });
});

t.test("huge pages of 2 MiB are memory of the VM beside the limit; those of other sizes are refused by name", async (t) => {
	const pages = (pageSize: string, limit: number) => ({ hugepageLimits: [{ pageSize, limit }] });
	t.equal(limitsOf({ hugepageLimits: [...pages("1GB", 0).hugepageLimits, ...pages("2MB", 6 * MIB).hugepageLimits] }).hugeBytes, 6 * MIB);
	t.throws(() => limitsOf(pages("1GB", 1024 * MIB)), failing({ reason: "spec.unsupported", message: /1GB/ }));
	const most = { vcpus: 1, memoryMib: 512 };
	t.equal(grown(base, base, most, [{ ...memory(0), hugeBytes: 64 * MIB }]).memoryMib, 384);
	t.throws(
		() => checkLimit("c1", { ...memory(200), hugeBytes: 100 * MIB }, base),
		failing({ reason: "pod.too-large", message: /300 MiB/ }),
	);
});

t.test("checkFixed: a confidential pod's VM keeps its size; what fits is taken, and what did not fit before is no new harm", async (t) => {
	const size = { vcpus: 2, memoryMib: 256 };
	const cpus = (count: number) => ({ ...memory(64), cpuQuotaUs: count * 100_000, cpuPeriodUs: 100_000 });
	checkFixed("c1", memory(64), memory(256), size);
	checkFixed("c1", cpus(1), cpus(2), size);
	checkFixed("c1", cpus(8), { ...cpus(8), memoryBytes: 128 * MIB }, size);
	checkFixed("c1", memory(512), memory(300), size);
	const refused = { reason: "confidential.size", message: /c1.*confidential.*2 processors and 256 MiB/ };
	t.throws(() => checkFixed("c1", memory(64), memory(257), size), refused);
	t.throws(() => checkFixed("c1", cpus(1), cpus(2.5), size), { ...refused, message: /2\.5 processors/ });
	t.throws(() => checkFixed("c1", memory(64), { ...memory(64), hugeBytes: 256 * MIB }, size), refused);
});
