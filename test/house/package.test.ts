import { readFileSync } from "node:fs";
import t from "tap";

interface Locked {
	readonly version?: string;
	readonly resolved?: string;
	readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const lock = readFileSync(new URL("../../package-lock.json", import.meta.url), "utf8");
const packages = (JSON.parse(lock) as { packages: Record<string, Locked> }).packages;

t.test("the lock file is complete for all platforms: `npm ci` refuses one that is not", async (t) => {
	for (const [place, { optionalDependencies }] of Object.entries(packages)) {
		for (const name of Object.keys(optionalDependencies ?? {})) {
			const found = packages[`${place}/node_modules/${name}`] ?? packages[`node_modules/${name}`];
			if (found?.version === undefined) t.fail(`${name}, an optional dependency of ${place}, is not locked`);
		}
	}
	t.ok(Object.keys(packages).length > 100);
});

t.test("the lock file names no registry", async (t) => {
	t.same(
		Object.entries(packages).filter(([, { resolved }]) => resolved !== undefined),
		[],
	);
});
