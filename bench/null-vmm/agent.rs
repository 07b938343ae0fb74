//! The agent protocol over ttrpc: every call succeeds at once, but for those that wait for something to happen.

use crate::wire::{bytes, number, put_bytes, put_number, text};
use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const FRAME_MAX: usize = 4 << 20;
const SIGKILL: u64 = 9;
const SIGTERM: u64 = 15;
const SIGNAL_EXIT_BASE: u64 = 128;
const FEATURES: [&str; 9] = [
    "snp.streams.v1",
    "snp.limits.v1",
    "snp.files.v1",
    "snp.forward.v1",
    "snp.volumes.v1",
    "snp.scratch.v1",
    "snp.pci.v1",
    "snp.pidns.v1",
    "snp.damage.v1",
];

/// What "runs" in the guest.
#[derive(Default)]
pub struct Guest(Mutex<State>);

#[derive(Default)]
struct State {
    /// The host's ends of standard streams, by their tokens.
    streams: HashMap<u64, UnixStream>,
    processes: HashMap<String, Process>,
}

#[derive(Default)]
struct Process {
    tokens: Vec<u64>,
    status: Option<u64>,
    /// Streams of the ttrpc connection on which the end is waited for.
    waits: Vec<u32>,
}

impl Guest {
    /// A standard stream has come. It stays open until its process ends.
    pub fn claim(&self, token: u64, stream: UnixStream) {
        if let Ok(mut state) = self.0.lock() {
            state.streams.insert(token, stream);
        }
    }

    /// Does a call. @returns the answers that can be given now, each with its stream
    fn call(&self, method: &str, message: &[u8], stream: u32) -> Vec<(u32, Vec<u8>)> {
        let Ok(mut state) = self.0.lock() else {
            return Vec::new();
        };
        let id = text(message, 1);
        match method {
            "CreateContainer" => {
                let tokens = (9..=11)
                    .map(|field| number(message, field))
                    .filter(|token| *token != 0)
                    .collect();
                state.processes.insert(
                    id,
                    Process {
                        tokens,
                        ..Process::default()
                    },
                );
                vec![(stream, Vec::new())]
            }
            "WaitProcess" => {
                let process = state.processes.entry(id).or_default();
                match process.status {
                    Some(status) => vec![(stream, status_message(status))],
                    None => {
                        process.waits.push(stream);
                        Vec::new()
                    }
                }
            }
            "SignalProcess" => {
                let mut answers = vec![(stream, Vec::new())];
                let signal = number(message, 3);
                if signal == SIGKILL || signal == SIGTERM {
                    answers.extend(state.end(&id, SIGNAL_EXIT_BASE + signal));
                }
                answers
            }
            "RemoveContainer" => {
                state.end(&id, SIGNAL_EXIT_BASE + SIGKILL);
                state.processes.remove(&id);
                vec![(stream, Vec::new())]
            }
            "GetOOMEvent" | "NextDamage" => Vec::new(),
            "Check" => vec![(stream, status_message(1))],
            "GetGuestDetails" => vec![(stream, details())],
            "List" => {
                let mut complete = Vec::new();
                put_number(&mut complete, 1, 1);
                vec![(stream, complete)]
            }
            _ => vec![(stream, Vec::new())],
        }
    }
}

impl State {
    fn end(&mut self, id: &str, status: u64) -> Vec<(u32, Vec<u8>)> {
        let Some(process) = self.processes.get_mut(id) else {
            return Vec::new();
        };
        let status = *process.status.get_or_insert(status);
        for token in process.tokens.drain(..) {
            self.streams.remove(&token);
        }
        process
            .waits
            .drain(..)
            .map(|stream| (stream, status_message(status)))
            .collect()
    }
}

/// A message whose field 1 is a number, as those of WaitProcess and Check are.
fn status_message(status: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_number(&mut message, 1, status);
    message
}

/// GuestDetailsResponse.agent_details
fn details() -> Vec<u8> {
    let mut details = Vec::new();
    put_bytes(&mut details, 1, b"null-vmm");
    for feature in FEATURES {
        put_bytes(&mut details, 6, feature.as_bytes());
    }
    let mut message = Vec::new();
    put_bytes(&mut message, 2, &details);
    message
}

/// Serves one ttrpc connection: frames of a length, a stream (both big-endian), a type and flags; `Request` and `Response` of ttrpc's request.proto.
pub fn serve(connection: &UnixStream, guest: &Arc<Guest>) -> Option<()> {
    let mut reader = BufReader::new(connection.try_clone().ok()?);
    let mut writer = connection.try_clone().ok()?;
    loop {
        let mut head = [0u8; 10];
        reader.read_exact(&mut head).ok()?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(word(0)).ok().filter(|length| *length <= FRAME_MAX)?;
        let mut data = vec![0; length];
        reader.read_exact(&mut data).ok()?;
        if head[8] != REQUEST {
            continue;
        }
        let mut frames = Vec::new();
        for (stream, payload) in guest.call(&text(&data, 2), bytes(&data, 3).unwrap_or_default(), word(4)) {
            let mut response = Vec::new();
            put_bytes(&mut response, 2, &payload);
            frames.extend_from_slice(&u32::try_from(response.len()).ok()?.to_be_bytes());
            frames.extend_from_slice(&stream.to_be_bytes());
            frames.extend_from_slice(&[RESPONSE, 0]);
            frames.append(&mut response);
        }
        writer.write_all(&frames).ok()?;
    }
}
