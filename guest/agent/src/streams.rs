//! Stdio streams: connections from the host that wait to be claimed by the request that names them, and the moving of their bytes.

use crate::error::{Code, Error, Result};
use crate::io::{resize_pipe, Fd, Listener};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// A request waits this long for the streams that it names.
const CLAIM_MAX: Duration = Duration::from_secs(10);
/// A stream that nobody claims is closed after this long.
const UNCLAIMED_MAX: Duration = Duration::from_secs(30);
/// Streams that may wait to be claimed, or to say their token.
const UNCLAIMED_COUNT_MAX: usize = 1024;
/// Ten digits and a newline.
const TOKEN_BYTES_MAX: usize = 11;
/// One step of moving bytes.
const BUFFER_BYTES: usize = 128 << 10;

/// What a pipe holds unless it is told otherwise (pipe(7)), and what one holds through which more comes at a time, so often.
const PIPE_BYTES: usize = 64 << 10;
const BUSY_PIPE_BYTES: i32 = 256 << 10;
const FULL_TIMES: u32 = 4;

/// How a stream is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The number that the host sent first.
    Token(u32),
    /// The peer's port (Kata's pass-through descriptors).
    Peer(u32),
}

/// The streams that wait, and the requests that wait for streams.
#[derive(Default)]
pub struct Streams {
    unclaimed: RefCell<HashMap<Key, (Fd, u64)>>,
    waiting: RefCell<HashMap<Key, oneshot::Sender<Fd>>>,
    sequence: Cell<u64>,
    unnamed: Cell<usize>,
}

impl Streams {
    /// Accepts streams that say their token first, for ever.
    pub async fn serve_tokens(self: Rc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok((fd, _)) if self.unnamed.get() < UNCLAIMED_COUNT_MAX => {
                    let streams = self.clone();
                    streams.unnamed.set(streams.unnamed.get() + 1);
                    tokio::task::spawn_local(async move {
                        let token = timeout(CLAIM_MAX, read_token(&fd)).await;
                        streams.unnamed.set(streams.unnamed.get() - 1);
                        match token {
                            Ok(Some(token)) => streams.offer(Key::Token(token), fd),
                            _ => crate::warn!("a stream without a token was closed"),
                        }
                    });
                }
                Ok(_) => {
                    crate::warn!("a stream was closed: {UNCLAIMED_COUNT_MAX} others have not said their token yet")
                }
                Err(error) => after_failed_accept(&error).await,
            }
        }
    }

    /// Accepts streams that are known by their peer's port, for ever.
    pub async fn serve_peers(self: Rc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok((fd, port)) => self.offer(Key::Peer(port), fd),
                Err(error) => after_failed_accept(&error).await,
            }
        }
    }

    /// Hands a stream to the request that waits for it, or keeps it for one to come.
    fn offer(self: &Rc<Self>, key: Key, fd: Fd) {
        let mut fd = fd;
        if let Some(waiting) = self.waiting.borrow_mut().remove(&key) {
            match waiting.send(fd) {
                Ok(()) => return,
                Err(back) => fd = back,
            }
        }
        let mut unclaimed = self.unclaimed.borrow_mut();
        if unclaimed.len() >= UNCLAIMED_COUNT_MAX || unclaimed.contains_key(&key) {
            crate::warn!("the stream {key:?} was closed: too many unclaimed ones, or one of that number");
            return;
        }
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        unclaimed.insert(key, (fd, sequence));
        let streams = self.clone();
        tokio::task::spawn_local(async move {
            sleep(UNCLAIMED_MAX).await;
            let mut unclaimed = streams.unclaimed.borrow_mut();
            if unclaimed.get(&key).is_some_and(|(_, held)| *held == sequence) {
                unclaimed.remove(&key);
                crate::warn!("the stream {key:?} was closed: no request named it");
            }
        });
    }

    /// The stream of that number, by token or by the peer's port; waits for it, with a bound.
    pub async fn claim(&self, number: u32) -> Result<Fd> {
        let keys = [Key::Token(number), Key::Peer(number)];
        let mut arrivals = Vec::new();
        for key in keys {
            if let Some((fd, _)) = self.unclaimed.borrow_mut().remove(&key) {
                return Ok(fd);
            }
            let (sender, receiver) = oneshot::channel();
            if self.waiting.borrow().get(&key).is_some_and(|other| !other.is_closed()) {
                return Err(Error::invalid(format!("two requests name the stream {number}")));
            }
            self.waiting.borrow_mut().insert(key, sender);
            arrivals.push(receiver);
        }
        let (Some(by_peer), Some(by_token)) = (arrivals.pop(), arrivals.pop()) else {
            return Err(Error::internal("no stream is awaited"));
        };
        let arrived = tokio::select! {
            fd = by_token => fd.ok(),
            fd = by_peer => fd.ok(),
            _ = sleep(CLAIM_MAX) => None,
        };
        for key in keys {
            self.waiting.borrow_mut().remove(&key);
        }
        let late = || format!("the stream {number} did not come within {CLAIM_MAX:?}");
        arrived.ok_or_else(|| Error::new(Code::DeadlineExceeded, late()))
    }
}

