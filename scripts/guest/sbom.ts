/** The guest's bill of materials: CycloneDX 1.5 (ECMA-424, first edition), in JSON. Pure; equal inputs give equal bytes. */

import { createHash } from "node:crypto";

/** What of `cargo metadata` (format version 1) is read. */
export interface CargoMetadata {
	readonly packages: readonly {
		readonly id: string;
		readonly name: string;
		readonly version: string;
		readonly license?: string | null;
		/** Null for a member of the workspace. */
		readonly source?: string | null;
		readonly targets: readonly { readonly kind: readonly string[] }[];
	}[];
	readonly resolve: {
		readonly nodes: readonly {
			readonly id: string;
			readonly deps: readonly { readonly pkg: string; readonly dep_kinds: readonly { readonly kind: string | null }[] }[];
		}[];
	};
}

/** A Debian package whose contents end up in the guest. */
export interface DebianPart {
	readonly type: "operating-system" | "library";
	readonly name: string;
	readonly packageName: string;
	/** Undefined when the package is not installed. */
	readonly version: string | undefined;
	/** SHA-256 of the file that is used. */
	readonly sha256: string;
	readonly license: string;
}

/** What the guest is made of. */
export interface BillInput {
	readonly version: string;
	readonly metadata: CargoMetadata;
	/** Cargo.lock, which has the crates' hashes. */
	readonly lock: string;
	/** The package of the agent. */
	readonly agent: string;
	readonly debian: readonly DebianPart[];
	/** The guest's files. */
	readonly outputs: readonly { readonly name: string; readonly sha256: string }[];
	/** `rustc 1.90.0 (...)`: its standard library is in the agent. */
	readonly rustc: string;
}

interface Component {
	readonly type: string;
	readonly "bom-ref": string;
	readonly name: string;
	readonly version?: string;
	readonly purl?: string;
	/** `excluded`: needed to build, not in the guest. */
	readonly scope: "required" | "excluded";
	readonly hashes?: readonly { readonly alg: "SHA-256"; readonly content: string }[];
	readonly licenses?: readonly { readonly expression: string }[];
}

type Node = CargoMetadata["resolve"]["nodes"][number];
type Package = CargoMetadata["packages"][number];

/** The document. @throws Error when cargo's metadata do not have the agent */
export function billOfMaterials(input: BillInput): Record<string, unknown> {
	const crates = reachable(input.metadata, input.agent);
	const checksums = lockChecksums(input.lock);
	const components: Component[] = [
		...input.debian.map(debianComponent),
		rustStd(input.rustc),
		...[...crates].map(([entry, required]) => crateComponent(entry, required, checksums)),
	].toSorted((one, other) => (one["bom-ref"] < other["bom-ref"] ? -1 : 1));
	const body = {
		bomFormat: "CycloneDX",
		specVersion: "1.5",
		version: 1,
		metadata: {
			component: {
				type: "firmware",
				"bom-ref": "guest",
				name: "containerd-shim-snp-guest",
				version: input.version,
				licenses: [{ expression: "Apache-2.0 AND GPL-2.0-only WITH Linux-syscall-note" }],
				components: input.outputs.map(({ name, sha256 }) => ({
					type: "file",
					"bom-ref": `file:${name}`,
					name,
					hashes: [{ alg: "SHA-256", content: sha256 }],
				})),
			},
		},
		components,
		dependencies: dependencies(input.metadata, crates, input),
	};
	return { ...body, serialNumber: serialNumber(JSON.stringify(body)) };
}

function rustStd(rustc: string): Component {
	const version = rustc.split(" ")[1] ?? rustc;
	return {
		type: "library",
		"bom-ref": "rust-std",
		name: "std",
		version,
		scope: "required",
		licenses: [{ expression: "MIT OR Apache-2.0" }],
	};
}

/** The agent's crates, each with whether it is in the agent; the others take part in the build. */
function reachable({ packages, resolve }: CargoMetadata, agent: string): Map<Package, boolean> {
	const byId = new Map(packages.map((one) => [one.id, one]));
	const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));
	const start = packages.find((one) => one.name === agent);
	if (start === undefined) throw new Error(`cargo metadata names no package ${agent}`);
	const found = new Map<Package, boolean>();
	const visit = (entry: Package, required: boolean): void => {
		const known = found.get(entry);
		if (known === true || known === required) return;
		found.set(entry, required);
		for (const { pkg, build } of usedBy(nodes.get(entry.id))) {
			const next = byId.get(pkg);
			if (next !== undefined) visit(next, required && !build && !isMacro(next));
		}
	};
	visit(start, true);
	return new Map([...found].toSorted(([one], [other]) => (refOf(one) < refOf(other) ? -1 : 1)));
}

