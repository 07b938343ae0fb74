/** Files that a person names on the command line, read with a bound on their size. */

import { open } from "node:fs/promises";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/**
 * Reads a file of at most `maxBytes`.
 * @param what names it in errors: "the report"
 * @throws ShimError `call.invalid` when it is missing, unreadable, no plain file, or larger
 */
export async function readInput(path: string, what: string, maxBytes: number): Promise<Buffer> {
	try {
		const file = await open(path);
		try {
			const stats = await file.stat();
			if (stats.isDirectory()) throw new ShimError("call.invalid", `${what} ${path} is a folder`, { remedy: "name a file" });
			return await readUpTo(file, maxBytes, `${what} ${path}`);
		} finally {
			await file.close();
		}
	} catch (error) {
		if (error instanceof ShimError) throw error;
		const text = errnoOf(error) === "ENOENT" ? "does not exist" : `can't be read: ${messageOf(error)}`;
		throw new ShimError("call.invalid", `${what} ${path} ${text}`, { remedy: "check the path" });
	}
}

/** Pipes and files of /proc tell no size: what counts is how much comes. */
async function readUpTo(file: Awaited<ReturnType<typeof open>>, maxBytes: number, name: string): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let total = 0;
	for await (const chunk of file.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>) {
		total += chunk.length;
		if (total > maxBytes)
			throw new ShimError("call.invalid", `${name} is larger than ${maxBytes} bytes`, { remedy: "this is not the file that is meant" });
		chunks.push(chunk);
	}
	return Buffer.concat(chunks);
}
