//! A keeper with the test as its snpd and as the VM's hybrid socket.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{json, Value};

use super::{accept, fifo, kind, Link, Snpd, World};

pub const PORT: u32 = 1028;

/// A keeper with this test as snpd and as the VM.
pub struct Rig {
    pub world: World,
    pub snpd: Snpd,
    pub link: Link,
    pub vm: UnixListener,
    pub pid: i64,
    _containerd: UnixStream,
}

impl Rig {
    pub fn new() -> Rig {
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

    pub fn plan(&self, direction: &str, local: &str) -> Value {
        json!({"direction": direction, "fifo": local, "vsock": self.world.path("vm/vsock.sock"), "port": PORT, "token": "12"})
    }

    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.world.path(name);
        fifo(&path);
        path
    }

    pub fn send_open(&self, id: u32, direction: &str, local: &str) {
        self.link.send_json(kind::STREAM_OPEN, id, &self.plan(direction, local));
    }

    /// The VM's side of the stream that is being opened.
    pub fn greet(&self, answer: &str) -> UnixStream {
        let socket = accept(&self.vm);
        assert_eq!(line(&socket), format!("CONNECT {PORT}"));
        (&socket).write_all(answer.as_bytes()).unwrap();
        socket
    }

    /// Opens a stream; the VM's side, after the token.
    pub fn open(&self, id: u32, direction: &str, local: &str) -> UnixStream {
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

    pub fn close(&self, id: u32, mode: &str) {
        self.link.send_json(kind::STREAM_CLOSE, id, &json!({ "mode": mode }));
    }

    pub fn assert_ended(&self, id: u32, state: &str, bytes: usize) -> Value {
        let told = self.link.state(id);
        assert_eq!(
            (&told["state"], &told["bytes"]),
            (&json!(state), &json!(bytes)),
            "{told}"
        );
        told
    }

    /// How many descriptors the keeper has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }
}

/// Reads a line, and not one byte more.
pub fn line(mut socket: &UnixStream) -> String {
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

/// A path as text.
pub fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// Opens for reading without waiting for a writer, and then reads with waiting.
pub fn reader(path: &std::path::Path) -> File {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    file
}
