import t from "tap";
import { Recent } from "../../shim/base/recent.ts";

t.test("what was used longest ago is forgotten first", async (t) => {
	const recent = new Recent<number>(2);
	recent.set("a", 1);
	recent.set("b", 2);
	t.equal(recent.get("a"), 1);
	recent.set("c", 3);
	t.equal(recent.get("b"), undefined);
	t.equal(recent.get("a"), 1);
	t.equal(recent.get("c"), 3);
	recent.set("a", 4);
	t.equal(recent.get("a"), 4, "a value is replaced");
	t.equal(recent.get("c"), 3, "which takes no other's place");
	recent.delete("a");
	t.equal(recent.get("a"), undefined);
	recent.set("d", 4);
	recent.deleteIf((value) => value === 4);
	t.same([recent.get("c"), recent.get("d")], [3, undefined]);
});
