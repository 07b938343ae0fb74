/** What is said of an event loop that lets others wait. */
import t from "tap";
import { loopDelay } from "../../bench/loop-delay.ts";

t.test("a long delay counts as long as it lasts, not once among many short ones", async (t) => {
	const gaps = [...Array.from({ length: 900 }, () => 1), 101];
	t.same(loopDelay(gaps), { mean: (100 * 101) / 1001, p99: 100, max: 100 });
});

t.test("a loop that is always in time lets nobody wait", async (t) => {
	t.same(loopDelay([1, 0.9, 1, 1]), { mean: 0, p99: 0, max: 0 });
});

t.test("a delay that takes less than a hundredth of the time is the longest, and not the 99th percentile", async (t) => {
	const { p99, max } = loopDelay([...Array.from({ length: 1000 }, () => 1), 6]);
	t.same([p99, max], [0, 5]);
});

t.test("a loop that has not turned is an error, not a number", async (t) => {
	t.throws(() => loopDelay([]), /has not turned/);
});
