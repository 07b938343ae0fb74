//! The containers' stdio: real FIFOs on one side, on the other a Unix socket that greets like a VM's hybrid socket.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use support::{accept, fifo, is_closed, kind, Link, Noise, Snpd, World};

const PORT: u32 = 1028;
const BIG: usize = 64 << 20;

/// A keeper with this test as snpd and as the VM.
struct Rig {
    world: World,
    snpd: Snpd,
    link: Link,
    vm: UnixListener,
    pid: i64,
    _containerd: UnixStream,
}

impl Rig {
    fn new() -> Rig {
        let world = World::new();
        let (snpd, link, hello, containerd) = world.attached("pod");
        let vm = UnixListener::bind(world.path("vm/vsock.sock")).unwrap();
        Rig {
            world,
            snpd,
            link,
            vm,
            pid: hello["pid"].as_i64().unwrap(),
            _containerd: containerd,
        }
    }

    fn plan(&self, direction: &str, local: &str) -> Value {
        json!({"direction": direction, "fifo": local, "vsock": self.world.path("vm/vsock.sock"), "port": PORT, "token": "12"})
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.world.path(name);
        fifo(&path);
        path
    }

    fn send_open(&self, id: u32, direction: &str, local: &str) {
        self.link
            .send_json(kind::STREAM_OPEN, id, &self.plan(direction, local));
    }

    /// The VM's side of the stream that is being opened.
    fn greet(&self, answer: &str) -> UnixStream {
        let socket = accept(&self.vm);
        assert_eq!(line(&socket), format!("CONNECT {PORT}"));
        (&socket).write_all(answer.as_bytes()).unwrap();
        socket
    }

    /// Opens a stream; the VM's side, after the token.
    fn open(&self, id: u32, direction: &str, local: &str) -> UnixStream {
        self.send_open(id, direction, local);
        let socket = self.greet("OK 77\n");
        assert_eq!(line(&socket), "12");
        let state = self.link.state(id);
        assert_eq!(
            (&state["state"], &state["hostPort"]),
            (&json!("open"), &json!(77)),
            "{state}"
        );
        socket
    }

    fn close(&self, id: u32, mode: &str) {
        self.link
            .send_json(kind::STREAM_CLOSE, id, &json!({ "mode": mode }));
    }

    fn assert_ended(&self, id: u32, state: &str, bytes: usize) -> Value {
        let told = self.link.state(id);
        assert_eq!(
            (&told["state"], &told["bytes"]),
            (&json!(state), &json!(bytes)),
            "{told}"
        );
        told
    }

    /// How many descriptors the keeper has.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .count()
    }
}

fn line(mut socket: &UnixStream) -> String {
    let mut text = String::new();
    let mut byte = [0u8; 1];
    loop {
        socket.read_exact(&mut byte).unwrap();
        if byte[0] == b'\n' {
            return text;
        }
        text.push(char::from(byte[0]));
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// Opens for reading without waiting for a writer, and then reads with waiting.
fn reader(path: &std::path::Path) -> File {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    assert_eq!(
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) },
        0
    );
    file
}

fn write_noise(mut target: impl Write, size: usize) -> Vec<u8> {
    let mut noise = Noise::new(42);
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 100_003];
    let mut left = size;
    while left > 0 {
        let part = left.min(buffer.len());
        noise.fill(&mut buffer);
        hash.update(&buffer[..part]);
        target.write_all(&buffer[..part]).unwrap();
        left -= part;
    }
    hash.finalize().to_vec()
}

fn read_hash(mut source: impl Read) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 65_536];
    let mut size = 0;
    loop {
        match source.read(&mut buffer).unwrap() {
            0 => return (size, hash.finalize().to_vec()),
            count => {
                hash.update(&buffer[..count]);
                size += count;
            }
        }
    }
}

