/** Machines that can't start SEV-SNP guests say what they lack. */

import { join } from "node:path";
import t from "tap";

import { snpLacking } from "../../shim/host/snp.ts";

t.test("what a machine lacks for SEV-SNP is named, with what to do", async (t) => {
	const folder = t.testdir({ on: "Y\n", one: "1\n", off: "N\n", device: "" });
	const place = (name: string) => join(folder, name);
	const lacking = (parameter: string, device: string) => snpLacking({ parameter: place(parameter), device: place(device) });
	t.equal(await lacking("on", "device"), undefined);
	t.equal(await lacking("one", "device"), undefined);
	t.match(await lacking("none", "device"), { text: /none can't be read \(ENOENT.*knows no SEV-SNP/, remedy: /firmware.*6\.11/ });
	t.match(await lacking("off", "device"), { text: /off is "N": SEV-SNP is off/, remedy: /firmware/ });
	t.match(await lacking("on", "none"), { text: /none can't be opened \(ENOENT/, remedy: /ccp/ });
});
