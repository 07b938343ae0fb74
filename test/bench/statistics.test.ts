/** What is said of series of measurements. */
import t from "tap";
import { median, medianInterval, summarize } from "../../bench/statistics.ts";

/** Samples that have nothing to do with each other. */
const alone = (samples: readonly number[]): number[][] => samples.map((sample) => [sample]);

t.test("a series is summed up by ranks, whatever its order", async (t) => {
	const samples = Array.from({ length: 100 }, (_, at) => 100 - at);
	t.match(summarize(samples), { count: 100, min: 1, median: 50.5, p95: 95, p99: 99, max: 100 });
	t.match(summarize([7]), { count: 1, min: 7, median: 7, p95: 7, p99: 7, max: 7 });
	t.equal(samples[0], 100, "the samples stay as they were");
});

t.test("an empty series is an error, not a number", async (t) => {
	t.throws(() => summarize([]), /no samples/);
	t.throws(() => median([]), /no samples/);
	t.throws(() => medianInterval([alone([1]), []], ([a = 0]) => a), /no samples/);
});

t.test("numbers are compared as numbers", async (t) => {
	t.equal(median([10, 9, 100]), 10);
});

t.test("the interval of a ratio has the ratio in it, and says the same each time", async (t) => {
	const a = Array.from({ length: 30 }, (_, at) => 20 + (at % 7));
	const b = Array.from({ length: 30 }, (_, at) => 10 + (at % 5));
	const ratio = ([x = 0, y = 1]: readonly number[]): number => x / y;
	const interval = medianInterval([alone(a), alone(b)], ratio);
	t.ok(interval.low <= median(a) / median(b) && median(a) / median(b) <= interval.high);
	t.ok(interval.low > 1, "series that do not touch are told apart");
	t.same(medianInterval([alone(a), alone(b)], ratio), interval);
});

t.test("the interval of equal samples is a point", async (t) => {
	t.same(
		medianInterval([alone([5, 5, 5])], ([a = 0]) => a),
		{ low: 5, high: 5 },
	);
});

t.test("samples that were taken together are no more certain than one of them", async (t) => {
	const bursts = [10, 12, 14, 16].map((value) => Array.from({ length: 50 }, () => value));
	const wide = medianInterval([bursts], ([a = 0]) => a);
	const narrow = medianInterval([alone(bursts.flat())], ([a = 0]) => a);
	t.ok(wide.high - wide.low > 1.5 * (narrow.high - narrow.low), `${wide.low} to ${wide.high}, not ${narrow.low} to ${narrow.high}`);
});
