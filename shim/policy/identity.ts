/** Whom a container runs as: numbers of the pod, names of the image. */

import { ShimError } from "../base/errors.ts";
import type { ProcessData } from "./policy-data.ts";

/** The accounts of an image; undefined for a file that it does not have. */
export interface Accounts {
	readonly passwd: string | undefined;
	readonly group: string | undefined;
}

/** What the pod says. */
export interface WantedUser {
	readonly uid: number | undefined;
	readonly gid: number | undefined;
	/** Supplemental groups, and that of the volumes. */
	readonly groups: readonly number[];
	/** Only the groups that the pod names count. */
	readonly strict: boolean;
}

interface Account {
	readonly name: string;
	readonly uid: number;
	readonly gid: number;
}

const MAX_ID = 0xffff_ffff;

/**
 * The user of a container's processes, as containerd finds it (containerd, `oci.WithUser`, `oci.WithAdditionalGIDs`).
 * @param image the image's `User`: `name`, `uid`, or either with `:group`
 * @throws ShimError `policy.input` for a name that the image's accounts don't have
 */
export function userOf(wanted: WantedUser, image: string, accounts: Accounts, where: string): ProcessData["user"] {
	const [imageUser = "", imageGroup] = image.split(":");
	const users = accountsOf(accounts.passwd);
	const given = wanted.uid === undefined ? imageUser : String(wanted.uid);
	const account = users.find(({ name, uid }) => name === given || String(uid) === given);
	const uid = given === "" ? 0 : (account?.uid ?? number(given));
	if (uid === undefined) throw missing("user", given, where);
	const primary = given === "" ? users.find((one) => one.uid === 0) : account;
	const gid = wanted.gid ?? (wanted.uid === undefined ? groupOf(imageGroup, accounts, where) : undefined) ?? primary?.gid ?? 0;
	const member = wanted.strict ? [] : memberships(accounts.group, primary?.name);
	const groups = new Set([...wanted.groups, ...member]);
	groups.delete(gid);
	const optional = [gid, ...(primary === undefined ? [] : [primary.gid])].filter(
		(one, index, all) => !groups.has(one) && all.indexOf(one) === index,
	);
	return { uid, gid, groups: [...groups].sort((a, b) => a - b), optional_groups: optional };
}

function groupOf(group: string | undefined, accounts: Accounts, where: string): number | undefined {
	if (group === undefined || group === "") return undefined;
	const line = lines(accounts.group).find(([name, , gid]) => name === group || gid === group);
	const gid = number(line?.[2] ?? group);
	if (gid === undefined) throw missing("group", group, where);
	return gid;
}

function memberships(group: string | undefined, name: string | undefined): number[] {
	if (name === undefined) return [];
	return lines(group).flatMap(([, , gid, members]) => {
		const found = number(gid ?? "");
		return found !== undefined && (members ?? "").split(",").includes(name) ? [found] : [];
	});
}

function accountsOf(passwd: string | undefined): Account[] {
	return lines(passwd).flatMap(([name = "", , uid = "", gid = ""]) => {
		const [user, group] = [number(uid), number(gid)];
		return user === undefined || group === undefined ? [] : [{ name, uid: user, gid: group }];
	});
}

function lines(file: string | undefined): string[][] {
	return (file ?? "").split("\n").map((line) => line.split(":"));
}

function number(text: string): number | undefined {
	return /^[0-9]{1,10}$/u.test(text) && Number(text) <= MAX_ID ? Number(text) : undefined;
}

function missing(what: string, name: string, where: string): ShimError {
	return new ShimError("policy.input", `${where}: the image's ${what} ${name} is in no account file of the image`, {
		remedy: "set securityContext.runAsUser and runAsGroup",
	});
}
