import t from "tap";
import { Timeline } from "../../shim/pod/timeline.ts";

t.test("steps are recorded by name, with how they ended", async (t) => {
	const timeline = new Timeline();
	t.equal(await timeline.step("good", async () => 7), 7);
	await t.rejects(
		timeline.step("bad", () => Promise.reject(new Error("no"))),
		{ message: "no" },
	);
	t.match(timeline.spans, [
		{ step: "good", durationMs: Number, failed: false },
		{ step: "bad", durationMs: Number, failed: true },
	]);
});

t.test("a step that others ran is placed where it was", async (t) => {
	const timeline = new Timeline({ beganAtMs: Date.now() - 10_000, spans: [] });
	timeline.past("guest-kernel", 2_000, 3_000);
	timeline.past("guest-agent", 0, 90_000);
	t.match(timeline.spans, [{ durationMs: 3_000, failed: false }, { startMs: 0 }]);
	const startMs = timeline.spans[0]?.startMs ?? 0;
	t.ok(startMs >= 5_000 && startMs < 10_000, String(startMs));
});

t.test("what an earlier snpd recorded comes first, and later steps count on from the same beginning", async (t) => {
	const beganAtMs = Date.now() - 60_000;
	const spans = [
		{ step: "vm-boot", startMs: 3, durationMs: 4, failed: false },
		{ step: "sandbox", startMs: 9, failed: false },
	];
	const timeline = new Timeline({ beganAtMs, spans });
	await timeline.step("exec-start", async () => undefined);
	t.equal(timeline.beganAtMs, beganAtMs);
	t.match(timeline.spans, [
		{ step: "vm-boot", startMs: 3, durationMs: 4 },
		{ step: "sandbox", startMs: 9, durationMs: undefined },
		{ step: "exec-start" },
	]);
	t.ok((timeline.spans[2]?.startMs ?? 0) >= 60_000);
	t.match(new Timeline({ spans }).spans, [{ step: "vm-boot" }, { step: "sandbox" }], "a journal without the beginning is read too");
});
