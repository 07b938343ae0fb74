/**
 * Ownership of resources: whoever acquires one defers its release on the next line. A scope releases in reverse order, each release
 * once and within its own bound, and reports every failure.
 */

import { messageOf, ShimError } from "./errors.ts";

/** Gives a resource back. */
export type Release = () => void | Promise<void>;

interface Entry {
	readonly name: string;
	readonly release: Release;
	/** The scope that this entry closes, if it stands for one. */
	readonly child?: Scope;
}

const RELEASE_BOUND_MS = 10_000;

/** A stack of named releases. */
export class Scope {
	readonly name: string;
	#entries: Entry[] = [];
	#closing: Promise<void> | undefined;
	/** The scope that closes this one. */
	#owner: Scope | undefined;

	/** @param name what the scope belongs to, for messages: `pod abc`, `exec abc/1` */
	constructor(name: string) {
		this.name = name;
	}

	/** True once `close` was called. */
	get closed(): boolean {
		return this.#closing !== undefined;
	}

	/**
	 * Registers how to give a resource back. After `close` the release runs at once, since nobody else will: a late acquirer must not leak.
	 */
	defer(name: string, release: Release): void {
		this.#add({ name, release });
	}

	#add(entry: Entry): void {
		if (this.#closing === undefined) {
			this.#entries.push(entry);
			return;
		}
		const release = (): Promise<void> => runAll(this.name, [entry]);
		this.#closing = this.#closing.then(release, async (failure: unknown) => {
			await release();
			throw failure;
		});
		this.#closing.catch(() => undefined);
	}

	/** Releases one resource now, by name (the newest of that name), and forgets it. Does nothing when the name is unknown. */
	async release(name: string): Promise<void> {
		const index = this.#entries.findLastIndex((entry) => entry.name === name);
		if (index < 0) return;
		const [entry] = this.#entries.splice(index, 1);
		if (entry !== undefined) await runAll(this.name, [entry]);
	}

	/**
	 * Hands one resource to the caller, by name (the newest of that name): this scope releases it no more.
	 * @returns its release; undefined when the name is unknown
	 */
	take(name: string): Release | undefined {
		const index = this.#entries.findLastIndex((entry) => entry.name === name);
		return index < 0 ? undefined : this.#entries.splice(index, 1)[0]?.release;
	}

	/** Hands all resources over to another scope, which then owns them; this one is empty afterwards and stays usable. */
	moveTo(owner: Scope): void {
		const moved = this.#entries;
		this.#entries = [];
		for (const entry of moved) {
			if (entry.child !== undefined) entry.child.#owner = owner;
			owner.#add(entry);
		}
	}

	/** A scope of its own that closes with this one, which forgets it when it has closed before. */
	child(name: string): Scope {
		const child = new Scope(`${this.name}/${name}`);
		child.#owner = this;
		this.#add({ name, release: () => child.close(), child });
		return child;
	}

	#forgetChild(child: Scope): void {
		this.#entries = this.#entries.filter((entry) => entry.child !== child);
	}

	/**
	 * Releases everything, newest first. Calling it again gives the same outcome.
	 * @throws an AggregateError of all releases that failed or took longer than ten seconds
	 */
	close(): Promise<void> {
		if (this.#closing === undefined) {
			const entries = this.#entries;
			this.#entries = [];
			this.#closing = runAll(this.name, entries.reverse()).finally(() => {
				if (this.#owner !== undefined) this.#owner.#forgetChild(this);
			});
		}
		return this.#closing;
	}
}

async function runAll(scope: string, entries: readonly Entry[]): Promise<void> {
	const failures: unknown[] = [];
	for (const entry of entries) {
		try {
			await bounded(scope, entry);
		} catch (error) {
			failures.push(new ShimError("internal", `releasing ${entry.name} of ${scope} failed: ${messageOf(error)}`, { cause: error }));
		}
	}
	if (failures.length > 0) throw new AggregateError(failures, `releasing ${scope}: ${failures.map(messageOf).join("; ")}`);
}

async function bounded(scope: string, entry: Entry): Promise<void> {
	const outcome = entry.release();
	if (outcome === undefined) return;
	let timer: NodeJS.Timeout | undefined;
	const limit = new Promise<never>((_, reject) => {
		timer = setTimeout(
			() => reject(new ShimError("wait.deadline", `${entry.name} of ${scope} was not released in ${RELEASE_BOUND_MS} ms`)),
			RELEASE_BOUND_MS,
		);
	});
	try {
		await Promise.race([outcome, limit]);
	} finally {
		clearTimeout(timer);
	}
}
