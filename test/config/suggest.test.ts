import t from "tap";
import { lineOfKey } from "../../shim/config/locate.ts";
import { editDistance, suggest } from "../../shim/config/suggest.ts";

t.test("editDistance counts insertions, deletions, replacements and exchanges", async (t) => {
	const cases: [string, string, number][] = [
		["", "", 0],
		["a", "", 1],
		["", "abc", 3],
		["kitten", "sitting", 3],
		["vcpus", "vcpsu", 1],
		["image", "imagee", 1],
	];
	for (const [from, to, distance] of cases) {
		t.equal(editDistance(from, to), distance, `${from} ${to}`);
		t.equal(editDistance(to, from), distance, `${to} ${from}`);
	}
});

t.test("suggest finds the near and leaves the far", async (t) => {
	const keys = ["guest.kernel", "guest.vcpus", "timeouts.boot_ms", "log.level", "hypervisor.log_level"];
	t.equal(suggest("guest.kernal", keys), "guest.kernel");
	t.equal(suggest("kernel", keys), "guest.kernel");
	t.equal(suggest("log.levle", keys), "log.level");
	t.equal(suggest("guest.something", keys), undefined);
	t.equal(suggest("x".repeat(10_000), keys), undefined);
});

t.test("lineOfKey follows tables, dotted and quoted keys", async (t) => {
	const toml = '# guest\nstate_dir = "/x"\n [guest] # the guest\nvcpus=1\n"kernel" = "/k"\n[ "log" ]\nlevel = "info"\n[x]\ny.z = 1\n';
	t.equal(lineOfKey(toml, ["state_dir"]), 2);
	t.equal(lineOfKey(toml, ["guest"]), 3);
	t.equal(lineOfKey(toml, ["guest", "vcpus"]), 4);
	t.equal(lineOfKey(toml, ["guest", "kernel"]), 5);
	t.equal(lineOfKey(toml, ["log", "level"]), 7);
	t.equal(lineOfKey(toml, ["x", "y", "z"]), 9);
	t.equal(lineOfKey(toml, ["guest", "image"]), undefined);
});
