//! The event loop, which joins connections, link and streams.

mod from_containerd;
mod from_snpd;

use from_snpd::END_DEADLINE;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use libc::EPOLLIN;
use serde::Serialize;

use super::connections::{self, Connections};
use super::log::Log;
use super::requests::Requests;
use super::streams::{Report, Streams};
use super::uplink::{self, Uplink};
use super::Identity;
use crate::link::kind;
use crate::pod::Places;
use crate::sys::{self, Epoll, Event};

const SIGNALS: u64 = 4 << 32;
const EVENTS_PER_TURN: usize = 32;
const SCRATCH_BYTES: usize = 16 << 10;
const LINK_VERSION: u32 = 1;

#[derive(Serialize)]
struct Hello<'a> {
    version: u32,
    resumed: bool,
    #[serde(flatten)]
    identity: &'a Identity,
    channels: Vec<u32>,
    streams: Vec<Report>,
}

/// The keeper.
pub struct Keeper<'a> {
    identity: Identity,
    places: Places,
    log: &'a Log,
    epoll: Epoll,
    signals: OwnedFd,
    connections: Connections,
    requests: Requests,
    uplink: Uplink,
    streams: Streams,
    scratch: Vec<u8>,
    /// The last call of containerd was refused.
    refuses: bool,
    /// Received calls were left for the next turn.
    unfinished: bool,
    /// After END: when it is over, sent or not.
    end_by: Option<Instant>,
    terminated: bool,
}

impl<'a> Keeper<'a> {
    /// Takes the listening socket; nothing is connected yet.
    ///
    /// # Errors
    /// When the kernel has no descriptors or memory left.
    pub fn new(
        identity: Identity,
        places: Places,
        listener: UnixListener,
        log: &'a Log,
        now: Instant,
    ) -> io::Result<Keeper<'a>> {
        let epoll = Epoll::new()?;
        let signals = sys::signals()?;
        epoll.change(&signals, SIGNALS, 0, EPOLLIN)?;
        Ok(Keeper {
            identity,
            places,
            log,
            epoll,
            signals,
            connections: Connections::new(listener, now),
            requests: Requests::new(now),
            uplink: Uplink::new(now),
            streams: Streams::default(),
            scratch: vec![0; SCRATCH_BYTES],
            refuses: false,
            unfinished: false,
            end_by: None,
            terminated: false,
        })
    }

    /// Serves until END or SIGTERM.
    ///
    /// # Errors
    /// When epoll fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [Event { events: 0, u64: 0 }; EVENTS_PER_TURN];
        loop {
            self.on_time(Instant::now());
            self.settle()?;
            if self.is_over(Instant::now()) {
                return Ok(());
            }
            let pause = |time: Instant| time.saturating_duration_since(Instant::now());
            let timeout = match std::mem::take(&mut self.unfinished) {
                true => Some(Duration::ZERO),
                false => self.next_deadline().map(pause),
            };
            let count = self.epoll.wait(&mut events, timeout)?;
            for event in &events[..count] {
                self.on_event(event.u64);
            }
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let told = self.end_by.is_some() && self.debts().is_none_or(|time| now >= time);
        self.terminated || told || self.desertion().is_some_and(|time| time <= now)
    }

    /// Once END has come: until when containerd may take its answers, and readers the last output. Nothing when nobody is owed any.
    fn debts(&self) -> Option<Instant> {
        let answers = self.end_by.filter(|_| !self.connections.is_idle());
        let output = self.end_by.and(self.streams.lingers_since());
        answers.max(output.map(|time| time + END_DEADLINE))
    }

    /// When the keeper ends by itself: no snpd ever knew of the pod, so there is nothing to keep, and containerd has gone.
    fn desertion(&self) -> Option<Instant> {
        if self.uplink.resumed() {
            None
        } else {
            self.connections.desertion()
        }
    }

    fn on_event(&mut self, number: u64) {
        let low = number as u32;
        match number >> 32 << 32 {
            connections::LISTENER => {
                for channel in self.connections.accept(Instant::now()) {
                    self.uplink.put_opened(channel);
                }
            }
            connections::CONNECTION => self.on_connection(low),
            uplink::UPLINK => self.on_uplink(),
            SIGNALS => {
                sys::discard(self.signals.as_fd());
                self.terminated = true;
            }
            _ => self.streams.on_event(number, &self.epoll),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let expiry = if self.uplink.is_up() {
            None
        } else {
            self.requests.expiry(self.uplink.is_starting())
        };
        let uplink = if self.end_by.is_none() {
            self.uplink.next_deadline()
        } else {
            None
        };
        [
            expiry,
            uplink,
            self.streams.next_deadline(),
            self.connections.next_deadline(),
            self.desertion(),
            self.debts(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn on_time(&mut self, now: Instant) {
        if self.end_by.is_none() && self.uplink.next_deadline().is_some_and(|time| time <= now) {
            self.connect(now);
        }
        if !self.uplink.is_up()
            && self
                .requests
                .expiry(self.uplink.is_starting())
                .is_some_and(|time| time <= now)
        {
            self.answer_expired(now);
        }
        self.streams.on_time(&self.epoll, now);
    }

    /// The end of a turn: tells what happened, sends what can be sent, and decides what to wait for.
    fn settle(&mut self) -> io::Result<()> {
        for report in self.streams.take_reports() {
            self.uplink.put(kind::STREAM_STATE, report.id, &to_json(&report));
        }
        self.streams.release_read();
        for channel in self.connections.channels() {
            self.forward(channel);
        }
        for channel in self.connections.flush() {
            self.close_connection(channel);
        }
        if !self.uplink.flush() {
            self.lose_uplink();
        }
        let reading = self.end_by.is_none() && self.may_forward();
        self.connections.watch(&self.epoll, reading, Instant::now())?;
        self.uplink.watch(&self.epoll, !self.connections.is_clogged())
    }

    fn may_forward(&self) -> bool {
        !self.uplink.is_clogged()
    }

    /// Makes the link; the first frame is HELLO.
    fn connect(&mut self, now: Instant) {
        let (connected, problem) = self.uplink.attempt(&self.places, now);
        if let Some(problem) = problem {
            self.log.line(&format!("snpd can't be reached: {problem}"));
        }
        if connected {
            let hello = Hello {
                version: LINK_VERSION,
                resumed: self.uplink.resumed(),
                identity: &self.identity,
                channels: self.connections.channels(),
                streams: self.streams.snapshot(),
            };
            let hello = to_json(&hello);
            self.uplink.put(kind::HELLO, 0, &hello);
        }
    }

    fn lose_uplink(&mut self) {
        let now = Instant::now();
        if self.uplink.is_up() {
            self.requests.lost(now);
        }
        self.uplink.lose(&self.epoll, now);
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // These types have no maps with keys other than text, the only thing that can fail.
    serde_json::to_vec(value).unwrap_or_default()
}
