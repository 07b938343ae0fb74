//! Bytes on their way in and out of sockets that never block.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use crate::sys;

/// An empty buffer keeps no more memory than this.
const KEEP_BYTES: usize = 1024;

/// Received bytes that are not used up yet.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    used: usize,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// All that was there, or as much as one turn may take.
    Some,
    /// The peer has closed its side, or the connection broke.
    End,
}

impl Input {
    /// Reads what the socket has, at most `rounds` times the size of `scratch`, so that one peer can't keep the others waiting.
    pub fn fill(&mut self, socket: BorrowedFd<'_>, scratch: &mut [u8], rounds: usize) -> Received {
        for _ in 0..rounds {
            match sys::receive(socket, scratch) {
                Ok(0) => return Received::End,
                Ok(count) => self.bytes.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Received::End,
            }
        }
        Received::Some
    }

    /// The bytes that wait to be used.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// Takes bytes away from the front.
    pub fn consume(&mut self, count: usize) {
        self.used += count;
    }

    /// Moves what is left to the front, and gives memory back when that is nothing.
    pub fn compact(&mut self) {
        self.bytes.drain(..self.used);
        self.used = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEEP_BYTES);
        }
    }
}

/// Bytes that wait to be sent.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Where to append.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while !self.is_empty() {
            match sys::send(socket, &self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.bytes.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn carries_more_than_a_socket_holds() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut output = Output::default();
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
        output.buffer().extend_from_slice(&sent);
        let mut input = Input::default();
        let mut scratch = [0; 4096];
        while !output.is_empty() {
            output.flush(left.as_fd()).unwrap();
            assert_eq!(input.fill(right.as_fd(), &mut scratch, 1000), Received::Some);
        }
        assert!(input.bytes() == sent);
        input.consume(sent.len());
        input.compact();
        assert!(input.bytes.capacity() <= KEEP_BYTES && output.bytes.capacity() <= KEEP_BYTES);
        drop(left);
        assert_eq!(input.fill(right.as_fd(), &mut scratch, 1), Received::End);
    }
}
