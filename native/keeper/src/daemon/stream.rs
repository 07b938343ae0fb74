//! One container's stdin, stdout or stderr: bytes between a FIFO and a vsock stream of the VM. Nothing is parsed and
//! nothing is held here; what one side does not take stays in the kernel on the other.

mod linger;
mod reader;
mod room;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT};
use serde::Deserialize;

use super::local::{self, Local};
use crate::sys::{self, Epoll};
pub use linger::open_writer;
use room::{Room, USUAL_BYTES};

/// How long the VM's side may take to answer.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// The pause before another attempt when the VMM's queue of connections is full, which the kernel does not announce.
const BACKLOG_PAUSE: Duration = Duration::from_millis(20);
/// Longest line that may answer `CONNECT`.
const MAX_GREETING: usize = 64;
/// Bytes per splice and splices per turn: one stream may not starve the others.
const SPLICE_BYTES: usize = 1 << 20;
const ROUNDS: usize = 16;

/// Which way the bytes go.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// FIFO to guest.
    In,
    /// Guest to FIFO.
    Out,
}

/// What snpd asks for in STREAM_OPEN.
#[derive(Deserialize, Debug, Clone)]
pub struct Plan {
    pub direction: Direction,
    /// A path, or `file://` and the path of a plain file.
    pub fifo: String,
    /// The VM's hybrid socket.
    pub vsock: PathBuf,
    pub port: u32,
    /// Sent as a line of its own when not empty.
    #[serde(default)]
    pub token: String,
}

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not connected: the VMM's queue is full.
    Waiting {
        retry_at: Instant,
    },
    /// `CONNECT` is sent.
    Dialing,
    Open,
    /// The guest's side of an output has ended, and the FIFO's reader has not taken all.
    Ended {
        since: Instant,
        look_at: Instant,
    },
}

/// What a step led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to report.
    Going,
    /// The stream became open.
    Opened,
    /// Every byte is moved.
    Done,
    /// It can't go on, for this reason.
    Failed(String),
}

/// A live stream.
pub struct Stream {
    pub plan: Plan,
    pub bytes: u64,
    pub host_port: u32,
    phase: Phase,
    deadline: Instant,
    local: Local,
    socket: Option<OwnedFd>,
    /// What came of the answer to `CONNECT`.
    greeting: Vec<u8>,
    /// How many bytes are still to be moved, when the stream is being drained.
    left: Option<u64>,
    /// When it last moved bytes, once it lingers.
    lingers: Option<Instant>,
    /// How much the FIFO holds.
    room: Room,
    /// The numbers that epoll gives back, and what is watched.
    socket_number: u64,
    local_number: u64,
    socket_watch: i32,
    local_watch: i32,
}

impl Stream {
    /// Opens the FIFO; call [`Stream::dial`] next.
    ///
    /// # Errors
    /// A text when the FIFO can't be used.
    pub fn new(plan: Plan, numbers: (u64, u64), now: Instant) -> Result<Stream, String> {
        let local = local::open(&plan)?;
        Ok(Stream {
            plan,
            bytes: 0,
            host_port: 0,
            phase: Phase::Waiting { retry_at: now },
            deadline: now + DIAL_DEADLINE,
            local,
            socket: None,
            greeting: Vec::new(),
            left: None,
            lingers: None,
            room: Room::default(),
            socket_number: numbers.0,
            local_number: numbers.1,
            socket_watch: 0,
            local_watch: 0,
        })
    }

