//! The first thing that a guest does: it listens, before anything else is there, and tells its host so. A connection that comes from then on waits
//! until the agent takes it, so that a host need not try again and again.

use crate::error::Result;
use crate::io::{self, Address};
use crate::options::{AGENT_PORT, READY_PORT};
use nix::errno::Errno;
use nix::sys::socket::{connect, socket, AddressFamily, SockFlag, SockType, VsockAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// The agent's port, open.
pub struct Early {
    listener: OwnedFd,
    /// On its way to the host; what comes of it does not matter.
    _word: Result<OwnedFd>,
}

impl Early {
    /// Opens the agent's usual port and tells the host. None where that can't be done yet: whoever needs the port says why.
    pub fn listen() -> Option<Self> {
        let listener = io::listen_at(&Address::Vsock(AGENT_PORT)).ok()?;
        let _word = tell(READY_PORT);
        Some(Self { listener, _word })
    }

    /// The open port, if it is the one that is wanted after all.
    pub fn take(self, wanted: &Address) -> Option<OwnedFd> {
        (*wanted == Address::Vsock(AGENT_PORT)).then_some(self.listener)
    }
}

/// Connects to a port of the host without waiting for its answer: that somebody connects says all.
fn tell(port: u32) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let word = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(word.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(word),
        Err(errno) => Err(errno.into()),
    }
}
