//! All connections of a VM, the hybrid socket that makes new ones, and the two rings that carry their packets.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::connection::{read_connect_line, Connection, State, Verdict};
use crate::packet::{self, Header, HEADER_BYTES, HOST_CID, TYPE_STREAM};
use crate::queue::Segment;
use crate::sys::Epoll;
use crate::vhost_user::{Device, RX, TX};

/// Host ports start where Cloud Hypervisor's do.
const HOST_PORT_FIRST: u32 = 1 << 30;
const HOST_PORT_LAST: u32 = (1 << 31) - 1;
/// Connections at one time, and clients that have not said yet what they want.
const CONNECTIONS_MAX: usize = 8192;
/// Tokens below belong to the event loop's own descriptors.
pub const TOKEN_FIRST: u64 = 16;

type Ports = (u32, u32);

pub struct Mux {
    listener: UnixListener,
    path: PathBuf,
    guest_cid: u64,
    epoll: Epoll,
    connections: HashMap<Ports, Connection>,
    /// Connections that the guest has forgotten, by token: their last bytes are still to be delivered.
    draining: HashMap<u64, Connection>,
    waiting: HashMap<u64, (OwnedFd, Vec<u8>)>,
    ports: HashMap<u64, Ports>,
    /// Who has something for the guest, each at most once.
    turns: VecDeque<Ports>,
    /// Answers to packets that belong to no connection.
    refusals: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
}

