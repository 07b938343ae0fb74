import Long from "long";
import t from "tap";
import { grpc } from "../../proto/gen/agent.js";
import { guestResources, resourcesLeftOut, unsigned64 } from "../../shim/agent/guest-resources.ts";
import { parseSpec, resourcesSchema } from "../../shim/agent/oci-spec.ts";
import { failing } from "../base/failing.ts";

const own = { limits: true };
const stock = { limits: false };
const resources = (value: unknown) => parseSpec(resourcesSchema, value, "a test");

t.test("unsigned64 keeps what JSON can't: RLIM_INFINITY arrives as 2^64 and means no limit", (t) => {
	t.equal(unsigned64(JSON.parse("18446744073709551615") as number).toString(), "18446744073709551615");
	t.equal(unsigned64(2 ** 53 - 1).toString(), "9007199254740991");
	t.equal(unsigned64(0).toString(), "0");
	t.end();
});

t.test("guestResources carry what the protocol has a field for, over the wire", (t) => {
	const given = resources({
		memory: { limit: 64 << 20, swap: -1 },
		cpu: { shares: 512, quota: 50_000, period: 100_000, cpus: "0-3", mems: "0" },
		pids: { limit: 9 },
		blockIO: { weight: 100 },
		devices: [{ allow: false, access: "rwm" }],
		unified: { "memory.high": "1000" },
	});
	const guest = grpc.LinuxResources.decode(grpc.LinuxResources.encode(guestResources(given, own)).finish());
	t.equal(Long.fromValue(guest.Memory?.Limit ?? 0).toNumber(), 64 << 20);
	t.equal(Long.fromValue(guest.Memory?.Swap ?? 0).toNumber(), -1);
	t.equal(Long.fromValue(guest.CPU?.Shares ?? 0).toNumber(), 512);
	t.match(guest.CPU, { Cpus: "0-3", Mems: "0" });
	t.equal(Long.fromValue(guest.Pids?.Limit ?? 0).toNumber(), 9);
	t.equal(guest.BlockIO?.Weight, 100);
	t.equal(Long.fromValue(guest.Devices?.[0]?.Major ?? 0).toNumber(), -1);
	t.strictSame(guest.Unified, { "memory.high": "1000" });
	t.strictSame(resourcesLeftOut(given, own), []);
	t.end();
});

t.test("an agent without the capability gets no lists of the host's processors and no files, and both are named", (t) => {
	const given = resources({ cpu: { cpus: "0-3", mems: "0" }, unified: { "memory.high": "1000" } });
	t.match(guestResources(given, stock), { CPU: { Cpus: "", Mems: "" }, Unified: {} });
	t.strictSame(resourcesLeftOut(given, stock), ["cpu.cpus", "cpu.mems", "unified"]);
	t.end();
});

t.test("resourcesLeftOut names what does not reach the guest, and nothing that was not asked for", (t) => {
	const given = resources({
		memory: { limit: 1, kernel: 5, kernelTCP: 0 },
		cpu: { burst: 10_000, idle: null, realtimeRuntime: 0 },
		blockIO: { weight: 10, throttleReadBpsDevice: [{ major: 8, minor: 0, rate: 1000 }], throttleWriteBpsDevice: [] },
		network: { classID: 7 },
		rdma: {},
	});
	t.strictSame(resourcesLeftOut(given, own).sort(), ["blockIO.throttleReadBpsDevice", "cpu.burst", "memory.kernel", "network"]);
	t.end();
});

t.test("resources of a wrong form are refused by the field's name", (t) => {
	t.throws(() => resources({ unified: { a: 1 } }), failing({ reason: "spec.invalid", message: /unified\.a/ }));
	t.throws(() => resources({ blockIO: { weight: "much" } }), failing({ reason: "spec.invalid", message: /blockIO\.weight/ }));
	t.throws(() => resources({ devices: [{ allow: "yes" }] }), failing({ reason: "spec.invalid", message: /devices\.0\.allow/ }));
	t.end();
});
