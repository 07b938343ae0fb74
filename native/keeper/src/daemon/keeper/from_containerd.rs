//! What the keeper does with the calls of containerd.

use std::time::Instant;

use super::super::buffer::Received;
use super::Keeper;
use crate::link::{self, kind};
use crate::snpd;

/// gRPC's code for "try again later".
const UNAVAILABLE: u64 = 14;
/// gRPC's code for "there are too many".
const RESOURCE_EXHAUSTED: u64 = 8;

impl Keeper<'_> {
    /// containerd sent something, or closed.
    pub fn on_connection(&mut self, channel: u32) {
        let received = self.connections.receive(channel, &mut self.scratch);
        self.forward(channel);
        if received == Received::End {
            self.close_connection(channel);
        }
    }

    /// Hands the complete frames of a connection to snpd. What can't be remembered is answered here: reading goes on, so
    /// that no caller can keep the others out.
    pub fn forward(&mut self, channel: u32) {
        let Some(connection) = self.connections.get(channel) else {
            return;
        };
        if connection.input.bytes().is_empty() {
            return;
        }
        let mut input = std::mem::take(&mut connection.input);
        let room = connection.room_for_refusals();
        let mut refusals = Vec::new();
        let now = Instant::now();
        let mut broken = None;
        while self.may_forward() && refusals.len() < room {
            match link::take_ttrpc(input.bytes()) {
                Ok(Some(frame)) => {
                    let sent = self.uplink.is_up();
                    let refusal = self.requests.refusal(&frame, sent);
                    self.log_refusal(refusal.as_deref());
                    if let Some(text) = refusal {
                        refusals.extend(link::ttrpc_error(frame.stream, RESOURCE_EXHAUSTED, &text));
                    } else {
                        if sent {
                            self.uplink.put(kind::FRAME, channel, frame.whole);
                        }
                        self.requests.remember(channel, &frame, sent, now);
                    }
                    let size = frame.whole.len();
                    input.consume(size);
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        // A peer that has no room from the start is heard again when it has read: epoll tells that.
        self.unfinished |= room > 0 && refusals.len() >= room;
        input.compact();
        if let Some(connection) = self.connections.get(channel) {
            connection.input = input;
            connection.output.buffer().extend_from_slice(&refusals);
        }
        if let Some(link::TooLong(length)) = broken {
            self.log.line(&format!(
                "containerd sent a frame of {length} bytes, more than {}: connection closed",
                link::MAX_TTRPC_BODY
            ));
            self.close_connection(channel);
        }
    }

    /// Tells the operator when calls begin to be refused.
    fn log_refusal(&mut self, refusal: Option<&str>) {
        if let Some(text) = refusal.filter(|_| !self.refuses) {
            self.log.line(text);
        }
        self.refuses = refusal.is_some();
    }

    pub fn close_connection(&mut self, channel: u32) {
        if self.connections.close(channel, &self.epoll, Instant::now()) {
            self.requests.forget_channel(channel);
            self.uplink.put(kind::CLOSED, channel, &[]);
        }
    }

    /// Answers what has waited for snpd too long.
    pub fn answer_expired(&mut self, now: Instant) {
        let text = snpd::explain_absence(&self.places, self.uplink.problem());
        for (channel, stream) in self.requests.take_expired(now, self.uplink.is_starting()) {
            if let Some(connection) = self.connections.get(channel) {
                connection
                    .output
                    .buffer()
                    .extend_from_slice(&link::ttrpc_error(stream, UNAVAILABLE, &text));
            }
        }
        self.log.line(&text);
    }
}
