//! One vsock connection: a host stream on one side, a guest port on the other.
//!
//! What counts here is that nothing is lost and that each half closes alone: the end of one direction is passed on only after its last byte, and a
//! connection that both sides have closed still delivers what the guest had sent.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::num::Wrapping;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::packet::{self, Header, HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use crate::sys;

/// What the guest may send before the host's reader takes it.
pub const BUFFER_BYTES: u32 = 256 * 1024;
/// The guest learns of space that became free in steps of this size: often enough never to wait for it, seldom enough to cost nothing.
const CREDIT_STEP_BYTES: u32 = BUFFER_BYTES / 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The host asked; the guest has not answered yet.
    Requested,
    Open,
    /// The guest is done with it: only its last bytes are still on their way to the host.
    Draining,
}

/// What is to be sent to the guest besides data.
#[derive(Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    shutdown: u32,
    credit_update: bool,
    credit_request: bool,
}

pub struct Connection {
    pub stream: OwnedFd,
    pub token: u64,
    pub host_port: u32,
    pub guest_port: u32,
    pub state: State,
    /// The stream has something to read, or its end.
    pub readable: bool,
    /// Waits in the queue of connections that have something for the guest.
    pub queued: bool,
    guest_cid: u64,
    pending: Pending,
    /// The host sends no more: its half is closed.
    host_ended: bool,
    /// The host's stream is gone in both directions.
    host_gone: bool,
    /// What the guest said it would not do any more.
    guest_shutdown: u32,
    to_host: VecDeque<u8>,
    consumed_bytes: Wrapping<u32>,
    consumed_told: Wrapping<u32>,
    sent_bytes: Wrapping<u32>,
    peer_buffer_bytes: u32,
    peer_consumed_bytes: Wrapping<u32>,
}

/// What a guest packet means for the connection's owner.
#[derive(PartialEq, Eq, Debug)]
pub enum Verdict {
    Keep,
    /// Forget it now; what is left for the host was delivered or can't be.
    Close,
}

impl Connection {
    pub fn new(stream: OwnedFd, token: u64, host_port: u32, guest_port: u32, guest_cid: u64, by_host: bool) -> Self {
        Self {
            stream,
            token,
            host_port,
            guest_port,
            state: if by_host { State::Requested } else { State::Open },
            readable: false,
            queued: false,
            guest_cid,
            pending: Pending {
                request: by_host,
                response: !by_host,
                ..Pending::default()
            },
            host_ended: false,
            host_gone: false,
            guest_shutdown: 0,
            to_host: VecDeque::new(),
            consumed_bytes: Wrapping(0),
            consumed_told: Wrapping(0),
            sent_bytes: Wrapping(0),
            peer_buffer_bytes: 0,
            peer_consumed_bytes: Wrapping(0),
        }
    }

    /// How many bytes the guest can take now.
    fn credit(&self) -> u32 {
        let under_way = (self.sent_bytes - self.peer_consumed_bytes).0;
        self.peer_buffer_bytes.saturating_sub(under_way)
    }

