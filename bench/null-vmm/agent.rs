//! The agent protocol over ttrpc: every call that a guest with these capabilities gets succeeds at once, but for those that wait for something to happen.

use crate::features::FEATURES;
use crate::guest::{Guest, Key};
use crate::wire::{bytes, number, put_bytes, put_number, text, texts};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const FRAME_MAX: usize = 4 << 20;
/// gRPC's status codes.
const NOT_FOUND: u64 = 5;
const UNIMPLEMENTED: u64 = 12;
/// What a guest says of its memory (Kata's form): half of it is free.
const METRICS: &str =
    "kata_guest_meminfo{item=\"memfree\"} 134217728\nkata_guest_meminfo{item=\"memavailable\"} 134217728\n";

/// Where the answer to one call goes.
#[derive(Clone)]
pub struct Call {
    connection: Arc<Mutex<UnixStream>>,
    stream: u32,
}

impl Call {
    /// Sends the answer. A connection that is gone needs none.
    pub fn answer(&self, payload: &[u8]) {
        self.respond(2, payload);
    }

    /// Refuses.
    pub fn refuse(&self, code: u64, text: &str) {
        let mut status = Vec::new();
        put_number(&mut status, 1, code);
        put_bytes(&mut status, 2, text.as_bytes());
        self.respond(1, &status);
    }

    /// Sends a `Response` of ttrpc's request.proto with one field.
    fn respond(&self, field: u64, value: &[u8]) {
        let mut response = Vec::new();
        put_bytes(&mut response, field, value);
        let mut frame = Vec::with_capacity(10 + response.len());
        frame.extend_from_slice(&(response.len() as u32).to_be_bytes());
        frame.extend_from_slice(&self.stream.to_be_bytes());
        frame.extend_from_slice(&[RESPONSE, 0]);
        frame.append(&mut response);
        if let Ok(mut connection) = self.connection.lock() {
            let _ = connection.write_all(&frame);
        }
    }

    /// Sends a message whose field 1 is a number, as those of WaitProcess and Check are.
    pub fn answer_number(&self, value: u64) {
        let mut message = Vec::new();
        put_number(&mut message, 1, value);
        self.answer(&message);
    }
}

/// Does a call.
fn handle(guest: &Arc<Guest>, method: &str, message: &[u8], call: Call) {
    let key = || Key::new(text(message, 1), text(message, 2));
    match method {
        "CreateContainer" => {
            let process = bytes(message, 6).and_then(|spec| bytes(spec, 2)).unwrap_or_default();
            guest.create(key(), texts(process, 4), tokens(message, 9));
            call.answer(&[]);
        }
        "StartContainer" => {
            call.answer(&[]);
            guest.start(&key());
        }
        "ExecProcess" => {
            let process = bytes(message, 4).unwrap_or_default();
            guest.create(key(), texts(process, 4), tokens(message, 5));
            call.answer(&[]);
            guest.start(&key());
        }
        "WaitProcess" => guest.wait(key(), call),
        "SignalProcess" => {
            call.answer(&[]);
            guest.signal(&key(), number(message, 3));
        }
        "RemoveContainer" => {
            guest.remove(&text(message, 1));
            call.answer(&[]);
        }
        // They tell of what never happens here.
        "GetOOMEvent" | "NextDamage" => (),
        // `List` says so of its list, `Check` that it serves.
        "Check" | "List" => call.answer_number(1),
        "GetGuestDetails" => call.answer(&details()),
        "GetMetrics" => {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, METRICS.as_bytes());
            call.answer(&message);
        }
        "ReadFile" => call.refuse(NOT_FOUND, "there is no file in this guest"),
        "CreateSandbox"
        | "DestroySandbox"
        | "UpdateContainer"
        | "StatsContainer"
        | "PauseContainer"
        | "ResumeContainer"
        | "CloseStdin"
        | "TtyWinResize"
        | "UpdateInterface"
        | "UpdateRoutes"
        | "AddARPNeighbors"
        | "CopyFile"
        | "Change"
        | "SetGuestDateTime"
        | "ReseedRandomDev"
        | "OnlineCPUMem"
        | "UpdateEphemeralMounts"
        | "BindPolicy"
        | "ContainerDamage" => call.answer(&[]),
        other => call.refuse(UNIMPLEMENTED, &format!("this guest does nothing for {other}")),
    }
}

/// The tokens of three standard streams, whose fields follow each other; 0 stands for none.
fn tokens(message: &[u8], first: u64) -> [u64; 3] {
    [0, 1, 2].map(|at| number(message, first + at))
}

/// GuestDetailsResponse.agent_details
fn details() -> Vec<u8> {
    let mut details = Vec::new();
    put_bytes(&mut details, 1, b"null-vmm");
    // As the real one: it takes filters of system calls.
    put_number(&mut details, 5, 1);
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
    let answers = Arc::new(Mutex::new(connection.try_clone().ok()?));
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
        let call = Call {
            connection: answers.clone(),
            stream: word(4),
        };
        handle(guest, &text(&data, 2), bytes(&data, 3).unwrap_or_default(), call);
    }
}
