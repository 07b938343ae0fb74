/** Further commands in running containers: to their end (ExecSync) and streamed (Exec, Attach). */
import assert from "node:assert/strict";
import { CriError } from "../../support/cri/client.ts";
import type { ConformanceCase } from "../context.ts";

const PARALLEL = 8;
const LARGE_BYTES = 1_500_000;

export const EXEC: readonly ConformanceCase[] = [
	{
		id: "exec-output",
		name: "output, error output and exit code of a command come back apart",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const result = await container.sh("echo out; echo err >&2; exit 5");
			assert.deepEqual(result, { stdout: "out\n", stderr: "err\n", exitCode: 5 });
		},
	},
	{
		id: "exec-surroundings",
		name: "a command has the container's environment, user, working folder and processes",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({
				envs: [{ key: "COLOUR", value: "blue and green" }],
				working_dir: "/usr",
				security: { run_as_user: { value: 1000 } },
			});
			assert.equal(await container.output('echo "$COLOUR $(pwd) $(id -u)"'), "blue and green /usr 1000");
			assert.match(await container.output("cat /proc/1/cmdline | tr '\\0' ' '"), /sleep 100000/);
		},
	},
	{
		id: "exec-missing",
		name: "a command that does not exist is an error that names it, at once; the container goes on",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await assert.rejects(container.exec(["/bin/no-such-program"]), /no-such-program/);
			assert.equal(await container.output("echo alive"), "alive");
		},
	},
	{
		id: "exec-not-executable",
		name: "a file that is no program is an error",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await assert.rejects(container.exec(["/etc/passwd"]), /permission denied/i);
		},
	},
	{
		id: "exec-timeout",
		name: "a command that takes too long is killed; the container goes on",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await assert.rejects(
				container.exec(["sleep", "1000"], 1),
				(error: CriError) => error.code === 4 || /deadline|timeout/i.test(error.details),
			);
			assert.equal(await container.output("ps | grep -c 'sleep 100[0]$' || true"), "0");
		},
	},
	{
		id: "exec-large",
		name: "more than a megabyte of output arrives whole",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const { stdout } = await container.sh(`head -c ${LARGE_BYTES} /dev/zero | tr '\\0' x`);
			assert.equal(stdout, "x".repeat(LARGE_BYTES));
		},
	},
	{
		id: "exec-parallel",
		name: "eight commands at once, each with its own output",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const outputs = await Promise.all(
				Array.from({ length: PARALLEL }, async (_, number) => await container.output(`sleep 0.2; echo ${number}`)),
			);
			assert.deepEqual(
				outputs,
				Array.from({ length: PARALLEL }, (_, number) => String(number)),
			);
		},
	},
	{
		id: "exec-stopped",
		name: "a command in a container that has ended is refused",
		check: async (context) => {
			const container = await (await context.pod()).run(["true"]);
			await container.exited();
			await assert.rejects(container.sh("true"), CriError);
		},
	},
	{
		id: "exec-created",
		name: "a command in a container that was not started is refused",
		check: async (context) => {
			const container = await (await context.pod()).create(["true"]);
			await assert.rejects(container.sh("true"), CriError);
		},
	},
	{
		id: "exec-killed",
		name: "a command that a signal ended has 128 and the signal's number",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			assert.equal((await container.sh("kill -9 $$")).exitCode, 137);
		},
	},
	{
		id: "exec-background",
		name: "what a command leaves in the background goes on in the container",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			await container.output("sleep 4321 > /dev/null 2>&1 &");
			assert.match(await container.output("ps"), /sleep 4321/);
		},
	},
	{
		id: "stream-exec",
		name: "a streamed command: input, output, error output, exit code",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const session = await container.stream(["sh", "-c", "echo start; read line; echo got $line; echo bad >&2; exit 9"], {
				stdin: true,
				stdout: true,
				stderr: true,
			});
			try {
				await session.waitForOutput(/start/);
				session.write("hello\n");
				assert.equal((await session.ended()).exitCode, 9);
				assert.equal(session.stdout, "start\ngot hello\n");
				assert.equal(session.stderr, "bad\n");
			} finally {
				session.close();
			}
		},
	},
	{
		id: "stream-exec-tty",
		name: "a streamed command with a terminal, whose size can be changed",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const session = await container.stream(["sh"], { stdin: true, stdout: true, tty: true });
			try {
				session.resize(101, 37);
				// The size comes on a way of its own: the shell is asked until it is there.
				session.write("tty; until stty size | grep -q '37 101'; do sleep 0.1; done; stty size\n");
				await session.waitForOutput(/\r\n37 101\r\n/);
				assert.match(session.stdout, /\/dev\/(pts\/\d+|console)\r\n/);
				session.write("exit 4\n");
				assert.equal((await session.ended()).exitCode, 4);
			} finally {
				session.close();
			}
		},
	},
	{
		id: "stream-exec-missing",
		name: "a streamed command that does not exist is an error that names it",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const session = await container.stream(["/bin/no-such-program"], { stdout: true, stderr: true });
			try {
				assert.match((await session.ended()).message, /no-such-program/);
			} finally {
				session.close();
			}
		},
	},
	{
		id: "attach-output",
		name: "attached to a container its output is seen",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "while :; do echo tick; sleep 0.2; done"]);
			const session = await container.attach({ stdout: true, stderr: true });
			try {
				await session.waitForOutput(/tick\n/);
			} finally {
				session.close();
			}
			assert.equal((await container.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "attach-input",
		name: "attached to a container with standard input, what is written arrives",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "while read line; do echo got $line; done"], { stdin: true });
			const session = await container.attach({ stdin: true, stdout: true, stderr: true });
			try {
				session.write("first\n");
				await session.waitForOutput(/got first\n/);
				session.write("second\n");
				await session.waitForOutput(/got second\n/);
			} finally {
				session.close();
			}
		},
	},
	{
		id: "attach-tty",
		name: "attached to a container with a terminal",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh"], { stdin: true, tty: true });
			const session = await container.attach({ stdin: true, stdout: true, tty: true });
			try {
				session.write("echo $((6 * 7)); tty\n");
				await session.waitForOutput(/\r\n42\r\n\/dev\//);
				session.write("exit 12\n");
				assert.equal((await container.exited()).exit_code, 12);
			} finally {
				session.close();
			}
		},
	},
	{
		id: "stdin-once",
		name: "with stdin_once the end of the attached input is the end of the container's",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "cat; echo end"], { stdin: true, stdin_once: true });
			const session = await container.attach({ stdin: true, stdout: true, stderr: true });
			session.write("some text\n");
			await session.waitForOutput(/some text\n/);
			session.close();
			assert.equal((await container.exited()).exit_code, 0);
			assert.equal(container.logText(), "some text\nend\n");
		},
	},
];
