import { join } from "node:path";
import t from "tap";
import { EMPTY_DIR_LIMITS_ANNOTATION, emptyDirLimits, requireEmptyDirs } from "../../shim/pod/empty-dir-limits.ts";
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

t.test("a limit is for an emptyDir that the pod has", async (t) => {
	const kubelet = t.testdir({
		pods: { uid: { volumes: { "kubernetes.io~empty-dir": { work: {}, cache: {} } }, "etc-hosts": "" }, bare: {} },
	});
	const pod = join(kubelet, "pods/uid");
	const check = (text: string, ...sources: string[]): Promise<void> => requireEmptyDirs(read(text), sources);
	await t.resolves(check("work=1Mi,cache=1Mi", join(pod, "volumes/kubernetes.io~empty-dir/work")));
	const astray = failing({ reason: "spec.invalid", message: /the pod has no emptyDir wrok; it has cache, work$/ });
	for (const source of ["etc-hosts", "volumes/kubernetes.io~empty-dir/work", "containers/app/0", "volume-subpaths/work/app/0"])
		await t.rejects(check("cache=1Mi,wrok=1Mi", "/srv/data", join(pod, source)), astray, source);
	const none = failing({ reason: "spec.invalid", message: /no emptyDir work; it has none/ });
	await t.rejects(check("work=1Mi", join(kubelet, "pods/bare/etc-hosts")), none);
	await t.resolves(check("wrok=1Mi", "/srv/pods/data"), "a mount that leads nowhere near");
	await t.resolves(check("", join(pod, "etc-hosts")));
});
