//! Cloud Hypervisor's REST API, as far as it is asked: configurations are taken for what they name, and nothing is made.

use crate::receive::Receiver;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// What the VM has been given.
#[derive(Default)]
pub struct Machine(Mutex<State>);

#[derive(Default)]
struct State {
    booted: bool,
    /// Where the host will connect to the guest.
    socket: String,
    /// Their number is their PCI slot, from 1.
    devices: Vec<String>,
    taps: Vec<OwnedFd>,
}

/// Serves one connection, request after request. `boot` gets the path of the vsock socket.
pub fn serve(connection: UnixStream, machine: &Machine, boot: impl Fn(String)) -> Option<()> {
    let mut answers = connection.try_clone().ok()?;
    let mut reader = BufReader::new(Receiver::new(connection));
    loop {
        let (endpoint, body) = request(&mut reader)?;
        machine.keep(reader.get_mut().descriptors());
        let answer = machine.handle(&endpoint, &body, &boot);
        let head = if answer.is_empty() { "204 No Content" } else { "200 OK" };
        let length = answer.len();
        write!(answers, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{answer}").ok()?;
    }
}

/// The endpoint and the body of a request.
fn request(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let endpoint = line.split(' ').nth(1)?.rsplit('/').next()?.to_string();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let field = line.trim_end().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((endpoint, String::from_utf8(body).ok()?))
}

impl Machine {
    fn keep(&self, taps: Vec<OwnedFd>) {
        if let Ok(mut state) = self.0.lock() {
            state.taps.extend(taps);
        }
    }

    fn handle(&self, endpoint: &str, body: &str, boot: &impl Fn(String)) -> String {
        let Ok(mut state) = self.0.lock() else {
            return String::new();
        };
        match endpoint {
            "vmm.ping" => r#"{"version":"54.0.0"}"#.into(),
            "vm.create" => {
                state.devices = values(body, "id");
                state.socket = values(body, "socket").pop().unwrap_or_default();
                String::new()
            }
            "vm.boot" => {
                state.booted = true;
                boot(state.socket.clone());
                String::new()
            }
            "vm.info" => {
                let nodes: Vec<_> = state
                    .devices
                    .iter()
                    .enumerate()
                    .map(|(at, id)| format!(r#""{id}":{{"pci_bdf":"{}"}}"#, address(at)))
                    .collect();
                format!(
                    r#"{{"config":{{}},"state":"Running","device_tree":{{{}}}}}"#,
                    nodes.join(",")
                )
            }
            added if added.starts_with("vm.add-") => {
                let id = values(body, "id").pop().unwrap_or_default();
                state.devices.push(id.clone());
                let place = address(state.devices.len() - 1);
                if state.booted {
                    format!(r#"{{"id":"{id}","bdf":"{place}"}}"#)
                } else {
                    String::new()
                }
            }
            _ => String::new(),
        }
    }
}

fn address(at: usize) -> String {
    format!("0000:00:{:02x}.0", at + 1)
}

/// The texts that stand behind a key anywhere in a document; ids and paths have no characters that JSON would write differently.
fn values(document: &str, key: &str) -> Vec<String> {
    let mark = format!(r#""{key}":""#);
    let pieces = document.split(&mark).skip(1);
    pieces
        .filter_map(|piece| Some(piece.split_once('"')?.0.to_string()))
        .collect()
}
