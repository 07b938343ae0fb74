//! Cloud Hypervisor's REST API, as far as it is asked: configurations are taken for what they name, and nothing is made. Other endpoints are not found.

use crate::events::EventMonitor;
use crate::receive::Receiver;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// What the VM has been given.
pub struct Machine {
    state: Mutex<State>,
    events: EventMonitor,
}

#[derive(Default)]
struct State {
    booted: bool,
    /// Where the host will connect to the guest.
    socket: String,
    /// Their number is their PCI slot, from 1; none where one was removed.
    devices: Vec<Option<String>>,
    taps: Vec<OwnedFd>,
}

/// How a request ends.
enum Answer {
    Done,
    Told(String),
    NotFound,
    /// The last link of the hypervisor's chain of errors.
    Failed(&'static str),
}

/// Serves one connection, request after request. `boot` gets the path of the vsock socket.
pub fn serve(connection: UnixStream, machine: &Machine, boot: impl Fn(String)) -> Option<()> {
    let mut answers = connection.try_clone().ok()?;
    let mut reader = BufReader::new(Receiver::new(connection));
    loop {
        let (endpoint, body) = request(&mut reader)?;
        machine.keep(reader.get_mut().descriptors());
        let (head, text) = match machine.handle(&endpoint, &body, &boot) {
            Answer::Done => ("204 No Content", String::new()),
            Answer::Told(text) => ("200 OK", text),
            Answer::NotFound => ("404 Not Found", String::new()),
            Answer::Failed(why) => ("500 Internal Server Error", format!(r#"["Error from API","{why}"]"#)),
        };
        let length = text.len();
        write!(answers, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{text}").ok()?;
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
    /// @param events who hears of what happens
    pub fn new(events: EventMonitor) -> Self {
        let state = Mutex::default();
        Self { state, events }
    }

    fn keep(&self, taps: Vec<OwnedFd>) {
        if let Ok(mut state) = self.state.lock() {
            state.taps.extend(taps);
        }
    }

    fn handle(&self, endpoint: &str, body: &str, boot: &impl Fn(String)) -> Answer {
        let Ok(mut state) = self.state.lock() else {
            return Answer::Failed("an earlier request failed");
        };
        match endpoint {
            "vmm.ping" => Answer::Told(r#"{"version":"54.0.0"}"#.into()),
            "vm.create" => {
                state.devices = values(body, "id").into_iter().map(Some).collect();
                state.socket = values(body, "socket").pop().unwrap_or_default();
                Answer::Done
            }
            "vm.boot" => {
                state.booted = true;
                boot(state.socket.clone());
                Answer::Done
            }
            "vm.info" => Answer::Told(state.info()),
            "vm.resize" => Answer::Done,
            "vm.add-disk" | "vm.add-net" | "vm.add-fs" => state.add(&values(body, "id").pop().unwrap_or_default()),
            "vm.remove-device" => {
                let id = values(body, "id").pop().unwrap_or_default();
                let Some(slot) = state.devices.iter_mut().find(|slot| slot.as_deref() == Some(&id)) else {
                    return Answer::Failed("No device with id to remove");
                };
                *slot = None;
                self.events.tell("vm", "device-removed", &id);
                Answer::Done
            }
            _ => Answer::NotFound,
        }
    }
}

impl State {
    fn info(&self) -> String {
        let devices = self.devices.iter().enumerate();
        let node = |(at, id): (usize, &Option<String>)| {
            let id = id.as_ref()?;
            Some(format!(r#""{id}":{{"pci_bdf":"{}"}}"#, address(at)))
        };
        let nodes: Vec<_> = devices.filter_map(node).collect();
        format!(
            r#"{{"config":{{}},"state":"Running","device_tree":{{{}}}}}"#,
            nodes.join(",")
        )
    }

    fn add(&mut self, id: &str) -> Answer {
        let free = self.devices.iter().position(Option::is_none);
        let at = free.unwrap_or(self.devices.len());
        if free.is_none() {
            self.devices.push(None);
        }
        self.devices[at] = Some(id.into());
        if self.booted {
            Answer::Told(format!(r#"{{"id":"{id}","bdf":"{}"}}"#, address(at)))
        } else {
            Answer::Done
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