#[test]
fn moves_64_mib_out_bit_for_bit() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    let reading = std::thread::spawn(move || read_hash(output));
    let sent = write_noise(&socket, BIG);
    drop(socket);
    rig.assert_ended(1, "done", BIG);
    assert!(reading.join().unwrap() == (BIG, sent));
}

#[test]
fn moves_64_mib_in_bit_for_bit_and_half_closes() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let socket = rig.open(1, "in", text(&path));
    let writing = std::thread::spawn(move || {
        write_noise(OpenOptions::new().write(true).open(path).unwrap(), BIG)
    });
    let received = read_hash(&socket);
    assert!(received == (BIG, writing.join().unwrap()));
    rig.assert_ended(1, "done", BIG);
    // Only one half is closed: what the guest says now is taken, until it closes too.
    let before = rig.descriptors();
    (&socket).write_all(b"late").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(is_closed(&socket));
    rig.send_open(9, "out", "/nowhere");
    assert_eq!(rig.link.state(9)["state"], "failed");
    assert_eq!(rig.descriptors(), before - 1);
}

#[test]
fn does_not_take_a_silent_fifo_for_ended() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let socket = rig.open(1, "in", text(&path));
    rig.send_open(9, "out", "/nowhere");
    assert_eq!(rig.link.state(9)["state"], "failed");
    fs::write(&path, "late").unwrap();
    let mut received = String::new();
    (&socket).read_to_string(&mut received).unwrap();
    assert_eq!(received, "late");
    rig.assert_ended(1, "done", 4);
}

#[test]
fn holds_the_guest_back_while_nobody_reads() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let socket = rig.open(1, "out", text(&path));
    // Nobody has the FIFO open: the pipe fills, then the socket, then the guest waits.
    socket.set_nonblocking(true).unwrap();
    let block = [5u8; 4096];
    let mut sent = 0;
    let mut entry = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&socket),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, as the count says. A quarter of a second without room means that everything is full.
    while unsafe { libc::poll(&raw mut entry, 1, 250) } == 1 {
        sent += (&socket).write(&block).unwrap();
        assert!(sent < 4 << 20, "nothing holds the guest back");
    }
    let output = reader(&path);
    let reading = std::thread::spawn(move || read_hash(output).0);
    socket.set_nonblocking(false).unwrap();
    (&socket).write_all(&[6u8; 1 << 20]).unwrap();
    drop(socket);
    rig.assert_ended(1, "done", sent + (1 << 20));
    assert_eq!(reading.join().unwrap(), sent + (1 << 20));
}

#[test]
fn is_done_only_when_all_is_written() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let mut output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    let size = 200_000;
    let sending = std::thread::spawn(move || write_noise(socket, size));
    let sent = sending.join().unwrap();
    // More is on its way than the FIFO holds: no `done` may come yet. The probe's answer would come after it.
    rig.send_open(9, "out", "/nowhere");
    assert_eq!(rig.link.state(9)["state"], "failed");
    let mut start = vec![0u8; 150_000];
    output.read_exact(&mut start).unwrap();
    rig.assert_ended(1, "done", size);
    let (_, rest) = read_hash(start.chain(output));
    assert!(rest == sent);
}

#[test]
fn keeps_output_for_a_reader_that_comes_later() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let socket = rig.open(1, "out", text(&path));
    (&socket).write_all(b"last words").unwrap();
    drop(socket);
    rig.assert_ended(1, "done", 10);
    let mut words = String::new();
    reader(&path).read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
}

#[test]
fn survives_readers_that_come_and_go() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let socket = rig.open(1, "out", text(&path));
    for word in ["one", "two", "three"] {
        let mut output = reader(&path);
        (&socket).write_all(word.as_bytes()).unwrap();
        let mut read = vec![0; word.len()];
        output.read_exact(&mut read).unwrap();
        assert_eq!(read, word.as_bytes());
    }
}

