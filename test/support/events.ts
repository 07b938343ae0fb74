/** containerd's event stream, read through `ctr events`. */
import { Child } from "./process.ts";
import type { Ctr } from "./ctr.ts";

/** One event of the namespace. */
export type ContainerdEvent = {
	/** For example `/tasks/exit`. */
	readonly topic: string;
	/** The event's fields as containerd prints them (its JSON leaves out zeros and empty texts). */
	readonly fields: Readonly<Record<string, unknown>>;
};

const SUBSCRIBE_TIMEOUT_MS = 10_000;

/** Parses one line of `ctr events`: date, time, zone offset, zone, namespace, topic, JSON. Undefined for other text. */
export function parseEventLine(line: string): ContainerdEvent | undefined {
	const match = line.match(/^\S+ \S+ \S+ \S+ \S+ (\/\S+) (\{.*\})$/);
	if (match?.[1] === undefined || match[2] === undefined) return undefined;
	return { topic: match[1], fields: JSON.parse(match[2]) as Record<string, unknown> };
}

/** A subscription. Its owner calls `stop`. */
export class EventStream {
	readonly #child: Child;

	private constructor(child: Child) {
		this.#child = child;
	}

	/** Subscribes and waits until the subscription works: a label on a throw-away image is an event that must arrive. */
	static async open(ctr: Ctr, imageName: string): Promise<EventStream> {
		const child = new Child(ctr.argv("events"));
		const stream = new EventStream(child);
		try {
			let seen = false;
			const arrival = child.waitForOutput(/\/images\/update/, SUBSCRIBE_TIMEOUT_MS).then(() => {
				seen = true;
			});
			arrival.catch(() => undefined);
			for (let round = 0; !seen && round < 50; round++) {
				await ctr.callOk(["image", "label", imageName, `round=${round}`]);
			}
			await arrival;
			return stream;
		} catch (error) {
			child.kill();
			throw error;
		}
	}

	/** All events so far, in order of arrival. */
	get events(): ContainerdEvent[] {
		return this.#child.stdout
			.split("\n")
			.slice(0, -1)
			.map(parseEventLine)
			.filter((event) => event !== undefined);
	}

	/** The task events of one container, in order of arrival. */
	ofContainer(id: string): ContainerdEvent[] {
		return this.events.filter((event) => event.topic.startsWith("/tasks/") && event.fields["container_id"] === id);
	}

	/** Waits for an event that has happened or will happen. */
	async waitFor(what: string, timeoutMs: number, matches: (event: ContainerdEvent) => boolean): Promise<ContainerdEvent> {
		await this.#child.waitUntil(() => this.events.some(matches), what, timeoutMs);
		const event = this.events.find(matches);
		if (event === undefined) throw new Error(`${what}: the event vanished`);
		return event;
	}

	/** Waits for one topic of one container, such as `/tasks/exit`. */
	async waitForTopic(id: string, topic: string, timeoutMs: number): Promise<ContainerdEvent> {
		return await this.waitFor(
			`event ${topic} of ${id}`,
			timeoutMs,
			(event) => event.topic === topic && event.fields["container_id"] === id,
		);
	}

	stop(): void {
		this.#child.kill();
	}
}
