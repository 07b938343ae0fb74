/** Flame graphs of V8's processor profiles: how wide a function is drawn is how long it, or what it called, was seen at work. */
import { basename } from "node:path";
import * as v from "valibot";
import { escaped } from "./markup.ts";

const profileSchema = v.object({
	nodes: v.array(
		v.object({
			id: v.number(),
			callFrame: v.object({ functionName: v.string(), url: v.string(), lineNumber: v.number() }),
			children: v.optional(v.array(v.number()), []),
		}),
	),
	samples: v.array(v.number()),
	/** Microseconds before each sample. */
	timeDeltas: v.array(v.number()),
});

/** A function in the places where it was called. Times in microseconds, those of what it called included. */
export type Frame = { readonly name: string; readonly micros: number; readonly children: readonly Frame[] };

/** What V8 says of a program that does nothing. `(program)` is native code, which does something. */
const IDLE = "(idle)";
const WIDTH = 1200;
const ROW = 17;
const TOP = 40;
const CHARACTER = 6.6;
const LEAST_WIDTH = 0.4;

/**
 * Reads a profile (Chrome DevTools Protocol, `Profiler.Profile`; what Node's `--cpu-prof` writes).
 * @throws Error that says what it lacks
 */
export function parseProfile(value: unknown): Frame {
	const parsed = v.safeParse(profileSchema, value);
	if (!parsed.success)
		throw new Error(`not a processor profile: ${v.getDotPath(parsed.issues[0]) ?? "document"}: ${parsed.issues[0].message}`);
	const { nodes, samples, timeDeltas } = parsed.output;
	const own = new Map<number, number>();
	samples.forEach((id, at) => own.set(id, (own.get(id) ?? 0) + (timeDeltas[at + 1] ?? 0)));
	const byId = new Map(nodes.map((node) => [node.id, node]));
	const frameOf = (id: number): Frame | undefined => {
		const node = byId.get(id);
		if (node === undefined) return undefined;
		const { functionName, url, lineNumber } = node.callFrame;
		if (functionName === IDLE) return undefined;
		const children = merged(node.children.map(frameOf).filter((child) => child !== undefined));
		const micros = (own.get(id) ?? 0) + children.reduce((sum, child) => sum + child.micros, 0);
		const place = url === "" ? "" : ` ${basename(url)}:${lineNumber + 1}`;
		return { name: `${functionName === "" ? "(nameless)" : functionName}${place}`, micros, children };
	};
	return frameOf(nodes[0]?.id ?? 0) ?? { name: "(root)", micros: 0, children: [] };
}

/** Frames of one name become one. */
function merged(frames: readonly Frame[]): Frame[] {
	const byName = new Map<string, Frame>();
	for (const frame of frames) {
		const known = byName.get(frame.name);
		byName.set(
			frame.name,
			known === undefined
				? frame
				: { ...frame, micros: known.micros + frame.micros, children: merged([...known.children, ...frame.children]) },
		);
	}
	return [...byName.values()].sort((a, b) => b.micros - a.micros);
}

function depthOf(frame: Frame): number {
	return 1 + Math.max(0, ...frame.children.map(depthOf));
}

/** A warm colour that is a name's own. */
function colourOf(name: string): string {
	let hash = 0;
	for (const character of name) hash = (hash * 31 + (character.codePointAt(0) ?? 0)) >>> 0;
	return `hsl(${10 + (hash % 45)} ${60 + (hash % 25)}% ${62 + (hash % 13)}%)`;
}

function draw(frame: Frame, x: number, depth: number, perMicro: number, totalMicros: number): string[] {
	const width = frame.micros * perMicro;
	if (width < LEAST_WIDTH) return [];
	const y = TOP + depth * ROW;
	const label = frame.name.slice(0, Math.max(0, Math.floor((width - 4) / CHARACTER)));
	const share = totalMicros === 0 ? 0 : (100 * frame.micros) / totalMicros;
	const title = `${frame.name}: ${(frame.micros / 1000).toFixed(1)} ms, ${share.toFixed(1)} %`;
	const box = `<rect x="${x.toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="${ROW - 1}" rx="1" fill="${colourOf(frame.name)}"/>`;
	const words = label.length < 3 ? "" : `<text x="${(x + 2).toFixed(1)}" y="${y + 12}">${escaped(label)}</text>`;
	let at = x;
	const inner = frame.children.flatMap((child) => {
		const drawn = draw(child, at, depth + 1, perMicro, totalMicros);
		at += child.micros * perMicro;
		return drawn;
	});
	return [`<g><title>${escaped(title)}</title>${box}${words}</g>`, ...inner];
}

/** An SVG 1.1 document with the callers above what they call; a browser shows names and times of what the mouse is on. */
export function renderFlameGraph(root: Frame, title: string): string {
	const height = TOP + (depthOf(root) + 1) * ROW;
	const perMicro = root.micros === 0 ? 0 : WIDTH / root.micros;
	return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="monospace" font-size="11">
<rect width="${WIDTH}" height="${height}" fill="white"/>
<text x="8" y="22" font-size="14">${escaped(title)}: ${(root.micros / 1000).toFixed(0)} ms at work</text>
${draw(root, 0, 0, perMicro, root.micros).join("\n")}
</svg>
`;
}
