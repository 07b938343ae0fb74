//! Who reads an output, and what it has not taken yet.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libc::EPOLLERR;

use super::{open_writer, Direction, Local, Phase, Step, Stream};
use crate::sys::{self, Epoll};

/// Shortest and longest pause between two looks at a FIFO that is to be read empty, which the kernel does not announce.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(250);
/// A pause in between is this part of the time that the reader has had: it adds little to that.
const LOOK_PART: u32 = 8;

impl Stream {
    /// How many bytes of an output are here, in the FIFO or before it, and were not read.
    pub fn unread(&self) -> u64 {
        let fifo = match &self.local {
            Local::Fifo(fifo) => sys::waiting_bytes(fifo.as_fd()),
            Local::File(_) => Ok(0),
        };
        let socket = self.socket.as_ref().map(|socket| sys::waiting_bytes(socket.as_fd()));
        fifo.unwrap_or(0) + socket.and_then(Result::ok).unwrap_or(0)
    }

    /// Whether anybody else has an output's FIFO open for reading. The keeper's own descriptor would count: for a moment
    /// it is changed for one that only writes.
    pub fn find_reader(&mut self, epoll: &Epoll) -> (bool, Step) {
        let Local::Fifo(fifo) = &self.local else {
            return (false, Step::Going);
        };
        if self.plan.direction == Direction::In {
            return (false, Step::Going);
        }
        if self.is_lingering() || matches!(self.phase, Phase::Ended { .. }) {
            return (!sys::has_no_reader(fifo.as_fd()), Step::Going);
        }
        // Without a descriptor to spare nobody can tell: as if there was no reader.
        let Ok(writer) = open_writer(fifo.as_fd()) else {
            return (false, Step::Going);
        };
        let (socket_watch, local_watch) = (self.socket_watch, self.local_watch);
        let step = self.watch(epoll, socket_watch, 0);
        if step != Step::Going {
            return (false, step);
        }
        self.local = Local::Fifo(writer);
        let Local::Fifo(writer) = &self.local else {
            return (false, Step::Going);
        };
        let found = !sys::has_no_reader(writer.as_fd());
        // If it fails the writer stays: only what comes after the reader has gone is lost then.
        if let Ok(both) = open_both(writer) {
            self.local = Local::Fifo(both);
        }
        (found, self.watch(epoll, socket_watch, local_watch))
    }

    /// The guest's side has ended. What the FIFO holds is for its reader: the stream ends when it was taken, or nobody is there.
    pub(super) fn deliver(&mut self, epoll: &Epoll) -> Step {
        let writer = match &self.local {
            Local::Fifo(fifo) if !self.is_lingering() && self.unread() > 0 => open_writer(fifo.as_fd()),
            _ => return Step::Done,
        };
        let Ok(writer) = writer else {
            return Step::Done;
        };
        self.watch(epoll, 0, 0);
        self.socket = None;
        // The old descriptor would count as a reader.
        self.local = Local::Fifo(writer);
        let now = Instant::now();
        self.phase = Phase::Ended {
            since: now,
            look_at: now,
        };
        match self.look(epoll, now) {
            Step::Going => self.watch(epoll, 0, EPOLLERR),
            step => step,
        }
    }

    /// Looks whether the reader of an ended output has taken all, or has gone.
    pub(super) fn look(&mut self, epoll: &Epoll, now: Instant) -> Step {
        let (Phase::Ended { since, .. }, Local::Fifo(fifo)) = (self.phase, &self.local) else {
            return Step::Done;
        };
        let look_at = now + ((now - since) / LOOK_PART).clamp(LOOK_MIN, LOOK_MAX);
        self.phase = Phase::Ended { since, look_at };
        if self.lingers.is_some() || self.unread() == 0 {
            return Step::Done;
        }
        if !sys::has_no_reader(fifo.as_fd()) {
            return Step::Going;
        }
        // A FIFO without a reader can't be opened for writing alone: whoever keeps it for the next one needs this.
        if let Ok(both) = open_both(fifo) {
            self.watch(epoll, 0, 0);
            self.local = Local::Fifo(both);
        }
        Step::Done
    }
}

/// Opens a FIFO once more, for reading and writing.
fn open_both(fifo: &OwnedFd) -> io::Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", fifo.as_raw_fd()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    Ok(OwnedFd::from(options.open(path)?))
}
