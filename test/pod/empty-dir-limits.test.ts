import t from "tap";
import { EMPTY_DIR_LIMITS_ANNOTATION, emptyDirLimits } from "../../shim/pod/empty-dir-limits.ts";
import { failing } from "../base/failing.ts";

const read = (text: string): ReadonlyMap<string, number> => emptyDirLimits({ [EMPTY_DIR_LIMITS_ANNOTATION]: text });

t.test("limits are read as Kubernetes writes sizes", (t) => {
	t.same(
		[...read("cache=64Mi, work-2=1.5Gi,a=100M,b=4096")],
		[
			["cache", 64 * 2 ** 20],
			["work-2", 1.5 * 2 ** 30],
			["a", 100e6],
			["b", 4096],
		],
	);
	t.equal(emptyDirLimits({}).size, 0);
	t.equal(read(" ").size, 0);
	t.end();
});

t.test("what is no limit is refused by its text", (t) => {
	for (const text of [
		"cache",
		"cache=",
		"=1Mi",
		"cache=1MB",
		"cache=-1",
		"cache=0",
		"Cache=1Mi",
		"cache=1Mi;work=1Mi",
		"cache=1Mi,",
		"a=1__proto__",
		"a=1constructor",
	])
		t.throws(() => read(text), failing({ reason: "spec.invalid", message: /empty-dir-limits: ".*" is no limit/ }), text);
	t.throws(() => read("a=1Mi, b=1Mi, a=2Mi"), failing({ reason: "spec.invalid", message: /"a=2Mi" is the second limit/ }));
	t.end();
});
