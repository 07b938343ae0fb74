/** A VMM that serves the API and starts nothing: it says of itself what a test wants, and keeps of a VM's configuration what a test wants. */
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** What the real program is built with for SEV-SNP. */
export const SNP_FEATURES: readonly string[] = ["fw_cfg", "igvm", "io_uring", "kvm", "sev_snp"];

/** How it behaves. */
export interface FalseVmm {
	readonly features?: readonly string[];
	/** A part of the configuration that it forgets, like `payload.host_data`. */
	readonly forgets?: string;
	/** What it does about a restore: refuses page by page alone, never answers, or refuses it as everything else that would start a VM. */
	readonly restores?: "not on demand" | "never";
}

/**
 * Writes the program. The calls that it gets are appended to `calls` in its working folder, one endpoint a line.
 * @returns its path
 */
export function buildFalseVmm(folder: string, { features = SNP_FEATURES, forgets, restores }: FalseVmm = {}): string {
	const program = join(folder, "false-vmm");
	writeFileSync(
		program,
		`#!${process.execPath}
const { createServer } = require("node:http");
const { appendFileSync } = require("node:fs");
const [table, key] = ${JSON.stringify(forgets?.split(".") ?? [])};
let config = {};
createServer((request, response) => {
	let body = "";
	request.on("data", (part) => (body += part)).on("end", () => {
		const endpoint = request.url.replace("/api/v1/", "");
		appendFileSync("calls", endpoint + "\\n");
		const answer = (status, value) => {
			const text = value === undefined ? "" : JSON.stringify(value);
			response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) }).end(text);
		};
		if (endpoint === "vm.restore" && ${JSON.stringify(restores === "never")}) return;
		if (endpoint === "vm.restore" && ${JSON.stringify(restores === "not on demand")} && JSON.parse(body).memory_restore_mode === "OnDemand")
			return answer(500, ["Error from API", "The VM could not be restored", "Memory manager error", "Cannot restore VM", "On-demand restore failed"]);
		if (endpoint === "vmm.ping") return answer(200, { version: "v53.0.0", features: ${JSON.stringify(features)} });
		if (endpoint === "vm.info") return answer(200, { config, state: "Created" });
		if (endpoint === "vm.create") {
			config = JSON.parse(body);
			if (table !== undefined) delete config[table][key];
			return answer(200);
		}
		answer(500, ["this program starts no VM"]);
	});
}).listen({ fd: 3 });
`,
	);
	chmodSync(program, 0o755);
	return program;
}
