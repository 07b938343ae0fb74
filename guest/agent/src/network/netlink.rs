//! Route netlink in its own bytes: requests, acknowledgements, dumps. Formats: netlink(7), rtnetlink(7).

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER_BYTES: usize = 16;
/// A kernel's dump comes in parts of at most 32 KiB.
const PART_BYTES_MAX: usize = 64 << 10;
/// Parts of one dump.
const PARTS_MAX: usize = 4096;

/// A route netlink socket.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

/// A message under construction: the fixed part and attributes.
pub struct Body(Vec<u8>);

impl Body {
    /// Starts with a fixed structure.
    pub fn new(fixed: &[u8]) -> Self {
        let mut body = Self(fixed.to_vec());
        body.pad();
        body
    }

    /// Appends an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
        self
    }

    /// Appends an attribute when there is a value.
    pub fn maybe(self, kind: u16, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.attribute(kind, value),
            None => self,
        }
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One message of an answer.
pub struct Message(Vec<u8>);

impl Message {
    /// The fixed structure's bytes from `at`.
    pub fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// A 32-bit number of the fixed structure.
    pub fn word(&self, at: usize) -> u32 {
        number(self.0.get(at..).unwrap_or_default())
    }

    /// The attribute of that kind behind a fixed structure of `fixed` bytes.
    pub fn attribute(&self, fixed: usize, kind: u16) -> Option<&[u8]> {
        find(self.0.get(fixed.next_multiple_of(4)..)?, kind)
    }
}

/// The attribute of that kind in a list of attributes.
pub fn find(mut list: &[u8], kind: u16) -> Option<&[u8]> {
    while list.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([list[0], list[1]]));
        let found = u16::from_ne_bytes([list[2], list[3]]) & 0x3fff;
        let value = list.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// A 32-bit number in the machine's order; 0 when bytes are missing.
pub fn number(bytes: &[u8]) -> u32 {
    bytes
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

impl Netlink {
    /// Opens the socket.
    pub fn open() -> Result<Self> {
        let raw = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if raw < 0 {
            return Err(Errno::last()).context("open a netlink socket");
        }
        Ok(Self {
            fd: unsafe { OwnedFd::from_raw_fd(raw) },
            sequence: 0,
        })
    }

    /// Makes a change and waits for the kernel's word.
    pub fn change(&mut self, kind: u16, flags: i32, body: Body) -> Result<()> {
        self.exchange(kind, flags | libc::NLM_F_ACK, body).map(|_| ())
    }

    /// Asks for a list.
    pub fn dump(&mut self, kind: u16, body: Body) -> Result<Vec<Message>> {
        self.exchange(kind, libc::NLM_F_DUMP, body)
    }

    fn exchange(&mut self, kind: u16, flags: i32, body: Body) -> Result<Vec<Message>> {
        self.sequence += 1;
        let mut request = Vec::with_capacity(HEADER_BYTES + body.0.len());
        request.extend(((HEADER_BYTES + body.0.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0u32.to_ne_bytes());
        request.extend(body.0);
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(Errno::last()).context("send a netlink request");
        }
        let mut messages = Vec::new();
        let mut buffer = vec![0u8; PART_BYTES_MAX];
        for _ in 0..PARTS_MAX {
            let length = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if length < 0 {
                return Err(Errno::last()).context("receive a netlink answer");
            }
            if take(&buffer[..length as usize], self.sequence, &mut messages)? {
                return Ok(messages);
            }
        }
        Err(Error::internal("a netlink answer has no end"))
    }
}

/// Takes the messages of one part; true when the answer is complete.
fn take(mut part: &[u8], sequence: u32, messages: &mut Vec<Message>) -> Result<bool> {
    while part.len() >= HEADER_BYTES {
        let length = number(part) as usize;
        let kind = i32::from(u16::from_ne_bytes([part[4], part[5]]));
        let Some(payload) = part.get(HEADER_BYTES..length) else {
            break;
        };
        if number(&part[8..]) == sequence {
            match kind {
                libc::NLMSG_DONE => return Ok(true),
                libc::NLMSG_ERROR => match number(payload) as i32 {
                    0 => return Ok(true),
                    code => return Err(Errno::from_raw(-code).into()),
                },
                _ => messages.push(Message(payload.to_vec())),
            }
        }
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let body = Body::new(&[1, 2])
            .attribute(3, b"abc")
            .attribute(4, &7u32.to_ne_bytes());
        let message = Message(body.0);
        assert_eq!(message.attribute(2, 3), Some(&b"abc"[..]));
        assert_eq!(message.attribute(2, 4).map(number), Some(7));
        assert_eq!(message.attribute(2, 5), None);
    }

    #[test]
    fn the_kernel_lists_loopback() {
        let links = Netlink::open()
            .unwrap()
            .dump(libc::RTM_GETLINK, Body::new(&[0; 16]))
            .unwrap();
        assert!(links
            .iter()
            .any(|link| link.attribute(16, libc::IFLA_IFNAME) == Some(b"lo\0")));
    }
}
