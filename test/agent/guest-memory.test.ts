/** A guest's memory from its agent's metrics. */

import t from "tap";

import { parseGuestMemory } from "../../shim/agent/guest-memory.ts";

t.test("the names of our agent and of Kata's; whole numbers and others", async (t) => {
	const ours = '# TYPE kata_guest_meminfo gauge\nkata_guest_meminfo{item="memfree"} 4096\nkata_guest_meminfo{item="memavailable"} 8192\n';
	t.strictSame(parseGuestMemory(ours), { freeBytes: 4096, availableBytes: 8192 });
	const katas =
		'kata_guest_meminfo{item="mem_available"} 1.5e+06\nkata_guest_meminfo{item="mem_free"} 4096.0\nkata_guest_meminfo{item="mem_total"} 9\n';
	t.strictSame(parseGuestMemory(katas), { freeBytes: 4096, availableBytes: 1_500_000 });
});

t.test("what does not say is refused", async (t) => {
	for (const text of [
		"",
		'kata_guest_meminfo{item="memfree"} 1\n',
		'kata_guest_meminfo{item="memfree"} x\nkata_guest_meminfo{item="memavailable"} 1e999\n',
	])
		t.throws(() => parseGuestMemory(text), { reason: "guest.protocol", message: /do not say/ });
});
