//! The keeper's connection to snpd: made again whenever it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::{EPOLLIN, EPOLLOUT};

use super::buffer::{Input, Output, Received};
use crate::link::{self, kind};
use crate::pod::Places;
use crate::snpd::{self, Attempt};
use crate::sys::Epoll;

/// epoll's number of the link.
pub const UPLINK: u64 = 3 << 32;
/// How much may wait for an snpd that does not read, before containerd is not read from any more.
const MAX_WAITING_BYTES: usize = 4 << 20;
const READ_ROUNDS: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// An snpd that lived at least this long did not fail at its start.
const LASTING: Duration = Duration::from_secs(5);

/// How far the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not connected.
    Down { retry_at: Instant },
    /// HELLO is sent, snpd's own has not come.
    Greeting,
    /// snpd answered.
    Up { since: Instant },
}

/// The link.
pub struct Uplink {
    phase: Phase,
    socket: Option<OwnedFd>,
    pub input: Input,
    pub output: Output,
    watched: i32,
    /// Connections that ended without lasting, in a row.
    failures: u32,
    /// An snpd has answered this keeper before.
    resumed: bool,
    /// Why snpd could not be started, for the operator.
    problem: Option<String>,
}

impl Uplink {
    /// A link that is to be made at once.
    pub fn new(now: Instant) -> Uplink {
        Uplink {
            phase: Phase::Down { retry_at: now },
            socket: None,
            input: Input::default(),
            output: Output::default(),
            watched: 0,
            failures: 0,
            resumed: false,
            problem: None,
        }
    }

    /// Whether snpd has answered, so that requests may go to it.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// Whether an snpd holds the socket that has not said HELLO. Its end would close the connection.
    pub fn is_starting(&self) -> bool {
        self.phase == Phase::Greeting
    }

    /// Whether an earlier HELLO of this keeper was answered.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Why snpd could not be started at the last attempt.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// When [`Uplink::attempt`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Down { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// Connects, starting snpd if need be. True means connected: HELLO has to be put next. Gives a new problem for the log.
    pub fn attempt(&mut self, places: &Places, now: Instant) -> (bool, Option<String>) {
        match snpd::connect(places) {
            Ok(Attempt::Connected(socket)) => {
                self.socket = Some(socket);
                self.watched = 0;
                self.phase = Phase::Greeting;
                self.problem = None;
                (true, None)
            }
            Ok(Attempt::Later(wait)) => {
                self.phase = Phase::Down { retry_at: now + wait };
                (false, None)
            }
            Err(problem) => {
                let fresh = self.problem.as_ref() != Some(&problem);
                self.problem = Some(problem.clone());
                self.failures += 1;
                self.phase = Phase::Down {
                    retry_at: now + self.pause(),
                };
                (false, fresh.then_some(problem))
            }
        }
    }

    /// snpd's HELLO came.
    pub fn greeted(&mut self, now: Instant) {
        self.phase = Phase::Up { since: now };
        self.resumed = true;
    }

    /// The connection ended or can't be trusted any more. The first loss of an snpd that had lasted is followed by an
    /// attempt at once, further ones by longer and longer pauses.
    pub fn lose(&mut self, epoll: &Epoll, now: Instant) {
        if let Some(socket) = self.socket.take() {
            let _ = epoll.change(&socket, UPLINK, self.watched, 0);
        }
        self.input = Input::default();
        self.output = Output::default();
        self.failures = match self.phase {
            Phase::Up { since } if now >= since + LASTING => 0,
            Phase::Up { .. } => self.failures,
            _ => self.failures.max(1),
        };
        self.phase = Phase::Down {
            retry_at: now + self.pause(),
        };
        self.failures += 1;
    }

    /// Appends a frame, if connected.
    pub fn put(&mut self, kind: u8, channel: u32, payload: &[u8]) {
        if self.socket.is_some() {
            link::put(self.output.buffer(), kind, channel, payload);
        }
    }

    /// Appends a frame that has no payload.
    pub fn put_opened(&mut self, channel: u32) {
        self.put(kind::OPENED, channel, &[]);
    }

    /// Reads what snpd sent.
    pub fn receive(&mut self, scratch: &mut [u8]) -> Received {
        match &self.socket {
            Some(socket) => self.input.fill(socket.as_fd(), scratch, READ_ROUNDS),
            None => Received::Some,
        }
    }

    /// Whether snpd does not read what it is sent.
    pub fn is_clogged(&self) -> bool {
        self.output.len() > MAX_WAITING_BYTES
    }

    /// Sends what can be sent; false when the connection is broken.
    pub fn flush(&mut self) -> bool {
        match &self.socket {
            Some(socket) => self.output.flush(socket.as_fd()).is_ok(),
            None => true,
        }
    }

    /// Sets what epoll watches.
    ///
    /// # Errors
    /// When epoll can't.
    pub fn watch(&mut self, epoll: &Epoll, reading: bool) -> std::io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let wanted = if reading { EPOLLIN } else { 0 } | if self.output.is_empty() { 0 } else { EPOLLOUT };
        epoll.change(socket, UPLINK, self.watched, wanted)?;
        self.watched = wanted;
        Ok(())
    }

    fn pause(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            count => (FIRST_PAUSE * (1 << (count - 1).min(8))).min(LONGEST_PAUSE),
        }
    }
}
