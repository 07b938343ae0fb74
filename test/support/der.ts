/** Writes DER, for certificates and revocation lists that tests make. */

/** An element: tag, length, content. */
export function element(tag: number, ...content: readonly Buffer[]): Buffer {
	const body = Buffer.concat(content);
	if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
	const hex = body.length.toString(16);
	const octets = Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, "hex");
	return Buffer.concat([Buffer.from([tag, 0x80 | octets.length]), octets, body]);
}

export const sequence = (...content: readonly Buffer[]): Buffer => element(0x30, ...content);
export const set = (...content: readonly Buffer[]): Buffer => element(0x31, ...content);
export const octets = (content: Buffer): Buffer => element(0x04, content);
export const bits = (content: Buffer, unused = 0): Buffer => element(0x03, Buffer.from([unused]), content);
export const text = (content: string): Buffer => element(0x13, Buffer.from(content));
export const ia5 = (content: string): Buffer => element(0x16, Buffer.from(content));
export const yes = (): Buffer => element(0x01, Buffer.from([0xff]));
export const context = (number: number, ...content: readonly Buffer[]): Buffer => element(0xa0 | number, ...content);

/** A non-negative INTEGER. */
export function integer(value: number): Buffer {
	const hex = value.toString(16);
	const bytes = Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, "hex");
	return element(0x02, (bytes[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.from([0]), bytes]) : bytes);
}

export function oid(dotted: string): Buffer {
	const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
	const arcs = [first * 40 + second, ...rest].flatMap((arc) => {
		const groups = [arc & 0x7f];
		for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift((left & 0x7f) | 0x80);
		return groups;
	});
	return element(0x06, Buffer.from(arcs));
}

/** GeneralizedTime in UTC. */
export function time(date: Date): Buffer {
	return element(0x18, Buffer.from(`${date.toISOString().slice(0, 19).replace(/[-:T]/gu, "")}Z`));
}