    fn may_send_data(&self) -> bool {
        self.state == State::Open && self.readable && !self.host_ended && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// True when something can be sent to the guest.
    pub fn has_packet(&self) -> bool {
        let p = &self.pending;
        p.request
            || p.response
            || p.reset
            || p.shutdown != 0
            || p.credit_update
            || p.credit_request
            || (self.may_send_data() && self.credit() > 0)
    }

    /// Input is wanted when the last one was taken; output when something waits for the host.
    pub fn interest(&self) -> (bool, bool) {
        let input = self.state == State::Open
            && !self.readable
            && !self.host_ended
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0;
        (input, !self.to_host.is_empty())
    }

    pub fn reset(&mut self) {
        self.pending = Pending {
            reset: true,
            ..Pending::default()
        };
    }

    /// The stream hung up: the host neither sends nor reads any more. What it sent before can still be read.
    pub fn hang_up(&mut self) {
        if self.host_gone {
            return;
        }
        self.host_gone = true;
        self.to_host.clear();
        if self.host_ended {
            self.pending.shutdown |= SHUTDOWN_BOTH;
        } else {
            self.readable = true;
        }
    }

    /// The guest has not been asked for this connection yet.
    pub fn is_unasked(&self) -> bool {
        self.pending.request
    }

    pub fn is_gone(&self) -> bool {
        self.host_gone
    }

    /// The next packet for the guest, data read into `space` (which lies behind the header). `None`: nothing to send after all.
    pub fn next_packet(&mut self, space: &[libc::iovec]) -> Option<Header> {
        let mut header = Header {
            source_cid: HOST_CID,
            target_cid: self.guest_cid,
            source_port: self.host_port,
            target_port: self.guest_port,
            kind: TYPE_STREAM,
            buffer_bytes: BUFFER_BYTES,
            ..Header::default()
        };
        header.operation = self.next_operation(space, &mut header.length, &mut header.flags)?;
        header.consumed_bytes = self.consumed_bytes.0;
        self.consumed_told = self.consumed_bytes;
        self.pending.credit_update = false;
        Some(header)
    }

    fn next_operation(&mut self, space: &[libc::iovec], length: &mut u32, flags: &mut u32) -> Option<u16> {
        if std::mem::take(&mut self.pending.reset) {
            return Some(packet::OP_RST);
        }
        if std::mem::take(&mut self.pending.request) {
            return Some(packet::OP_REQUEST);
        }
        if std::mem::take(&mut self.pending.response) {
            return Some(packet::OP_RESPONSE);
        }
        if self.may_send_data() {
            if self.credit() > 0 {
                if let Some(n) = self.read_stream(space) {
                    *length = n;
                    return Some(packet::OP_RW);
                }
            } else if std::mem::take(&mut self.pending.credit_request) {
                return Some(packet::OP_CREDIT_REQUEST);
            }
        }
        self.pending.credit_request = false;
        if self.pending.shutdown != 0 {
            *flags = std::mem::take(&mut self.pending.shutdown);
            return Some(packet::OP_SHUTDOWN);
        }
        std::mem::take(&mut self.pending.credit_update).then_some(packet::OP_CREDIT_UPDATE)
    }

    /// Reads what the guest can take. `None`: nothing there, or the end, which becomes a shutdown.
    fn read_stream(&mut self, space: &[libc::iovec]) -> Option<u32> {
        let mut left = self.credit() as usize;
        let mut parts = Vec::with_capacity(space.len());
        for part in space {
            let size = part.iov_len.min(left);
            if size > 0 {
                parts.push(libc::iovec {
                    iov_base: part.iov_base,
                    iov_len: size,
                });
            }
            left -= size;
        }
        if parts.is_empty() {
            // A buffer that holds nothing but a header: to ask again and again would never end.
            self.end_of_host(SHUTDOWN_BOTH);
            return None;
        }
        // SAFETY: the caller names memory of the guest's that is writable.
        match unsafe { sys::read_vectored(self.stream.as_raw_fd(), &parts) } {
            Ok(0) => self.end_of_host(if self.host_gone { SHUTDOWN_BOTH } else { SHUTDOWN_SEND }),
            Ok(n) => {
                self.sent_bytes += Wrapping(n as u32);
                if self.credit() == 0 {
                    self.pending.credit_request = true;
                }
                return Some(n as u32);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = self.host_gone,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.end_of_host(SHUTDOWN_BOTH),
        }
        None
    }

    fn end_of_host(&mut self, flags: u32) {
        self.readable = false;
        self.host_ended = true;
        self.pending.shutdown |= flags;
    }

    /// Takes a packet of the guest's; `data` is what lies behind the header.
    pub fn take_packet(&mut self, header: &Header, data: &[&[u8]]) -> Verdict {
        self.peer_buffer_bytes = header.buffer_bytes;
        self.peer_consumed_bytes = Wrapping(header.consumed_bytes);
        match header.operation {
            packet::OP_RESPONSE if self.state == State::Requested => {
                self.state = State::Open;
                let line = format!("OK {}\n", self.host_port);
                // The line fits any socket's buffer: what is not taken now belongs to a client that is gone.
                if sys::send(self.stream.as_raw_fd(), line.as_bytes()).is_err() {
                    self.hang_up();
                }
                Verdict::Keep
            }
            packet::OP_RST => self.drain(),
            packet::OP_SHUTDOWN => self.take_shutdown(header.flags & SHUTDOWN_BOTH),
            packet::OP_RW => self.take_data(data),
            packet::OP_CREDIT_REQUEST => {
                self.pending.credit_update = true;
                Verdict::Keep
            }
            packet::OP_CREDIT_UPDATE => Verdict::Keep,
            _ => {
                self.reset();
                Verdict::Keep
            }
        }
    }

    /// The guest ended a direction, or both: then its end of the connection is free at once, whatever still waits for the host.
    fn take_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_shutdown |= flags;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            self.reset();
            return Verdict::Keep;
        }
        if self.to_host.is_empty() {
            self.end_guest_half();
        }
        Verdict::Keep
    }

