/** Pages of programs that this process has read and needs no more. */

import { addon } from "./load.ts";

/**
 * Gives back the pages of programs, libraries and constants that are mapped here and as their files are. They stay in the kernel's cache as long as it has
 * room, and those that are needed again come back by themselves.
 * @returns how many bytes were given back
 */
export function releaseConstantPages(): number {
	return addon().releaseConstantPages();
}
