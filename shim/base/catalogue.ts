/**
 * Every reason for which the shim refuses or fails, with containerd's code for it and the remedy that is shown when the place of failure
 * knows no better one. `docs/errors.md` is generated from this table.
 */

/** containerd's error kinds (containerd `errdefs`), each of which has one gRPC status code. */
export type ErrorCode =
	| "unknown"
	| "invalid-argument"
	| "not-found"
	| "already-exists"
	| "failed-precondition"
	| "unavailable"
	| "not-implemented"
	| "deadline-exceeded"
	| "resource-exhausted"
	| "permission-denied"
	| "canceled"
	| "internal";

interface CatalogueEntry {
	readonly code: ErrorCode;
	readonly remedy: string;
}

const entry = (code: ErrorCode, remedy: string): CatalogueEntry => ({ code, remedy });

/** The catalogue: stable reason -> code and remedy. */
export const CATALOGUE = {
	"config.invalid": entry("invalid-argument", "mend the configuration file; docs/config.md lists every key"),
	"config.unreadable": entry("failed-precondition", "make the file readable, or point CONTAINERD_SHIM_SNP_CONFIG at another one"),
	"spec.invalid": entry("invalid-argument", "the bundle's config.json is made by containerd: look for a damaged or hand-written bundle"),
	"spec.unsupported": entry("invalid-argument", "take this setting out of the pod, or run it with another runtime class"),
	"pod.exists": entry("already-exists", "remove the older task of this name first"),
	"pod.not-found": entry("not-found", "the pod is gone: nothing is left to do"),
	"pod.state": entry("failed-precondition", "wait until the pod has reached the state that the call needs"),
	"pod.too-large": entry("resource-exhausted", "lower the limits of the pod's containers, or run it on a larger node"),
	"pod.slots-full": entry("resource-exhausted", "raise guest.pci_segments for new pods, or spread the containers over more pods"),
	"pod.lost": entry("unavailable", "the pod's VM has ended; remove the pod and let it be created again"),
	"container.exists": entry("already-exists", "remove the older container of this name first"),
	"container.not-found": entry("not-found", "the container is gone: nothing is left to do"),
	"process.exists": entry("already-exists", "choose another exec id, or delete the finished exec first"),
	"process.not-found": entry("not-found", "the process is gone: nothing is left to do"),
	"process.state": entry("failed-precondition", "wait until the process has reached the state that the call needs"),
	"call.unimplemented": entry("not-implemented", "this runtime does not offer the call"),
	"call.invalid": entry("invalid-argument", "the request is not of the form that containerd sends: check the versions on both sides"),
	"vmm.missing": entry("failed-precondition", "install Cloud Hypervisor, or set hypervisor.path to it"),
	"vmm.launch": entry("unavailable", "run the hypervisor by hand with --version to see why it does not start"),
	"vmm.api": entry("unavailable", "the hypervisor's own words are above"),
	"vmm.exited": entry("unavailable", "the end of its log is above; the kernel's log tells of an out-of-memory kill"),
	"vmm.boot-timeout": entry("deadline-exceeded", "check guest.kernel and guest.image, or raise timeouts.boot_ms"),
	"guest.file-missing": entry("failed-precondition", "install the guest's files, or set guest.kernel and guest.image"),
	"guest.call": entry("unknown", "the guest agent's own words are above"),
	"guest.exists": entry("already-exists", "the guest agent's own words are above"),
	"guest.state": entry("failed-precondition", "the guest agent's own words are above"),
	"guest.unreachable": entry(
		"unavailable",
		"the VM runs but its agent does not answer: remove the pod; its console is in the pod's folder when debug.console is on",
	),
	"guest.protocol": entry("internal", "the guest's answer breaks the protocol: use an image whose agent matches this version"),
	"storage.mount": entry("failed-precondition", "check the snapshotter's state on this node"),
	"storage.image": entry("internal", "check free space and that mkfs.erofs 1.5 or later is installed"),
	"storage.layer": entry("failed-precondition", "pull the image again; its layer can't be what it claims to be"),
	"storage.full": entry("resource-exhausted", "free space on the file system that is named"),
	"guest.damage": entry("internal", "check the node's disk and who can write to storage.cache_dir; let the pod be created again"),
	"storage.scratch": entry("failed-precondition", "set storage.scratch_dir to a folder on a disk of the node"),
	"volume.missing": entry("failed-precondition", "bring the path back on the node, or let the pod be created again"),
	"volume.too-large": entry("resource-exhausted", "mount less of it, or raise the key that is named: copies take the VM's memory"),
	"volume.invalid": entry("invalid-argument", "have the CSI driver write it anew; docs/volumes.md has the form"),
	"volume.share": entry(
		"failed-precondition",
		"see what virtiofsd says; storage.virtiofsd names the program, storage.share_folders turns sharing off",
	),
	"volume.busy": entry(
		"failed-precondition",
		"a disk serves one VM or the node itself at a time: end the other pod that has it, or unmount it on the node",
	),
	"volume.copy": entry("failed-precondition", "check that the path on the node can be read; copies take the VM's memory"),
	"host.cgroup": entry(
		"failed-precondition",
		"check that the control groups are mounted and writable, and that no other process is in the pod's",
	),
	"network.unsupported": entry("invalid-argument", "run the pod with a network that a VM can have"),
	"network.setup": entry("failed-precondition", "look at what the CNI plug-ins made of the pod's network namespace"),
	"network.busy": entry("failed-precondition", "a network namespace serves one VM at a time: end the other pod that has it"),
	"stream.failed": entry("unavailable", "the container's stdio can't be moved: remove the container"),
	"journal.write": entry("resource-exhausted", "free space on the tmpfs that holds state_dir"),
	"journal.invalid": entry("internal", "the pod's journal was damaged: remove the pod"),
	"confidential.annotation": entry("invalid-argument", "take the annotation out of the pod"),
	"confidential.initdata": entry(
		"invalid-argument",
		"make it with snpctl policy, and let the runtime class pass it on: pod_annotations in containerd's configuration (docs/confidential.md)",
	),
	"confidential.host": entry("failed-precondition", "schedule the pod on a node with SEV-SNP; docs/confidential.md says how to set one up"),
	"confidential.vmm": entry(
		"failed-precondition",
		"build Cloud Hypervisor with the features kvm,igvm,sev_snp,fw_cfg, and set hypervisor.path to it",
	),
	"confidential.igvm": entry("failed-precondition", "install the IGVM file whole, or set confidential.igvm"),
	"confidential.kernel": entry("failed-precondition", "set confidential.kernel to the bzImage that is built with vmlinux"),
	"confidential.size": entry("failed-precondition", "make the pod anew with the larger limits"),
	"attest.report": entry("invalid-argument", "give the report as the guest got it: 1184 bytes, configfs-tsm's outblob"),
	"attest.certificate": entry(
		"invalid-argument",
		"give the certificates as AMD's Key Distribution Service or the guest's auxblob has them",
	),
	"attest.policy": entry("invalid-argument", "docs/attestation.md lists every field"),
	"attest.key": entry("invalid-argument", "give an ECDSA key on the curve P-384 in PEM"),
	"attest.manifest": entry("invalid-argument", "give the guest-manifest.json that was built with the guest's files"),
	"attest.reference": entry("invalid-argument", "give a file of snpctl measure --reference, with the public key of who made it"),
	"measure.input": entry("invalid-argument", "give the files that the guest is started with, unchanged"),
	"policy.denied": entry(
		"permission-denied",
		"snpctl policy explain says which rule it was and what to add; the pod's owner makes a new policy",
	),
	"policy.input": entry("invalid-argument", "snpctl policy --help says what it takes"),
	"policy.invalid": entry("invalid-argument", "mend the policy at the place that is named, or make it anew with snpctl policy generate"),
	"policy.program": entry("failed-precondition", "install snp-policy beside snpd and snpctl"),
	"initdata.invalid": entry(
		"invalid-argument",
		"have snpctl policy generate --initdata make it: base64 of gzip of TOML with version, algorithm and [data]",
	),
	"wait.deadline": entry("deadline-exceeded", "the step took longer than its time-out in the configuration allows"),
	"wait.canceled": entry("canceled", "the caller gave up: nothing is left to do"),
	busy: entry("resource-exhausted", "too many calls wait for this pod: try again later"),
	internal: entry("internal", "this is a defect: report it with snpd's log"),
} as const satisfies Record<string, CatalogueEntry>;

/** A stable name of a failure. */
export type ErrorReason = keyof typeof CATALOGUE;
