//! All streams of the pod, and what is to be told about them.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use libc::{EPOLLIN, EPOLLRDHUP};
use serde::Serialize;

use super::stream::{open_writer, Direction, Plan, Step, Stream};
use crate::sys::{self, Epoll};

/// How many streams may live at a time.
const MAX_STREAMS: usize = 4096;
/// How many ended streams are remembered until snpd has seen their end.
const MAX_FINISHED: usize = 256;
/// How many FIFOs with unread bytes wait for a reader.
const MAX_UNREAD: usize = 256;

/// What epoll's numbers mean for streams; the id is in the lower half.
pub const SOCKET: u64 = 10 << 32;
pub const LOCAL: u64 = 11 << 32;
pub const HALF_CLOSED: u64 = 12 << 32;
pub const WATCHER: u64 = 13 << 32;

/// The state of a stream as STREAM_STATE and HELLO tell it.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub id: u32,
    /// `opening` (in HELLO only), `open`, `done`, `failed`.
    pub state: &'static str,
    pub bytes: u64,
    pub host_port: u32,
    /// The answer to STREAM_ASK: how many bytes are here and were not read, and whether somebody has the FIFO open for reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How STREAM_CLOSE wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    Drain,
    Abort,
    Linger,
}

/// The FIFO of an ended output stream that still has bytes while nobody reads: kept open, since the kernel drops the
/// bytes of a FIFO that nobody has open.
struct Unread {
    writer: OwnedFd,
    watch: i32,
}

/// The streams. Every method may leave reports, which [`Streams::take_reports`] hands out in order.
#[derive(Default)]
pub struct Streams {
    live: BTreeMap<u32, Stream>,
    /// Ended streams, and whether the HELLO that is being answered names them.
    finished: VecDeque<(Report, bool)>,
    /// Sockets of input streams that were closed in one direction and whose peer has not closed the other.
    half_closed: BTreeMap<u32, OwnedFd>,
    unread: VecDeque<Unread>,
    watcher: Option<OwnedFd>,
    reports: Vec<Report>,
}

impl Streams {
    /// STREAM_OPEN. An id that is known already is not opened again: its state is told.
    pub fn open(&mut self, id: u32, plan: Plan, epoll: &Epoll, now: Instant) {
        if let Some(report) = self.find(id) {
            return self.reports.push(report);
        }
        if self.live.len() >= MAX_STREAMS {
            return self.fail(id, format!("stream {id}: the pod has {MAX_STREAMS} streams already"));
        }
        let numbers = (SOCKET | u64::from(id), LOCAL | u64::from(id));
        match Stream::new(plan, numbers, now) {
            Err(reason) => self.fail(id, reason),
            Ok(mut stream) => {
                let step = stream.dial(epoll, now);
                self.live.insert(id, stream);
                self.follow(id, step, epoll);
            }
        }
    }

    /// A STREAM_OPEN that can't be understood.
    pub fn refuse(&mut self, id: u32, reason: String) {
        self.fail(id, reason);
    }

    /// STREAM_ASK: tells how far the stream is and whether somebody reads it. Of a stream that is forgotten there is nothing to tell.
    pub fn ask(&mut self, id: u32, epoll: &Epoll) {
        let Some(stream) = self.live.get_mut(&id) else {
            return self.reports.extend(self.find(id));
        };
        stream.make_room();
        let (reader, step) = stream.find_reader(epoll);
        self.reports.push(Report {
            unread: Some(stream.unread()),
            reader: Some(reader),
            ..describe(id, stream)
        });
        self.follow(id, step, epoll);
    }

    /// STREAM_CLOSE. For a stream that has ended it means that snpd knows.
    pub fn close(&mut self, id: u32, mode: Close, epoll: &Epoll, now: Instant) {
        self.finished.retain(|(report, _)| report.id != id);
        if let Some(stream) = self.live.get_mut(&id) {
            let step = match mode {
                Close::Drain => stream.drain(epoll),
                Close::Linger if stream.may_linger() => stream.linger(epoll, now),
                Close::Linger | Close::Abort => return self.end(id, "done", None, epoll, false),
            };
            self.follow(id, step, epoll);
        } else if mode != Close::Drain {
            self.half_closed.remove(&id);
        }
    }

    /// The pod is gone: no stream has another owner than its reader.
    pub fn linger_all(&mut self, epoll: &Epoll, now: Instant) {
        let ids: Vec<u32> = self.live.keys().copied().collect();
        for id in ids {
            self.close(id, Close::Linger, epoll, now);
        }
    }

    /// When bytes last went to a reader that streams linger for; nothing when none does.
    pub fn lingers_since(&self) -> Option<Instant> {
        self.live.values().filter_map(Stream::lingers_since).max()
    }

    /// An event of epoll; `number` is one of this module's.
    pub fn on_event(&mut self, number: u64, epoll: &Epoll) {
        let id = number as u32;
        match number >> 32 << 32 {
            HALF_CLOSED => self.on_half_closed(id),
            WATCHER => self.on_watcher(),
            _ => {
                let Some(stream) = self.live.get_mut(&id) else {
                    return;
                };
                let step = stream.on_event(epoll);
                self.follow(id, step, epoll);
            }
        }
    }

