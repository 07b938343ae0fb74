/** When templates are made and dropped. They are false here: what is tested is which there are, and when. */
import t from "tap";
import { deferred } from "../../../shim/base/deadline.ts";
import { Log } from "../../../shim/base/log.ts";
import { defaultConfig } from "../../../shim/config/schema.ts";
import type { Config } from "../../../shim/config/schema.ts";
import type { PodPlan } from "../../../shim/pod/plan.ts";
import type { PoolTimes } from "../../../shim/pod/pool/pacing.ts";
import { usualPlan } from "../../../shim/pod/pool/shape.ts";
import type { Shape } from "../../../shim/pod/pool/shape.ts";
import type { Template } from "../../../shim/pod/snapshot/template.ts";
import { Templates } from "../../../shim/pod/snapshot/templates.ts";
import type { TemplatesSummary } from "../../../shim/pod/snapshot/templates.ts";
import { eventually } from "../../support/retry.ts";

const WAIT_MS = 10_000;
const FILE = "/etc/config.toml";
const NEVER = 3_600_000;
const MIB = 1024 * 1024;
const AT_ONCE: Partial<PoolTimes> = { quiet: 0, patience: NEVER, retry: 0, longestRetry: 0, hold: 0 };

/** Templates that are objects; making one lasts until its gate opens, if there is one, or fails. */
class Bed {
	readonly templates: Templates;
	readonly lines: string[] = [];
	readonly removed: string[] = [];
	makes = 0;
	gate: Promise<unknown> | undefined;
	failure: Error | undefined;
	mostBytes = Number.MAX_SAFE_INTEGER;
	/** Part of every key, as the state of the files is. */
	files = "1";

	constructor(times: Partial<PoolTimes> = {}) {
		this.templates = new Templates({
			log: new Log((line) => this.lines.push(line), "warn"),
			usual: usualPlan,
			shape: (plan, config) => Promise.resolve({ key: `${plan.memoryMib} ${this.files}`, plan, config }),
			make: (shape, signal) => this.#make(shape, signal),
			remove: ({ name }) => void this.removed.push(name),
			mostBytes: () => this.mostBytes,
			times: { ...AT_ONCE, ...times },
		});
	}

	async #make({ key, plan: { vcpus, memoryMib } }: Shape, signal: AbortSignal): Promise<Template> {
		const name = String(++this.makes);
		await this.gate;
		signal.throwIfAborted();
		if (this.failure !== undefined) throw this.failure;
		const agent = {} as Template["agent"];
		const bytes = 40 * MIB;
		return {
			name,
			folder: `/t/${name}`,
			key,
			size: { vcpus, memoryMib },
			bytes,
			memoryBytes: 1,
			madeAtMs: Date.now(),
			agent,
			scratchAddress: "",
		};
	}

	/** Waits until these kinds have one and none is on its way. */
	async holds(...keys: string[]): Promise<TemplatesSummary> {
		return await eventually(`templates of ${keys.join(", ")}`, WAIT_MS, () => {
			const summary = this.templates.summary();
			const there = summary.templates.map(({ key }) => key).toSorted();
			return summary.making === "" && JSON.stringify(there) === JSON.stringify(keys.toSorted()) ? summary : undefined;
		});
	}
}

const wants = (more: Partial<Config["snapshots"]> = {}): Config => {
	const config = defaultConfig();
	return { ...config, snapshots: { ...config.snapshots, enabled: true, ...more } };
};
const plan = usualPlan(defaultConfig());
const of = (memoryMib: number): PodPlan => ({ ...plan, memoryMib });
const USUAL = `${plan.memoryMib} 1`;

t.test("one is made for pods without limits, and one for each kind that pods ask for; each serves many", async (t) => {
	const bed = new Bed();
	const { templates } = bed;
	t.equal(await templates.find(FILE, plan, defaultConfig()), undefined, "without the switch there is none");
	t.equal(bed.makes, 0);
	templates.configure(FILE, wants());
	await bed.holds(USUAL);
	t.equal(await templates.find(FILE, of(768), wants()), undefined, "the first of its kind is booted");
	await bed.holds(USUAL, "768 1");
	const uses = await Promise.all([1, 2].map(() => templates.find(FILE, of(768), wants())));
	for (const use of uses) use?.worked();
	t.same(
		uses.map((use) => use?.template.name),
		["2", "2"],
	);
	const { restored, templates: told } = templates.summary();
	t.same([restored, told.map(({ uses: count }) => count)], [2, [0, 2]]);
	await templates.close();
	t.same(bed.removed, ["1", "2"], "none is left at the end");
});

t.test("a confidential pod gets none", async (t) => {
	const bed = new Bed();
	bed.templates.configure(FILE, wants());
	await bed.holds(USUAL);
	const confidential = { ...plan, confidential: {} as NonNullable<PodPlan["confidential"]> };
	t.equal(await bed.templates.find(FILE, confidential, wants()), undefined);
	await bed.templates.close();
});

