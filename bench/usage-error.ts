/** A mistake in the arguments; its text is for the user. */
export class UsageError extends Error {
	override readonly name = "UsageError";
}
