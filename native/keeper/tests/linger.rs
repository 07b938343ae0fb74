//! Last output of processes that are deleted: it goes to its reader, however slow, and to nobody else.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use serde_json::json;
use support::rig::{reader, text, Rig};
use support::{kind, wait_gone, Noise};

/// More than FIFO and socket hold.
const SIZE: usize = 3 << 20;

/// An output whose guest sends `SIZE` bytes and whose reader has not begun: the reader, the sender's bytes, the VM's side.
fn stalled(rig: &Rig, id: u32) -> (File, std::thread::JoinHandle<Vec<u8>>) {
    let path = rig.fifo(&format!("out{id}"));
    let output = reader(&path);
    let socket = rig.open(id, "out", text(&path));
    let sending = std::thread::spawn(move || {
        let mut bytes = vec![0u8; SIZE];
        Noise::new(u64::from(id)).fill(&mut bytes);
        (&socket).write_all(&bytes).unwrap();
        bytes
    });
    (output, sending)
}

/// Waits until the keeper has done all that it was told before.
fn settle(rig: &Rig) {
    rig.send_open(99, "out", "/nowhere");
    assert_eq!(rig.link.state(99)["state"], "failed");
    rig.close(99, "abort");
}

/// Fills what is between the guest and the reader.
fn fill(socket: &UnixStream) {
    socket.set_nonblocking(true).unwrap();
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, as the count says. A quarter of a second without room means that everything is full.
    while unsafe { libc::poll(&raw mut entry, 1, 250) } == 1 {
        let _ = { socket }.write(&[7u8; 4096]).unwrap();
    }
    socket.set_nonblocking(false).unwrap();
}

/// Waits for the keeper to let go of the VM's side, with unread bytes or without.
fn assert_cut(mut socket: &UnixStream) {
    match socket.read(&mut [0u8; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the stream goes on: {other:?}"),
    }
}

fn read_all(mut output: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn brings_a_slow_reader_everything_and_tells_nobody() {
    let rig = Rig::new();
    let before = rig.descriptors();
    let (output, sending) = stalled(&rig, 1);
    rig.close(1, "linger");
    settle(&rig);
    let read = read_all(output);
    assert!(read == sending.join().unwrap());
    // The next frame is the probe's: no state was told.
    settle(&rig);
    assert_eq!(rig.descriptors(), before);
}

#[test]
fn ends_when_the_reader_goes() {
    let rig = Rig::new();
    for id in 1..=2 {
        let path = rig.fifo(&format!("out{id}"));
        let output = reader(&path);
        let socket = rig.open(id, "out", text(&path));
        // Once while the reader is waited for, once while the guest is.
        if id == 1 {
            fill(&socket);
        }
        rig.close(id, "linger");
        settle(&rig);
        drop(output);
        assert_cut(&socket);
        settle(&rig);
    }
}

#[test]
fn ends_at_once_without_a_reader() {
    let rig = Rig::new();
    let before = rig.descriptors();
    let path = rig.fifo("out");
    let socket = rig.open(1, "out", text(&path));
    fill(&socket);
    rig.close(1, "linger");
    assert_cut(&socket);
    settle(&rig);
    assert_eq!(rig.descriptors(), before);
}

#[test]
fn ends_when_another_process_holds_the_output_in_silence() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    (&socket).write_all(b"last").unwrap();
    rig.close(1, "linger");
    assert_eq!(read_all(output), b"last");
    assert_cut(&socket);
}

#[test]
fn aborts_what_has_no_rest() {
    let rig = Rig::new();
    let (input, output) = (rig.fifo("in"), rig.fifo("out"));
    let _reader = reader(&output);
    let socket = rig.open(1, "in", text(&input));
    rig.close(1, "linger");
    rig.assert_ended(1, "done", 0);
    assert_cut(&socket);
    rig.send_open(2, "out", text(&output));
    rig.close(2, "linger");
    rig.assert_ended(2, "done", 0);
}

#[test]
fn appends_the_rest_to_plain_files() {
    let rig = Rig::new();
    let path = rig.world.path("log");
    let socket = rig.open(1, "out", &format!("file://{}", path.display()));
    rig.close(1, "linger");
    settle(&rig);
    (&socket).write_all(b"rest").unwrap();
    drop(socket);
    support::wait_for_text(&path, "rest");
    settle(&rig);
}

#[test]
fn goes_on_without_snpd_and_is_not_named_to_the_next() {
    let mut rig = Rig::new();
    let (output, sending) = stalled(&rig, 1);
    rig.close(1, "linger");
    settle(&rig);
    rig.link.stream.shutdown(Shutdown::Both).unwrap();
    let (link, hello) = rig.snpd.accept();
    assert_eq!(hello["streams"], json!([]));
    rig.link = link;
    let read = read_all(output);
    assert!(read == sending.join().unwrap());
    settle(&rig);
}

#[test]
fn brings_last_output_after_the_end_of_the_pod() {
    let rig = Rig::new();
    let streams = [1, 2].map(|id| stalled(&rig, id));
    rig.close(1, "linger");
    rig.link.send(kind::END, 0, &[]);
    for (output, sending) in streams {
        let read = read_all(output);
        assert!(read == sending.join().unwrap());
    }
    wait_gone(i32::try_from(rig.pid).unwrap());
}

#[test]
fn ends_with_the_pod_when_nobody_reads_or_reading_stops() {
    for has_reader in [false, true] {
        let rig = Rig::new();
        let path = rig.fifo("out");
        let output = has_reader.then(|| OpenOptions::new().read(true).write(true).open(&path).unwrap());
        let socket = rig.open(1, "out", text(&path));
        fill(&socket);
        rig.link.send(kind::END, 0, &[]);
        wait_gone(i32::try_from(rig.pid).unwrap());
        assert_cut(&socket);
        drop(output);
    }
}