    /// Goes on with what waits for a time.
    pub fn on_time(&mut self, epoll: &Epoll, now: Instant) {
        let due = |stream: &Stream| stream.next_deadline().is_some_and(|time| time <= now);
        let ids: Vec<u32> = self
            .live
            .iter()
            .filter(|(_, stream)| due(stream))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(stream) = self.live.get_mut(&id) {
                let step = stream.on_time(epoll, now);
                self.follow(id, step, epoll);
            }
        }
    }

    /// When [`Streams::on_time`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.live.values().filter_map(Stream::next_deadline).min()
    }

    /// What happened since the last call, in order.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Everything for a HELLO.
    pub fn snapshot(&mut self) -> Vec<Report> {
        for (_, told) in &mut self.finished {
            *told = true;
        }
        let ended = self.finished.iter().map(|(report, _)| report.clone());
        let owned = self.live.iter().filter(|(_, stream)| !stream.is_lingering());
        ended.chain(owned.map(|(id, stream)| describe(*id, stream))).collect()
    }

    /// The HELLO was answered: what it told need not be kept.
    pub fn told(&mut self) {
        self.finished.retain(|(_, told)| !told);
        self.finished.shrink_to(8);
    }

    fn find(&self, id: u32) -> Option<Report> {
        let live = self.live.get(&id).map(|stream| describe(id, stream));
        live.or_else(|| {
            self.finished
                .iter()
                .find(|(report, _)| report.id == id)
                .map(|(report, _)| report.clone())
        })
    }

    fn follow(&mut self, id: u32, step: Step, epoll: &Epoll) {
        match step {
            Step::Going => {}
            Step::Done => self.end(id, "done", None, epoll, true),
            Step::Failed(reason) => self.end(id, "failed", Some(reason), epoll, false),
            Step::Opened => {
                let Some(stream) = self.live.get_mut(&id) else {
                    return;
                };
                self.reports.push(describe(id, stream));
                let step = stream.begin(epoll);
                self.follow(id, step, epoll);
            }
        }
    }

    fn fail(&mut self, id: u32, reason: String) {
        self.finish(Report {
            id,
            state: "failed",
            bytes: 0,
            host_port: 0,
            unread: None,
            reader: None,
            error: Some(reason),
        });
    }

    fn finish(&mut self, report: Report) {
        if self.finished.len() >= MAX_FINISHED {
            self.finished.pop_front();
        }
        self.finished.push_back((report.clone(), false));
        self.reports.push(report);
    }

    /// Ends a stream; `gently` means that what was moved must still arrive on both sides.
    fn end(&mut self, id: u32, state: &'static str, error: Option<String>, epoll: &Epoll, gently: bool) {
        let Some(stream) = self.live.remove(&id) else {
            return;
        };
        let report = Report {
            state,
            error,
            ..describe(id, &stream)
        };
        // Nobody is told of it, and the FIFO is kept by its reader if there is one.
        let lingered = stream.is_lingering();
        let direction = stream.plan.direction;
        let (socket, fifo) = stream.close(epoll);
        match (direction, socket, fifo) {
            (Direction::In, Some(socket), _) if gently => self.half_close(id, socket, epoll),
            (Direction::Out, _, Some(fifo)) if gently && !lingered => self.leave_to_reader(&fifo, epoll),
            _ => {}
        }
        if !lingered {
            self.finish(report);
        }
    }

    /// Half-closes, and waits for the guest to close its half: closing both could overtake bytes on their way to it.
    fn half_close(&mut self, id: u32, socket: OwnedFd, epoll: &Epoll) {
        let number = HALF_CLOSED | u64::from(id);
        if sys::shutdown_write(socket.as_fd()).is_ok() && epoll.change(&socket, number, 0, EPOLLIN | EPOLLRDHUP).is_ok()
        {
            self.half_closed.insert(id, socket);
        }
    }

    fn on_half_closed(&mut self, id: u32) {
        let Some(socket) = self.half_closed.get(&id) else {
            return;
        };
        let mut buffer = [0u8; 4096];
        match sys::receive(socket.as_fd(), &mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => drop(self.half_closed.remove(&id)),
        }
    }

    /// Keeps a FIFO open until a reader has it, if it has bytes that nobody could read otherwise.
    fn leave_to_reader(&mut self, fifo: &OwnedFd, epoll: &Epoll) {
        let Ok(writer) = open_writer(fifo.as_fd()) else {
            return;
        };
        if sys::waiting_bytes(fifo.as_fd()).unwrap_or(0) == 0 {
            return;
        }
        if self.watcher.is_none() {
            self.watcher = sys::watcher()
                .ok()
                .filter(|watcher| epoll.change(watcher, WATCHER, 0, EPOLLIN).is_ok());
        }
        let Some(watcher) = &self.watcher else { return };
        let path = PathBuf::from(format!("/proc/self/fd/{}", fifo.as_raw_fd()));
        let Ok(watch) = sys::watch_opens(watcher.as_fd(), &path) else {
            return;
        };
        if self.unread.len() >= MAX_UNREAD {
            self.unread.pop_front();
        }
        self.unread.push_back(Unread { writer, watch });
    }

    /// Lets go of the FIFOs that have a reader now. Called once per turn, after the streams' own ends are closed.
    pub fn release_read(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        self.unread.retain(|unread| {
            let nobody = sys::has_no_reader(unread.writer.as_fd());
            if !nobody {
                sys::unwatch(watcher.as_fd(), unread.watch);
            }
            nobody
        });
        if self.unread.is_empty() {
            self.watcher = None;
        }
    }

    fn on_watcher(&mut self) {
        if let Some(watcher) = &self.watcher {
            sys::discard(watcher.as_fd());
        }
    }
}

fn describe(id: u32, stream: &Stream) -> Report {
    let state = if stream.is_open() { "open" } else { "opening" };
    Report {
        id,
        state,
        bytes: stream.bytes,
        host_port: stream.host_port,
        unread: None,
        reader: None,
        error: None,
    }
}
