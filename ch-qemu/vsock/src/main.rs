//! `ch-qemu-vsock --guest-cid N --socket PATH (--vhost-fd FD | --vhost-socket PATH) [--restored PORTS]`: the vsock device of a QEMU virtual machine, with Cloud Hypervisor's
//! hybrid socket on the host's side.
//!
//! A client connects to PATH, writes `CONNECT <port>\n`, and reads `OK <host port>\n` when the guest has taken the connection; until the guest's driver
//! is up it waits. FD is one end of a socket pair: QEMU has the other, and speaks vhost-user over it; with --vhost-socket QEMU connects there instead. The
//! program ends with QEMU, and then writes the connections that the guest still had, one a line: host port, guest port.
//!
//! With --restored the guest has used the device before: the rings go on where they stood, and the connections that it had, `HOST:GUEST` with commas between them, are
//! reset.

mod connection;
mod memory;
mod mux;
mod packet;
mod queue;
mod sys;
mod vhost_user;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mux::{Mux, TOKEN_FIRST};
use sys::Epoll;
use vhost_user::{Device, Outcome, RX, TX};

const TOKEN_VHOST: u64 = 0;
const TOKEN_LISTENER: u64 = 1;
/// The kick of queue N has this token plus N.
const TOKEN_KICK: u64 = 2;

struct Arguments {
    guest_cid: u64,
    socket: PathBuf,
    vhost: Vhost,
    /// The connections of a guest that was restored.
    restored: Option<Vec<(u32, u32)>>,
}

/// Where QEMU is.
enum Vhost {
    Descriptor(RawFd),
    Socket(PathBuf),
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("ch-qemu-vsock: {message}\nusage: ch-qemu-vsock --guest-cid N --socket PATH (--vhost-fd FD | --vhost-socket PATH) [--restored PORTS]");
            return ExitCode::from(2);
        }
    };
    let socket = arguments.socket.display().to_string();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ch-qemu-vsock: {socket}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut cid, mut socket, mut vhost, mut restored) = (None, None, None, None);
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} wants a value"))?;
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("{name}: '{value}' is no number"))
        };
        match name.as_str() {
            "--guest-cid" => cid = Some(u64::from(number()?)),
            "--socket" => socket = Some(PathBuf::from(&value)),
            "--vhost-fd" => {
                vhost = Some(Vhost::Descriptor(
                    RawFd::try_from(number()?).map_err(|e| e.to_string())?,
                ))
            }
            "--vhost-socket" => vhost = Some(Vhost::Socket(PathBuf::from(&value))),
            "--restored" => restored = Some(parse_ports(&value)?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(Arguments {
        guest_cid: cid.ok_or("--guest-cid is missing")?,
        socket: socket.ok_or("--socket is missing")?,
        vhost: vhost.ok_or("--vhost-fd or --vhost-socket is missing")?,
        restored,
    })
}

/// `HOST:GUEST,HOST:GUEST`; an empty text names no connection.
fn parse_ports(text: &str) -> Result<Vec<(u32, u32)>, String> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (host, guest) = pair.split_once(':').ok_or_else(|| format!("'{pair}' are no ports"))?;
            let number = |digits: &str| digits.parse::<u32>().map_err(|_| format!("'{pair}' are no ports"));
            Ok((number(host)?, number(guest)?))
        })
        .collect()
}

fn run(arguments: Arguments) -> io::Result<()> {
    sys::raise_descriptor_limit();
    let vhost: OwnedFd = match arguments.vhost {
        // SAFETY: the descriptor was handed to this program by its starter, for it alone.
        Vhost::Descriptor(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Vhost::Socket(path) => accept_one(&path)?,
    };
    let mut device = Device::new(vhost, arguments.guest_cid, arguments.restored.is_some());
    let epoll = Epoll::new()?;
    epoll.watch(device.socket().as_raw_fd(), TOKEN_VHOST)?;
    let mut mux = Mux::new(&arguments.socket, arguments.guest_cid, epoll)?;
    mux.epoll().watch(mux.listener().as_raw_fd(), TOKEN_LISTENER)?;
    for ports in arguments.restored.unwrap_or_default() {
        mux.reset(ports);
    }
    let mut events = Vec::new();
    let mut kicks = Vec::new();
    loop {
        mux.epoll().wait(&mut events)?;
        for &(token, bits) in &events {
            match token {
                TOKEN_VHOST => match device.handle_message()? {
                    Outcome::Closed => return tell_connections(&mux),
                    Outcome::Kicks => watch_kicks(&mux, &device, &mut kicks)?,
                    Outcome::Continue => {}
                },
                TOKEN_LISTENER => mux.accept(),
                token if token < TOKEN_FIRST => {
                    if let Some(kick) = device
                        .queues
                        .get((token - TOKEN_KICK) as usize)
                        .and_then(|q| q.kick.as_ref())
                    {
                        sys::acknowledge(kick.as_raw_fd());
                    }
                }
                token => mux.stream_event(token, bits),
            }
        }
        // What the guest sent may free what it can take: first the one ring, then the other.
        if device.queues[TX].ready() {
            mux.pump_tx(&mut device);
        }
        if device.queues[RX].ready() {
            mux.pump_rx(&mut device);
        }
    }
}

/// Who wants to know reads it; nobody has to.
fn tell_connections(mux: &Mux) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (host, guest) in mux.connections() {
        if writeln!(out, "{host} {guest}").is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits for QEMU at `path`. The name appears when the socket listens, not before: who sees it can connect.
fn accept_one(path: &Path) -> io::Result<OwnedFd> {
    let early = path.with_extension("early");
    let listener = UnixListener::bind(&early)?;
    std::fs::rename(&early, path)?;
    Ok(listener.accept()?.0.into())
}

/// Watches the kick descriptors that QEMU gave last. Those before were closed, and left epoll by that.
fn watch_kicks(mux: &Mux, device: &Device, watched: &mut Vec<RawFd>) -> io::Result<()> {
    for fd in watched.drain(..) {
        let _ = mux.epoll().remove(fd);
    }
    for (index, queue) in device.queues.iter().enumerate() {
        if let Some(kick) = &queue.kick {
            mux.epoll().watch(kick.as_raw_fd(), TOKEN_KICK + index as u64)?;
            watched.push(kick.as_raw_fd());
        }
    }
    Ok(())
}
