import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import t from "tap";
import { MAX_GUEST_VCPUS } from "../../shim/base/names.ts";
import { distShareDir, repositoryDir } from "../support/paths.ts";

const fragment = join(repositoryDir, "guest/kernel/fragment.config");

function check(wanted: string, final: string): { readonly status: number | null; readonly lost: string[] } {
	const result = spawnSync("bash", [join(repositoryDir, "guest/kernel/check-config.sh"), wanted, final], {
		encoding: "utf8",
		timeout: 60_000,
	});
	return {
		status: result.status,
		lost: result.stderr
			.trim()
			.split("\n")
			.filter((line) => line !== "")
			.sort(),
	};
}

t.test("check-config names each option of the fragment that did not survive", async (t) => {
	const dir = t.testdir({
		wanted: '# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C="text=1"\nCONFIG_D=n\nCONFIG_E=y\nCONFIG_F=64\n',
		same: 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="text=1"\nCONFIG_E=y\nCONFIG_F=64\nCONFIG_G=y\n',
		other: 'CONFIG_A=m\nCONFIG_B=y\nCONFIG_C=""\n# CONFIG_E is not set\nCONFIG_F=8\n',
		twice: "CONFIG_A=y\nCONFIG_A=n\n",
	});
	t.strictSame(check(join(dir, "wanted"), join(dir, "same")), { status: 0, lost: [] });
	t.strictSame(check(join(dir, "wanted"), join(dir, "other")), {
		status: 1,
		lost: [
			"CONFIG_A: asked for y, got m",
			"CONFIG_B: asked for n, got y",
			'CONFIG_C: asked for "text=1", got ""',
			"CONFIG_E: asked for y, got n",
			"CONFIG_F: asked for 64, got 8",
		],
	});
	t.match(check(join(dir, "twice"), join(dir, "same")), { status: 1, lost: ["CONFIG_A stands twice in the fragment"] });
});

t.test("the configuration offers as many virtual CPUs as the kernel has room for", async (t) => {
	t.match(readFileSync(fragment, "utf8"), new RegExp(`^CONFIG_NR_CPUS=${MAX_GUEST_VCPUS}$`, "m"));
});

t.test("the kernel that was built has every option that the fragment asks for", async (t) => {
	const kernel = join(distShareDir, "vmlinux");
	t.ok(existsSync(kernel), `${kernel} is there: else run scripts/setup.sh`);
	t.strictSame(check(fragment, join(dirname(realpathSync(kernel)), "config")), { status: 0, lost: [] });
});