/** Dependencies that are not only those of tests; `build`: only of the build script. */
function usedBy(node: Node | undefined): { readonly pkg: string; readonly build: boolean }[] {
	return (node?.deps ?? []).flatMap(({ pkg, dep_kinds }) => {
		const kinds = dep_kinds.map(({ kind }) => kind).filter((kind) => kind !== "dev");
		return kinds.length === 0 ? [] : [{ pkg, build: !kinds.includes(null) }];
	});
}

const isMacro = ({ targets }: Package): boolean => targets.some(({ kind }) => kind.includes("proc-macro"));
const refOf = ({ name, version }: Pick<Package, "name" | "version">): string => `pkg:cargo/${name}@${version}`;

function crateComponent(entry: Package, required: boolean, checksums: ReadonlyMap<string, string>): Component {
	const { name, version, license, source } = entry;
	const checksum = checksums.get(`${name} ${version}`);
	return {
		type: "library",
		"bom-ref": refOf(entry),
		name,
		version,
		...(source == null ? {} : { purl: refOf(entry) }),
		scope: required ? "required" : "excluded",
		...(checksum === undefined ? {} : { hashes: [{ alg: "SHA-256", content: checksum }] }),
		// Cargo once separated alternatives by a slash.
		...(license == null ? {} : { licenses: [{ expression: license.replaceAll(/\s*\/\s*/gu, " OR ") }] }),
	};
}

function debianComponent({ type, name, packageName, version, sha256, license }: DebianPart): Component {
	return {
		type,
		"bom-ref": `pkg:deb/debian/${packageName}`,
		name,
		...(version === undefined ? {} : { version, purl: `pkg:deb/debian/${packageName}@${encodeURIComponent(version)}` }),
		scope: "required",
		hashes: [{ alg: "SHA-256", content: sha256 }],
		licenses: [{ expression: license }],
	};
}

function dependencies({ resolve }: CargoMetadata, crates: ReadonlyMap<Package, boolean>, input: BillInput) {
	const refs = new Map([...crates.keys()].map((entry) => [entry.id, refOf(entry)]));
	const ofCrates = resolve.nodes
		.filter(({ id }) => refs.has(id))
		.map((node) => ({
			ref: refs.get(node.id) ?? "",
			dependsOn: usedBy(node)
				.flatMap(({ pkg }) => refs.get(pkg) ?? [])
				.toSorted(),
		}));
	const agent = [...crates.keys()].find(({ name }) => name === input.agent);
	const guest = [
		agent === undefined ? [] : [refOf(agent)],
		input.debian.map(({ packageName }) => `pkg:deb/debian/${packageName}`),
		["rust-std"],
	];
	return [{ ref: "guest", dependsOn: guest.flat().toSorted() }, ...ofCrates.toSorted((one, other) => (one.ref < other.ref ? -1 : 1))];
}

/** `name version` -> SHA-256, from the entries of Cargo.lock. */
function lockChecksums(lock: string): Map<string, string> {
	const entries = lock.split("[[package]]").flatMap((entry): (readonly [string, string])[] => {
		const field = (name: string): string | undefined => new RegExp(`^${name} = "([^"]*)"$`, "mu").exec(entry)?.[1];
		const [name, version, checksum] = [field("name"), field("version"), field("checksum")];
		return name === undefined || version === undefined || checksum === undefined ? [] : [[`${name} ${version}`, checksum]];
	});
	return new Map(entries);
}

/** A UUID that follows from the content (RFC 9562, version 8). */
function serialNumber(content: string): string {
	const bytes = createHash("sha256").update(content).digest().subarray(0, 16);
	bytes[6] = 0x80 | ((bytes[6] ?? 0) & 0x0f);
	bytes[8] = 0x80 | ((bytes[8] ?? 0) & 0x3f);
	const hex = bytes.toString("hex");
	return `urn:uuid:${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
