/** The sandbox, its network, and requests that name no container's parts: one decision for each line, with the field that a denial must name. */
import t from "tap";
import { decide } from "../../../shim/policy/engine.ts";
import { DECIDE_MS, type Json, recordedPolicy } from "../../support/policy.ts";
import { but, type Case, CID, judge, push, set } from "../../support/policy-tables.ts";

t.test("the sandbox and its network", async (t) => {
	const sandbox = (what: string, denied: string | undefined, change: (input: Json) => void): Case => [
		what,
		"CreateSandboxRequest",
		but("CreateSandboxRequest", change),
		denied,
	];
	const card = (what: string, denied: string | undefined, change: (input: Json) => void): Case => [
		what,
		"UpdateInterfaceRequest",
		but("UpdateInterfaceRequest", change),
		denied,
	];
	const route = (what: string, denied: string | undefined, change: (route: Json) => void): Case => [
		what,
		"UpdateRoutesRequest",
		but("UpdateRoutesRequest", ({ routes }) => change(routes.Routes.at(0))),
		denied,
	];
	await judge(t, [
		sandbox("as recorded", undefined, () => undefined),
		sandbox("another host name", "hostname", (input) => set(input, "hostname", "evil")),
		sandbox("a resolver", undefined, ({ dns }) => push(dns, "nameserver 10.0.0.1")),
		sandbox("modules", "kernel_modules", ({ kernel_modules }) => push(kernel_modules, { name: "evil", parameters: [] })),
		sandbox("processes that see each other", "sandbox_pidns", (input) => set(input, "sandbox_pidns", true)),
		sandbox("hooks", "guest_hook_path", (input) => set(input, "guest_hook_path", "/hooks")),
		sandbox("a writable disk without a key", "storages[", ({ storages }) => set(storages.at(-1), "driver_options", ["create_filesystem"])),
		sandbox("a writable disk that is not made anew", "storages[", ({ storages }) =>
			set(storages.at(-1), "driver_options", ["encryption_key=ephemeral"]),
		),
		sandbox("a shared folder", "storages[", ({ storages }) => push(storages, { ...storages.at(0), driver: "virtio-fs" })),
		sandbox("shared memory elsewhere", "storages[0]", ({ storages }) => set(storages.at(0), "mount_point", "/etc")),
		sandbox("no writable disk", undefined, ({ storages }) => void storages.pop()),
		card("as recorded", undefined, () => undefined),
		card("another address", undefined, (input) => set(input.interface.IPAddresses.at(0), "address", "10.9.8.7")),
		card("the loopback", "interface.name", (input) => set(input.interface, "name", "lo")),
		card("the loopback's device", "interface.device", (input) => set(input.interface, "device", "lo")),
		card("an address of the loopback", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "127.0.0.53"),
		),
		card("an IPv6 address of the loopback", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "::1"),
		),
		card("an address of the loopback in IPv6", "interface.IPAddresses[0]", (input) =>
			set(input.interface.IPAddresses.at(0), "address", "::ffff:127.0.0.1"),
		),
		card("the loopback by its hardware address", "interface.hwAddr", (input) => set(input.interface, "hwAddr", "00:00:00:00:00:00")),
		card("the loopback by its hardware address in short", "interface.hwAddr", (input) => set(input.interface, "hwAddr", "0:0:0:0:0:0")),
		card("no interface", "interface", (input) => set(input, "interface", null)),
		route("as recorded", undefined, () => undefined),
		route("to anywhere", undefined, (one) => set(one, "dest", "192.0.2.0/24")),
		route("to the loopback", "routes.Routes[0]", (one) => set(one, "dest", "127.0.0.0/8")),
		route("to more than the loopback", "routes.Routes[0]", (one) => set(one, "dest", "126.0.0.0/7")),
		route("over the loopback", "routes.Routes[0]", (one) => set(one, "device", "lo")),
		["no routes", "UpdateRoutesRequest", { routes: null }, "routes"],
		["neighbours", "AddARPNeighborsRequest", { neighbors: { ARPNeighbors: [] } }],
		["what is there", "ListInterfacesRequest", {}],
		["what is there", "ListRoutesRequest", {}],
	]);
});

t.test("what every pod needs, and what none does", async (t) => {
	const harmless = [
		"StartContainerRequest",
		"RemoveContainerRequest",
		"WaitProcessRequest",
		"SignalProcessRequest",
		"StatsContainerRequest",
		"UpdateContainerRequest",
		"PauseContainerRequest",
		"ResumeContainerRequest",
		"TtyWinResizeRequest",
		"CloseStdinRequest",
		"OnlineCPUMemRequest",
		"GuestDetailsRequest",
		"GetOOMEventRequest",
		"NextDamageRequest",
		"ContainerDamageRequest",
		"DestroySandboxRequest",
	];
	const useless = {
		SetPolicyRequest: "policy",
		UpdateEphemeralMountsRequest: "storages",
		GetDiagnosticDataRequest: "log_type",
		GetMetricsRequest: "request",
		GetIPTablesRequest: "is_ipv6",
		SetIPTablesRequest: "data",
		MemHotplugByProbeRequest: "memHotplugProbeAddr",
		ReseedRandomDevRequest: "data",
		SetGuestDateTimeRequest: "Sec",
		AddSwapRequest: "PCIPath",
		AddSwapPathRequest: "path",
		VolumeStatsRequest: "volume_guest_path",
		ResizeVolumeRequest: "volume_guest_path",
		RemoveStaleVirtiofsShareMountsRequest: "request",
		MemAgentMemcgConfig: "disabled",
		MemAgentCompactConfig: "disabled",
	};
	await judge(t, [
		...harmless.map((name): Case => ["as it comes", name, { container_id: CID }]),
		...Object.entries(useless).map(([name, path]): Case => ["as it comes", name, {}, path]),
	]);
	const [unknown] = await decide({ name: "policy", text: recordedPolicy().text }, [{ name: "NoSuchRequest", input: {} }], {
		timeoutMs: DECIDE_MS,
	});
	t.match(unknown, { allowed: false, failure: /no rule/u });
});
