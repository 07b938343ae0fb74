/** What every end-to-end test file shares: the targets, one containerd per target, and the check after each test. */
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { PrivateContainerd, type ContainerdOptions } from "./containerd.ts";
import { Ctr, RUNC_RUNTIME, SNP_RUNTIME } from "./ctr.ts";
import { buildBusyboxImage, type TestImage } from "./image.ts";
import { Leftovers } from "./leftovers.ts";
import { containerdVersions, everydayVersions, isContainerdVersion, requireBuilt, type ContainerdVersion } from "./paths.ts";

/** A containerd line together with a runtime. */
export type Target = { readonly version: ContainerdVersion; readonly runtime: string };

/** What a test works with. */
export type Bed = {
	readonly target: Target;
	readonly containerd: PrivateContainerd;
	readonly ctr: Ctr;
	readonly image: TestImage;
	/** True when the containers are VMs. */
	readonly isVm: boolean;
};

/** One case: a name and what must hold. Container ids come from `bed.ctr.newId`. */
export type Case = {
	readonly name: string;
	/** True for what runc does not do, or does not do reliably: the control leaves it out. */
	readonly vmOnly?: boolean;
	readonly check: (t: Test, bed: Bed) => Promise<void>;
};

/**
 * The targets of a test file: the shim under every everyday containerd, and runc under the newest as a control of the tests themselves where both must behave alike.
 * `SNP_E2E_CONTAINERD` (such as `2` or `1.6,2`) and `SNP_E2E_RUNTIME` (a runtime's name, or `control` for runc alone) narrow them while developing.
 */
export function targets(options: { readonly withControl: boolean }): Target[] {
	const chosen = (process.env["SNP_E2E_CONTAINERD"] ?? everydayVersions.join(",")).split(",");
	const runtime = process.env["SNP_E2E_RUNTIME"];
	const unknown = chosen.find((version) => !isContainerdVersion(version));
	if (unknown !== undefined) throw new Error(`SNP_E2E_CONTAINERD: ${unknown} is not one of ${containerdVersions.join(", ")}`);
	const versions = chosen.filter(isContainerdVersion);
	if (runtime === "control") return options.withControl ? versions.map((version) => ({ version, runtime: RUNC_RUNTIME })) : [];
	const own = versions.map((version): Target => ({ version, runtime: runtime ?? SNP_RUNTIME }));
	const control: Target[] =
		options.withControl && versions.includes("2") && runtime === undefined ? [{ version: "2", runtime: RUNC_RUNTIME }] : [];
	return [...own, ...control];
}

async function cleanUp(bed: Bed): Promise<void> {
	const ids = (await bed.ctr.call(["container", "ls", "--quiet"])).stdout.split("\n").filter((id) => id !== "");
	for (const id of ids) await bed.ctr.removeLeftover(id);
}

async function runCase(t: Test, one: Case, bed: Bed, leftovers: Leftovers): Promise<void> {
	await t.test(one.name, async (t) => {
		try {
			await one.check(t, bed);
		} catch (error) {
			t.fail(error instanceof Error ? (error.stack ?? error.message) : String(error));
		}
		if (!t.passing()) {
			t.comment(await bed.containerd.logs());
			await cleanUp(bed);
		}
		const left = await leftovers.settle();
		t.strictSame(left, [], "nothing is left behind");
		if (left.length > 0) await leftovers.forgive();
	});
}

/** Runs the cases of one target on one containerd. */
async function runTarget(t: Test, target: Target, cases: readonly Case[], options: Omit<ContainerdOptions, "version">): Promise<void> {
	if (target.runtime === SNP_RUNTIME) requireBuilt();
	const containerd = await PrivateContainerd.start({ version: target.version, ...options });
	t.teardown(async () => {
		if (!t.passing()) {
			const dir = await mkdtemp(join(tmpdir(), "snp-e2e-logs-"));
			await containerd.keepLogs(dir);
			t.comment(`logs are kept in ${dir}`);
		}
		await containerd.stop();
	});
	const image = await buildBusyboxImage(containerd.rootDir);
	const bed: Bed = { target, containerd, ctr: new Ctr(containerd, target.runtime, image), image, isVm: target.runtime === SNP_RUNTIME };
	await bed.ctr.importImage(image);
	const leftovers = await Leftovers.watch(containerd);
	for (const one of cases) {
		if (bed.isVm || one.vmOnly !== true) await runCase(t, one, bed, leftovers);
	}
}

/**
 * Runs the cases under every target, one after the other; the tests of one target share a containerd.
 * @param options `only`: one line of containerd, for what containerd has no part in
 */
export async function runCases(
	cases: readonly Case[],
	options: { readonly withControl: boolean; readonly only?: ContainerdVersion } & Omit<ContainerdOptions, "version">,
): Promise<void> {
	const { withControl, only: onlyVersion, ...rest } = options;
	const only = process.env["SNP_E2E_CASE"];
	const chosen = only === undefined ? cases : cases.filter((one) => one.name.includes(only));
	for (const target of targets({ withControl }).filter(({ version }) => onlyVersion === undefined || version === onlyVersion)) {
		await t.test(`containerd ${target.version}, ${target.runtime}`, async (t) => await runTarget(t, target, chosen, rest));
	}
}
