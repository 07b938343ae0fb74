/** The initdata of guests that are started before their pod is known, and take its policy once (docs/adr/0012). */

import { gzipSync } from "node:zlib";

import { BIND_ONLY_TOML } from "../base/bind-only.ts";
import { initdataDigest, parseInitdata } from "./initdata.ts";
import type { Initdata } from "./initdata.ts";

/** It is the same for everybody: the guest knows it by its every byte, and verifiers by its digest. */
export function bindOnlyInitdata(): Initdata {
	const toml = Buffer.from(BIND_ONLY_TOML);
	const parts = parseInitdata(toml);
	return { ...parts, toml, gzip: gzipSync(toml, { level: 9 }), hostData: initdataDigest(toml, parts.algorithm) };
}
