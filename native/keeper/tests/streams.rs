//! The containers' stdio, byte for byte: real FIFOs on one side, on the other a Unix socket that greets like a VM's.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;

use sha2::{Digest, Sha256};
use support::rig::{reader, text, Rig};
use support::{is_closed, Noise};

const BIG: usize = 64 << 20;

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
    let writing = std::thread::spawn(move || write_noise(OpenOptions::new().write(true).open(path).unwrap(), BIG));
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
    // Now the FIFO holds all that is left, and its reader is still to take it.
    rig.send_open(9, "out", "/nowhere");
    assert_eq!(rig.link.state(9)["state"], "failed");
    let (_, rest) = read_hash(start.chain(output));
    rig.assert_ended(1, "done", size);
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
