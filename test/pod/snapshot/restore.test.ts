/** What becomes of a start whose copy does not come. The VMM is false here, and boots nothing either; copies that come are in test/e2e/snapshots.test.ts. */
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { Log } from "../../../shim/base/log.ts";
import { Scope } from "../../../shim/base/scope.ts";
import { defaultConfig } from "../../../shim/config/schema.ts";
import { HostCgroup } from "../../../shim/host/cgroups.ts";
import { startTimeOf } from "../../../shim/host/processes.ts";
import type { BootContext } from "../../../shim/pod/boot.ts";
import { planIn, usualPlan } from "../../../shim/pod/pool/shape.ts";
import { startMachine } from "../../../shim/pod/snapshot/restore.ts";
import type { TemplateUse } from "../../../shim/pod/snapshot/templates.ts";
import { Timeline } from "../../../shim/pod/timeline.ts";
import { buildFalseVmm } from "../../support/false-vmm.ts";
import type { FalseVmm } from "../../support/false-vmm.ts";
import { eventually } from "../../support/retry.ts";
import { falseTemplate } from "../../support/template.ts";

const WAIT_MS = 10_000;

/** A start in a folder of its own, and what it told of its template. */
class Bed {
	readonly folder: string;
	readonly scope = new Scope("pod");
	readonly abort = new AbortController();
	readonly vmms: number[] = [];
	readonly told: string[] = [];
	readonly context: BootContext;
	readonly use: TemplateUse;

	constructor(t: Test, vmm: FalseVmm, mode: TemplateUse["mode"] = "Copy") {
		const place = mkdtempSync("/tmp/restore-");
		this.folder = join(place, "p");
		mkdirSync(this.folder);
		t.teardown(async () => {
			await this.scope.close();
			rmSync(place, { recursive: true, force: true });
		});
		const base = defaultConfig();
		const config = { ...base, hypervisor: { ...base.hypervisor, path: buildFalseVmm(place, vmm) } };
		const nothing = Promise.resolve(undefined);
		this.context = {
			...{ podId: "pod", folder: this.folder, config, timeline: new Timeline(), scope: this.scope, signal: this.abort.signal },
			...{
				log: new Log(() => undefined, "error"),
				cgroup: undefined,
				disk: undefined,
				initdata: undefined,
				scratch: nothing,
				network: nothing,
			},
			plan: { ...planIn(usualPlan(config), this.folder), scratch: undefined },
			onVmm: ({ pid }) => void this.vmms.push(pid),
		};
		const tell = (what: string) => (error: unknown) => void this.told.push(`${what}: ${String(error)}`);
		this.use = {
			template: falseTemplate(place),
			mode,
			onDemandRefused: tell("not on demand"),
			worked: () => void this.told.push("worked"),
			failed: tell("failed"),
		};
	}

	/** The calls that VMMs got. */
	get calls(): string[] {
		const file = join(this.folder, "calls");
		return existsSync(file) ? readFileSync(file, "utf8").trimEnd().split("\n") : [];
	}
}

t.test("a VM that is not restored is ended, and another one booted in its place", async (t) => {
	const bed = new Bed(t, {});
	await t.rejects(startMachine(bed.context, bed.use), { message: /refused vm\.boot/u }, "the boot's failure is the pod's");
	t.same(bed.calls, ["vm.restore", "vm.create", "vm.boot"]);
	t.equal(bed.told.length, 1);
	t.match(bed.told[0], /^failed: .*refused vm\.restore/u);
	const [copy, booted] = bed.vmms;
	t.ok(bed.vmms.length === 2 && copy !== booted);
	t.equal(startTimeOf(copy ?? 0), undefined, "the first VMM is gone");
	t.not(startTimeOf(booted ?? 0), undefined, "the second one is the pod's to end");
	t.notOk(existsSync(join(bed.folder, "restore")), "nothing of the attempt is left");
	await bed.scope.close();
	t.equal(startTimeOf(booted ?? 0), undefined);
});

t.test("a VMM that can't bring memory back on demand is asked for a copy at once", async (t) => {
	const bed = new Bed(t, { restores: "not on demand" }, "OnDemand");
	await t.rejects(startMachine(bed.context, bed.use));
	t.same(bed.calls, ["vm.restore", "vm.restore", "vm.create", "vm.boot"]);
	t.match(bed.told, [/^not on demand: .*On-demand restore failed/u, /^failed: /u]);
});

t.test("a template that is not whole is not given to the VMM", async (t) => {
	const bed = new Bed(t, {});
	rmSync(join(bed.use.template.folder, "memory-ranges"));
	await t.rejects(startMachine(bed.context, bed.use));
	t.same(bed.calls, ["vm.create", "vm.boot"]);
	t.match(bed.told, [/^failed: .*ENOENT/u]);
});

t.test("a pod that is given up meanwhile boots nothing, and leaves no VMM", async (t) => {
	const bed = new Bed(t, { restores: "never" });
	const starting = startMachine(bed.context, bed.use);
	starting.catch(() => undefined);
	await eventually("the restore", WAIT_MS, () => (bed.calls.length > 0 ? true : undefined));
	bed.abort.abort(new Error("given up"));
	await t.rejects(starting);
	t.same([bed.calls, bed.told], [["vm.restore"], []], "and says nothing of the template");
	t.equal(startTimeOf(bed.vmms[0] ?? 0), undefined);
});

t.test("a VMM that is on its way when its pod is given up is the pod's to end, and in nobody's journal", async (t) => {
	for (const use of [undefined, "template"]) {
		const bed = new Bed(t, {});
		const cgroup = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
		const starting = startMachine({ ...bed.context, cgroup }, use === undefined ? undefined : bed.use);
		starting.catch(() => undefined);
		bed.abort.abort(new Error("given up"));
		await t.rejects(starting);
		await t.resolves(bed.scope.close(), "its group can be removed: nothing comes into it any more");
		t.same([bed.vmms, cgroup.processes()], [[], []]);
	}
});
