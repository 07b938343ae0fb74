//! A split virtqueue from the device's side.

use std::num::Wrapping;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{fence, Ordering};

use crate::memory::GuestMemory;
use crate::sys;

const DESCRIPTOR_BYTES: u64 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;
/// The longest queue that virtio allows.
pub const SIZE_MAX: u16 = 32768;

/// Part of a chain: a piece of guest memory.
#[derive(Clone, Copy)]
pub struct Segment {
    pub data: *mut u8,
    pub size: usize,
    pub writable: bool,
}

/// One message of the driver, or one empty buffer.
pub struct Chain {
    pub head: u16,
    pub segments: Vec<Segment>,
}

/// A queue: set up by vhost-user messages, used while it is started and enabled.
#[derive(Default)]
pub struct Queue {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub kick: Option<OwnedFd>,
    pub call: Option<OwnedFd>,
    pub enabled: bool,
    pub started: bool,
    pub event_index: bool,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// The used index at the last call: with event indices a call is due when the driver's mark lies behind it.
    signalled_used: Wrapping<u16>,
}

impl Queue {
    /// Where the queue goes on: the number that QEMU keeps while the device stands still.
    pub fn base(&self) -> u16 {
        self.next_available.0
    }

    pub fn set_base(&mut self, base: u16) {
        self.next_available = Wrapping(base);
        self.next_used = Wrapping(base);
        self.signalled_used = Wrapping(base);
    }

    /// How many chains the ring says were finished. `None`: the ring is not there.
    pub fn used_index(&self, memory: &GuestMemory) -> Option<u16> {
        let ring = self.used_ring(memory)?;
        // SAFETY: `used_ring` checked the whole ring. Words of 16 bits: flags, then the index.
        Some(unsafe { ring.cast::<u16>().add(1).read_volatile() })
    }

    /// True when the driver's buffers may be touched.
    pub fn ready(&self) -> bool {
        self.started && self.enabled && self.size > 0 && self.descriptors != 0
    }

    /// The next chain, without taking it: a chain that turns out not to be needed stays. `None`: nothing is there, or the ring is broken.
    pub fn peek(&self, memory: &GuestMemory) -> Option<Chain> {
        if !self.ready() {
            return None;
        }
        let ring = self.available_ring(memory)?;
        // SAFETY: `available_ring` checked the whole ring; the driver writes it concurrently, hence volatile.
        let index = unsafe { ring.add(1).read_volatile() };
        if Wrapping(index) == self.next_available {
            return None;
        }
        fence(Ordering::Acquire);
        // SAFETY: as above; the slot is below `size`.
        let head = unsafe {
            ring.add(2 + usize::from(self.next_available.0 % self.size))
                .read_volatile()
        };
        self.walk(memory, head)
    }

    /// Takes the chain that `peek` gave and returns it to the driver with `written` bytes in it.
    pub fn finish(&mut self, memory: &GuestMemory, head: u16, written: u32) {
        self.next_available += 1;
        let Some(ring) = self.used_ring(memory) else { return };
        let slot = 1 + 2 * usize::from(self.next_used.0 % self.size);
        self.next_used += 1;
        // SAFETY: `used_ring` checked the whole ring. Words: flags and index, then pairs of head and length.
        unsafe {
            ring.add(slot).write_volatile(u32::from(head));
            ring.add(slot + 1).write_volatile(written);
            fence(Ordering::Release);
            ring.cast::<u16>().add(1).write_volatile(self.next_used.0);
        }
    }

    /// Tells the driver about finished chains, if it wants to know.
    pub fn notify(&mut self, memory: &GuestMemory) {
        if !self.ready() || self.signalled_used == self.next_used || !self.call_wanted(memory) {
            return;
        }
        self.signalled_used = self.next_used;
        if let Some(call) = &self.call {
            sys::signal(call.as_raw_fd());
        }
    }

    /// Asks the driver to kick when it adds a chain. True when one came meanwhile: look again.
    pub fn want_kick(&self, memory: &GuestMemory) -> bool {
        if !self.ready() {
            return false;
        }
        if self.event_index {
            if let Some(ring) = self.used_ring(memory) {
                // SAFETY: the available mark follows the used entries; `used_ring` counted it in.
                unsafe {
                    ring.cast::<u16>()
                        .add(2 + 4 * usize::from(self.size))
                        .write_volatile(self.next_available.0)
                };
            }
        }
        fence(Ordering::SeqCst);
        // SAFETY: checked by `available_ring`.
        self.available_ring(memory)
            .is_some_and(|ring| Wrapping(unsafe { ring.add(1).read_volatile() }) != self.next_available)
    }

    fn call_wanted(&self, memory: &GuestMemory) -> bool {
        fence(Ordering::SeqCst);
        let Some(ring) = self.available_ring(memory) else {
            return false;
        };
        // SAFETY: checked by `available_ring`, which counts the mark behind the entries in.
        unsafe {
            if !self.event_index {
                return ring.read_volatile() & NO_INTERRUPT == 0;
            }
            let mark = Wrapping(ring.add(2 + usize::from(self.size)).read_volatile());
            self.next_used - mark - Wrapping(1) < self.next_used - self.signalled_used
        }
    }

    fn walk(&self, memory: &GuestMemory, head: u16) -> Option<Chain> {
        let table = memory.qemu(self.descriptors, DESCRIPTOR_BYTES * u64::from(self.size))?;
        let mut segments = Vec::with_capacity(4);
        let mut index = head;
        // A chain has no more parts than the queue: a longer one is a circle.
        for _ in 0..self.size {
            if index >= self.size {
                return None;
            }
            // SAFETY: the index is inside the table that was checked.
            let (address, size, flags, next) = unsafe {
                let entry = table.add(DESCRIPTOR_BYTES as usize * usize::from(index));
                (
                    entry.cast::<u64>().read_volatile(),
                    entry.add(8).cast::<u32>().read_volatile(),
                    entry.add(12).cast::<u16>().read_volatile(),
                    entry.add(14).cast::<u16>().read_volatile(),
                )
            };
            let data = memory.guest(address, u64::from(size))?;
            segments.push(Segment {
                data,
                size: size as usize,
                writable: flags & F_WRITE != 0,
            });
            if flags & F_NEXT == 0 {
                return Some(Chain { head, segments });
            }
            index = next;
        }
        None
    }

    /// Flags, index, one entry a slot, and the driver's mark for calls.
    fn available_ring(&self, memory: &GuestMemory) -> Option<*mut u16> {
        let bytes = 6 + 2 * u64::from(self.size);
        memory
            .qemu(self.available, bytes)
            .map(<*mut u8>::cast)
            .filter(|p: &*mut u16| p.is_aligned())
    }

    /// Flags, index, pairs of head and length, and our mark for kicks.
    fn used_ring(&self, memory: &GuestMemory) -> Option<*mut u32> {
        let bytes = 6 + 8 * u64::from(self.size);
        memory
            .qemu(self.used, bytes)
            .map(<*mut u8>::cast)
            .filter(|p: &*mut u32| p.is_aligned())
    }
}
