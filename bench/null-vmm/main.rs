//! A VMM and a guest agent that do nothing and answer at once: what is left of a pod's times with it is the shim's own.
//!
//! Started like `cloud-hypervisor --api-socket fd=3 --event-monitor fd=4`. It serves what snpd asks of Cloud Hypervisor's REST API (`api.rs`), the hybrid
//! vsock that `vm.create` names, and behind its ports the agent protocol (`agent.rs`) and what stands for processes (`guest.rs`). What it does not know it refuses, as
//! the real ones do.

mod agent;
mod api;
mod events;
/// The real agent's own list: what it announces decides which way pods go.
#[path = "../../guest/agent/src/features.rs"]
mod features;
mod guest;
mod receive;
mod wire;

use guest::Guest;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

const API_FD: i32 = 3;
const EVENTS_FD: i32 = 4;
const AGENT_PORT: &str = "1024";
const STREAM_PORT: &str = "1028";
/// What comes goes back: a stream without anything of the shim's, for comparison. No ports of the agent's.
const ECHO_PORT: &str = "7";
/// The same in pieces of a line's length.
const LINES_PORT: &str = "8";
const LINE: usize = 64;

fn main() {
    // SAFETY: the descriptors were handed over for this, and nobody else here uses them.
    let (listener, events) = unsafe { (UnixListener::from_raw_fd(API_FD), File::from_raw_fd(EVENTS_FD)) };
    // snpd's side of it does not block, and says so of both: `accept` would spin.
    if let Err(error) = listener.set_nonblocking(false) {
        eprintln!("the API socket: {error}");
        return;
    }
    let machine = Arc::new(api::Machine::new(events::EventMonitor::new(events)));
    for connection in listener.incoming().flatten() {
        let machine = machine.clone();
        thread::spawn(move || api::serve(connection, &machine, boot));
    }
}

/// The guest "is up" when its socket is there: before the answer to `vm.boot`.
fn boot(socket: String) {
    if let Ok(listener) = UnixListener::bind(socket) {
        thread::spawn(move || serve_vsock(&listener));
    }
}

/// Takes the host's connections to ports of the guest: `CONNECT <port>`, answered by `OK <number>`.
fn serve_vsock(listener: &UnixListener) {
    let guest = Arc::new(Guest::default());
    for (number, connection) in listener.incoming().flatten().enumerate() {
        let guest = guest.clone();
        thread::spawn(move || connect(connection, number, &guest));
    }
}

fn connect(mut connection: UnixStream, number: usize, guest: &Arc<Guest>) -> Option<()> {
    let line = read_line(&mut connection)?;
    writeln!(connection, "OK {number}").ok()?;
    match line.strip_prefix("CONNECT ")? {
        AGENT_PORT => agent::serve(&connection, guest),
        STREAM_PORT => {
            let token = read_line(&mut connection)?.parse().ok()?;
            guest.claim(token, connection);
            Some(())
        }
        ECHO_PORT => {
            guest::echo(connection.try_clone().ok()?, connection, guest::BUFFER);
            Some(())
        }
        LINES_PORT => {
            guest::echo(connection.try_clone().ok()?, connection, LINE);
            Some(())
        }
        _ => None,
    }
}

/// One line, byte by byte: what follows it is somebody else's.
fn read_line(connection: &mut UnixStream) -> Option<String> {
    let mut line = String::new();
    let mut byte = [0u8];
    while line.len() < 64 {
        connection.read_exact(&mut byte).ok()?;
        match byte[0] {
            b'\n' => return Some(line),
            other => line.push(other.into()),
        }
    }
    None
}
