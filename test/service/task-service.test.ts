import t from "tap";
import { containerd } from "../../proto/gen/containerd.js";
import type { PodNode } from "../../shim/pod/node.ts";
import { GuestProcess } from "../../shim/pod/process.ts";
import { TaskService } from "../../shim/service/task-service.ts";
import type { Caller } from "../../shim/service/task-service.ts";
import { failing } from "../base/failing.ts";

const task = containerd.task.v2;
const WAIT = task.WaitRequest.encode({ id: "c", exec_id: "" }).finish();

/** A service over one process that is in no guest. */
function serviceOver(process: GuestProcess): TaskService {
	const pod = { container: () => ({ process: () => process }) };
	return new TaskService({ find: () => pod, marked: (_: string, error: unknown) => error } as unknown as PodNode, "0");
}

function caller(timeoutMs?: number): Caller {
	return { identity: { key: "k" }, mover: {}, replay: false, timeoutMs } as unknown as Caller;
}

t.test("Wait ends with the process, or when the caller's time is over", async (t) => {
	const process = new GuestProcess("c", "", { stdin: "", stdout: "", stderr: "", terminal: false });
	const service = serviceOver(process);
	const patient = service.call("Wait", WAIT, caller());
	await t.rejects(service.call("Wait", WAIT, caller(1)), failing({ reason: "wait.deadline", message: /the end of container c/ }));
	process.restore({ kind: "stopped", exit: { status: 7, atMs: 1000 } });
	t.equal(task.WaitResponse.decode(await patient).exit_status, 7);
	t.equal(task.WaitResponse.decode(await service.call("Wait", WAIT, caller(60_000))).exit_status, 7);
});
