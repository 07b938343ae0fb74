//! containerd's connections to the pod's socket.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use libc::{EPOLLIN, EPOLLOUT};

use super::buffer::{Input, Output, Received};
use crate::sys::Epoll;

/// How many connections may be open at a time; further ones wait in the socket's queue.
const MAX_CONNECTIONS: usize = 256;
/// How many bytes may wait for a containerd that does not read, before snpd is not read from any more.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// The pause after the system had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How many bytes of the keeper's own answers may wait for it, before its calls are not read any more.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
const READ_ROUNDS: usize = 8;
/// See [`Connections::desertion`].
const PATIENCE: Duration = Duration::from_secs(1);
const FIRST_PATIENCE: Duration = Duration::from_secs(60);

/// What epoll's numbers mean here; a connection's channel is in the lower half.
pub const LISTENER: u64 = 1 << 32;
pub const CONNECTION: u64 = 2 << 32;

/// One connection.
pub struct Connection {
    socket: OwnedFd,
    pub input: Input,
    pub output: Output,
    watched: i32,
}

impl Connection {
    /// How many bytes of answers the keeper itself may add. None for a peer that does not read: nothing is read from it then.
    pub fn room_for_refusals(&self) -> usize {
        MAX_REFUSAL_BYTES.saturating_sub(self.output.len())
    }
}

/// The listening socket and what was accepted from it.
pub struct Connections {
    listener: Option<UnixListener>,
    listener_watched: i32,
    paused_until: Option<Instant>,
    next_channel: u32,
    open: BTreeMap<u32, Connection>,
    /// Since when none has been open.
    empty_since: Instant,
}

impl Connections {
    /// Takes the listening socket.
    pub fn new(listener: UnixListener, now: Instant) -> Connections {
        Connections {
            listener: Some(listener),
            listener_watched: 0,
            paused_until: None,
            next_channel: 1,
            open: BTreeMap::new(),
            empty_since: now,
        }
    }

    /// The open channels, in the order of their opening.
    pub fn channels(&self) -> Vec<u32> {
        self.open.keys().copied().collect()
    }

    /// One connection, while it is open.
    pub fn get(&mut self, channel: u32) -> Option<&mut Connection> {
        self.open.get_mut(&channel)
    }

    /// Accepts who waits; gives the new channels.
    pub fn accept(&mut self, now: Instant) -> Vec<u32> {
        let mut accepted = Vec::new();
        while let Some(listener) = self.listener.as_ref().filter(|_| self.open.len() < MAX_CONNECTIONS) {
            match listener.accept() {
                Ok((socket, _)) => {
                    let connection = Connection {
                        socket: OwnedFd::from(socket),
                        input: Input::default(),
                        output: Output::default(),
                        watched: 0,
                    };
                    accepted.push(self.next_channel);
                    self.open.insert(self.next_channel, connection);
                    self.next_channel += 1;
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        self.paused_until = Some(now + ACCEPT_PAUSE);
                    }
                    break;
                }
            }
        }
        accepted
    }

    /// Reads what a connection has.
    pub fn receive(&mut self, channel: u32, scratch: &mut [u8]) -> Received {
        match self.open.get_mut(&channel) {
            Some(connection) => connection.input.fill(connection.socket.as_fd(), scratch, READ_ROUNDS),
            None => Received::Some,
        }
    }

    /// Closes a connection; says whether it was open.
    pub fn close(&mut self, channel: u32, epoll: &Epoll, now: Instant) -> bool {
        let Some(connection) = self.open.remove(&channel) else {
            return false;
        };
        // Closing the last descriptor would do as well; an error means that it is not watched any more.
        let _ = epoll.change(&connection.socket, 0, connection.watched, 0);
        self.empty_since = now;
        true
    }

    /// When a keeper that has nothing to keep gives up waiting for containerd: a while after its last connection closed,
    /// and longer when there never was one. Nothing while one is open.
    pub fn desertion(&self) -> Option<Instant> {
        let patience = if self.next_channel == 1 {
            FIRST_PATIENCE
        } else {
            PATIENCE
        };
        self.open.is_empty().then(|| self.empty_since + patience)
    }

    /// Takes no new connections any more.
    pub fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Sends what can be sent; gives the channels that turned out to be broken.
    pub fn flush(&mut self) -> Vec<u32> {
        let waiting = self
            .open
            .iter_mut()
            .filter(|(_, connection)| !connection.output.is_empty());
        let broken = waiting.filter_map(|(channel, connection)| {
            connection
                .output
                .flush(connection.socket.as_fd())
                .err()
                .map(|_| *channel)
        });
        broken.collect()
    }

    /// Whether some containerd does not read its answers.
    pub fn is_clogged(&self) -> bool {
        self.open
            .values()
            .any(|connection| connection.output.len() > MAX_WAITING_BYTES)
    }

    /// Whether everything owed is sent.
    pub fn is_idle(&self) -> bool {
        self.open.values().all(|connection| connection.output.is_empty())
    }

    /// When accepting goes on after a shortage.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Sets what epoll watches; `reading` false leaves containerd's requests in the kernel.
    ///
    /// # Errors
    /// When epoll can't; nothing would work then.
    pub fn watch(&mut self, epoll: &Epoll, reading: bool, now: Instant) -> std::io::Result<()> {
        for (channel, connection) in &mut self.open {
            let heard = reading && connection.room_for_refusals() > 0;
            let wanted = if heard { EPOLLIN } else { 0 } | if connection.output.is_empty() { 0 } else { EPOLLOUT };
            epoll.change(
                &connection.socket,
                CONNECTION | u64::from(*channel),
                connection.watched,
                wanted,
            )?;
            connection.watched = wanted;
        }
        if let Some(listener) = &self.listener {
            self.paused_until = self.paused_until.filter(|time| *time > now);
            let wanted = if self.paused_until.is_none() && self.open.len() < MAX_CONNECTIONS {
                EPOLLIN
            } else {
                0
            };
            epoll.change(listener, LISTENER, self.listener_watched, wanted)?;
            self.listener_watched = wanted;
        }
        Ok(())
    }
}
