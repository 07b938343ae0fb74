/** What this process itself has in memory. */

export { releaseConstantPages } from "../../native/src/pages.ts";
