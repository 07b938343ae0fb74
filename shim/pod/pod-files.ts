/**
 * Host name, hosts and resolver of a pod that containerd made by its Sandbox API, and its shared memory. With a pause container containerd
 * brings them itself; otherwise it leaves them to the sandbox, and its containers' specifications have nothing there.
 */

import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { SHM_PLACE } from "../agent/guest-spec.ts";
import type { OciMount, OciSpec } from "../agent/oci-spec.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { PodDns } from "./pod-config.ts";

/** The files' names in the pod's folder; containers see them in the folder of the same name below their root. */
const FOLDER = "etc";
const HOST_NAME = "hostname";
const HOSTS = "hosts";
const RESOLVER = "resolv.conf";
const FILE_MODE = 0o644;

/** What resolv.conf says (resolv.conf(5)). */
export function resolverText({ servers, searches, options }: PodDns): string {
	const search = searches.length === 0 ? "" : `search ${searches.join(" ")}\n`;
	const nameservers = servers.map((server) => `nameserver ${server}\n`).join("");
	return `${search}${nameservers}${options.length === 0 ? "" : `options ${options.join(" ")}\n`}`;
}

/**
 * Writes the files.
 * @param podFolder the pod's own folder; they go with it
 * @param dns undefined: as on the node
 * @throws ShimError `journal.write` when they can't be written
 */
export function writePodFiles(podFolder: string, hostname: string, dns: PodDns | undefined): void {
	const folder = join(podFolder, FOLDER);
	const write = (name: string, text: string): void => writeFileSync(join(folder, name), text, { mode: FILE_MODE });
	const copy = (name: string): void => {
		try {
			copyFileSync(`/${FOLDER}/${name}`, join(folder, name));
		} catch (error) {
			if (errnoOf(error) !== "ENOENT") throw error;
			write(name, "");
		}
	};
	try {
		mkdirSync(folder, { recursive: true, mode: 0o700 });
		write(HOST_NAME, `${hostname}\n`);
		copy(HOSTS);
		if (dns === undefined) copy(RESOLVER);
		else write(RESOLVER, resolverText(dns));
	} catch (error) {
		throw new ShimError("journal.write", `the pod's files in ${folder} can't be written: ${messageOf(error)}`, { cause: error });
	}
}

/** A container's specification with what its pod has for all containers, wherever it brings nothing of its own. */
export function withPodFiles(podFolder: string, spec: OciSpec): OciSpec {
	const mounts = spec.mounts ?? [];
	const own = new Set(mounts.map(({ destination }) => destination));
	const access = spec.root.readonly === true ? "ro" : "rw";
	const added = [HOST_NAME, HOSTS, RESOLVER].flatMap((name): OciMount[] => {
		const destination = `/${FOLDER}/${name}`;
		const source = join(podFolder, FOLDER, name);
		return own.has(destination) ? [] : [{ destination, source, type: "bind", options: ["rbind", access] }];
	});
	return { ...spec, mounts: [...mounts.map((mount) => (isOwnShm(mount) ? POD_SHM : mount)), ...added] };
}

/** The one that every container has by itself, unless it is given another. */
function isOwnShm({ destination, type }: OciMount): boolean {
	return destination === SHM_PLACE && type === "tmpfs";
}

/** The guest's, for all containers of the pod: it lies nowhere on the host. */
const POD_SHM: OciMount = { destination: SHM_PLACE, source: SHM_PLACE, type: "bind", options: ["rbind"] };
