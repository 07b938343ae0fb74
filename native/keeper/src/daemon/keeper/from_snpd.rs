//! What the keeper does with the frames of snpd.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::super::buffer::Received;
use super::super::streams::Close;
use super::{Keeper, LINK_VERSION};
use crate::link::{self, kind, TTRPC_RESPONSE};

/// How long an END waits for containerd to take what it is owed, and for readers that take no more of the last output.
pub const END_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct PeerHello {
    version: u32,
}

#[derive(Deserialize)]
struct StreamClose {
    mode: String,
}

/// Why a frame from snpd ends the link.
type Distrust = String;

impl Keeper<'_> {
    /// snpd sent something, or closed.
    pub fn on_uplink(&mut self) {
        let received = self.uplink.receive(&mut self.scratch);
        let mut input = std::mem::take(&mut self.uplink.input);
        let outcome = loop {
            match link::take_link(input.bytes()) {
                Ok(Some(frame)) => {
                    let size = frame.size;
                    if let Err(distrust) = self.on_frame(frame.kind, frame.channel, frame.payload) {
                        break Err(distrust);
                    }
                    input.consume(size);
                }
                Ok(None) => break Ok(()),
                Err(link::TooLong(length)) => break Err(format!("sent a frame of {length} bytes")),
            }
        };
        input.compact();
        self.uplink.input = input;
        if let Err(distrust) = &outcome {
            self.log.line(&format!("snpd {distrust}: connection closed"));
        }
        if received == Received::End || outcome.is_err() {
            self.lose_uplink();
        }
    }

    fn on_frame(&mut self, frame_kind: u8, channel: u32, payload: &[u8]) -> Result<(), Distrust> {
        let now = Instant::now();
        if !self.uplink.is_up() {
            if frame_kind != kind::HELLO {
                return Err(format!("sent a frame of kind {frame_kind} before HELLO"));
            }
            return self.on_hello(payload, now);
        }
        match frame_kind {
            kind::CLOSED => {
                self.close_connection(channel);
            }
            kind::FRAME => self.on_answer(channel, payload)?,
            kind::STREAM_OPEN => match serde_json::from_slice(payload) {
                Ok(plan) => self.streams.open(channel, plan, &self.epoll, now),
                Err(error) => self
                    .streams
                    .refuse(channel, format!("STREAM_OPEN {channel} is not understood: {error}")),
            },
            kind::STREAM_CLOSE => {
                let close = serde_json::from_slice::<StreamClose>(payload);
                let mode = match close.as_ref().map(|close| close.mode.as_str()) {
                    Ok("drain") => Close::Drain,
                    Ok("linger") => Close::Linger,
                    _ => Close::Abort,
                };
                self.streams.close(channel, mode, &self.epoll, now);
            }
            kind::STREAM_ASK => self.streams.ask(channel, &self.epoll),
            kind::END => {
                self.connections.stop_listening();
                self.streams.linger_all(&self.epoll, now);
                self.end_by = Some(now + END_DEADLINE);
            }
            // A later snpd may know more kinds.
            _ => {}
        }
        Ok(())
    }

    /// snpd answered HELLO: it gets again what had no answer, and then what it has not seen.
    fn on_hello(&mut self, payload: &[u8], now: Instant) -> Result<(), Distrust> {
        match serde_json::from_slice::<PeerHello>(payload) {
            Ok(PeerHello { version: LINK_VERSION }) => {}
            Ok(PeerHello { version }) => {
                return Err(format!("speaks version {version} of the link, not {LINK_VERSION}"))
            }
            Err(error) => return Err(format!("sent a HELLO that is not understood ({error})")),
        }
        self.uplink.greeted(now);
        self.streams.told();
        let Keeper { requests, uplink, .. } = self;
        requests.resend(|request| {
            let kind = if request.sent { kind::REPLAY } else { kind::FRAME };
            uplink.put(kind, request.channel, &request.frame);
        });
        Ok(())
    }

    /// A frame for containerd. An answer that nobody waits for any more is dropped.
    fn on_answer(&mut self, channel: u32, payload: &[u8]) -> Result<(), Distrust> {
        let frame = match link::take_ttrpc(payload) {
            Ok(Some(frame)) if frame.whole.len() == payload.len() => frame,
            _ => return Err(format!("sent {} bytes that are no ttrpc frame", payload.len())),
        };
        let wanted = frame.kind != TTRPC_RESPONSE || self.requests.answered(channel, frame.stream);
        if let Some(connection) = self.connections.get(channel).filter(|_| wanted) {
            connection.output.buffer().extend_from_slice(payload);
        }
        Ok(())
    }
}
