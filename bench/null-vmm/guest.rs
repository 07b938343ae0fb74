//! What "runs" in the guest. `true` ends at once, `cat` brings back what comes, `dd bs=N` does it in pieces of at most N bytes; anything else runs until a signal ends it.

use crate::agent::Call;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

const SIGKILL: u64 = 9;
const SIGTERM: u64 = 15;
const SIGNAL_EXIT_BASE: u64 = 128;
/// As `cat` of the coreutils.
pub const BUFFER: usize = 128 << 10;

/// A process: its container, and its exec id unless it is the container's first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    container: String,
    exec: String,
}

impl Key {
    /// The agent protocol names a container's first process by the container's own id, or by none.
    pub fn new(container: String, exec: String) -> Self {
        let exec = if exec == container { String::new() } else { exec };
        Self { container, exec }
    }
}

/// All processes of one VM.
#[derive(Default)]
pub struct Guest(Mutex<State>);

#[derive(Default)]
struct State {
    /// The host's ends of standard streams, by their tokens.
    streams: HashMap<u64, UnixStream>,
    processes: HashMap<Key, Process>,
}

#[derive(Default)]
struct Process {
    args: Vec<String>,
    /// Of standard input, output and error; 0 for none.
    tokens: [u64; 3],
    started: bool,
    status: Option<u64>,
    /// The calls that wait for its end.
    waits: Vec<Call>,
}

impl Guest {
    /// A standard stream has come. It stays open until its process ends; one that comes after the process's end is closed at once.
    pub fn claim(self: &Arc<Self>, token: u64, stream: UnixStream) {
        if let Ok(mut state) = self.0.lock() {
            let owner = |process: &Process| process.tokens.contains(&token);
            let found = state.processes.iter().find(|(_, process)| owner(process));
            let found = found.map(|(key, process)| (key.clone(), process.status.is_some()));
            if matches!(found, Some((_, true))) {
                return;
            }
            state.streams.insert(token, stream);
            if let Some((key, _)) = found {
                self.run(&mut state, &key);
            }
        }
    }

    /// Makes a process.
    pub fn create(&self, key: Key, args: Vec<String>, tokens: [u64; 3]) {
        if let Ok(mut state) = self.0.lock() {
            let process = state.processes.entry(key).or_default();
            process.args = args;
            process.tokens = tokens;
        }
    }

    /// Starts a process.
    pub fn start(self: &Arc<Self>, key: &Key) {
        if let Ok(mut state) = self.0.lock() {
            if let Some(process) = state.processes.get_mut(key) {
                process.started = true;
            }
            self.run(&mut state, key);
        }
    }

    /// Answers when the process has ended.
    pub fn wait(&self, key: Key, call: Call) {
        if let Ok(mut state) = self.0.lock() {
            let process = state.processes.entry(key).or_default();
            match process.status {
                Some(status) => call.answer_number(status),
                None => process.waits.push(call),
            }
        }
    }

    /// Sends a process a signal.
    pub fn signal(&self, key: &Key, signal: u64) {
        if signal == SIGKILL || signal == SIGTERM {
            self.end(key, SIGNAL_EXIT_BASE + signal);
        }
    }

    /// Ends and forgets a container's processes.
    pub fn remove(&self, container: &str) {
        if let Ok(mut state) = self.0.lock() {
            let of_it = |key: &&Key| key.container == container;
            let keys: Vec<_> = state.processes.keys().filter(of_it).cloned().collect();
            for key in keys {
                state.end(&key, SIGNAL_EXIT_BASE + SIGKILL);
                state.processes.remove(&key);
            }
        }
    }

    fn end(&self, key: &Key, status: u64) {
        if let Ok(mut state) = self.0.lock() {
            state.end(key, status);
        }
    }

    /// Does what the process's program does, once it is started and has its streams.
    fn run(self: &Arc<Self>, state: &mut State, key: &Key) {
        let Some(process) = state.processes.get(key).filter(|process| process.started) else {
            return;
        };
        let tokens = process.tokens;
        let piece = piece(&process.args);
        match process.args.first().map(String::as_str) {
            Some("true") => state.end(key, 0),
            Some("cat" | "dd") if tokens[..2].iter().all(|token| state.streams.contains_key(token)) => {
                let ends = tokens.map(|token| state.streams.remove(&token));
                if let [Some(input), Some(output), _] = ends {
                    let (guest, key) = (self.clone(), key.clone());
                    thread::spawn(move || {
                        echo(input, output, piece);
                        guest.end(&key, 0);
                    });
                }
            }
            _ => (),
        }
    }
}

impl State {
    fn end(&mut self, key: &Key, status: u64) {
        let Some(process) = self.processes.get_mut(key) else {
            return;
        };
        let status = *process.status.get_or_insert(status);
        for token in process.tokens {
            self.streams.remove(&token);
        }
        for call in process.waits.drain(..) {
            call.answer_number(status);
        }
    }
}

/// How much a program reads and writes at a time.
fn piece(args: &[String]) -> usize {
    let given = args.iter().find_map(|argument| argument.strip_prefix("bs="));
    given.and_then(|bytes| bytes.parse().ok()).unwrap_or(BUFFER)
}

/// Writes what is read, at most so many bytes at a time, to its end.
pub fn echo(mut input: UnixStream, mut output: UnixStream, piece: usize) {
    let mut buffer = vec![0; piece];
    while let Ok(length @ 1..) = input.read(&mut buffer) {
        if output.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
