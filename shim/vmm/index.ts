/**
 * A control library for Cloud Hypervisor: start a VMM or take one up, call its REST API, hear its events and its end, and dial its guest.
 * This is all that a program outside of this repository needs to import.
 */

export type * from "./api-types.ts";
export { VmmApiError } from "./api-error.ts";
export { VmmClient } from "./client.ts";
export type { CallOptions, VmmClientOptions } from "./client.ts";
export type * from "./config-types.ts";
export { adoptVmm, launchVmm, Vmm, vmmFiles } from "./launcher.ts";
export type { AdoptOptions, LaunchOptions, OnVmmEvent, VmmEvent, VmmExit, VmmFiles, VmmLogLevel } from "./launcher.ts";
export { diskAddress, planDisk, planVm, slotOfBdf } from "./plan.ts";
export type { DiskSpec, VmSpec } from "./plan.ts";
export { dialGuest } from "./vsock.ts";
export type { DialOptions, GuestConnection } from "./vsock.ts";
