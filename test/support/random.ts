/** Pseudo-random input from a seed, so that a failure can be repeated. */

/** Pseudo-random numbers from a seed (xorshift): integers from 0 up to (not including) `below`. */
export function randomSource(seed: number): (below: number) => number {
	let state = seed >>> 0 || 1;
	return (below) => {
		state ^= state << 13;
		state ^= state >>> 17;
		state ^= state << 5;
		return (state >>> 0) % below;
	};
}

/** Bytes from a random source. */
export function randomBytes(random: (below: number) => number, length: number): Buffer {
	const bytes = Buffer.alloc(length);
	for (let index = 0; index < length; index++) bytes[index] = random(256);
	return bytes;
}
