/** One container's everyday life: run, exit codes, exec, environment, signals, removal, pause, metrics, events. Alike on the shim and on runc. */
import { readFileSync } from "node:fs";
import { RUNC_RUNTIME } from "../support/ctr.ts";
import { EventStream } from "../support/events.ts";
import { runCases, type Case } from "../support/fixture.ts";
import { buildImage, busyboxMembers } from "../support/image.ts";
import { Child } from "../support/process.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 60_000;
const LARGE_ENV_BYTES = 100_000;

const cases: Case[] = [
	{
		name: "run: output, error output and exit code come through, each on its own way",
		check: async (t, { ctr }) => {
			const finished = await ctr.run(ctr.newId("run"), ["sh", "-c", "echo to stdout; echo to stderr >&2; exit 42"]);
			t.equal(finished.stdout, "to stdout\n");
			t.equal(finished.stderr, "to stderr\n");
			t.equal(finished.code, 42);
		},
	},
	{
		name: "run: the kernel is the guest's own in a VM, the host's under runc",
		check: async (t, { ctr, isVm }) => {
			const { stdout } = await ctr.run(ctr.newId("kernel"), ["cat", "/proc/sys/kernel/random/boot_id", "/proc/version"]);
			const host = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
			t.match(stdout, /^[0-9a-f-]{36}\nLinux version /);
			t.equal(stdout.includes(host), !isVm);
		},
	},
	{
		name: "environment, working directory, user, groups and arguments arrive unchanged",
		check: async (t, { ctr, containerd }) => {
			// The user comes from the image: ctr 1.6 has no flag for it.
			const image = await buildImage(containerd.rootDir, {
				name: "docker.io/library/snp-user:latest",
				members: busyboxMembers(),
				user: "guest:extra",
				env: ["FROM_IMAGE=yes"],
			});
			await ctr.importImage(image);
			const large = "x".repeat(LARGE_ENV_BYTES);
			const script = 'echo "$ODD|$FROM_IMAGE|$PWD|$(id -u):$(id -g)|$#|$2"; echo "${#LARGE}"';
			const finished = await ctr.run(ctr.newId("env"), ["sh", "-c", script, "sh", "", "a  b\n'c\""], {
				flags: ["--env", "ODD=a b=c $d", "--env", `LARGE=${large}`, "--cwd", "/usr/bin"],
				image,
			});
			t.equal(finished.stderr, "");
			t.equal(finished.stdout, `a b=c $d|yes|/usr/bin|1000:1002|2|a  b\n'c"\n${LARGE_ENV_BYTES}\n`);
		},
	},
	{
		name: "a read-only root refuses writes; a writable one takes them and forgets them",
		check: async (t, { ctr }) => {
			const sealed = await ctr.run(ctr.newId("sealed"), ["touch", "/bin/new"], { flags: ["--read-only"] });
			t.equal(sealed.code, 1);
			t.match(sealed.stderr, /Read-only file system/);
			const open = await ctr.run(ctr.newId("open"), ["sh", "-c", "echo kept > /bin/new && rm /bin/ls && cat /bin/new; /bin/ls"]);
			t.equal(open.stdout, "kept\n");
			t.equal(open.code, 127);
			t.equal((await ctr.run(ctr.newId("again"), ["ls", "/bin/new"])).code, 1, "another container of the image does not see it");
		},
	},
	{
		name: "the host name is the one that was asked for",
		check: async (t, { ctr, containerd }) => {
			// ctr 1.6 has no flag for it: there the name is left to the runtime, and only has to be a name.
			const flags = containerd.version === "1.6" ? [] : ["--hostname", "pod-of-tests"];
			const { stdout } = await ctr.run(ctr.newId("host"), ["hostname"], { flags });
			t.match(stdout, containerd.version === "1.6" ? /^\S+\n$/ : /^pod-of-tests\n$/);
		},
	},
	{
		name: "exec: exit code, streams, environment of the container, user; ps and metrics; a second start is refused",
		check: async (t, { ctr, image }) => {
			const id = ctr.newId("exec");
			await ctr.detach(id, ["sh", "-c", "echo first > /tmp/mark; sleep 1000"]);
			const plain = await ctr.exec(id, ["sh", "-c", "cat; echo $FROM_IMAGE; echo bad >&2; exit 7"], { stdin: "typed\n" });
			t.strictSame([plain.stdout, plain.stderr, plain.code], ["typed\nyes\n", "bad\n", 7]);
			const user = await ctr.exec(id, ["sh", "-c", "id -u; pwd"], { flags: ["--user", "1000", "--cwd", "/usr"] });
			t.strictSame([user.stdout, user.code], ["1000\n/usr\n", 0]);

			const missing = await ctr.exec(id, ["/bin/no-such-program"]);
			t.not(missing.code, 0);
			t.match(missing.stderr, /no-such-program/, "the missing command is named");
			t.equal(await ctr.status(id), "RUNNING", "a failed exec leaves the container alone");

			const ps = await ctr.callOk(["task", "ps", id]);
			t.match(ps.stdout, /PID\s+INFO\s+\d+/);
			const metrics = JSON.parse((await ctr.callOk(["task", "metrics", "--format", "json", id])).stdout) as {
				readonly memory?: { readonly usage?: { readonly usage?: number } | number };
				readonly pids?: { readonly current?: number };
			};
			const usage = metrics.memory?.usage;
			t.ok((typeof usage === "number" ? usage : (usage?.usage ?? 0)) > 0, "memory use is more than nothing");
			t.ok((metrics.pids?.current ?? 0) > 0, "there are processes");

			const again = await ctr.call(["run", "--detach", "--null-io", "--runtime", ctr.runtime, image.name, id, "true"]);
			t.not(again.code, 0);
			t.match(again.stderr, new RegExp(`${id}.*already exists`), "the live id is named");
			const start = await ctr.call(["task", "start", "--detach", "--null-io", id]);
			t.not(start.code, 0);
			t.match(start.stderr, /already exists/);
			t.equal(await ctr.status(id), "RUNNING", "the live container is untouched");
			t.equal((await ctr.exec(id, ["cat", "/tmp/mark"])).stdout, "first\n");
			await ctr.remove(id);
			t.strictSame(await ctr.tasks(), []);
		},
	},
	{
		name: "pause and resume: nothing runs in between",
		check: async (t, { ctr }) => {
			const id = ctr.newId("pause");
			await ctr.detach(id, ["sh", "-c", "while :; do echo >> /tmp/count; sleep 0.05; done"]);
			await ctr.callOk(["task", "pause", id]);
			t.equal(await ctr.status(id), "PAUSED");
			await ctr.callOk(["task", "resume", id]);
			t.equal(await ctr.status(id), "RUNNING");
			const count = async (): Promise<number> => Number((await ctr.exec(id, ["sh", "-c", "wc -l < /tmp/count"])).stdout);
			const before = await count();
			t.ok(
				await eventually("more lines after resume", WAIT_MS, async () => ((await count()) > before ? true : undefined)),
				"it goes on after resume",
			);
			await ctr.remove(id);
		},
	},
	{
		name: "signals: TERM is handled by the container, KILL gives 137",
		check: async (t, { ctr }) => {
			const id = ctr.newId("term");
			const child = ctr.attach(id, ["sh", "-c", "trap 'echo got TERM; exit 9' TERM; echo ready; while :; do sleep 0.1; done"], {
				flags: ["--rm"],
			});
			try {
				await child.waitForOutput(/ready/, WAIT_MS);
				t.equal((await ctr.kill(id, "SIGTERM")).code, 0);
				const finished = await child.finished(WAIT_MS);
				t.strictSame([finished.stdout, finished.code], ["ready\ngot TERM\n", 9]);
			} finally {
				child.kill();
			}
			const hard = ctr.newId("kill");
			const stubborn = ctr.attach(hard, ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], { flags: ["--rm"] });
			try {
				await stubborn.waitForOutput(/ready/, WAIT_MS);
				t.equal((await ctr.kill(hard, "SIGKILL")).code, 0);
				t.equal((await stubborn.finished(WAIT_MS)).code, 137);
			} finally {
				stubborn.kill();
			}
		},
	},
	{
		name: "removal while running: container and exec go, their clients are told",
		check: async (t, { ctr }) => {
			const id = ctr.newId("remove");
			await ctr.detach(id, ["sleep", "1000"]);
			const exec = new Child(ctr.execArgv(id, ["sh", "-c", "echo in; sleep 1000"]));
			try {
				await exec.waitForOutput(/in\n/, WAIT_MS);
				await ctr.remove(id);
				t.not((await exec.finished(WAIT_MS)).code, 0);
			} finally {
				exec.kill();
			}
		},
	},
	{
		name: "events come in containerd's order, with the exit codes",
		check: async (t, { ctr, image, isVm }) => {
			const events = await EventStream.open(ctr, image.name);
			try {
				const id = ctr.newId("events");
				await ctr.detach(id, ["sh", "-c", "sleep 1000"]);
				t.equal((await ctr.exec(id, ["sh", "-c", "exit 3"])).code, 3);
				await ctr.kill(id, "SIGKILL");
				await events.waitFor("the exit of the container", WAIT_MS, (event) => event.topic === "/tasks/exit" && event.fields["id"] === id);
				await ctr.callOk(["task", "rm", id]);
				await ctr.callOk(["container", "rm", id]);
				await events.waitFor(
					"the removal of the container",
					WAIT_MS,
					(event) => event.topic === "/containers/delete" && event.fields["id"] === id,
				);
				// runc's shim may end before it has sent this last event.
				if (isVm) await events.waitForTopic(id, "/tasks/delete", WAIT_MS);
				const seen = events.ofContainer(id);
				const order = ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit"];
				t.strictSame(
					seen.map((event) => event.topic).filter((topic) => topic !== "/tasks/delete"),
					order,
				);
				if (isVm) t.equal(seen.at(-1)?.topic, "/tasks/delete", "the deletion comes last");
				const exits = seen.filter((event) => event.topic === "/tasks/exit").map((event) => event.fields["exit_status"]);
				t.strictSame(exits, [3, 137]);
			} finally {
				events.stop();
			}
		},
	},
	{
		name: "memory limit: the process is killed with 137 and the event tells why",
		check: async (t, { ctr, image }) => {
			const events = await EventStream.open(ctr, image.name);
			try {
				const id = ctr.newId("oom");
				const finished = await ctr.run(id, ["tail", "/dev/zero"], { flags: ["--memory-limit", String(32 * 1024 * 1024)] });
				t.equal(finished.code, 137);
				await events.waitForTopic(id, "/tasks/oom", WAIT_MS);
			} finally {
				events.stop();
			}
		},
	},
	{
		name: "five containers in parallel, each with its own output and exit code",
		check: async (t, { ctr }) => {
			const results = await Promise.all(
				[1, 2, 3, 4, 5].map(
					async (n) => await ctr.run(ctr.newId("many"), ["sh", "-c", `echo I am ${n}; exit ${n}`], { timeoutMs: 120_000 }),
				),
			);
			t.strictSame(
				results.map(({ stdout, code }) => [stdout, code]),
				[1, 2, 3, 4, 5].map((n) => [`I am ${n}\n`, n]),
			);
		},
	},
	{
		name: "a command that does not exist is named, and so is a file that is no program",
		check: async (t, { ctr, target }) => {
			const missing = await ctr.run(ctr.newId("missing"), ["/bin/no-such-program", "--flag"]);
			t.not(missing.code, 0);
			t.match(missing.stderr, /no-such-program/);
			t.match(missing.stderr, /no such file|not found|does not exist/i);
			const plain = await ctr.run(ctr.newId("plain"), ["/etc/passwd"]);
			t.not(plain.code, 0);
			t.match(plain.stderr, /\/etc\/passwd/);
			t.match(plain.stderr, target.runtime === RUNC_RUNTIME ? /permission denied/ : /permission denied|not executable/i);
		},
	},
];

await runCases(cases, { withControl: true });
