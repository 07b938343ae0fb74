/**
 * snpd, the daemon of a node: wires keepers, services and pods together. Started by a keeper or by systemd with its listening socket as
 * descriptor 3 (docs/contracts.md); run by hand it binds the socket itself. It may be killed at any instant: the next one takes up.
 */

import { join } from "node:path";
import { env, exit, pid, stdout } from "node:process";

import { descriptorSink } from "../base/descriptor-sink.ts";
import { explain, ShimError } from "../base/errors.ts";
import { Log } from "../base/log.ts";
import type { LogLevel } from "../base/log.ts";
import { CONFIG_FILE_VARIABLE, daemonSocket, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { loadConfig } from "../config/load.ts";
import { defaultConfig } from "../config/schema.ts";
import type { Config } from "../config/schema.ts";
import { releaseConstantPages } from "../host/own-pages.ts";
import { PodNode } from "../pod/node.ts";
import type { PodEvent, PodIdentity } from "../pod/ports.ts";
import { answerControl } from "../service/control.ts";
import { encodeEvent } from "../service/events.ts";
import { SANDBOX_SERVICE, SandboxService } from "../service/sandbox-service.ts";
import { failedAnswer } from "../service/status.ts";
import { TASK_SERVICES, TaskService } from "../service/task-service.ts";
import type { Keeper, KeeperAnswer, KeeperRequest } from "../wire/keeper.ts";
import { serveKeepers } from "../wire/keeper-server.ts";
import { Outbox } from "../wire/outbox.ts";
import { EventPublishers } from "../wire/publisher.ts";
import { SNPD_USAGE, stateDirArgument } from "./arguments.ts";
import { IdleEnd } from "./idle-end.ts";
import { VERSION } from "./version.ts";

/** First inherited descriptor (systemd, sd_listen_fds(3)). */
const LISTEN_FD = 3;
const STDERR = 2;
/** How long containerd may take to close its connections to a keeper whose pod has ended. */
const LEAVE_MS = 200;
/** How long an snpd without a configuration stays when nobody is connected. */
const IDLE_MS = 60_000;
/** What containerd's clients wait for: these events come also when snpd is killed before containerd has taken them. */
const LASTING_EVENTS: ReadonlySet<PodEvent["kind"]> = new Set<PodEvent["kind"]>(["exit", "delete", "oom"]);
const sink = descriptorSink(STDERR);

async function main(): Promise<void> {
	const [word] = process.argv.slice(2);
	if (word === "--help" || word === "-h") return void stdout.write(`${SNPD_USAGE}\n`);
	if (word === "--version") return void stdout.write(`snpd ${VERSION}\n`);
	const log = new Log(sink).with({ snpd: pid });
	const { stateDir, level, memory, astray } = await settings(log);
	log.setLevel(level);
	const publishers = new EventPublishers(log);
	const outbox = new Outbox(join(stateDir, "e"), publishers, log);
	outbox.resume();
	const publish = (identity: PodIdentity, event: PodEvent): void => {
		const encoded = { namespace: identity.namespace, ...encodeEvent(event) };
		if (LASTING_EVENTS.has(event.kind)) outbox.publish(identity, encoded);
		else void publishers.for(identity).publish(encoded);
	};
	const defaultConfigFile = env[CONFIG_FILE_VARIABLE] ?? DEFAULT_CONFIG_FILE;
	const node = new PodNode({ stateDir, defaultConfigFile, publish, log, memory });
	await node.recover();
	const services: Services = { tasks: new TaskService(node, VERSION), sandboxes: new SandboxService(node) };
	let idle: IdleEnd | undefined;
	const listen = env.LISTEN_FDS === undefined ? daemonSocket(stateDir) : LISTEN_FD;
	const server = await serveKeepers(
		listen,
		{
			attached: (keeper) => node.attach(keeper.hello.podKey, mover(keeper), keeper.hello.bundle, keeper.hello.resumed),
			gone: (keeper) => node.detach(keeper.hello.podKey),
			request: (keeper, request) => answer(services, keeper, request, log),
			control: (request) => answerControl(node, request),
			connections: (count) => idle?.connections(count),
		},
		log,
	);
	log.info("snpd serves", { version: VERSION, stateDir });
	// Most of Node.js that was read so far only starts programs: what goes on being used is less than half of it.
	log.debug("pages of programs are given back", { bytes: releaseConstantPages() });
	const stop = (): void => {
		// Pods go on without snpd: only what is owed to containerd is sent first. VMs that no pod has would be of use to nobody.
		server
			.close()
			.then(() => node.pool.close())
			.then(() => outbox.close())
			.then(() => publishers.close())
			.catch((error: unknown) => log.error("stopping", error))
			.finally(() => exit(0));
	};
	// Where a keeper could not read state_dir either, this may be the wrong folder: nobody would ever come back to it.
	if (astray) idle = new IdleEnd({ idleMs: IDLE_MS, busy: () => node.list().length > 0, end: stop });
	process.once("SIGTERM", stop);
	process.once("SIGINT", stop);
	process.on("unhandledRejection", (error) => log.error("a failure that nobody waited for", error));
}

/** @returns `astray`: a keeper named the state folder, and the configuration can't be read */
async function settings(log: Log): Promise<{ stateDir: string; level: LogLevel; memory: Config["memory"]; astray: boolean }> {
	const given = stateDirArgument(process.argv.slice(2));
	const file = env[CONFIG_FILE_VARIABLE];
	try {
		const config = await loadConfig(file ?? DEFAULT_CONFIG_FILE, { required: file !== undefined });
		return { stateDir: given ?? config.state_dir, level: config.log.level, memory: config.memory, astray: false };
	} catch (error) {
		// A keeper that waits must get an answer: each pod's Create will say what is wrong with the configuration.
		if (given === undefined) throw error;
		log.error("the configuration is wrong", error);
		return { stateDir: given, level: "info", memory: defaultConfig().memory, astray: true };
	}
}

function mover(keeper: Keeper) {
	return {
		pid: keeper.hello.pid,
		openStream: keeper.openStream.bind(keeper),
		stream: keeper.stream.bind(keeper),
		lingerOthers: keeper.lingerOthers.bind(keeper),
		// The call that ends the pod is answered first: END makes the keeper exit, and answers that are settled by now go out before the next turn.
		end: () => void setImmediate(() => keeper.endWhenLeft(LEAVE_MS)),
	};
}

/** What containerd calls. */
interface Services {
	readonly tasks: TaskService;
	readonly sandboxes: SandboxService;
}

function serviceNamed(name: string, { tasks, sandboxes }: Services): TaskService | SandboxService {
	if (TASK_SERVICES.has(name)) return tasks;
	if (name === SANDBOX_SERVICE) return sandboxes;
	throw new ShimError("call.unimplemented", `there is no service ${name}`);
}

async function answer(services: Services, keeper: Keeper, request: KeeperRequest, log: Log): Promise<KeeperAnswer> {
	const { podKey, namespace, podId, address, ttrpcAddress, publishBinary, configFile } = keeper.hello;
	const identity = { key: podKey, namespace, podId, address, ttrpcAddress, publishBinary, configFile };
	try {
		const { method, replay, timeoutMs } = request;
		const payload = await serviceNamed(request.service, services).call(method, request.payload, {
			identity,
			mover: mover(keeper),
			replay,
			timeoutMs,
		});
		log.debug("call answered", { method: request.method, pod: podId, replay: request.replay });
		return { payload };
	} catch (error) {
		const failed = failedAnswer(error);
		log.info("call failed", { method: request.method, pod: podId, code: failed.code, error: failed.message });
		return failed;
	}
}

main().catch((error: unknown) => {
	sink(`snpd: ${explain(error)}\n`);
	exit(1);
});
