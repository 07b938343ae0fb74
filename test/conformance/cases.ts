/** All conformance cases. */
import { DISKS } from "./cases/disks.ts";
import { EMPTY_DIRS } from "./cases/empty-dirs.ts";
import { EXEC } from "./cases/exec.ts";
import { FAULTS } from "./cases/faults.ts";
import { FILES } from "./cases/files.ts";
import { LIFE_CYCLE } from "./cases/life-cycle.ts";
import { LOGS } from "./cases/logs.ts";
import { NAMESPACES } from "./cases/namespaces.ts";
import { RESOURCES } from "./cases/resources.ts";
import { SECURITY } from "./cases/security.ts";
import { VOLUMES } from "./cases/volumes.ts";
import type { ConformanceCase } from "./context.ts";

/** In the order in which they run. */
export const CASES: readonly ConformanceCase[] = [
	...LIFE_CYCLE,
	...EXEC,
	...LOGS,
	...NAMESPACES,
	...SECURITY,
	...RESOURCES,
	...FILES,
	...VOLUMES,
	...EMPTY_DIRS,
	...DISKS,
	...FAULTS,
];
