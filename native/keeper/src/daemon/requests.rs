//! The requests of containerd that have no answer yet: what must not be lost when snpd goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::{self, TtrpcFrame, TTRPC_HEADER, TTRPC_REQUEST};
use crate::sys;

/// How many are held at most. A Wait is held for as long as its process runs, and containerd tells nobody when its client
/// has given up: the count is far above what a pod needs.
pub const MAX_REQUESTS: usize = 8192;
/// How many more of those that do not wait for a process: they are answered soon, and no number of Waits may keep them out.
pub const RESERVE: usize = 1024;
/// How many bytes of them are held at most; one frame may go beyond.
pub const MAX_REQUEST_BYTES: usize = 16 << 20;
/// The methods whose answer may take as long as a process lives, or a pod.
const WAITS: [&[u8]; 2] = [b"Wait", b"WaitSandbox"];
/// The memory that an empty queue keeps, in places.
const KEEP_PLACES: usize = 8;
/// From this size on a queue that shrinks has left holes that are worth giving back.
const MANY_PLACES: usize = 512;
/// How long snpd may be away before requests that it has not seen are answered with an error, while nobody holds its socket.
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

    /// Why this frame can't be held, in words for the user; nothing when it can, or need not be.
    pub fn refusal(&self, frame: &TtrpcFrame<'_>, sent: bool) -> Option<String> {
        if sent && frame.kind != TTRPC_REQUEST {
            return None;
        }
        let count = self.queue.len();
        let full = if self.bytes >= MAX_REQUEST_BYTES {
            format!("{} bytes of calls", self.bytes)
        } else if count >= MAX_REQUESTS + RESERVE || (count >= MAX_REQUESTS && waits(frame)) {
            format!("{count} calls")
        } else {
            return None;
        };
        Some(format!(
            "{full} of this pod are unanswered, more than the shim holds: most of them wait for processes. End processes that are \
             not needed, or restart containerd, which forgets the calls of clients that have gone"
        ))
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

    /// Takes out what has waited too long for an snpd to see it. What one has seen may have had its effect, and may be a Wait
    /// for a container that goes on without snpd: it is held until an snpd answers. `starting`: an snpd lives, but has not
    /// answered yet.
    pub fn take_expired(&mut self, now: Instant, starting: bool) -> Vec<(u32, u32)> {
        let since = self.away_since;
        let expired = |request: &Request| !request.sent && now >= deadline(since, request.came, starting);
        let opening = self.queue.iter().filter(|request| request.opens && expired(request));
        let taken = opening.map(|request| (request.channel, request.stream)).collect();
        self.keep(|request| !expired(request));
        taken
    }

    /// When the first of them expires, if snpd stays away, or goes on `starting`.
    pub fn expiry(&self, starting: bool) -> Option<Instant> {
        let unseen = self.queue.iter().filter(|request| !request.sent);
        unseen
            .map(|request| deadline(self.away_since, request.came, starting))
            .min()
    }

    fn keep(&mut self, wanted: impl Fn(&Request) -> bool) {
        let mut bytes = 0;
        self.queue.retain(|request| {
            let stays = wanted(request);
            bytes += if stays { request.frame.len() } else { 0 };
            stays
        });
        self.bytes = bytes;
        let places = self.queue.capacity();
        if self.queue.len() < places / 4 {
            self.queue.shrink_to((self.queue.len() * 2).max(KEEP_PLACES));
            if places >= MANY_PLACES {
                sys::return_memory();
            }
        }
    }
}

/// Whether a request is a Wait for a process: the method in ttrpc's `Request`.
fn waits(frame: &TtrpcFrame<'_>) -> bool {
    let body = frame.whole.get(TTRPC_HEADER..).unwrap_or_default();
    link::ttrpc_method(body).is_some_and(|method| WAITS.contains(&method))
}

/// Until when a request that came at `came` is held.
fn deadline(away_since: Instant, came: Instant, starting: bool) -> Instant {
    let patience = if starting { STARTING_DEADLINE } else { AWAY_DEADLINE };
    (away_since + patience).max(came + LEAST_HOLD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::Writer;

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
    fn expires_what_no_snpd_has_seen() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 1, true, now);
        requests.lost(at(5));
        assert_eq!(requests.expiry(false), None);
        add(&mut requests, 1, 3, 1, false, at(6));
        add(&mut requests, 1, 5, 1, false, at(14));
        assert_eq!(requests.expiry(false), Some(at(15)));
        assert!(requests.take_expired(at(14), false).is_empty());
        assert_eq!(requests.take_expired(at(15), false), [(1, 3)]);
        assert_eq!(requests.take_expired(at(16), false), [(1, 5)]);
        assert_eq!(requests.expiry(false), None);
        assert_eq!(resent(&mut requests), [(1, 1, true)]);
    }

    #[test]
    fn has_patience_with_an_snpd_that_starts() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut requests = Requests::new(now);
        add(&mut requests, 1, 1, 1, false, now);
        assert_eq!(
            (requests.expiry(true), requests.expiry(false)),
            (Some(at(60)), Some(at(10)))
        );
        assert!(requests.take_expired(at(59), true).is_empty());
        assert_eq!(requests.take_expired(at(60), true), [(1, 1)]);
    }

    fn request(method: &str, body: usize) -> Vec<u8> {
        let message = Writer::new().bytes(2, method).bytes(3, vec![0; body]).done();
        [&frame(1, TTRPC_REQUEST)[..], &message].concat()
    }

    fn admits(requests: &Requests, bytes: &[u8]) -> bool {
        let frame = TtrpcFrame {
            stream: 1,
            kind: TTRPC_REQUEST,
            whole: bytes,
        };
        requests.refusal(&frame, true).is_none()
    }

    #[test]
    fn is_bounded_and_keeps_room_for_what_does_not_wait() {
        let now = Instant::now();
        let mut requests = Requests::new(now);
        let (wait, kill) = (request("Wait", 0), request("Kill", 0));
        let wait_sandbox = request("WaitSandbox", 0);
        for stream in 0..(MAX_REQUESTS + RESERVE) as u32 {
            assert_eq!(admits(&requests, &wait), (stream as usize) < MAX_REQUESTS);
            assert_eq!(admits(&requests, &wait_sandbox), (stream as usize) < MAX_REQUESTS);
            assert!(admits(&requests, &kill));
            add(&mut requests, 1, stream, TTRPC_REQUEST, true, now);
        }
        assert!(!admits(&requests, &kill));
        requests.answered(1, 0);
        assert!(admits(&requests, &kill) && !admits(&requests, &wait));
        requests.forget_channel(1);
        assert!(admits(&requests, &wait));
        assert!(requests.queue.capacity() <= KEEP_PLACES);
    }

    #[test]
    fn is_bounded_in_bytes() {
        let now = Instant::now();
        let mut requests = Requests::new(now);
        let large = request("Exec", 4 << 20);
        for stream in 0..4 {
            assert!(admits(&requests, &large));
            let frame = TtrpcFrame {
                stream,
                kind: TTRPC_REQUEST,
                whole: &large,
            };
            requests.remember(1, &frame, true, now);
        }
        assert!(!admits(&requests, &request("State", 0)));
        requests.answered(1, 0);
        assert!(admits(&requests, &request("State", 0)));
    }
}
