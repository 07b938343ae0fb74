import t from "tap";
import { counterKhzOf } from "../../ch-qemu/host-clock.ts";
import { qemuArguments } from "../../ch-qemu/qemu-arguments.ts";
import { decode } from "../../ch-qemu/schema.ts";
import { VM, type VmConfig } from "../../ch-qemu/vm-config.ts";

const CPU = (flags: string, mhz: string) =>
	`processor\t: 0\nmodel name\t: a\ncpu MHz\t\t: ${mhz}\nflags\t\t: fpu ${flags} sse\n\nprocessor\t: 1\ncpu MHz\t\t: 1.0\n`;

t.test("the counter's rate is the first processor's, and only a constant counter has one", (t) => {
	t.equal(counterKhzOf(CPU("constant_tsc", "2596.122")), 2_596_122);
	t.equal(counterKhzOf(CPU("tsc", "2596.122")), undefined);
	t.equal(counterKhzOf(CPU("constant_tsc", "unknown")), undefined);
	t.equal(counterKhzOf(""), undefined);
	t.end();
});

t.test(
	"an emulated guest is told the counter's rate, and spared what takes long, behind its own parameters; an accelerated one is not",
	(t) => {
		const plan = { config: decode<VmConfig>(VM, '{"payload":{"kernel":"/k","cmdline":"a=1"}}'), devices: [], firmware: undefined };
		const append = (args: string[]) => args[args.indexOf("-append") + 1];
		t.equal(append(qemuArguments({ ...plan, accelerator: "tcg", counterKhz: 5 })), "a=1 tsc_early_khz=5 noreplace-smp");
		t.equal(append(qemuArguments({ ...plan, accelerator: "tcg", counterKhz: undefined })), "a=1 noreplace-smp");
		t.equal(append(qemuArguments({ ...plan, accelerator: "kvm", counterKhz: 5 })), "a=1");
		t.end();
	},
);
