/**
 * `npm test`, after the set-up: unit tests, the Rust programs' tests, end-to-end tests. The last line is `N passed, N failed`; the exit
 * code is not 0 when a test failed or a suite ran none. `-- --unit` leaves the end-to-end tests out.
 */

import process from "node:process";
import { sum, summaryLine } from "./report.ts";
import { END_TO_END_TESTS, runCargoTests, runTap, UNIT_TESTS } from "./suites.ts";

const UNIT_FILE_S = 120;
const END_TO_END_FILE_S = 1200;

const counts = [await runTap(UNIT_TESTS, 2, UNIT_FILE_S), await runCargoTests()];
if (!process.argv.includes("--unit")) counts.push(await runTap(END_TO_END_TESTS, 1, END_TO_END_FILE_S));
const total = sum(counts);
// On a line of its own whatever a reporter left on the last one.
console.log(`\n${summaryLine(total)}`);
if (total.failed > 0) process.exitCode = 1;
