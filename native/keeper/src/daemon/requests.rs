//! The requests of containerd that have no answer yet: what must not be lost when snpd goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::{TtrpcFrame, TTRPC_REQUEST};

/// How many are held at most; beyond that nothing more is read from containerd.
pub const MAX_REQUESTS: usize = 256;
/// How many bytes of them are held at most; one frame may go beyond.
pub const MAX_REQUEST_BYTES: usize = 16 << 20;
/// How long snpd may be away before requests are answered with an error, while nobody holds its socket.
const AWAY_DEADLINE: Duration = Duration::from_secs(10);
/// The same while an snpd lives that has not said HELLO yet: a loaded node takes its time to start one.
const STARTING_DEADLINE: Duration = Duration::from_secs(60);
/// How long a request is held at least, even when snpd has been away for long: the time between two attempts to start it.
const LEAST_HOLD: Duration = Duration::from_secs(2);

/// One frame from containerd.
pub struct Request {
    pub channel: u32,
    pub stream: u32,
    /// The ttrpc frame, header included.
    pub frame: Vec<u8>,
    /// An snpd had it.
    pub sent: bool,
    /// False for a later frame of a stream (ttrpc DATA): it is only held until it can be sent.
    opens: bool,
    /// When it came.
    came: Instant,
}

/// The memory of requests, in the order in which they came.
pub struct Requests {
    queue: VecDeque<Request>,
    bytes: usize,
    /// Since when there has been no snpd.
    away_since: Instant,
}

impl Requests {
    /// An empty memory, with no snpd since `now`.
    pub fn new(now: Instant) -> Requests {
        Requests {
            queue: VecDeque::new(),
            bytes: 0,
            away_since: now,
        }
    }

    /// Whether one more may be read.
    pub fn has_room(&self) -> bool {
        self.queue.len() < MAX_REQUESTS && self.bytes < MAX_REQUEST_BYTES
    }

    /// Remembers a frame. One that was sent and expects no answer need not be.
    pub fn remember(&mut self, channel: u32, frame: &TtrpcFrame<'_>, sent: bool, now: Instant) {
        let opens = frame.kind == TTRPC_REQUEST;
        if opens || !sent {
            self.bytes += frame.whole.len();
            self.queue.push_back(Request {
                channel,
                stream: frame.stream,
                frame: frame.whole.to_vec(),
                sent,
                opens,
                came: now,
            });
        }
    }

    /// Forgets an answered request; says whether it was remembered.
    pub fn answered(&mut self, channel: u32, stream: u32) -> bool {
        let before = self.queue.len();
        self.keep(|request| request.channel != channel || request.stream != stream);
        self.queue.len() < before
    }

    /// Forgets what a closed connection asked.
    pub fn forget_channel(&mut self, channel: u32) {
        self.keep(|request| request.channel != channel);
    }

    /// snpd is gone.
    pub fn lost(&mut self, now: Instant) {
        self.away_since = now;
    }

    /// snpd is back: hands each frame, in order, to `send`; from then on they count as sent.
    pub fn resend(&mut self, mut send: impl FnMut(&Request)) {
        for request in &mut self.queue {
            send(request);
            request.sent = true;
        }
        self.keep(|request| request.opens);
    }

    /// Takes out what has waited for snpd too long. `starting`: an snpd lives, but has not answered yet.
    pub fn take_expired(&mut self, now: Instant, starting: bool) -> Vec<(u32, u32)> {
        let since = self.away_since;
        let expired = |request: &&Request| request.opens && now >= deadline(since, request.came, starting);
        let taken = self
            .queue
            .iter()
            .filter(expired)
            .map(|request| (request.channel, request.stream))
            .collect();
        self.keep(|request| now < deadline(since, request.came, starting));
        taken
    }

    /// When the first of them expires, if snpd stays away, or goes on `starting`.
    pub fn expiry(&self, starting: bool) -> Option<Instant> {
        self.queue
            .iter()
            .map(|request| deadline(self.away_since, request.came, starting))
            .min()
    }

    fn keep(&mut self, wanted: impl Fn(&Request) -> bool) {
        self.queue.retain(wanted);
        self.bytes = self.queue.iter().map(|request| request.frame.len()).sum();
        if self.queue.is_empty() {
            self.queue.shrink_to(8);
        }
    }
}

/// Until when a request that came at `came` is held.
fn deadline(away_since: Instant, came: Instant, starting: bool) -> Instant {
    let patience = if starting { STARTING_DEADLINE } else { AWAY_DEADLINE };
    (away_since + patience).max(came + LEAST_HOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u32, kind: u8) -> Vec<u8> {
        [&[0, 0, 0, 0][..], &stream.to_be_bytes(), &[kind, 0]].concat()
    }

    fn add(requests: &mut Requests, channel: u32, stream: u32, kind: u8, sent: bool, now: Instant) {
        let bytes = frame(stream, kind);
        requests.remember(
            channel,
            &TtrpcFrame {
                stream,
                kind,
                whole: &bytes,
            },
            sent,
            now,
        );
    }

    fn resent(requests: &mut Requests) -> Vec<(u32, u32, bool)> {
        let mut found = Vec::new();
        requests.resend(|request| found.push((request.channel, request.stream, request.sent)));
        found
    }

    #[test]
    fn keeps_order_until_answered() {
        let now = Instant::now();
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 1, true, now);
        add(&mut requests, 2, 1, 1, true, now);
        add(&mut requests, 1, 3, 1, false, now);
        assert!(requests.answered(2, 1) && !requests.answered(2, 1));
        assert_eq!(resent(&mut requests), [(1, 1, true), (1, 3, false)]);
        assert_eq!(resent(&mut requests), [(1, 1, true), (1, 3, true)]);
        requests.forget_channel(1);
        assert_eq!((resent(&mut requests), requests.bytes), (vec![], 0));
    }

    #[test]
    fn holds_data_frames_only_until_they_are_sent() {
        let now = Instant::now();
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 3, true, now);
        add(&mut requests, 1, 1, 3, false, now);
        assert_eq!(resent(&mut requests).len(), 1);
        assert_eq!(resent(&mut requests).len(), 0);
    }

    #[test]
    fn expires_when_snpd_stays_away() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 1, true, now);
        requests.lost(at(5));
        add(&mut requests, 1, 3, 1, false, at(14));
        assert_eq!(requests.expiry(false), Some(at(15)));
        assert!(requests.take_expired(at(14), false).is_empty());
        assert_eq!(requests.take_expired(at(15), false), [(1, 1)]);
        assert_eq!(requests.take_expired(at(16), false), [(1, 3)]);
        assert_eq!(requests.expiry(false), None);
    }

    #[test]
    fn has_patience_with_an_snpd_that_starts() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 1, true, now);
        assert_eq!(
            (requests.expiry(true), requests.expiry(false)),
            (Some(at(60)), Some(at(10)))
        );
        assert!(requests.take_expired(at(59), true).is_empty());
        assert_eq!(requests.take_expired(at(60), true), [(1, 1)]);
    }

    #[test]
    fn is_bounded() {
        let now = Instant::now();
        let mut requests = Requests::new(now);
        for stream in 0..MAX_REQUESTS as u32 {
            assert!(requests.has_room());
            add(&mut requests, 1, stream, 1, true, now);
        }
        assert!(!requests.has_room());
        requests.answered(1, 0);
        assert!(requests.has_room());
    }
}
