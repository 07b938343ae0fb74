/** The hybrid vsock socket of a VM: `vhost-device-vsock` serves it on the host's side and speaks vhost-user with QEMU. */
import { existsSync, mkdtempSync, rmSync, unlinkSync, watch } from 'node:fs';
import { join } from 'node:path';
import { deviceManagerError } from './api-error.ts';
import { Child, within } from './child.ts';
import type { Tools } from './tools.ts';

const START_LIMIT_MS = 10_000;

/** A running backend: `vhostSocket` is where QEMU connects, once. */
export class VsockBackend {
  readonly vhostSocket: string;
  readonly #folder: string;
  readonly #path: string;
  readonly #child: Child;

  private constructor(folder: string, path: string, child: Child) {
    this.#folder = folder;
    this.vhostSocket = join(folder, 'v');
    this.#path = path;
    this.#child = child;
  }

  /**
   * Starts the backend and waits until QEMU can connect. `path` becomes the hybrid socket (`CONNECT <port>`); it must not exist, as with the real VMM.
   * Throws the VMM's error for a path that is taken, and a plain one when the program is missing or ends at once.
   */
  static async start(tools: Tools, path: string, cid: number): Promise<VsockBackend> {
    if (tools.vsock === undefined) {
      throw deviceManagerError('Cannot create virtio-vsock backend', 'vhost-device-vsock is not installed: put it on PATH or name it in CH_QEMU_VSOCK');
    }
    if (existsSync(path)) {
      throw deviceManagerError('Cannot create virtio-vsock backend', 'Error binding to the host-side Unix socket', 'Address in use (os error 98)');
    }
    const folder = mkdtempSync('/tmp/ch-qemu-');
    const listening = new Promise<void>((resolve) => {
      const watcher = watch(folder, () => {
        watcher.close();
        resolve();
      });
    });
    const child = new Child(tools.leash, [tools.vsock, '--vm', `guest-cid=${cid},socket=${join(folder, 'v')},uds-path=${path}`], ['ignore', 'ignore', 'pipe']);
    const backend = new VsockBackend(folder, path, child);
    const failed = child.ended.then(() => {
      throw deviceManagerError('Cannot create virtio-vsock backend', child.complaints || 'vhost-device-vsock ended at once');
    });
    try {
      await within(START_LIMIT_MS, 'vhost-device-vsock did not start', Promise.race([listening, failed]));
    } catch (error) {
      await backend.stop();
      throw error;
    }
    failed.catch(() => undefined);
    return backend;
  }

  /** QEMU is connected: nothing else needs the private socket, and nothing is left of it if this program is killed. */
  connected(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Ends the backend; the hybrid socket goes with it. */
  async stop(): Promise<void> {
    await this.#child.kill();
    this.connected();
    try {
      unlinkSync(this.#path);
    } catch {
      // Never made, or removed by its owner.
    }
  }
}
