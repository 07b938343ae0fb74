import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { BIND_ONLY_HOST_DATA } from "../../shim/attest/late-binding.ts";
import { bindOnlyInitdata } from "../../shim/policy/bind-only.ts";
import { unpackInitdata } from "../../shim/policy/initdata.ts";
import { repositoryDir } from "../support/paths.ts";

t.test("the initdata of guests that wait is one for guest, host, verifier and manual", async (t) => {
	const { toml, gzip, hostData } = bindOnlyInitdata();
	t.strictSame(Buffer.from(toml), readFileSync(join(repositoryDir, "guest/agent/src/confidential/bind-only.toml")));
	t.strictSame(unpackInitdata(gzip), Buffer.from(toml));
	t.equal(hostData, BIND_ONLY_HOST_DATA.toString("hex"));
	for (const document of ["docs/contracts.md", "docs/attestation.md"])
		t.ok(readFileSync(join(repositoryDir, document), "utf8").includes(`\`${hostData}\``), document);
});