    /// Whether STREAM_STATE `open` was reached.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Ended { .. })
    }

    /// When [`Stream::on_time`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { retry_at } => Some(retry_at.min(self.deadline)),
            Phase::Dialing => Some(self.deadline),
            Phase::Open => [self.silent_by(), self.room_deadline()].into_iter().flatten().min(),
            Phase::Ended { look_at, .. } => Some(look_at),
        }
    }

    /// Goes on when the time has come: dials again, or gives up.
    pub fn on_time(&mut self, epoll: &Epoll, now: Instant) -> Step {
        match self.phase {
            Phase::Open if self.silent_by().is_some_and(|time| now >= time) => Step::Done,
            Phase::Open => {
                self.tidy_room(now);
                Step::Going
            }
            Phase::Ended { look_at, .. } if now >= look_at => self.look(epoll, now),
            Phase::Ended { .. } => Step::Going,
            _ if now >= self.deadline => {
                let seconds = DIAL_DEADLINE.as_secs();
                self.failed(&format!("no answer within {seconds} s"))
            }
            Phase::Waiting { retry_at } if now >= retry_at => self.dial(epoll, now),
            _ => Step::Going,
        }
    }

    /// Connects to the VM and asks for the port.
    pub fn dial(&mut self, epoll: &Epoll, now: Instant) -> Step {
        let socket = match sys::connect_unix(&self.plan.vsock) {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.phase = Phase::Waiting {
                    retry_at: now + BACKLOG_PAUSE,
                };
                return Step::Going;
            }
            Err(error) => return self.failed(&error.to_string()),
        };
        if let Err(error) = send_all(socket.as_fd(), format!("CONNECT {}\n", self.plan.port).as_bytes()) {
            return self.failed(&format!("send CONNECT: {error}"));
        }
        self.socket = Some(socket);
        self.phase = Phase::Dialing;
        self.watch(epoll, EPOLLIN, 0)
    }

    /// Goes on after epoll named one of the two ends.
    pub fn on_event(&mut self, epoll: &Epoll) -> Step {
        match (self.phase, self.plan.direction) {
            (Phase::Waiting { .. }, _) => Step::Going,
            (Phase::Dialing, _) => self.greet(epoll),
            (Phase::Ended { .. }, _) => self.look(epoll, Instant::now()),
            (Phase::Open, Direction::In) => self.pump_in(epoll),
            (Phase::Open, Direction::Out) if self.is_abandoned() => Step::Done,
            (Phase::Open, Direction::Out) => self.pump_out(epoll),
        }
    }

    /// Moves what waits at the source now, and then ends.
    pub fn drain(&mut self, epoll: &Epoll) -> Step {
        let source = match (self.plan.direction, &self.local, &self.socket) {
            (Direction::In, Local::Fifo(fifo), _) => Some(fifo.as_fd()),
            (_, _, Some(socket)) => Some(socket.as_fd()),
            _ => None,
        };
        let left = source.map_or(0, |source| sys::waiting_bytes(source).unwrap_or(0));
        self.left = Some(left);
        match (self.phase, self.plan.direction) {
            (Phase::Open, Direction::In) => self.pump_in(epoll),
            (Phase::Open, Direction::Out) => self.pump_out(epoll),
            (Phase::Ended { .. }, _) => Step::Done,
            _ => Step::Going,
        }
    }

    /// Stops watching and gives back the two ends: the socket, and the FIFO if it is one.
    pub fn close(mut self, epoll: &Epoll) -> (Option<OwnedFd>, Option<OwnedFd>) {
        self.watch(epoll, 0, 0);
        match self.local {
            Local::Fifo(fifo) => (self.socket, Some(fifo)),
            Local::File(_) => (self.socket, None),
        }
    }

    /// Reads the VMM's answer to `CONNECT`: byte by byte, since what follows its line is the container's.
    fn greet(&mut self, epoll: &Epoll) -> Step {
        let Some(socket) = &self.socket else {
            return Step::Going;
        };
        let mut byte = [0u8; 1];
        while byte[0] != b'\n' {
            match sys::receive(socket.as_fd(), &mut byte) {
                Ok(0) => return self.failed("closed before OK: nothing listens there in the guest"),
                Ok(_) if self.greeting.len() < MAX_GREETING => self.greeting.push(byte[0]),
                Ok(_) => return self.failed("the answer to CONNECT is no line"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Going,
                Err(error) => return self.failed(&error.to_string()),
            }
        }
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.greeting))
            .trim()
            .to_owned();
        let Some(port) = line.strip_prefix("OK ").and_then(|port| port.parse::<u32>().ok()) else {
            return self.failed(&format!("answered {line:?} to CONNECT"));
        };
        self.host_port = port;
        if !self.plan.token.is_empty() {
            if let Err(error) = send_all(socket.as_fd(), format!("{}\n", self.plan.token).as_bytes()) {
                return self.failed(&format!("send the token: {error}"));
            }
        }
        self.phase = Phase::Open;
        self.watch_source(epoll)
    }

    /// Goes on with the bytes after STREAM_STATE `open` was reported; apart from `greet`, so that the report comes first.
    pub fn begin(&mut self, epoll: &Epoll) -> Step {
        match (self.left, self.plan.direction) {
            (None, _) => Step::Going,
            (Some(_), Direction::In) => self.pump_in(epoll),
            (Some(_), Direction::Out) => self.drain(epoll),
        }
    }

    /// Waits for bytes at the source. A FIFO that nobody has opened for writing yet is silent; it looks ended only to a read.
    fn watch_source(&mut self, epoll: &Epoll) -> Step {
        let step = match self.plan.direction {
            Direction::In => self.watch(epoll, EPOLLHUP, EPOLLIN),
            Direction::Out => self.watch(epoll, EPOLLIN, 0),
        };
        if step == Step::Going {
            Step::Opened
        } else {
            step
        }
    }

    /// FIFO to socket. While the source is what is watched, epoll tells of what is left there: asking for it would be one more call.
    fn pump_in(&mut self, epoll: &Epoll) -> Step {
        for _ in 0..ROUNDS {
            let (Local::Fifo(fifo), Some(socket), most) = (&self.local, &self.socket, self.most()) else {
                return Step::Going;
            };
            if most == 0 {
                return Step::Done;
            }
            match sys::splice(fifo.as_fd(), socket.as_fd(), most) {
                Ok(0) => return Step::Done,
                Ok(count) => {
                    self.moved(count);
                    if count >= USUAL_BYTES as usize {
                        self.was_full(Instant::now());
                    }
                    if self.left.is_none() && self.local_watch & EPOLLIN != 0 {
                        return Step::Going;
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock if sys::has_bytes(fifo.as_fd()) => return self.watch(epoll, EPOLLOUT, 0),
                    ErrorKind::WouldBlock if self.left.is_some() || sys::is_closed(socket.as_fd()) => {
                        return Step::Done
                    }
                    ErrorKind::WouldBlock => return self.watch(epoll, EPOLLHUP, EPOLLIN),
                    ErrorKind::Interrupted => {}
                    // The guest has closed its standard input: what is left has no reader.
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Step::Done,
                    _ => return self.failed(&format!("move bytes: {error}")),
                },
            }
        }
        Step::Going
    }

    /// Socket to FIFO or file.
    fn pump_out(&mut self, epoll: &Epoll) -> Step {
        for _ in 0..ROUNDS {
            let most = self.most();
            if most == 0 {
                return Step::Done;
            }
            let Some(socket) = &self.socket else {
                return Step::Going;
            };
            let result = match &mut self.local {
                Local::Fifo(fifo) => sys::splice(socket.as_fd(), fifo.as_fd(), most),
                Local::File(file) => local::copy(socket.as_fd(), file, most),
            };
            match result {
                Ok(0) => return self.deliver(epoll),
                Ok(count) => {
                    self.moved(count);
                    if self.left.is_none() && self.socket_watch & EPOLLIN != 0 {
                        return Step::Going;
                    }
                }
                Err(error) => match error.kind() {
                    // Bytes are there, so the FIFO is full. The socket is not watched meanwhile: its end would be reported over and over.
                    ErrorKind::WouldBlock if sys::has_bytes(socket.as_fd()) => {
                        self.was_full(Instant::now());
                        return self.watch(epoll, 0, EPOLLOUT);
                    }
                    ErrorKind::WouldBlock => {
                        let reader = if self.is_lingering() { EPOLLERR } else { 0 };
                        return self.watch(epoll, EPOLLIN, reader);
                    }
                    ErrorKind::Interrupted => {}
                    // The VM is gone; what it had sent was read before this.
                    ErrorKind::ConnectionReset => return self.deliver(epoll),
                    ErrorKind::BrokenPipe if self.is_lingering() => return Step::Done,
                    _ => return self.failed(&format!("move bytes: {error}")),
                },
            }
        }
        Step::Going
    }

    /// How many bytes the next splice may move: no more than are left, when the stream is being drained.
    fn most(&self) -> usize {
        self.left.map_or(SPLICE_BYTES, |left| {
            usize::try_from(left).unwrap_or(SPLICE_BYTES).min(SPLICE_BYTES)
        })
    }

    fn moved(&mut self, count: usize) {
        self.bytes += count as u64;
        self.use_room();
        if let Some(moved) = &mut self.lingers {
            *moved = Instant::now();
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(count as u64);
        }
    }

    fn watch(&mut self, epoll: &Epoll, socket: i32, local: i32) -> Step {
        let mut result = Ok(());
        if let Some(descriptor) = &self.socket {
            result = epoll.change(descriptor, self.socket_number, self.socket_watch, socket);
            self.socket_watch = socket;
        }
        if let Local::Fifo(fifo) = &self.local {
            result = result.and(epoll.change(fifo, self.local_number, self.local_watch, local));
            self.local_watch = local;
        }
        match result {
            Ok(()) => Step::Going,
            Err(error) => self.failed(&format!("watch: {error}")),
        }
    }

    fn failed(&self, reason: &str) -> Step {
        Step::Failed(format!(
            "stream between {} and port {} of {}: {reason}",
            self.plan.fifo,
            self.plan.port,
            self.plan.vsock.display()
        ))
    }
}

/// Sends a few bytes on a new connection, whose buffer has room for them.
fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    match sys::send(socket, bytes)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::Error::from(ErrorKind::WriteZero)),
    }
}