#[test]
fn appends_to_plain_files() {
    let rig = Rig::new();
    let path = rig.world.path("log");
    fs::write(&path, "before ").unwrap();
    let socket = rig.open(1, "out", &format!("file://{}", path.display()));
    (&socket).write_all(b"after").unwrap();
    drop(socket);
    rig.assert_ended(1, "done", 5);
    assert_eq!(fs::read_to_string(&path).unwrap(), "before after");
}

#[test]
fn drains_input_and_half_closes() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let socket = rig.open(1, "in", text(&path));
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"last line\n").unwrap();
    rig.close(1, "drain");
    let mut received = String::new();
    (&socket).read_to_string(&mut received).unwrap();
    assert_eq!(received, "last line\n");
    rig.assert_ended(1, "done", 10);
}

#[test]
fn drains_a_stream_that_is_still_being_opened() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let keep = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    (&keep).write_all(b"early").unwrap();
    rig.send_open(1, "in", text(&path));
    rig.close(1, "drain");
    let socket = rig.greet("OK 3\n");
    assert_eq!(line(&socket), "12");
    assert_eq!(rig.link.state(1)["state"], "open");
    rig.assert_ended(1, "done", 5);
    let mut received = String::new();
    (&socket).read_to_string(&mut received).unwrap();
    assert_eq!(received, "early");
}

#[test]
fn drains_output_that_has_come() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let mut output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    (&socket).write_all(b"part").unwrap();
    rig.close(1, "drain");
    rig.assert_ended(1, "done", 4);
    assert!(is_closed(&socket));
    let mut words = String::new();
    output.read_to_string(&mut words).unwrap();
    assert_eq!(words, "part");
}

#[test]
fn aborts_at_once() {
    let rig = Rig::new();
    let before = rig.descriptors();
    let (input, output) = (rig.fifo("in"), rig.fifo("out"));
    let sockets = [
        rig.open(1, "in", text(&input)),
        rig.open(2, "out", text(&output)),
    ];
    rig.send_open(3, "in", text(&input));
    let opening = accept(&rig.vm);
    for id in 1..=3 {
        rig.close(id, "abort");
        rig.assert_ended(id, "done", 0);
    }
    assert!(sockets.iter().all(is_closed));
    assert_eq!(line(&opening), format!("CONNECT {PORT}"));
    assert!(is_closed(&opening));
    assert_eq!(rig.descriptors(), before);
}

#[test]
fn ends_input_that_the_guest_closed() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let socket = rig.open(1, "in", text(&path));
    let _writer = OpenOptions::new().write(true).open(&path).unwrap();
    drop(socket);
    rig.assert_ended(1, "done", 0);
}

#[test]
fn names_what_failed() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let plain = rig.world.path("plain");
    fs::write(&plain, "").unwrap();
    rig.send_open(1, "out", text(&plain));
    assert_eq!(
        rig.assert_ended(1, "failed", 0)["error"],
        format!("{} is no FIFO", plain.display())
    );
    rig.send_open(2, "in", "/nowhere/fifo");
    assert!(rig.assert_ended(2, "failed", 0)["error"]
        .as_str()
        .unwrap()
        .contains("open /nowhere/fifo"));
    rig.link.send(kind::STREAM_OPEN, 3, b"{}");
    assert!(rig.assert_ended(3, "failed", 0)["error"]
        .as_str()
        .unwrap()
        .contains("STREAM_OPEN 3"));
    for (id, answer, wanted) in [
        (4, "NO\n", "answered \"NO\""),
        (5, "OK \n", "answered"),
        (6, "", "closed before OK"),
        (7, &"x".repeat(80), "no line"),
    ] {
        rig.send_open(id, "in", text(&path));
        drop(rig.greet(answer));
        let error = rig.assert_ended(id, "failed", 0)["error"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            error.contains(wanted) && error.contains("vsock.sock") && error.contains("1028"),
            "{error}"
        );
    }
    fs::remove_file(rig.world.path("vm/vsock.sock")).unwrap();
    rig.send_open(8, "in", text(&path));
    assert!(rig.assert_ended(8, "failed", 0)["error"]
        .as_str()
        .unwrap()
        .contains("No such file"));
}

