import Long from "long";
import t from "tap";
import { grpc } from "../../proto/gen/agent.js";
import { containerd, io, runtimeoptions } from "../../proto/gen/containerd.js";
import { CATALOGUE } from "../../shim/base/catalogue.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { timestamp } from "../../shim/service/encode.ts";
import { encodeEvent } from "../../shim/service/events.ts";
import { encodeMetrics } from "../../shim/service/metrics.ts";
import { optionsConfigFile } from "../../shim/service/runtime-options.ts";
import { failedAnswer } from "../../shim/service/status.ts";
import { failing } from "../base/failing.ts";

t.test("timestamp splits milliseconds into seconds and nanoseconds", (t) => {
	t.same(timestamp(1_700_000_000_250), { seconds: 1_700_000_000, nanos: 250_000_000 });
	t.end();
});

t.test("an exit event names the container for its first process, the exec for an exec", (t) => {
	const base = { kind: "exit", containerId: "c", pid: 7, status: 137, atMs: 1500 } as const;
	const first = encodeEvent({ ...base, execId: "" });
	t.equal(first.topic, "/tasks/exit");
	t.equal(first.typeUrl, "containerd.events.TaskExit");
	const decoded = containerd.events.TaskExit.decode(first.value);
	t.match(
		{ id: decoded.id, container_id: decoded.container_id, pid: decoded.pid, exit_status: decoded.exit_status },
		{ id: "c", container_id: "c", pid: 7, exit_status: 137 },
	);
	t.equal(containerd.events.TaskExit.decode(encodeEvent({ ...base, execId: "e" }).value).id, "e");
	t.end();
});

t.test("a create event carries the rootfs mounts with their options and the stdio", (t) => {
	const rootfs = [{ type: "overlay", source: "overlay", target: "", options: ["lowerdir=/a"] }];
	const stdio = { stdin: "/i", stdout: "/o", stderr: "", terminal: true };
	const event = encodeEvent({ kind: "create", containerId: "c", bundle: "/b", rootfs, stdio, pid: 3 });
	const decoded = containerd.events.TaskCreate.decode(event.value);
	t.same(decoded.rootfs?.[0]?.options, ["lowerdir=/a"]);
	t.equal(decoded.io?.terminal, true);
	t.equal(decoded.io?.stdout, "/o");
	t.end();
});

t.test("every reason of the catalogue becomes a status that is not OK, with its remedy in the text", (t) => {
	for (const reason of Object.keys(CATALOGUE) as (keyof typeof CATALOGUE)[]) {
		const answer = failedAnswer(new ShimError(reason, "it failed"));
		t.not(answer.code, 0, reason);
		t.match(answer.message, /^it failed \(.+\)$/, reason);
	}
	t.equal(failedAnswer(new ShimError("container.exists", "x")).code, 6);
	t.equal(failedAnswer(new ShimError("container.not-found", "x")).code, 5);
	t.match(failedAnswer(new Error("odd")), { code: 13, message: /odd/ });
	t.end();
});

t.test("metrics are cgroup v2's: nanoseconds become microseconds, memory.stat its fields", (t) => {
	const stats = grpc.StatsContainerResponse.decode(
		grpc.StatsContainerResponse.encode({
			cgroup_stats: {
				cpu_stats: { cpu_usage: { total_usage: 5_000_000, usage_in_usermode: 3_000_000, usage_in_kernelmode: 2_000_000 } },
				memory_stats: {
					usage: { usage: 4096, limit: 1 << 20, max_usage: 8192, failcnt: 9 },
					stats: { anon: 100, inactive_file: 50, pgscan: 3, unknown_name: 1, "memory.events.oom_kill": 4 },
					swap_usage: { usage: 1, max_usage: 6, limit: 7 },
				},
				pids_stats: { current: 2, limit: 10 },
				blkio_stats: {
					io_service_bytes_recursive: [
						{ major: 254, minor: 0, op: "Read", value: 4096 },
						{ major: 254, minor: 16, op: "Write", value: 512 },
						{ major: 254, minor: 0, op: "Discard", value: 1 },
					],
					io_serviced_recursive: [{ major: 254, minor: 0, op: "Read", value: 2 }],
				},
				hugetlb_stats: { "2MB": { usage: 2097152, failcnt: 1 } },
			},
		}).finish(),
	);
	const metrics = io.containerd.cgroups.v2.Metrics.decode(encodeMetrics(stats));
	const number = (value: unknown) => Long.fromValue(value as number).toNumber();
	t.equal(number(metrics.cpu?.usage_usec), 5000);
	t.equal(number(metrics.cpu?.system_usec), 2000);
	t.equal(number(metrics.memory?.usage), 4096);
	t.equal(number(metrics.memory?.usage_limit), 1 << 20);
	t.equal(number(metrics.memory?.anon), 100);
	t.equal(number(metrics.memory?.inactive_file), 50, "what a working set is without");
	t.equal(number(metrics.memory?.pgscan), 3);
	t.equal(number(metrics.memory?.swap_max_usage), 6);
	t.equal(number(metrics.pids?.current), 2);
	t.equal(number(metrics.memory_events?.oom_kill), 4);
	t.equal(number(metrics.memory_events?.max), 9, "from an agent that tells no such event: how often the limit was met");
	t.same(
		metrics.io?.usage?.map(({ major, minor, rbytes, wbytes, rios }) => [major, minor, rbytes, wbytes, rios].map(number)),
		[
			[254, 0, 4096, 0, 2],
			[254, 16, 0, 512, 0],
		],
	);
	t.same(
		metrics.hugetlb?.map(({ pagesize, current, failcnt }) => [pagesize, number(current), number(failcnt)]),
		[["2MB", 2097152, 1]],
	);
	t.end();
});

t.test("runtime options name a configuration file under both type URLs; others are none of ours", (t) => {
	const value = runtimeoptions.v1.Options.encode({ config_path: "/etc/x.toml" }).finish();
	t.equal(optionsConfigFile({ type_url: "runtimeoptions.v1.Options", value }), "/etc/x.toml");
	t.equal(optionsConfigFile({ type_url: "types.containerd.io/runtimeoptions.v1.Options", value }), "/etc/x.toml");
	t.equal(optionsConfigFile({ type_url: "containerd.runc.v1.Options", value }), undefined);
	t.equal(optionsConfigFile(undefined), undefined);
	t.throws(
		() => optionsConfigFile({ type_url: "runtimeoptions.v1.Options", value: Uint8Array.of(0x12, 0xff) }),
		failing({ reason: "call.invalid" }),
	);
	t.end();
});
