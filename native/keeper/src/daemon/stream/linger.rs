//! The rest of an output stream whose process containerd has deleted: it goes to whoever still reads, and nobody is told.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libc::EPOLLOUT;

use super::{Direction, Local, Step, Stream};
use crate::sys::{self, Epoll};

/// How long a lingering stream may bring nothing although its reader has taken all: some other process holds the output
/// of one that has ended (containerd's own shim for runc gives it the same time).
const SILENCE: Duration = Duration::from_secs(10);

impl Stream {
    /// Whether it may have a rest: not an input, nor an output that is not connected.
    pub fn may_linger(&self) -> bool {
        self.is_open() && self.plan.direction == Direction::Out
    }

    /// From now on the stream is nobody's but its reader's.
    pub fn linger(&mut self, epoll: &Epoll, now: Instant) -> Step {
        self.lingers.get_or_insert(now);
        let writer = match &self.local {
            Local::Fifo(fifo) => match open_writer(fifo.as_fd()) {
                Ok(writer) => Some(writer),
                Err(error) => return self.failed(&format!("open the FIFO for writing alone: {error}")),
            },
            Local::File(_) => None,
        };
        if let Some(writer) = writer {
            // The old descriptor would count as a reader.
            self.watch(epoll, 0, 0);
            self.local = Local::Fifo(writer);
        }
        self.on_event(epoll)
    }

    /// Whether [`Stream::linger`] was called.
    pub fn is_lingering(&self) -> bool {
        self.lingers.is_some()
    }

    /// When it last moved bytes, or began to linger.
    pub fn lingers_since(&self) -> Option<Instant> {
        self.lingers
    }

    /// When it ends unless bytes come. Never while the reader is what it waits for.
    pub(super) fn silent_by(&self) -> Option<Instant> {
        let waits_for_reader = self.local_watch & EPOLLOUT != 0;
        self.lingers.filter(|_| !waits_for_reader).map(|since| since + SILENCE)
    }

    /// Whether it lingers for a reader that is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.local {
            Local::Fifo(fifo) => self.is_lingering() && sys::has_no_reader(fifo.as_fd()),
            Local::File(_) => false,
        }
    }
}

/// Opens a FIFO once more, for writing alone and without waiting: the new descriptor tells when nobody reads any more.
///
/// # Errors
/// When there are no descriptors left.
pub fn open_writer(fifo: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", fifo.as_raw_fd()));
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(OwnedFd::from(file))
}