/// Out of descriptors, most likely: the next attempt would fail at once, too.
pub async fn after_failed_accept(error: &Error) {
    crate::warn!("accepting a connection failed: {error}");
    sleep(Duration::from_millis(100)).await;
}

/// Reads the number up to its newline and nothing behind it.
pub async fn read_token(fd: &Fd) -> Option<u32> {
    let mut text = Vec::with_capacity(TOKEN_BYTES_MAX);
    while text.len() < TOKEN_BYTES_MAX {
        let mut byte = [0u8];
        fd.read_exact(&mut byte).await.ok()?;
        if byte[0] == b'\n' {
            return parse_token(&text);
        }
        text.push(byte[0]);
    }
    None
}

fn parse_token(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|token| *token > 0)
}

/// A pipe's size: it grows when it is full again and again, so that the two sides take fewer turns.
#[derive(Default)]
struct Room {
    full: u32,
}

impl Room {
    /// So much came from the pipe, or for it, at once.
    fn came(&mut self, length: usize, pipe: &Fd) {
        if length >= PIPE_BYTES && self.full < FULL_TIMES {
            self.full += 1;
            if self.full == FULL_TIMES {
                resize_pipe(pipe.as_fd(), BUSY_PIPE_BYTES);
            }
        }
    }
}

/// Moves a process's output to the host (or, without one, nowhere) until its last writer is gone, then closes the stream: VMMs tell their side of a close, which
/// comes after all bytes, but not of a half-close. When the host goes first, the rest
/// is read and thrown away: a program must not block because nobody listens.
pub async fn pump_output(from: Rc<Fd>, to: Option<Fd>) {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut room = Room::default();
    let mut listening = to.as_ref();
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        room.came(length, &from);
        if let Some(to) = listening {
            if to.write_all(&buffer[..length]).await.is_err() {
                listening = None;
            }
        }
    }
}

/// Moves the host's bytes to a process's input until either end closes. `to` is dropped at the end, which closes a pipe.
pub async fn pump_input(from: Fd, to: Rc<Fd>) {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut room = Room::default();
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = to.reader_gone() => 0,
        };
        room.came(length, &to);
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[tokio::test]
    async fn a_pipe_that_is_full_again_and_again_gets_larger() {
        let (from, _to) = crate::io::pipe().unwrap();
        let from = Fd::new(from).unwrap();
        let holds = || unsafe { libc::fcntl(from.as_fd().as_raw_fd(), libc::F_GETPIPE_SZ) };
        let mut room = Room::default();
        for _ in 1..FULL_TIMES {
            room.came(PIPE_BYTES, &from);
            room.came(PIPE_BYTES - 1, &from);
        }
        assert_eq!(holds(), PIPE_BYTES as i32);
        room.came(PIPE_BYTES, &from);
        assert_eq!(holds(), BUSY_PIPE_BYTES);
    }

    #[test]
    fn a_token_is_a_decimal_number_above_zero() {
        assert_eq!(parse_token(b"4294967295"), Some(u32::MAX));
        assert_eq!(parse_token(b"0"), None);
        assert_eq!(parse_token(b"4294967296"), None);
        assert_eq!(parse_token(b"+1"), None);
        assert_eq!(parse_token(b""), None);
    }
}
