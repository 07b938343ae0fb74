/**
 * The one error type of the shim. Every failure that an operator can see is a ShimError: it says what was attempted, on what,
 * and what can be done, and carries containerd's error code to the end.
 */

import { CATALOGUE } from "./catalogue.ts";
import type { ErrorCode, ErrorReason } from "./catalogue.ts";

export type { ErrorCode, ErrorReason } from "./catalogue.ts";

/** What a ShimError is made of besides its reason. */
export interface ShimErrorOptions {
	/** What the operator can do about it, when that is more precise than the catalogue's remedy. */
	readonly remedy?: string;
	/** The failure underneath, whatever was thrown. */
	readonly cause?: unknown;
}

/** A failure with a stable reason from the catalogue, containerd's code for it, and a remedy. */
export class ShimError extends Error {
	override readonly name = "ShimError";
	readonly reason: ErrorReason;
	readonly code: ErrorCode;
	readonly remedy: string;

	/** @param message what was attempted, on what, and how it failed: one sentence without a full stop */
	constructor(reason: ErrorReason, message: string, options: ShimErrorOptions = {}) {
		super(message, options.cause === undefined ? undefined : { cause: options.cause });
		this.reason = reason;
		this.code = CATALOGUE[reason].code;
		this.remedy = options.remedy ?? CATALOGUE[reason].remedy;
	}
}

const MAX_CAUSES = 8;

/**
 * One line for people: the message, its chain of causes, the remedy.
 * Repeated texts in the chain are said once; the chain is cut at eight links.
 */
export function explain(error: unknown): string {
	const parts: string[] = [];
	let remedy = "";
	let link: unknown = error;
	for (let depth = 0; depth < MAX_CAUSES && link !== undefined && link !== null; depth++) {
		const text = messageOf(link);
		if (text !== "" && !parts.some((part) => part.includes(text))) parts.push(text);
		if (remedy === "" && link instanceof ShimError) remedy = link.remedy;
		link = link instanceof AggregateError ? link.errors[0] : link instanceof Error ? link.cause : undefined;
	}
	const text = parts.join(": ");
	return remedy === "" ? text : `${text} (${remedy})`;
}

/** The message of anything that was thrown. */
export function messageOf(thrown: unknown): string {
	if (thrown instanceof Error) return thrown.message === "" ? thrown.name : thrown.message;
	return String(thrown);
}

/** The errno name (`ENOENT`) of a system error, or undefined. */
export function errnoOf(thrown: unknown): string | undefined {
	if (!(thrown instanceof Error) || !("code" in thrown)) return undefined;
	return typeof thrown.code === "string" ? thrown.code : undefined;
}

/** Gives a thrown value as a ShimError: unchanged when it is one, else wrapped under `reason`. */
export function asShimError(thrown: unknown, reason: ErrorReason, message: string): ShimError {
	return thrown instanceof ShimError ? thrown : new ShimError(reason, message, { cause: thrown });
}
