/**
 * The import rules of the rooms (ARCHITECTURE.md, "Rooms"), as a table and a pure check over source texts.
 */

import { posix } from "node:path";
import ts from "typescript";

/** Rooms of shim/, highest first. A room imports itself and rooms of lower levels, never one of its own level. */
const LEVELS: readonly (readonly string[])[] = [
	["command"],
	["service"],
	["pod"],
	["vmm", "agent", "storage", "network", "memory", "policy", "attest"],
	["host", "wire", "config"],
	["base"],
];

/** Telemetry listens to hooks of base; only the mains load it. */
const TELEMETRY = "telemetry";

/** Folders outside of shim/ with one door each, and the rooms that are the door. */
const DOORS: readonly { readonly folder: string; readonly rooms: readonly string[] }[] = [
	{ folder: "proto/gen", rooms: ["wire", "agent", "service"] },
	{ folder: "native/src", rooms: ["host"] },
];

/** A source file with its path from the repository's root. */
export interface SourceFile {
	readonly path: string;
	readonly text: string;
}

/** An import that the rules forbid. */
export interface Violation {
	readonly path: string;
	readonly line: number;
	readonly imported: string;
	readonly rule: string;
}

/** Finds every forbidden import in files of shim/, native/src and ch-qemu. Other files may import what they like. */
export function findViolations(files: readonly SourceFile[]): Violation[] {
	return files.flatMap((file) =>
		importsOf(file).flatMap(({ target, imported, line, typeOnly }) => {
			const rule = brokenRule(file.path, target, typeOnly);
			return rule === undefined ? [] : [{ path: file.path, line, imported, rule }];
		}),
	);
}

interface Import {
	readonly imported: string;
	/** Path from the repository's root. */
	readonly target: string;
	readonly line: number;
	readonly typeOnly: boolean;
}

/** Relative imports of a file: declarations, re-exports and import() with a literal. */
function importsOf({ path, text }: SourceFile): Import[] {
	const source = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true);
	const found: Import[] = [];
	const add = (specifier: ts.Expression | undefined, typeOnly: boolean): void => {
		if (specifier === undefined || !ts.isStringLiteralLike(specifier) || !specifier.text.startsWith(".")) return;
		const target = posix.normalize(posix.join(posix.dirname(path), specifier.text));
		found.push({ imported: specifier.text, target, typeOnly, line: source.getLineAndCharacterOfPosition(specifier.getStart()).line + 1 });
	};
	const visit = (node: ts.Node): void => {
		if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, isTypeOnly(node));
		else if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly);
		else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) add(node.arguments[0], false);
		else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node.argument.literal, true);
		ts.forEachChild(node, visit);
	};
	visit(source);
	return found;
}

function isTypeOnly(node: ts.ImportDeclaration): boolean {
	const clause = node.importClause;
	if (clause === undefined) return false;
	if (clause.phaseModifier === ts.SyntaxKind.TypeKeyword) return true;
	const bindings = clause.namedBindings;
	return (
		clause.name === undefined &&
		bindings !== undefined &&
		ts.isNamedImports(bindings) &&
		bindings.elements.length > 0 &&
		bindings.elements.every((element) => element.isTypeOnly)
	);
}

function brokenRule(path: string, target: string, typeOnly: boolean): string | undefined {
	const [top, room] = path.split("/");
	const [targetTop, targetRoom] = target.split("/");
	if (top === "ch-qemu") {
		if (targetTop === "ch-qemu" || target.startsWith("native/src/") || (target.startsWith("shim/vmm/") && typeOnly)) return undefined;
		return "ch-qemu imports native/src, types of shim/vmm and nothing else of this repository";
	}
	if (top === "native") return target.startsWith("native/src/") ? undefined : "native/src imports nothing else of this repository";
	if (top !== "shim" || room === undefined) return undefined;
	const door = DOORS.find(({ folder }) => target.startsWith(`${folder}/`));
	if (door !== undefined) return door.rooms.includes(room) ? undefined : `${door.folder} is imported by ${door.rooms.join(", ")} only`;
	if (targetTop !== "shim" || targetRoom === undefined) return "shim imports nothing of the repository but shim, proto/gen and native/src";
	return brokenRoomRule(room, targetRoom);
}

function brokenRoomRule(room: string, targetRoom: string): string | undefined {
	if (room === targetRoom) return undefined;
	if (targetRoom === TELEMETRY) return room === "command" ? undefined : "telemetry is imported by command only";
	if (room === TELEMETRY) return targetRoom === "base" ? undefined : "telemetry imports base only";
	const from = LEVELS.findIndex((level) => level.includes(room));
	const to = LEVELS.findIndex((level) => level.includes(targetRoom));
	if (from < 0) return `shim/${room} is no room: add it to scripts/rooms.ts and ARCHITECTURE.md`;
	if (to < 0) return `shim/${targetRoom} is no room: add it to scripts/rooms.ts and ARCHITECTURE.md`;
	if (from < to) return undefined;
	return from === to
		? `${room} and ${targetRoom} are on one level: what both need belongs below, what joins them above`
		: `${room} is below ${targetRoom}: imports go down only`;
}
