//! The requests of containerd that have no answer yet: what must not be lost when snpd goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::{TtrpcFrame, TTRPC_REQUEST};

/// How many are held at most; beyond that nothing more is read from containerd.
pub const MAX_REQUESTS: usize = 256;
/// How many bytes of them are held at most; one frame may go beyond.
pub const MAX_REQUEST_BYTES: usize = 16 << 20;
/// How long a request is held without snpd before it is answered with an error.
pub const HOLD_DEADLINE: Duration = Duration::from_secs(10);

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
    /// Since when it has been without snpd.
    since: Instant,
}

/// The memory of requests, in the order in which they came.
#[derive(Default)]
pub struct Requests {
    queue: VecDeque<Request>,
    bytes: usize,
}

impl Requests {
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
                since: now,
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

    /// snpd is gone: the time without it begins for every request.
    pub fn lost(&mut self, now: Instant) {
        for request in &mut self.queue {
            request.since = now;
        }
    }

    /// snpd is back: hands each frame, in order, to `send`; from then on they count as sent.
    pub fn resend(&mut self, mut send: impl FnMut(&Request)) {
        for request in &mut self.queue {
            send(request);
            request.sent = true;
        }
        self.keep(|request| request.opens);
    }

    /// Takes out what has been without snpd for too long.
    pub fn take_expired(&mut self, now: Instant) -> Vec<(u32, u32)> {
        let fresh = |request: &Request| now < request.since + HOLD_DEADLINE;
        let expired = self
            .queue
            .iter()
            .filter(|request| request.opens && !fresh(request))
            .map(|request| (request.channel, request.stream));
        let expired = expired.collect();
        self.keep(fresh);
        expired
    }

    /// When the first of them expires, if snpd stays away.
    pub fn expiry(&self) -> Option<Instant> {
        self.queue
            .iter()
            .map(|request| request.since + HOLD_DEADLINE)
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
        let mut requests = Requests::default();
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
        let mut requests = Requests::default();
        add(&mut requests, 1, 1, 3, true, now);
        add(&mut requests, 1, 1, 3, false, now);
        assert_eq!(resent(&mut requests).len(), 1);
        assert_eq!(resent(&mut requests).len(), 0);
    }

    #[test]
    fn expires_after_the_deadline() {
        let now = Instant::now();
        let mut requests = Requests::default();
        add(&mut requests, 1, 1, 1, true, now);
        requests.lost(now + Duration::from_secs(5));
        add(&mut requests, 1, 3, 1, false, now + Duration::from_secs(9));
        assert_eq!(requests.expiry(), Some(now + Duration::from_secs(15)));
        assert!(requests
            .take_expired(now + Duration::from_secs(14))
            .is_empty());
        assert_eq!(
            requests.take_expired(now + Duration::from_secs(15)),
            [(1, 1)]
        );
        assert_eq!(
            requests.take_expired(now + Duration::from_secs(19)),
            [(1, 3)]
        );
        assert_eq!(requests.expiry(), None);
    }

    #[test]
    fn is_bounded() {
        let now = Instant::now();
        let mut requests = Requests::default();
        for stream in 0..MAX_REQUESTS as u32 {
            assert!(requests.has_room());
            add(&mut requests, 1, stream, 1, true, now);
        }
        assert!(!requests.has_room());
        requests.answered(1, 0);
        assert!(requests.has_room());
    }
}
