import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { SandboxApi } from "../../shim/pod/sandbox-api.ts";
import type { SandboxApiPod } from "../../shim/pod/sandbox-api.ts";
import { failing } from "../base/failing.ts";

t.test("a sandbox whose start could not be written down is not started, and can be asked for again", async (t) => {
	let full = true;
	const pod = {
		podId: "p",
		pid: 7,
		sandbox: { state: { kind: "running" }, machine: () => undefined },
		exclusive: (work: () => Promise<unknown>) => work(),
		save: () => {
			if (full) throw new ShimError("journal.write", "no space left");
		},
	};
	const api = new SandboxApi(pod as unknown as SandboxApiPod);
	api.restore({ bundle: "/b", createdAtMs: 1, started: false, exit: null, sysctls: {} });
	await t.rejects(api.start(false), failing({ reason: "journal.write" }));
	t.match(api.status(), { ready: false });
	full = false;
	t.match(await api.start(false), { ready: true, pid: 7 });
	await t.rejects(api.start(false), failing({ reason: "pod.state" }));
});
