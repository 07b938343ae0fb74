/**
 * Ends with status 0 when node_modules holds what package-lock.json asks for, with 1 when `npm ci` is
 * due. Compares with npm's own record of what it installed, so that any way of installing counts.
 * Optional packages may be missing: they are for other platforms.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

/** @param {string} file @returns {Record<string, {version?: string, integrity?: string, optional?: boolean, devOptional?: boolean}>} */
function packagesOf(file) {
	const lock = JSON.parse(readFileSync(file, "utf8"));
	return lock.packages ?? {};
}

const repository = process.argv[2] ?? ".";
let installed;
try {
	installed = packagesOf(join(repository, "node_modules/.package-lock.json"));
} catch {
	process.exit(1);
}
const wanted = packagesOf(join(repository, "package-lock.json"));
const isCurrent = Object.entries(wanted).every(([place, want]) => {
	if (place === "") return true;
	const have = installed[place];
	if (have === undefined) return want.optional === true || want.devOptional === true;
	return have.version === want.version && have.integrity === want.integrity;
});
process.exit(isCurrent ? 0 : 1);
