//! vhost-user (QEMU's docs/interop/vhost-user): QEMU tells which memory and which rings to use.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::memory::{GuestMemory, RegionInfo};
use crate::queue::{self, Queue};
use crate::sys;

/// The queues of a vsock device that the back end serves: host to guest, guest to host.
pub const RX: usize = 0;
pub const TX: usize = 1;
const QUEUES: usize = 2;

const F_EVENT_IDX: u64 = 1 << 29;
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = F_EVENT_IDX | F_PROTOCOL_FEATURES | F_VERSION_1;

const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_CONFIG: u64 = 1 << 9;
const PROTOCOL_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
const PROTOCOL_FEATURES: u64 = PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG | PROTOCOL_CONFIGURE_MEM_SLOTS;

const MESSAGE_MAX_BYTES: usize = 4096;
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 4;
const FLAG_NEED_REPLY: u32 = 8;
/// A ring's descriptor field: this bit says that no descriptor comes.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// Requests by number.
mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// The device as QEMU has set it up so far.
pub struct Device {
    pub memory: GuestMemory,
    pub queues: [Queue; QUEUES],
    socket: OwnedFd,
    guest_cid: u64,
    protocol_features: u64,
    own_features: u64,
    /// Queues of a restored guest that have not been started since.
    restored: [bool; QUEUES],
}

/// What a message changed for the event loop.
#[derive(PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that concerns it, or a ring that may have work now.
    Continue,
    /// Kick descriptors changed: watch them anew.
    Kicks,
    /// QEMU is gone.
    Closed,
}

