/** Processes in groups with limits, which stand for VMs. */
import { randomBytes } from "node:crypto";
import t from "tap";
import { LimitedProcesses } from "../../bench/limited-processes.ts";
import { mountedHierarchies } from "../../shim/host/cgroups.ts";
import { limitedGroups } from "../../shim/host/memory.ts";
import { cgroupsNamed } from "../support/cgroups.ts";
import { processInfo } from "../support/procfs.ts";

const name = (): string => `snp-limited-${randomBytes(4).toString("hex")}`;

t.test("each is below a group with a limit of its own, and all below one; with their end the groups are gone", async (t) => {
	const mark = name();
	const processes = await LimitedProcesses.start(`/${mark}`, 3);
	t.teardown(() => processes.end());
	const groups = processes.all.map(({ cgroup }) => limitedGroups(cgroup, mountedHierarchies()));
	t.same(groups[0], [`/${mark}/kubepods/burstable/pod0`, `/${mark}/kubepods`]);
	t.equal(new Set(groups.flat()).size, 4);
	const { pid } = processes.all[0] ?? { pid: 0 };
	t.ok(processInfo(pid), "it runs");
	await processes.end();
	t.same(cgroupsNamed([mark]), []);
	t.equal(processInfo(pid)?.state ?? "Z", "Z", "whoever has to may take note of its end");
	await processes.end();
});

t.test("a start that fails leaves nothing", async (t) => {
	const mark = name();
	const first = await LimitedProcesses.start(`/${mark}`, 1);
	t.teardown(() => first.end());
	const before = cgroupsNamed([mark]);
	await t.rejects(LimitedProcesses.start(`/${mark}`, 1), /EEXIST/);
	t.same(cgroupsNamed([mark]), before);
});