    fn end_guest_half(&self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            // SAFETY: plain numbers.
            unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_WR) };
        }
    }

    /// The guest forgot the connection: only what it sent before is left to deliver.
    pub fn drain(&mut self) -> Verdict {
        let refused = self.state == State::Requested;
        self.state = State::Draining;
        self.pending = Pending::default();
        if refused || self.to_host.is_empty() {
            Verdict::Close
        } else {
            Verdict::Keep
        }
    }

    fn take_data(&mut self, data: &[&[u8]]) -> Verdict {
        let size: usize = data.iter().map(|part| part.len()).sum();
        if self.state != State::Open
            || self.guest_shutdown & SHUTDOWN_SEND != 0
            || self.to_host.len() + size > BUFFER_BYTES as usize
        {
            self.reset();
            return Verdict::Keep;
        }
        for part in data {
            let mut rest: &[u8] = part;
            while self.to_host.is_empty() && !rest.is_empty() && !self.host_gone {
                match self.write_stream(rest) {
                    Some(n) => rest = &rest[n..],
                    None => break,
                }
            }
            if !self.host_gone {
                self.to_host.extend(rest);
            }
        }
        if self.host_gone {
            self.reset();
        }
        Verdict::Keep
    }

    /// Writes to the host. `None`: it takes nothing now, or is gone.
    fn write_stream(&mut self, data: &[u8]) -> Option<usize> {
        match sys::send(self.stream.as_raw_fd(), data) {
            Ok(n) => {
                self.consumed_bytes += Wrapping(n as u32);
                if (self.consumed_bytes - self.consumed_told).0 >= CREDIT_STEP_BYTES {
                    self.pending.credit_update = true;
                }
                Some(n)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(_) => {
                self.hang_up();
                None
            }
        }
    }

    /// The host takes bytes again. `Close`: everything was delivered, and nothing else is to come.
    pub fn flush(&mut self) -> Verdict {
        while !self.to_host.is_empty() {
            let (front, _) = self.to_host.as_slices();
            let front: Vec<u8> = front[..front.len().min(64 * 1024)].to_vec();
            match self.write_stream(&front) {
                Some(n) => drop(self.to_host.drain(..n)),
                None => break,
            }
        }
        if !self.to_host.is_empty() {
            return Verdict::Keep;
        }
        if self.state == State::Draining {
            return Verdict::Close;
        }
        self.end_guest_half();
        Verdict::Keep
    }
}

/// Reads a line `CONNECT <port>` from a new client: `Ok(None)` while it is not complete. Nothing behind the line is taken.
pub fn read_connect_line(stream: &OwnedFd, line: &mut Vec<u8>) -> io::Result<Option<u32>> {
    let mut seen = [0u8; LINE_MAX_BYTES];
    let n = match sys::peek(stream.as_raw_fd(), &mut seen[..LINE_MAX_BYTES - line.len()]) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    let end = seen[..n].iter().position(|&b| b == b'\n');
    let take = end.map_or(n, |at| at + 1);
    let part = libc::iovec {
        iov_base: seen.as_mut_ptr().cast(),
        iov_len: take,
    };
    // SAFETY: the array is long enough; the bytes were seen to be there.
    unsafe { sys::read_vectored(stream.as_raw_fd(), &[part]) }?;
    line.extend_from_slice(&seen[..end.unwrap_or(n)]);
    if end.is_none() {
        return if line.len() < LINE_MAX_BYTES {
            Ok(None)
        } else {
            Err(ErrorKind::InvalidData.into())
        };
    }
    let port = std::str::from_utf8(line).ok().and_then(parse_connect);
    port.map(Some).ok_or_else(|| ErrorKind::InvalidData.into())
}

const LINE_MAX_BYTES: usize = 32;

fn parse_connect(line: &str) -> Option<u32> {
    let mut words = line.split_whitespace();
    let (command, port, rest) = (words.next()?, words.next()?, words.next());
    if !command.eq_ignore_ascii_case("connect") || rest.is_some() {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests;
