/** Container logs: files in the runtime interface's format. */
import assert from "node:assert/strict";
import { renameSync } from "node:fs";
import { eventually } from "../../support/retry.ts";
import type { ConformanceCase } from "../context.ts";

const LONG_LINE_BYTES = 50_000;
const LINES = 20_000;
const WAIT_MS = 30_000;

export const LOGS: readonly ConformanceCase[] = [
	{
		id: "log-streams",
		name: "standard output and standard error are told apart",
		check: async (context) => {
			const pod = await context.pod();
			const { stdout, stderr } = await pod.result(["sh", "-c", "echo one; echo two >&2; echo three"]);
			assert.deepEqual([stdout, stderr], ["one\nthree\n", "two\n"]);
		},
	},
	{
		id: "log-partial",
		name: "a long line is cut into marked parts and nothing of it is lost",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", `head -c ${LONG_LINE_BYTES} /dev/zero | tr '\\0' y; echo; echo after`]);
			await container.exited();
			assert.equal(container.logText(), `${"y".repeat(LONG_LINE_BYTES)}\nafter\n`);
			assert.ok(container.log().some(({ tag }) => tag === "P"));
		},
	},
	{
		id: "log-no-newline",
		name: "a last line without an end is in the log",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "printf unfinished"]);
			await container.exited();
			assert.equal(container.logText().trimEnd(), "unfinished");
		},
	},
	{
		id: "log-large",
		name: "twenty thousand lines arrive whole and in order, also when the container ends at once",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", `seq 1 ${LINES}`]);
			await container.exited();
			// containerd 1.6 writes the last lines a moment after it tells the end.
			await container.logged(new RegExp(`^${LINES}$`, "m"));
			assert.equal(container.logText(), Array.from({ length: LINES }, (_, index) => `${index + 1}\n`).join(""));
		},
	},
	{
		id: "log-reopen",
		name: "a renamed log file is opened anew, and no line is lost",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"]);
			await container.logged(/^3$/m);
			const old = `${container.logFile}.1`;
			renameSync(container.logFile, old);
			await context.bed.client.reopenLog(container.id);
			await eventually("lines in the new file", WAIT_MS, () => (container.log().length > 2 ? true : undefined));
			await container.stop(0);
			const numbers = [...container.log(old), ...container.log()].map(({ text }) => Number(text));
			assert.deepEqual(
				numbers,
				numbers.map((_, index) => index + 1),
			);
		},
	},
	{
		id: "log-tty",
		name: "the output of a container with a terminal is in the log",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "tty; echo done >&2"], { tty: true });
			await container.exited();
			assert.match(container.logText(), /\/dev\/.*\ndone/);
		},
	},
	{
		id: "log-none",
		name: "a container without a log path runs",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "echo nobody; exit 6"], { log_path: "" });
			assert.equal((await container.exited()).exit_code, 6);
		},
	},
	{
		id: "log-fast-exit",
		name: "the output of a container that ends at once is in the log when its end is known",
		check: async (context) => {
			const pod = await context.pod();
			for (const word of ["a", "b", "c"]) assert.equal(await pod.output(`echo ${word}`), word);
		},
	},
];