#[test]
fn gives_up_on_a_guest_that_does_not_answer() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    rig.send_open(1, "in", text(&path));
    let socket = rig.greet("OK");
    assert!(rig.assert_ended(1, "failed", 0)["error"]
        .as_str()
        .unwrap()
        .contains("10 s"));
    assert!(is_closed(&socket));
}

#[test]
fn goes_on_without_snpd_and_tells_the_next() {
    let mut rig = Rig::new();
    let (input, output) = (rig.fifo("in"), rig.fifo("out"));
    let into = rig.open(1, "in", text(&input));
    let out = rig.open(2, "out", text(&output));
    rig.send_open(3, "out", "/nowhere");
    assert_eq!(rig.link.state(3)["state"], "failed");
    rig.send_open(4, "out", text(&output));
    let opening = rig.greet("");
    // Away with snpd; nobody answers the next HELLO until the streams have moved on.
    rig.link.stream.shutdown(Shutdown::Both).unwrap();
    let (silent, _) = rig.snpd.accept_silently();
    let mut reading = reader(&output);
    (&out).write_all(b"while away").unwrap();
    drop(out);
    fs::write(&input, "typed").unwrap();
    let mut typed = String::new();
    (&into).read_to_string(&mut typed).unwrap();
    assert_eq!(typed, "typed");
    let mut words = [0u8; 10];
    reading.read_exact(&mut words).unwrap();
    let states: Vec<_> = (0..2).map(|_| silent.next().1).collect();
    assert!(states.contains(&1) && states.contains(&2));
    drop(silent);
    let (link, hello) = rig.snpd.accept();
    let mut streams = hello["streams"].as_array().unwrap().clone();
    streams.sort_by_key(|stream| stream["id"].as_u64());
    let told: Vec<_> = streams
        .iter()
        .map(|stream| {
            (
                stream["id"].as_u64().unwrap(),
                stream["state"].as_str().unwrap(),
                stream["bytes"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (1, "done", 5),
            (2, "done", 10),
            (3, "failed", 0),
            (4, "opening", 0)
        ]
    );
    // That HELLO was answered: the ended ones are not told again.
    rig.link = link;
    (&opening).write_all(b"OK 5\n").unwrap();
    assert_eq!(rig.link.state(4)["hostPort"], 5);
    rig.link.stream.shutdown(Shutdown::Both).unwrap();
    let (_link, hello) = rig.snpd.accept();
    assert_eq!(
        hello["streams"],
        json!([{"id": 4, "state": "open", "bytes": 0, "hostPort": 5}])
    );
}

#[test]
fn tells_the_state_of_a_stream_that_is_opened_twice() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    let _socket = rig.open(1, "in", text(&path));
    rig.send_open(1, "in", text(&path));
    assert_eq!(rig.link.state(1)["state"], "open");
    rig.close(1, "abort");
    rig.assert_ended(1, "done", 0);
    rig.send_open(1, "in", text(&path));
    rig.assert_ended(1, "done", 0);
}

#[test]
fn waits_when_the_vm_accepts_slowly() {
    let rig = Rig::new();
    let path = rig.fifo("in");
    fs::remove_file(rig.world.path("vm/vsock.sock")).unwrap();
    // SAFETY: plain calls; a queue of one, so that further connections find it full.
    let listener = UnixListener::bind(rig.world.path("vm/vsock.sock")).unwrap();
    assert_eq!(
        unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) },
        0
    );
    for id in 1..=5 {
        rig.send_open(id, "in", text(&path));
    }
    let mut sockets = Vec::new();
    for _ in 1..=5 {
        let socket = accept(&listener);
        line(&socket);
        (&socket).write_all(b"OK 1\n").unwrap();
        let (kind, _, payload) = rig.link.next();
        let state: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(
            (kind, &state["state"]),
            (kind::STREAM_STATE, &json!("open"))
        );
        sockets.push(socket);
    }
}