impl Device {
    /// `restored`: the guest has used the rings before, and QEMU does not know how far.
    pub fn new(socket: OwnedFd, guest_cid: u64, restored: bool) -> Self {
        Self {
            memory: GuestMemory::default(),
            queues: Default::default(),
            socket,
            guest_cid,
            protocol_features: 0,
            own_features: 0,
            restored: [restored; QUEUES],
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Reads and answers one message. An error is a broken protocol: there is no going on.
    pub fn handle_message(&mut self) -> io::Result<Outcome> {
        let mut head = [0u8; 12];
        let mut fds = Vec::new();
        if !sys::receive_exact(self.socket.as_raw_fd(), &mut head, &mut fds)? {
            return Ok(Outcome::Closed);
        }
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (kind, flags, size) = (word(0), word(4), word(8) as usize);
        if flags & 3 != VERSION || size > MESSAGE_MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("vhost-user message {kind} with flags {flags:#x} and {size} bytes"),
            ));
        }
        let mut body = vec![0u8; size];
        if size > 0 && !sys::receive_exact(self.socket.as_raw_fd(), &mut body, &mut fds)? {
            return Ok(Outcome::Closed);
        }
        let answer = self.dispatch(kind, Body(&body), fds);
        match answer {
            Ok(Some(reply)) => self.reply(kind, &reply)?,
            // With REPLY_ACK every message may ask for a verdict: 0 is success.
            Ok(None) if flags & FLAG_NEED_REPLY != 0 => self.reply(kind, &0u64.to_ne_bytes())?,
            Err(e) if flags & FLAG_NEED_REPLY != 0 => {
                eprintln!("ch-qemu-vsock: vhost-user message {kind}: {e}");
                self.reply(kind, &1u64.to_ne_bytes())?;
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("vhost-user message {kind}: {e}"))),
            Ok(None) => {}
        }
        Ok(if kind == request::SET_VRING_KICK || kind == request::GET_VRING_BASE {
            Outcome::Kicks
        } else {
            Outcome::Continue
        })
    }

    fn reply(&self, kind: u32, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(12 + body.len());
        for word in [kind, VERSION | FLAG_REPLY, body.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let sent = sys::send(self.socket.as_raw_fd(), &message)?;
        if sent == message.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn dispatch(&mut self, kind: u32, body: Body, fds: Vec<OwnedFd>) -> io::Result<Option<Vec<u8>>> {
        let number = |n: u64| Ok(Some(n.to_ne_bytes().to_vec()));
        match kind {
            request::GET_FEATURES => return number(FEATURES),
            request::SET_FEATURES => {
                self.own_features = body.long(0)?;
                let event_index = self.own_features & F_EVENT_IDX != 0;
                self.queues.iter_mut().for_each(|q| q.event_index = event_index);
            }
            request::GET_PROTOCOL_FEATURES => return number(PROTOCOL_FEATURES),
            request::SET_PROTOCOL_FEATURES => self.protocol_features = body.long(0)?,
            request::GET_QUEUE_NUM => return number(QUEUES as u64),
            request::GET_MAX_MEM_SLOTS => return number(sys::FDS_MAX as u64),
            request::SET_OWNER | request::RESET_OWNER | request::SET_VRING_ERR | request::SET_CONFIG => {}
            request::SET_MEM_TABLE => {
                let count = body.word(0)? as usize;
                if count > fds.len() {
                    return Err(invalid(format!("{count} regions with {} descriptors", fds.len())));
                }
                let regions: io::Result<Vec<_>> = fds
                    .into_iter()
                    .take(count)
                    .enumerate()
                    .map(|(i, fd)| Ok((body.region(8 + 32 * i)?, fd)))
                    .collect();
                self.memory.replace(&regions?)?;
            }
            request::ADD_MEM_REG => {
                let fd = fds
                    .first()
                    .ok_or_else(|| invalid("a region without a descriptor".into()))?;
                self.memory.add(body.region(8)?, fd)?;
            }
            request::REM_MEM_REG => self.memory.remove(body.region(8)?.guest_address),
            request::GET_CONFIG => return self.config(body).map(Some),
            _ => return self.ring_message(kind, body, fds),
        }
        Ok(None)
    }

    /// The device's configuration space is the guest's address, 8 bytes.
    fn config(&self, body: Body) -> io::Result<Vec<u8>> {
        let (offset, size) = (body.word(0)? as usize, body.word(4)? as usize);
        let space = self.guest_cid.to_le_bytes();
        let part = offset
            .checked_add(size)
            .and_then(|end| space.get(offset..end))
            .ok_or_else(|| invalid(format!("{size} bytes of configuration at {offset}")))?;
        let mut answer = body
            .0
            .get(..12)
            .ok_or_else(|| invalid("a short message".into()))?
            .to_vec();
        answer.extend_from_slice(part);
        Ok(answer)
    }

    fn ring_message(&mut self, kind: u32, body: Body, fds: Vec<OwnedFd>) -> io::Result<Option<Vec<u8>>> {
        let with_descriptor = matches!(kind, request::SET_VRING_KICK | request::SET_VRING_CALL);
        let index = if with_descriptor {
            (body.long(0)? & 0xff) as usize
        } else {
            body.word(0)? as usize
        };
        let descriptor = if with_descriptor && body.long(0)? & NO_DESCRIPTOR == 0 {
            fds.into_iter().next()
        } else {
            None
        };
        // QEMU sets up the event queue as well, which only migration would use.
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(None);
        };
        match kind {
            request::SET_VRING_NUM => {
                let size = body.word(4)?;
                if !size.is_power_of_two() || size > u32::from(queue::SIZE_MAX) {
                    return Err(invalid(format!("a ring of {size} entries")));
                }
                queue.size = size as u16;
            }
            request::SET_VRING_ADDR => {
                (queue.descriptors, queue.used, queue.available) = (body.long(8)?, body.long(16)?, body.long(24)?)
            }
            request::SET_VRING_BASE => queue.set_base(body.word(4)? as u16),
            request::GET_VRING_BASE => {
                queue.started = false;
                queue.kick = None;
                let mut answer = (index as u32).to_ne_bytes().to_vec();
                answer.extend_from_slice(&u32::from(queue.base()).to_ne_bytes());
                return Ok(Some(answer));
            }
            request::SET_VRING_KICK => {
                queue.kick = descriptor;
                // Each chain was finished as it was taken: the driver's own ring tells how many.
                if let (true, Some(used)) = (self.restored[index], queue.used_index(&self.memory)) {
                    queue.set_base(used);
                }
                queue.started = true;
                // Without protocol features there is no message that enables a ring: it starts enabled.
                queue.enabled |= self.own_features & F_PROTOCOL_FEATURES == 0;
            }
            request::SET_VRING_CALL => {
                queue.call = descriptor;
                // What was finished before the snapshot may not have been told; once too often does no harm.
                if let (Some(call), true) = (&queue.call, self.restored[index] && queue.started) {
                    self.restored[index] = false;
                    sys::signal(call.as_raw_fd());
                }
            }
            request::SET_VRING_ENABLE => queue.enabled = body.word(4)? != 0,
            _ => return Err(invalid("an unknown request".into())),
        }
        Ok(None)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A message's payload; reading past its end is an error.
#[derive(Clone, Copy)]
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn word(self, at: usize) -> io::Result<u32> {
        let bytes = self
            .0
            .get(at..at + 4)
            .ok_or_else(|| invalid("a short message".into()))?;
        Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
    }

    fn long(self, at: usize) -> io::Result<u64> {
        let bytes = self
            .0
            .get(at..at + 8)
            .ok_or_else(|| invalid("a short message".into()))?;
        Ok(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn region(self, at: usize) -> io::Result<RegionInfo> {
        Ok(RegionInfo {
            guest_address: self.long(at)?,
            size: self.long(at + 8)?,
            qemu_address: self.long(at + 16)?,
            file_offset: self.long(at + 24)?,
        })
    }
}
