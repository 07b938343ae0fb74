import t from "tap";
import { IdleEnd } from "../../shim/command/idle-end.ts";

const IDLE_MS = 1;
/** When a longer timer that was set later is over, so is every timer of `IdleEnd`. */
const later = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2 * IDLE_MS));

t.test("a daemon ends when it has no connection and nothing to do, and stays while it has", async (t) => {
	let asked = 0;
	let end = (): void => undefined;
	const ended = new Promise<void>((resolve) => {
		end = resolve;
	});
	const idle = new IdleEnd({ idleMs: IDLE_MS, busy: () => ++asked < 3, end });
	idle.connections(1);
	await later();
	t.equal(asked, 0, "somebody is connected");
	idle.connections(2);
	idle.connections(1);
	await later();
	t.equal(asked, 0, "one still is");
	idle.connections(0);
	// The timers keep no process alive.
	const alive = setInterval(() => undefined, 60_000);
	await ended;
	clearInterval(alive);
	t.equal(asked, 3, "while there was something to do it stayed");
});
