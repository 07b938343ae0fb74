/** Keys that are sound by themselves and exclude each other. Pure. */

import type { Config } from "./schema.ts";

/** Two keys that can't be had together, and what to do. */
export interface Conflict {
	readonly text: string;
	readonly remedy: string;
}

interface Rule {
	readonly key: string;
	/** What the key must be in a confidential pod's configuration, and why. */
	readonly must: string;
	readonly why: string;
	/** The rule counts for trials with `sample` too. */
	readonly inSample: boolean;
	readonly broken: (config: Config) => boolean;
}

const CONFIDENTIAL: readonly Rule[] = [
	{
		key: "storage.share_folders",
		must: "false",
		why: "shared folders need memory that the node can read",
		inSample: true,
		broken: ({ storage }) => storage.share_folders,
	},
	{
		key: "storage.layers",
		must: "true",
		why: "without it the guest can't tell an image from one that the node made up",
		inSample: true,
		broken: ({ storage }) => !storage.layers,
	},
	{
		key: "snapshots.enabled",
		must: "false",
		why: "an encrypted VM can't be restored, and a template's state is known to its node and to every other copy",
		inSample: true,
		broken: ({ snapshots }) => snapshots.enabled,
	},
	{
		key: "guest.max_vcpus",
		must: "0",
		why: "the processors are part of what is measured",
		inSample: true,
		broken: ({ guest }) => guest.max_vcpus > 0,
	},
	{
		key: "guest.hotplug_memory_mib",
		must: "0",
		why: "memory can't be added to an encrypted VM",
		inSample: true,
		broken: ({ guest }) => guest.hotplug_memory_mib > 0,
	},
	{
		key: "debug.console",
		must: "false",
		why: "the console is a way out of the VM for what it says",
		inSample: false,
		broken: ({ debug }) => debug.console,
	},
];

/** The first conflict of a configuration. */
export function findConflict(config: Config): Conflict | undefined {
	const { mode } = config.confidential;
	if (mode === "off") return undefined;
	const rule = CONFIDENTIAL.find(({ inSample, broken }) => (mode === "snp" || inSample) && broken(config));
	if (rule === undefined) return undefined;
	return {
		text: `confidential.mode = "${mode}" needs ${rule.key} = ${rule.must}: ${rule.why}`,
		remedy: `set ${rule.key} = ${rule.must}, or give confidential pods a configuration file of their own (docs/confidential.md)`,
	};
}
