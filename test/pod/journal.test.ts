import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Journal, readJournals } from "../../shim/pod/journal.ts";
import type { PodRecord } from "../../shim/pod/journal.ts";
import { mount, unmount } from "../../native/src/mount.ts";
import { failing } from "../base/failing.ts";

const RECORD: PodRecord = {
	version: 1,
	identity: { key: "k", namespace: "n", podId: "p", address: "/a", ttrpcAddress: "/a.ttrpc", publishBinary: "/b", configFile: null },
	sandbox: { bundle: "/b", createdAtMs: 5, started: true, exit: { status: 137, atMs: 7 }, sysctls: { "kernel.msgmax": "1" } },
	config: { guest: { vcpus: 1 } },
	keeperPid: 7,
	keeperStartTime: "6",
	state: "running",
	network: { path: "/run/netns/cni-1", id: "4:4026532177", queues: 1, told: [] },
	vmm: { pid: 8, startTime: "9" },
	pciSegments: 2,
	size: { now: { vcpus: 1, memoryMib: 256 }, most: { vcpus: 2, memoryMib: 512 } },
	cgroup: "/kubepods/pod1/abc",
	poolCgroup: null,
	agent: {
		version: "1",
		streams: true,
		limits: true,
		files: true,
		forward: true,
		volumes: true,
		mounts: true,
		pci: true,
		hugepages: true,
		verity: true,
		scratch: true,
		damage: true,
		lateBinding: true,
		seccomp: true,
	},
	scratch: "/scratch/k.img",
	nextNumber: 3,
	containers: [
		{
			id: "c",
			bundle: "/bundle",
			complete: true,
			paused: false,
			limits: { cpuQuotaUs: 0, cpuPeriodUs: 0, memoryBytes: 64 << 20, hugeBytes: 2 << 20 },
			disk: { id: "disk1", path: "/x", file: "1:2", address: "0000:00:05.0" },
			processes: [
				{
					execId: "",
					stdio: { stdin: "", stdout: "/o", stderr: "", terminal: false },
					streams: { stdin: 0, stdout: 2, stderr: 0 },
					state: "stopped",
					exit: { status: 42, atMs: 5 },
					stdinClosed: false,
					killed: true,
					spec: null,
				},
			],
		},
	],
	volumes: [{ kind: "copy", path: "/srv/data", key: "/srv/data", whole: true }],
	shares: [{ id: "share4", path: "/srv", readonly: true, process: { pid: 9, startTime: "10" }, plugged: true, users: ["c"] }],
	emptyDirs: [{ path: "/pods/u/volumes/kubernetes.io~empty-dir/work", file: "/pods/u/volumes/kubernetes.io~empty-dir/work/k.img" }],
	disks: [{ id: "vol3", key: "block 7:0", readonly: false, source: "05", users: ["c"] }],
	tombstones: [],
	beganAtMs: 5,
	spans: [{ step: "vm-boot", startMs: 1, durationMs: 2, failed: false }],
};

t.test("a journal is read back as it was written, and its folder goes with it", (t) => {
	const pods = t.testdir({});
	const journal = new Journal(join(pods, "k"));
	journal.open();
	journal.write({ ...RECORD, nextNumber: 1 });
	journal.write(RECORD);
	t.same(readJournals(pods), [{ folder: join(pods, "k"), record: RECORD }]);
	journal.remove();
	t.same(readdirSync(pods), []);
	t.end();
});

t.test("the folder of a VM that waited becomes the pod's, with the journal in it", (t) => {
	const place = t.testdir({ w: { vm: { "vmm.log": "words" } }, p: { k: { "journal.json": "of a start that failed", "vsock.sock": "" } } });
	const journal = new Journal(join(place, "p", "k"));
	journal.takeFolder(join(place, "w", "vm"), RECORD);
	t.same(readdirSync(join(place, "w")), []);
	t.same(readdirSync(join(place, "p", "k")).sort(), ["journal.json", "vmm.log"]);
	journal.write({ ...RECORD, nextNumber: 4 });
	t.match(readJournals(join(place, "p")), [{ record: { nextNumber: 4 } }]);
	t.throws(() => journal.takeFolder(join(place, "w", "none"), RECORD), failing({ reason: "journal.write" }));
	t.match(readJournals(join(place, "p")), [{ record: { nextNumber: 4 } }], "a failure changes nothing");
	t.end();
});

t.test("damaged journals are told, and do not hide sound ones", (t) => {
	const pods = t.testdir({
		empty: {},
		cut: { "journal.json": JSON.stringify(RECORD).slice(0, 40) },
		other: { "journal.json": JSON.stringify({ ...RECORD, nextNumber: "x" }) },
	});
	const sound = new Journal(join(pods, "sound"));
	sound.open();
	sound.write(RECORD);
	const found = new Map(readJournals(pods).map((entry) => [entry.folder.slice(pods.length + 1), entry]));
	t.match(found.get("empty"), { damage: /ENOENT/ });
	t.match(found.get("cut"), { damage: /JSON/ });
	t.match(found.get("other"), { damage: /nextNumber/ });
	t.match(found.get("sound"), { record: { nextNumber: 3 } });
	t.end();
});

t.test("no folder of pods means no pods", (t) => {
	t.same(readJournals(join(t.testdir({}), "none")), []);
	t.end();
});

t.test("a full tmpfs fails the write with its name, and the old journal stays whole", async (t) => {
	const place = t.testdir({});
	await mount("tmpfs", place, "tmpfs", 0, "size=64k");
	try {
		const folder = join(place, "k");
		const journal = new Journal(folder);
		journal.open();
		journal.write(RECORD);
		t.throws(() => writeFileSync(join(place, "filler"), Buffer.alloc(128 * 1024)), { code: "ENOSPC" });
		t.throws(
			() => journal.write({ ...RECORD, nextNumber: 4 }),
			failing({ reason: "journal.write", code: "resource-exhausted", message: /no space left/ }),
		);
		t.match(
			readJournals(place).find((entry) => entry.folder === folder),
			{ record: { nextNumber: 3 } },
		);
	} finally {
		await unmount(place, 0);
	}
});
