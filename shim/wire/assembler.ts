/** Cuts a byte stream into frames whose header tells their length. */

/** What distinguishes one framing from another. */
export interface Framing {
	readonly headerBytes: number;
	/** Whole length of the frame, header included, read from its header. Throws when the frame is not acceptable. */
	readonly frameBytes: (header: Buffer) => number;
}

const FIRST_CAPACITY_BYTES = 4096;

/**
 * Collects chunks of any size and gives out whole frames. Holds at most one unfinished frame, in a buffer that grows with what has really
 * arrived: a peer that announces much and sends little costs little.
 */
export class Assembler {
	readonly #framing: Framing;
	#held = Buffer.alloc(0);
	#heldBytes = 0;
	/** Length of the unfinished frame once its header is complete, else of the header. */
	#wanted: number;
	#headerKnown = false;

	constructor(framing: Framing) {
		this.#framing = framing;
		this.#wanted = framing.headerBytes;
	}

	/** Bytes of the unfinished frame. */
	get pendingBytes(): number {
		return this.#heldBytes;
	}

	/**
	 * Takes a chunk and returns the frames that it completes, in order. They may share memory with the chunk.
	 * @throws what `frameBytes` throws; the assembler is of no more use then
	 */
	push(chunk: Buffer): Buffer[] {
		const frames: Buffer[] = [];
		let offset = 0;
		while (offset < chunk.length) {
			if (this.#heldBytes === 0) {
				const whole = this.#wholeFrameAt(chunk, offset);
				if (whole !== undefined) {
					frames.push(whole);
					offset += whole.length;
					continue;
				}
			}
			offset += this.#hold(chunk, offset);
			const frame = this.#takeHeld();
			if (frame !== undefined) frames.push(frame);
		}
		return frames;
	}

	#wholeFrameAt(chunk: Buffer, offset: number): Buffer | undefined {
		const { headerBytes, frameBytes } = this.#framing;
		if (chunk.length - offset < headerBytes) return undefined;
		const total = frameBytes(chunk.subarray(offset, offset + headerBytes));
		return chunk.length - offset < total ? undefined : chunk.subarray(offset, offset + total);
	}

	/** Copies what the unfinished part still wants; returns how many bytes that was. */
	#hold(chunk: Buffer, offset: number): number {
		const count = Math.min(this.#wanted - this.#heldBytes, chunk.length - offset);
		const needed = this.#heldBytes + count;
		if (needed > this.#held.length) {
			const grown = Buffer.allocUnsafe(Math.max(needed, this.#held.length * 2, FIRST_CAPACITY_BYTES));
			this.#held.copy(grown, 0, 0, this.#heldBytes);
			this.#held = grown;
		}
		chunk.copy(this.#held, this.#heldBytes, offset, offset + count);
		this.#heldBytes += count;
		return count;
	}

	#takeHeld(): Buffer | undefined {
		if (this.#heldBytes < this.#wanted) return undefined;
		if (!this.#headerKnown) {
			this.#wanted = this.#framing.frameBytes(this.#held.subarray(0, this.#framing.headerBytes));
			this.#headerKnown = true;
			if (this.#heldBytes < this.#wanted) return undefined;
		}
		const frame = this.#held.subarray(0, this.#wanted);
		this.#held = Buffer.alloc(0);
		this.#heldBytes = 0;
		this.#headerKnown = false;
		this.#wanted = this.#framing.headerBytes;
		return frame;
	}
}
