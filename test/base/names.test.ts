import t from "tap";
import { daemonSocket, MAX_STATE_DIR_BYTES, podFolder, podKey } from "../../shim/base/names.ts";

t.test("podKey is the start of SHA-256 over address, namespace and pod", async (t) => {
	// printf '/run/c.sock\0k8s.io\0p1' | sha256sum | cut -c1-32
	t.equal(podKey("/run/c.sock", "k8s.io", "p1"), "fc2ce705f4b260bfef356e0c1841c3c3");
	t.not(podKey("a", "bc", "d"), podKey("ab", "c", "d"), "the parts are kept apart");
});

t.test("every socket fits into sun_path, also in the longest state_dir", async (t) => {
	const stateDir = `/${"x".repeat(MAX_STATE_DIR_BYTES - 1)}`;
	const folder = podFolder(stateDir, podKey("a", "b", "c"));
	// Cloud Hypervisor's hybrid vsock appends "_" and a port number to the path for streams that the guest opens.
	for (const socket of [daemonSocket(stateDir), `${folder}/api.sock`, `${folder}/vsock.sock`]) t.ok(socket.length <= 107, socket);
});
