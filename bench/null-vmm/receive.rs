//! Reading from a socket with the descriptors that come along: taps, which must stay open as long as their VM.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_CMSG_CLOEXEC: i32 = 0x4000_0000;
/// Room for a header and as many descriptors as a message may carry (SCM_MAX_FD of unix(7)).
const CONTROL_BYTES: usize = 16 + 253 * 4;

/// `struct iovec`
#[repr(C)]
struct Piece {
    base: *mut u8,
    length: usize,
}

/// `struct msghdr`
#[repr(C)]
struct Message {
    name: *mut u8,
    name_length: u32,
    pieces: *mut Piece,
    piece_count: usize,
    control: *mut u8,
    control_length: usize,
    flags: i32,
}

extern "C" {
    fn recvmsg(socket: i32, message: *mut Message, flags: i32) -> isize;
}

/// A connection and what has come with its bytes.
pub struct Receiver {
    connection: UnixStream,
    kept: Vec<OwnedFd>,
}

impl Receiver {
    /// Descriptors that come are open until this is dropped.
    pub fn new(connection: UnixStream) -> Self {
        let kept = Vec::new();
        Self { connection, kept }
    }

    /// What has come since this was asked last.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.kept)
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut control = [0u64; CONTROL_BYTES / 8 + 1];
        let mut piece = Piece {
            base: buffer.as_mut_ptr(),
            length: buffer.len(),
        };
        let mut message = Message {
            name: std::ptr::null_mut(),
            name_length: 0,
            pieces: &raw mut piece,
            piece_count: 1,
            control: control.as_mut_ptr().cast(),
            control_length: CONTROL_BYTES,
            flags: 0,
        };
        // SAFETY: every pointer leads to memory of the length that stands beside it.
        let length = unsafe { recvmsg(self.connection.as_raw_fd(), &raw mut message, MSG_CMSG_CLOEXEC) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.kept
            .extend(rights(&bytes[..message.control_length.min(CONTROL_BYTES)]));
        Ok(length)
    }
}

/// The descriptors of one control message: `struct cmsghdr`, then their numbers.
fn rights(control: &[u8]) -> Vec<OwnedFd> {
    let word = |at: usize| {
        control
            .get(at..at + 4)
            .map_or(0, |four| i32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
    };
    if control.len() < 16 || word(8) != SOL_SOCKET || word(12) != SCM_RIGHTS {
        return Vec::new();
    }
    let count = (word(0) as usize).saturating_sub(16) / 4;
    // SAFETY: the kernel has just made these descriptors for this process.
    (0..count)
        .map(|at| unsafe { OwnedFd::from_raw_fd(word(16 + at * 4)) })
        .collect()
}