t.test("they follow the configuration and the guest's files", async (t) => {
	const bed = new Bed();
	bed.templates.configure(FILE, wants());
	await bed.holds(USUAL);
	bed.files = "2";
	bed.templates.review();
	await bed.holds(`${plan.memoryMib} 2`);
	t.same(bed.removed, ["1"]);
	bed.templates.configure(FILE, defaultConfig());
	await bed.holds();
	t.same(bed.removed, ["1", "2"]);
	t.notOk(bed.templates.summary().enabled);
});

t.test("none is made while a pod starts, and one that nobody wants any more is given up", async (t) => {
	const bed = new Bed();
	const open = deferred<undefined>();
	await bed.templates.during(async () => {
		bed.templates.configure(FILE, wants());
		await new Promise(setImmediate);
		t.equal(bed.makes, 0);
		bed.gate = open.promise;
	});
	await eventually("the first one's making", WAIT_MS, () => (bed.makes === 1 ? true : undefined));
	bed.templates.configure(FILE, defaultConfig());
	await eventually("the review", WAIT_MS, () => (bed.templates.wanted ? undefined : true));
	await new Promise(setImmediate);
	open.resolve(undefined);
	await bed.holds();
});

t.test("one that fails its VM is dropped and made again after a pause, and the log says why", async (t) => {
	const bed = new Bed({ retry: NEVER, longestRetry: NEVER });
	bed.templates.configure(FILE, wants());
	await bed.holds(USUAL);
	const use = await bed.templates.find(FILE, plan, wants());
	use?.failed(new Error("the VMM refused it"));
	const { failed, trouble } = await bed.holds();
	t.equal(failed, 1);
	t.match(trouble, /could not be restored.*the VMM refused it/u);
	t.match(bed.lines.join("\n"), /could not be restored/u);
	t.same([bed.removed, bed.makes], [["1"], 1], "no other one is made at once");
	use?.failed(new Error("again"));
	t.same(bed.removed, ["1"], "a second start that fails drops nothing twice");
	await bed.templates.close();
});

t.test("a VMM that takes no snapshots is told of, and not asked for ever", async (t) => {
	const bed = new Bed({ retry: NEVER, longestRetry: NEVER });
	bed.failure = new Error("the hypervisor refused vm.snapshot");
	bed.templates.configure(FILE, wants());
	const { trouble } = await eventually("the failure", WAIT_MS, () => {
		const summary = bed.templates.summary();
		return summary.trouble === "" ? undefined : summary;
	});
	t.match(trouble, /a template could not be made.*refused vm\.snapshot/u);
	t.equal(bed.makes, 1);
	await bed.templates.close();
});

t.test("memory comes on demand where that is asked for and the VMM does it", async (t) => {
	const bed = new Bed();
	const config = wants({ paging: "on-demand" });
	bed.templates.configure(FILE, config);
	await bed.holds(USUAL);
	const use = await bed.templates.find(FILE, plan, config);
	t.equal(use?.mode, "OnDemand");
	use?.onDemandRefused(new Error("no userfaultfd"));
	t.equal((await bed.templates.find(FILE, plan, config))?.mode, "Copy");
	t.match(bed.templates.summary().trouble, /snapshots\.paging.*no userfaultfd/u);
	await bed.templates.close();
});

t.test("what was not used for the longest time makes room, and goes first when memory is short", async (t) => {
	const bed = new Bed();
	const config = wants({ max_mib: 100 });
	bed.templates.configure(FILE, config);
	await bed.holds(USUAL);
	await bed.templates.find(FILE, of(768), config);
	await bed.holds(USUAL, "768 1");
	await bed.templates.find(FILE, of(1024), config);
	await bed.holds("768 1", "1024 1");
	t.same(bed.removed, ["1"], "there is room for two");
	bed.mostBytes = 100 * MIB;
	const roomy = wants({ max_mib: 1_000 });
	await bed.templates.find(FILE, of(1280), roomy);
	await bed.holds("1024 1", "1280 1");
	t.same(bed.removed, ["1", "2"], "nor does the file system give more than its part");
	t.equal(bed.templates.shrink(1), 40 * MIB);
	t.same(bed.removed, ["1", "2", "3"]);
	await bed.templates.close();
});

t.test("one that is larger than the room is not kept, and that is told", async (t) => {
	const bed = new Bed();
	bed.templates.configure(FILE, wants({ max_mib: 32 }));
	await eventually("the word", WAIT_MS, () => (bed.templates.summary().trouble === "" ? undefined : true));
	t.match(bed.templates.summary().trouble, /does not fit.*max_mib/u);
	await new Promise(setImmediate);
	t.equal(bed.makes, 1);
	await bed.templates.close();
});

t.test("a later snpd goes on with what there is", async (t) => {
	const first = new Bed();
	first.templates.configure(FILE, wants());
	await first.holds(USUAL);
	const use = await first.templates.find(FILE, plan, wants());
	if (use === undefined) throw new Error("there is a template");
	const second = new Bed();
	second.templates.configure(FILE, wants());
	second.templates.adopt([use.template, { ...use.template, name: "other", key: "of nobody" }]);
	await second.holds(USUAL);
	t.same(second.removed, ["other"]);
	await Promise.all([first.templates.close(), second.templates.close()]);
});