impl Mux {
    /// Makes the hybrid socket. It must not exist.
    pub fn new(path: &Path, guest_cid: u64, epoll: Epoll) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            guest_cid,
            epoll,
            connections: HashMap::new(),
            draining: HashMap::new(),
            waiting: HashMap::new(),
            ports: HashMap::new(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            next_token: TOKEN_FIRST,
            next_port: HOST_PORT_FIRST,
        })
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// The ports of all connections that the guest may have, host's and guest's.
    pub fn connections(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.connections.keys().copied()
    }

    /// Tells the guest that a connection is gone.
    pub fn reset(&mut self, (host_port, guest_port): (u32, u32)) {
        self.refusals.push_back(Header {
            source_cid: HOST_CID,
            target_cid: self.guest_cid,
            source_port: host_port,
            target_port: guest_port,
            kind: TYPE_STREAM,
            operation: packet::OP_RST,
            ..Header::default()
        });
    }

    /// Takes new clients of the hybrid socket.
    pub fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() + self.waiting.len() >= CONNECTIONS_MAX {
                continue;
            }
            let token = self.token();
            if stream.set_nonblocking(true).is_err() || self.epoll.add(stream.as_raw_fd(), token).is_err() {
                continue;
            }
            let stream = OwnedFd::from(stream);
            let _ = self.epoll.arm(stream.as_raw_fd(), token, true, false);
            self.waiting.insert(token, (stream, Vec::new()));
        }
    }

    /// Something happened to a client's stream.
    pub fn stream_event(&mut self, token: u64, events: u32) {
        if self.waiting.contains_key(&token) {
            self.read_line(token);
        } else if let Some(connection) = self.draining.get_mut(&token) {
            if connection.flush() == Verdict::Close || connection.is_gone() || events & libc::EPOLLHUP as u32 != 0 {
                self.draining.remove(&token);
            } else {
                let _ = self.epoll.arm(connection.stream.as_raw_fd(), token, false, true);
            }
        } else if let Some(&ports) = self.ports.get(&token) {
            let Some(connection) = self.connections.get_mut(&ports) else {
                return;
            };
            if events & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                connection.hang_up();
                if connection.is_unasked() {
                    return self.drop_unasked(ports);
                }
            }
            if events & libc::EPOLLIN as u32 != 0 {
                connection.readable = true;
            }
            if events & libc::EPOLLOUT as u32 != 0 {
                connection.flush();
            }
            self.settle(ports);
        }
    }

    /// A client that gave up before the guest heard of it: the guest never will.
    fn drop_unasked(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.remove(&ports) {
            self.ports.remove(&connection.token);
        }
    }

    fn read_line(&mut self, token: u64) {
        let Some((stream, line)) = self.waiting.get_mut(&token) else {
            return;
        };
        match read_connect_line(stream, line) {
            Ok(None) => {
                let _ = self.epoll.arm(stream.as_raw_fd(), token, true, false);
            }
            Ok(Some(guest_port)) => {
                let Some((stream, _)) = self.waiting.remove(&token) else {
                    return;
                };
                let host_port = self.free_port(guest_port);
                self.insert(Connection::new(
                    stream,
                    token,
                    host_port,
                    guest_port,
                    self.guest_cid,
                    true,
                ));
            }
            Err(_) => drop(self.waiting.remove(&token)),
        }
    }

    fn insert(&mut self, connection: Connection) {
        let ports = (connection.host_port, connection.guest_port);
        self.ports.insert(connection.token, ports);
        self.connections.insert(ports, connection);
        self.settle(ports);
    }

    /// After any change: queues the connection for the guest if it has something, and waits for what it wants from the host.
    fn settle(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.turns.push_back(ports);
        }
        if !connection.is_gone() {
            let (input, output) = connection.interest();
            let _ = self
                .epoll
                .arm(connection.stream.as_raw_fd(), connection.token, input, output);
        }
    }

    /// Takes everything that the guest sent.
    pub fn pump_tx(&mut self, device: &mut Device) {
        loop {
            while let Some(chain) = device.queues[TX].peek(&device.memory) {
                if let Some((header, data)) = parse_packet(&chain.segments) {
                    self.take_packet(&header, &data);
                }
                device.queues[TX].finish(&device.memory, chain.head, 0);
            }
            if !device.queues[TX].want_kick(&device.memory) {
                break;
            }
        }
        device.queues[TX].notify(&device.memory);
    }

    fn take_packet(&mut self, header: &Header, data: &[&[u8]]) {
        if header.source_cid != self.guest_cid || header.target_cid != HOST_CID {
            return;
        }
        let ports = (header.target_port, header.source_port);
        if header.operation == packet::OP_REQUEST
            && header.kind == TYPE_STREAM
            && !self.connections.contains_key(&ports)
        {
            return self.guest_connects(header);
        }
        let Some(connection) = self.connections.get_mut(&ports).filter(|_| header.kind == TYPE_STREAM) else {
            return self.refuse(header);
        };
        let verdict = connection.take_packet(header, data);
        if connection.state == State::Draining || verdict == Verdict::Close {
            self.forget(ports);
        } else {
            self.settle(ports);
        }
    }

    /// The guest is done with a connection. What it sent and the host has not read yet stays until it is read.
    fn forget(&mut self, ports: Ports) {
        let Some(mut connection) = self.connections.remove(&ports) else {
            return;
        };
        self.ports.remove(&connection.token);
        let _ = connection.drain();
        if connection.flush() == Verdict::Keep && !connection.is_gone() {
            let _ = self
                .epoll
                .arm(connection.stream.as_raw_fd(), connection.token, false, true);
            self.draining.insert(connection.token, connection);
        }
    }

    fn guest_connects(&mut self, header: &Header) {
        let path = format!("{}_{}", self.path.display(), header.target_port);
        let stream = UnixStream::connect(path).and_then(|s| s.set_nonblocking(true).map(|()| s));
        let token = self.token();
        match stream {
            Ok(stream)
                if self.connections.len() < CONNECTIONS_MAX && self.epoll.add(stream.as_raw_fd(), token).is_ok() =>
            {
                let mut connection = Connection::new(
                    stream.into(),
                    token,
                    header.target_port,
                    header.source_port,
                    self.guest_cid,
                    false,
                );
                let _ = connection.take_packet(
                    &Header {
                        operation: packet::OP_CREDIT_UPDATE,
                        ..*header
                    },
                    &[],
                );
                self.insert(connection);
            }
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.operation == packet::OP_RST || self.refusals.len() >= CONNECTIONS_MAX {
            return;
        }
        self.refusals.push_back(Header {
            source_cid: HOST_CID,
            target_cid: self.guest_cid,
            source_port: header.target_port,
            target_port: header.source_port,
            kind: header.kind,
            operation: packet::OP_RST,
            ..Header::default()
        });
    }

    /// Gives the guest what is there, as far as it has buffers for it, one packet a connection in turn.
    pub fn pump_rx(&mut self, device: &mut Device) {
        loop {
            while !(self.turns.is_empty() && self.refusals.is_empty()) {
                let Some(chain) = device.queues[RX].peek(&device.memory) else {
                    break;
                };
                let space: Vec<libc::iovec> = writable_behind_header(&chain.segments);
                if let Some(header) = self.next_packet(&space) {
                    let raw = header.format();
                    write_header(&chain.segments, &raw);
                    device.queues[RX].finish(
                        &device.memory,
                        chain.head,
                        (HEADER_BYTES + header.length as usize) as u32,
                    );
                }
            }
            if (self.turns.is_empty() && self.refusals.is_empty()) || !device.queues[RX].want_kick(&device.memory) {
                break;
            }
        }
        device.queues[RX].notify(&device.memory);
    }

    fn next_packet(&mut self, space: &[libc::iovec]) -> Option<Header> {
        if let Some(header) = self.refusals.pop_front() {
            return Some(header);
        }
        let ports = self.turns.pop_front()?;
        let connection = self.connections.get_mut(&ports)?;
        connection.queued = false;
        let header = connection.next_packet(space);
        if header.is_some_and(|h| h.operation == packet::OP_RST) {
            self.forget(ports);
        } else {
            self.settle(ports);
        }
        header
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == HOST_PORT_LAST {
                HOST_PORT_FIRST
            } else {
                port + 1
            };
            if !self.connections.contains_key(&(port, guest_port)) {
                return port;
            }
        }
    }
}

