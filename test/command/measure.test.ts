/** `snpctl measure`, and `snpctl attest verify --reference`, as programs. */

import { spawnSync } from "node:child_process";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { idBlockBytes, idBlockProblem } from "../../shim/attest/measure/id-block.ts";
import { ovmfProcessor } from "../../shim/attest/measure/processor-state.ts";
import { vmsaPage } from "../../shim/attest/measure/vmsa.ts";
import { explain } from "../../shim/base/errors.ts";
import { measure } from "../../shim/command/measure.ts";
import { fixture, makeChain, makeReport } from "../support/amd-chain.ts";
import { igvmPage, igvmPlatform, igvmPolicy, igvmProcessor, makeIgvm } from "../support/firmware.ts";

const path = (name: string): string => fileURLToPath(new URL(`../attest/fixtures/${name}`, import.meta.url));
const program = fileURLToPath(new URL("../../shim/command/snpctl.ts", import.meta.url));

function run(...args: readonly string[]): { code: number | null; out: string; err: string } {
	const { status, stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", program, ...args], { encoding: "utf8" });
	return { code: status, out: stdout, err: stderr };
}

const ovmf = ["measure", "--ovmf", path("ovmf-amdsev-suffix.bin"), "--vcpu-type", "EPYC-v4"];
const kernel = ["--kernel", "/dev/null", "--cmdline", "console=ttyS0 loglevel=7"];
const published = "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa";

/** An IGVM file that Cloud Hypervisor could launch. */
function igvmFile(): Buffer {
	const vmsa = vmsaPage(ovmfProcessor("qemu", 0, 0, 0xa00f11, 1n));
	return makeIgvm([igvmPlatform(), igvmPolicy(0x3001fn), igvmPage(0xffff_f000, Buffer.alloc(4096, 0x90)), igvmProcessor(0, vmsa)]);
}

t.test("one number of processors gives the digest alone, several give a line each", async (t) => {
	t.same(run(...ovmf, ...kernel, "--vcpus", "1"), { code: 0, out: `${published}\n`, err: "" });
	const several = run(...ovmf, ...kernel, "--vcpus", "1-3,8");
	t.match(several.out, new RegExp(`^1\t${published}\n2\t[0-9a-f]{96}\n3\t[0-9a-f]{96}\n8\t[0-9a-f]{96}\n$`, "u"));
	t.match(JSON.parse(run(...ovmf, "--vcpus", "1", "--json").out), {
		launcher: "qemu",
		inputs: { vcpuType: "EPYC-v4", guestFeatures: "0x1" },
		measurements: [
			{ vcpus: 1, measurement: "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d" },
		],
	});
});

t.test("an ID block is for the digest and the file's policy, and its signatures hold", async (t) => {
	const folder = t.testdir();
	writeFileSync(join(folder, "igvm"), igvmFile());
	const args = ["measure", "--igvm", join(folder, "igvm"), "--vcpus", "2", "--id-block", "--id-key", path("id.test-key.pem")];
	const { code, out } = run(
		...args,
		"--author-key",
		path("author.test-key.pem"),
		"--image-id",
		"ab".repeat(16),
		"--guest-svn",
		"3",
		"--json",
	);
	t.equal(code, 0);
	const answer = JSON.parse(out) as {
		guestPolicy: string;
		measurements: { measurement: string }[];
		idBlock: { block: string; authentication: string; idKeyDigest: string };
	};
	t.equal(answer.guestPolicy, "0x3001f");
	const block = Buffer.from(answer.idBlock.block, "base64");
	const expected = {
		measurement: Buffer.from(answer.measurements[0]?.measurement ?? "", "hex"),
		familyId: Buffer.alloc(16),
		imageId: Buffer.alloc(16, 0xab),
		guestSvn: 3,
		guestPolicy: 0x3001fn,
	};
	t.same(block, idBlockBytes(expected));
	t.equal(idBlockProblem(block, Buffer.from(answer.idBlock.authentication, "base64"), true), undefined);

	const digest = answer.measurements[0]?.measurement ?? "";
	const written = run(...args, "--author-key", path("author.test-key.pem"), "--output", join(folder, "signed.igvm"));
	t.match(written, { code: 0, out: new RegExp(`^${digest}\n`, "u"), err: "" });
	t.match(run(...args, "--output", join(folder, "signed.igvm")), { code: 1, err: /signed\.igvm exists already/u });
	const signed = ["measure", "--igvm", join(folder, "signed.igvm"), "--json", "--vcpus"];
	const keys = { idKeyDigest: answer.idBlock.idKeyDigest, authorKeyDigest: /^[0-9a-f]{96}$/u };
	t.match(JSON.parse(run(...signed, "1-4").out), {
		measurements: [{}, { measurement: digest }],
		fileIdBlock: { fits: "2 processors", ...keys },
	});
	t.match(JSON.parse(run(...signed, "3").out), { fileIdBlock: { fits: `no launch: it is for the measurement ${digest}` } });
	t.match(run("measure", "--igvm", join(folder, "signed.igvm"), "--vcpus", "2", ...args.slice(5), "--output", join(folder, "x")), {
		code: 1,
		err: /has an ID block already/u,
	});
});

t.test("signed reference values are what attest verify takes", async (t) => {
	const folder = t.testdir();
	const at = (name: string): string => join(folder, name);
	writeFileSync(at("igvm"), igvmFile());
	writeFileSync(at("key.pub"), createPublicKey(createPrivateKey(fixture("id.test-key.pem"))).export({ format: "pem", type: "spki" }));
	writeFileSync(at("other.pub"), createPublicKey(createPrivateKey(fixture("author.test-key.pem"))).export({ format: "pem", type: "spki" }));
	const made = run("measure", "--igvm", at("igvm"), "--vcpus", "1-4", "--reference", "--sign", path("id.test-key.pem"));
	t.match(made, { code: 0, err: "" });
	writeFileSync(at("reference.json"), made.out);
	const read = run("measure", "verify", at("reference.json"), "--key", at("key.pub"), "--json");
	const { measurements } = JSON.parse(read.out) as { measurements: { vcpus: number; measurement: string }[] };
	t.same(
		measurements.map(({ vcpus }) => vcpus),
		[1, 2, 3, 4],
	);
	t.match(run("measure", "verify", at("reference.json"), "--key", at("key.pub")), {
		code: 0,
		out: /^VERIFIED: .*\nlauncher\s+cloud-hypervisor\n/u,
	});
	t.match(run("measure", "verify", at("reference.json"), "--key", at("other.pub")), { code: 1, out: "", err: /is not signed by the key/u });

	const spec = { line: "Genoa", key: "vcek", tcb: Buffer.from("0a000000000018d5", "hex"), chipId: Buffer.alloc(64, 8) } as const;
	const chain = makeChain(spec);
	writeFileSync(at("ark"), chain.ark);
	writeFileSync(at("vcek"), chain.endorsement);
	writeFileSync(at("ask"), chain.intermediate);
	const verify = (digest: string, key: string) => {
		writeFileSync(
			at("report"),
			makeReport(3, spec, (report) => Buffer.from(digest, "hex").copy(report, 0x90)),
		);
		const evidence = ["--certificates", at("vcek"), "--certificates", at("ask"), "--trust-root", at("ark")];
		return run("attest", "verify", at("report"), ...evidence, "--reference", at("reference.json"), "--reference-key", at(key));
	};
	t.match(verify(measurements[3]?.measurement ?? "", "key.pub"), { code: 0, out: /is genuine and as expected/u });
	t.match(verify("00".repeat(48), "key.pub"), { code: 3, out: /failed {4}measurement: .*\n {2}expected {2}one of 4, the first/u });
	t.match(verify(measurements[0]?.measurement ?? "", "other.pub"), { code: 1, out: "", err: /is not signed by the key/u });
});

t.test("wrong use and wrong files are named, with what to do", async (t) => {
	const folder = t.testdir({ empty: "", text: "no firmware" });
	writeFileSync(join(folder, "igvm"), igvmFile());
	const image = ["--ovmf", path("ovmf-amdsev-suffix.bin")];
	const type = ["--vcpu-type", "EPYC"];
	const file = ["--igvm", join(folder, "igvm")];
	const wrong: readonly (readonly [readonly string[], RegExp])[] = [
		[[], /measure needs --igvm or --ovmf \(usage: snpctl measure/u],
		[[...image, ...file], /--igvm or --ovmf/u],
		[["now"], /takes options only, not now/u],
		[["verify"], /measure verify takes one FILE/u],
		[["verify", "a"], /needs --key/u],
		[["verify", "a", "--key", "b", "--vcpus", "1"], /does not take --vcpus/u],
		[[...image, "--vcpus", "1"], /--ovmf needs --vcpu-type/u],
		[[...image, ...type], /measure needs --vcpus/u],
		[[...image, ...type, "--vcpus", "0"], /--vcpus 0 is no list/u],
		[[...image, ...type, "--vcpus", "4-2"], /--vcpus 4-2 is no list/u],
		[[...image, ...type, "--vcpus", "1-9999"], /numbers up to 4096/u],
		[[...image, "--vcpu-type", "Xeon", "--vcpus", "1"], /Xeon is not known \(give one of EPYC/u],
		[[...image, ...type, "--vcpus", "1", "--vmm", "xen"], /--vmm xen does not launch an OVMF/u],
		[[...image, ...type, "--vcpus", "1", "--guest-features", "1"], /--guest-features 1 is no number like 0x1/u],
		[[...image, ...type, "--vcpus", "1", "--initramfs", "x"], /--initramfs can't be given without --kernel/u],
		[[...image, ...type, "--vcpus", "1", "--kernel", "/dev/null"], /--kernel needs --cmdline/u],
		[[...file, "--vcpus", "1", ...type], /--vcpu-type can't be given with --igvm/u],
		[[...file, "--vcpus", "1", "--vmm", "igvm"], /--vcpus can't be given with --vmm igvm/u],
		[[...file, "--vcpus", "1", "--vmm", "qemu"], /--vmm qemu does not launch an IGVM file/u],
		[[...file, "--vcpus", "1", "--id-key", "x"], /--id-key belongs to --id-block/u],
		[[...file, "--vcpus", "1-2", "--id-block", "--id-key", path("id.test-key.pem")], /for one number of processors/u],
		[[...file, "--vcpus", "1", "--id-block"], /--id-block needs --id-key/u],
		[[...file, "--vcpus", "1", "--id-block", "--id-key", path("milan.vcek.der")], /is DER, perhaps a certificate.*, not a private key/u],
		[[...file, "--vcpus", "1", "--id-block", "--id-key", path("ark.test-key.pem")], /P-384 is needed, this is rsa/u],
		[[...file, "--vcpus", "1", "--id-block", "--id-key", path("id.test-key.pem"), "--image-id", "00"], /--image-id must have 32/u],
		[[...file, "--vcpus", "1", "--output", "x"], /--output belongs to --id-block/u],
		[
			[...file, "--vcpus", "1", "--id-block", "--id-key", path("id.test-key.pem"), "--guest-policy", "0x30000", "--output", "x"],
			/launched with the guest policy 0x3001f/u,
		],
		[[...image, ...type, "--vcpus", "1", "--id-block", "--id-key", path("id.test-key.pem"), "--output", "x"], /--output needs --igvm/u],
		[[...file, "--vcpus", "1", "--reference"], /--reference and --sign go together/u],
		[[...file, "--vcpus", "1", "--key", "x"], /--key belongs to measure verify/u],
		[["--igvm", join(folder, "text"), "--vcpus", "1"], /text: it is no IGVM file/u],
		[["--ovmf", join(folder, "empty"), ...type, "--vcpus", "1"], /empty has 0 bytes/u],
		[["--igvm", join(folder, "none"), "--vcpus", "1"], /the IGVM file .*none does not exist/u],
		[[...file, "--vcpus", "1", "--kernel", join(folder, "text"), "--cmdline", ""], /the kernel has 11 bytes: it is no kernel/u],
	];
	for (const [args, text] of wrong) {
		const error: unknown = await measure(args).then(
			(code) => `ended with ${code}`,
			(thrown: unknown) => thrown,
		);
		t.match(explain(error), text, args.join(" "));
	}
	t.match(run("measure"), { code: 1, out: "", err: /^snpctl: measure needs/u });
	t.match(run("measure", "--help"), { code: 0, out: /^usage: snpctl measure/u });
});
