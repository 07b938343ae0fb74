import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { Log } from "../../shim/base/log.ts";
import { Scope } from "../../shim/base/scope.ts";
import type { OciSpec } from "../../shim/agent/oci-spec.ts";
import type { ContainerHost } from "../../shim/pod/container-host.ts";
import type { PodEvent } from "../../shim/pod/ports.ts";
import { SandboxContainer } from "../../shim/pod/sandbox-container.ts";

t.test("the VM's end ends its sandbox container, also when the journal could not be written", async (t) => {
	const died = deferred<ShimError>();
	const events: PodEvent[] = [];
	const host = {
		pid: 7,
		log: new Log(() => undefined, "error"),
		machine: () => ({ died: died.promise }),
		publish: (event: PodEvent) => void events.push(event),
		save: () => {
			throw new ShimError("journal.write", "no space left");
		},
	};
	const stdio = { stdin: "", stdout: "", stderr: "", terminal: false };
	const parts = { id: "c", bundle: "/b", spec: {} as OciSpec, stdio, scope: new Scope("c") };
	const container = new SandboxContainer(parts, host as unknown as ContainerHost);
	await container.start("", false);
	t.equal(container.init.state.kind, "running");
	died.resolve(new ShimError("pod.lost", "the VM ended"));
	t.equal((await container.init.exited).status, 137);
	t.match(events, [{ kind: "start" }, { kind: "exit", containerId: "c", status: 137 }]);
});
