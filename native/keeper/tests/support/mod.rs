//! What the keeper's tests have in common: a folder with a copy of the program, a bundle, and the peers that the test
//! plays itself (containerd, snpd, the VM's socket). Every wait has a deadline.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod rig;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const NAMESPACE: &str = "tests";
pub const ADDRESS: &str = "/run/containerd/containerd.sock";

/// Kinds of link frames.
pub mod kind {
    pub const HELLO: u8 = 1;
    pub const OPENED: u8 = 2;
    pub const CLOSED: u8 = 3;
    pub const FRAME: u8 = 4;
    pub const REPLAY: u8 = 5;
    pub const STREAM_OPEN: u8 = 6;
    pub const STREAM_CLOSE: u8 = 7;
    pub const STREAM_STATE: u8 = 8;
    pub const END: u8 = 9;
    pub const STREAM_ASK: u8 = 10;
    pub const CONTROL: u8 = 16;
}

/// One test's world. Dropping it ends the keepers it started and removes the folder.
pub struct World {
    pub folder: PathBuf,
}

impl World {
    pub fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("kt-{}-{number}", std::process::id()));
        let world = World { folder };
        for part in ["bin", "state", "vm"] {
            fs::create_dir_all(world.path(part)).unwrap();
        }
        // Copied by another process: while this one had the copy open for writing, a child that another test's thread
        // starts would hold it open too, and nobody could run it (ETXTBSY).
        let source = env!("CARGO_BIN_EXE_containerd-shim-snp-v2");
        assert!(Command::new("cp")
            .arg(source)
            .arg(world.program())
            .status()
            .unwrap()
            .success());
        let config = format!("state_dir = {:?}\n", world.state());
        fs::write(world.path("config.toml"), config).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn program(&self) -> PathBuf {
        self.path("bin/containerd-shim-snp-v2")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Puts a shell script in snpd's place. Another process writes it, for the reason given in `new`.
    pub fn install_snpd(&self, script: &str) {
        let status = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#])
            .arg(self.path("bin/snpd"))
            .arg(script)
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Makes a bundle; `annotations` as in `config.json`.
    pub fn bundle(&self, id: &str, annotations: Value) -> PathBuf {
        let bundle = self.path("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        let config = json!({"ociVersion": "1.1.0", "annotations": annotations});
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    /// The program as containerd calls it, without a command word yet.
    pub fn command(&self, id: &str, bundle: &Path) -> Command {
        let mut command = Command::new(self.program());
        command
            .args([
                "-namespace",
                NAMESPACE,
                "-address",
                ADDRESS,
                "-publish-binary",
                "/nowhere/containerd",
                "-id",
                id,
            ])
            .current_dir(bundle)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc")
            .env("CONTAINERD_SHIM_SNP_CONFIG", self.path("config.toml"))
            .env("SECRET", "never to be passed on")
            .stdin(Stdio::null());
        command
    }

    /// `start` of a pod of its own.
    pub fn start(&self, id: &str) -> Output {
        let bundle = self.bundle(id, json!({}));
        self.command(id, &bundle).arg("start").output().unwrap()
    }

    /// `start` that must succeed; the socket's path.
    pub fn started(&self, id: &str) -> PathBuf {
        let output = self.start(id);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{text}");
        PathBuf::from(text.strip_prefix("unix://").unwrap())
    }

    /// Listens where snpd does.
    pub fn snpd(&self) -> Snpd {
        let socket = self.state().join("snpd.sock");
        let _ = fs::remove_file(&socket);
        Snpd {
            listener: UnixListener::bind(socket).unwrap(),
        }
    }

    /// A keeper with this test as its snpd, and containerd's first connection.
    pub fn attached(&self, id: &str) -> (Snpd, Link, Value, UnixStream) {
        let snpd = self.snpd();
        let socket = self.started(id);
        let (link, hello) = snpd.accept();
        let containerd = connect(&socket);
        assert_eq!(link.next(), (kind::OPENED, 1, vec![]));
        (snpd, link, hello, containerd)
    }

    /// Processes whose command line names this world's folder.
    pub fn processes(&self) -> Vec<i32> {
        let wanted = self.folder.to_str().unwrap().as_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(wanted.len()).any(|part| part == wanted)
        })
        .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid, libc::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a signal to one process.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until a process is gone.
pub fn wait_gone(pid: i32) {
    // SAFETY: no pointers; the descriptor is closed with the process of the test.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return;
    }
    let mut entry = libc::pollfd {
        fd: i32::try_from(descriptor).unwrap(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, as the count says; then the descriptor is closed once.
    let ready = unsafe {
        let ready = libc::poll(&raw mut entry, 1, i32::try_from(DEADLINE.as_millis()).unwrap());
        libc::close(entry.fd);
        ready
    };
    assert_eq!(ready, 1, "process {pid} does not end");
}

/// Connects with deadlines.
pub fn connect(socket: &Path) -> UnixStream {
    with_deadlines(UnixStream::connect(socket).unwrap())
}

pub fn with_deadlines(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Accepts with a deadline.
pub fn accept(listener: &UnixListener) -> UnixStream {
    use std::os::fd::AsRawFd;
    let mut entry = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, as the count says.
    let ready = unsafe { libc::poll(&raw mut entry, 1, i32::try_from(DEADLINE.as_millis()).unwrap()) };
    assert_eq!(ready, 1, "nobody connects");
    with_deadlines(listener.accept().unwrap().0)
}

/// The test as snpd.
pub struct Snpd {
    pub listener: UnixListener,
}

impl Snpd {
    /// A keeper's connection whose HELLO is read but not answered.
    pub fn accept_silently(&self) -> (Link, Value) {
        let link = Link {
            stream: accept(&self.listener),
        };
        let (frame, channel, payload) = link.next();
        assert_eq!((frame, channel), (kind::HELLO, 0));
        (link, serde_json::from_slice(&payload).unwrap())
    }

    /// A keeper's connection, greeted.
    pub fn accept(&self) -> (Link, Value) {
        let (link, hello) = self.accept_silently();
        link.send_json(kind::HELLO, 0, &json!({"version": 1, "pid": 2}));
        (link, hello)
    }
}

/// snpd's end of a link.
pub struct Link {
    pub stream: UnixStream,
}

impl Link {
    pub fn send(&self, kind: u8, channel: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len() + 5).unwrap().to_be_bytes().to_vec();
        frame.push(kind);
        frame.extend_from_slice(&channel.to_be_bytes());
        frame.extend_from_slice(payload);
        (&self.stream).write_all(&frame).unwrap();
    }

    pub fn send_json(&self, kind: u8, channel: u32, payload: &Value) {
        self.send(kind, channel, payload.to_string().as_bytes());
    }

    /// The next frame; `None` when the keeper closed.
    pub fn read(&self) -> Option<(u8, u32, Vec<u8>)> {
        let mut header = [0u8; 9];
        match (&self.stream).read_exact(&mut header) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            result => result.unwrap(),
        }
        let rest = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let mut payload = vec![0; rest - 5];
        (&self.stream).read_exact(&mut payload).unwrap();
        Some((header[4], u32::from_be_bytes(header[5..].try_into().unwrap()), payload))
    }

    pub fn next(&self) -> (u8, u32, Vec<u8>) {
        self.read().expect("the keeper closed the link")
    }

    /// The next frame, which must be a stream's state.
    pub fn state(&self, stream: u32) -> Value {
        let (kind, channel, payload) = self.next();
        assert_eq!(
            (kind, channel),
            (kind::STREAM_STATE, stream),
            "{}",
            String::from_utf8_lossy(&payload)
        );
        serde_json::from_slice(&payload).unwrap()
    }
}

/// A ttrpc frame.
pub fn ttrpc(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[..], &stream.to_be_bytes(), &[kind, 0], body].concat()
}

/// The next ttrpc frame of a connection: stream, kind, body.
pub fn read_ttrpc(mut stream: &UnixStream) -> (u32, u8, Vec<u8>) {
    let mut header = [0u8; 10];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut body).unwrap();
    (u32::from_be_bytes(header[4..8].try_into().unwrap()), header[8], body)
}

/// Whether the peer has closed.
pub fn is_closed(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0u8; 1]), Ok(0))
}

/// Makes a FIFO.
pub fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends with zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// Bytes that look random and can be made again.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed | 1)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for part in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            part.copy_from_slice(&self.0.to_le_bytes()[..part.len()]);
        }
    }
}

/// Reads a file until it has the text.
pub fn wait_for_text(path: &Path, text: &str) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = File::open(path).ok().and_then(|mut file| {
            let mut content = String::new();
            file.read_to_string(&mut content).ok().map(|_| content)
        });
        match found {
            Some(content) if content.contains(text) => return content,
            _ => assert!(Instant::now() < end, "{} never has {text:?}", path.display()),
        }
        std::thread::yield_now();
    }
}