/// The header of a guest's packet and the data behind it, in however many pieces they come. `None`: it is no packet.
fn parse_packet(segments: &[Segment]) -> Option<(Header, Vec<&[u8]>)> {
    let mut raw = [0u8; HEADER_BYTES];
    let mut filled = 0;
    let mut data = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|s| !s.writable) {
        // SAFETY: the queue checked that the segment lies in guest memory. The guest may change it meanwhile: bytes stay bytes.
        let bytes: &[u8] = unsafe { std::slice::from_raw_parts(segment.data, segment.size) };
        let take = (HEADER_BYTES - filled).min(bytes.len());
        raw[filled..filled + take].copy_from_slice(&bytes[..take]);
        filled += take;
        data.push(&bytes[take..]);
    }
    if filled < HEADER_BYTES {
        return None;
    }
    let header = Header::parse(&raw);
    let mut left = header.length as usize;
    for part in &mut data {
        *part = &part[..part.len().min(left)];
        left -= part.len();
    }
    (left == 0).then_some((header, data))
}

fn writable_behind_header(segments: &[Segment]) -> Vec<libc::iovec> {
    let mut skip = HEADER_BYTES;
    let mut space = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|s| s.writable) {
        let skipped = skip.min(segment.size);
        skip -= skipped;
        if segment.size > skipped {
            // SAFETY: inside the segment.
            let start = unsafe { segment.data.add(skipped) };
            space.push(libc::iovec {
                iov_base: start.cast(),
                iov_len: segment.size - skipped,
            });
        }
    }
    space
}

fn write_header(segments: &[Segment], raw: &[u8; HEADER_BYTES]) {
    let mut done = 0;
    for segment in segments.iter().filter(|s| s.writable) {
        let size = segment.size.min(HEADER_BYTES - done);
        // SAFETY: the queue checked that the segment lies in guest memory.
        unsafe { std::ptr::copy_nonoverlapping(raw[done..].as_ptr(), segment.data, size) };
        done += size;
    }
}
