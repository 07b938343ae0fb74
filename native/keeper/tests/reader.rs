//! Output and its reader: what STREAM_ASK tells, and that `done` waits until the last bytes were taken.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::json;
use support::rig::{reader, text, Rig};
use support::{kind, wait_gone, Noise};

/// What the keeper answers to STREAM_ASK: bytes moved, bytes unread, whether there is a reader.
fn ask(rig: &Rig, id: u32) -> (u64, u64, bool) {
    rig.link.send(kind::STREAM_ASK, id, &[]);
    let state = rig.link.state(id);
    assert_eq!(state["state"], "open", "{state}");
    let number = |name: &str| state[name].as_u64().unwrap();
    (number("bytes"), number("unread"), state["reader"].as_bool().unwrap())
}

/// Waits until the keeper has taken what the guest sent.
fn wait_moved(rig: &Rig, id: u32, bytes: u64) {
    while ask(rig, id).0 < bytes {}
}

/// Waits until the keeper has done all that it was told before, and asserts that it had nothing to tell.
fn assert_silent(rig: &Rig) {
    rig.send_open(99, "out", "/nowhere");
    assert_eq!(rig.link.state(99)["state"], "failed");
    rig.close(99, "abort");
}

/// An output with `words` in its FIFO, which has a reader, and whose guest has ended.
fn ended(rig: &Rig, words: &[u8], _reader: &File) -> UnixStream {
    let socket = rig.open(1, "out", text(&rig.world.path("out")));
    (&socket).write_all(words).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    wait_moved(rig, 1, words.len() as u64);
    // The end comes behind the last bytes: once the keeper has closed its side it has seen it.
    assert!(matches!((&socket).read(&mut [0u8; 1]), Ok(0)));
    socket
}

#[test]
fn tells_who_reads_and_what_is_left() {
    let rig = Rig::new();
    let before = rig.descriptors();
    let path = rig.fifo("out");
    let socket = rig.open(1, "out", text(&path));
    assert_eq!(ask(&rig, 1), (0, 0, false));
    (&socket).write_all(b"last words").unwrap();
    wait_moved(&rig, 1, 10);
    assert_eq!(ask(&rig, 1), (10, 10, false));
    // Asking without a reader has dropped nothing.
    let mut output = reader(&path);
    assert_eq!(ask(&rig, 1), (10, 10, true));
    let mut words = [0u8; 4];
    output.read_exact(&mut words).unwrap();
    assert_eq!(ask(&rig, 1), (10, 6, true));
    drop(output);
    assert_eq!(ask(&rig, 1), (10, 6, false));
    let mut output = reader(&path);
    let mut words = [0u8; 6];
    output.read_exact(&mut words).unwrap();
    assert_eq!((&words, ask(&rig, 1)), (b" words", (10, 0, true)));
    rig.close(1, "abort");
    rig.assert_ended(1, "done", 10);
    assert_eq!(rig.descriptors(), before);
}

#[test]
fn goes_on_after_being_asked_while_the_fifo_is_full() {
    const SIZE: usize = 3 << 20;
    let rig = Rig::new();
    let path = rig.fifo("out");
    let mut output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    let sending = std::thread::spawn(move || {
        let mut bytes = vec![0u8; SIZE];
        Noise::new(7).fill(&mut bytes);
        (&socket).write_all(&bytes).unwrap();
        bytes
    });
    let (_, unread, has_reader) = loop {
        let told = ask(&rig, 1);
        if told.1 > 65_536 {
            break told;
        }
    };
    assert!(has_reader && unread > 65_536);
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert!(bytes == sending.join().unwrap());
    rig.assert_ended(1, "done", SIZE);
}

#[test]
fn answers_for_what_is_no_open_fifo() {
    let rig = Rig::new();
    let input = rig.fifo("in");
    let _into = rig.open(1, "in", text(&input));
    assert!(!ask(&rig, 1).2);
    let _file = rig.open(2, "out", &format!("file://{}", rig.world.path("log").display()));
    assert_eq!(ask(&rig, 2), (0, 0, false));
    rig.close(1, "abort");
    rig.assert_ended(1, "done", 0);
    rig.link.send(kind::STREAM_ASK, 1, &[]);
    rig.assert_ended(1, "done", 0);
    rig.link.send(kind::STREAM_ASK, 55, &[]);
    assert_silent(&rig);
}

#[test]
fn is_done_only_when_the_reader_has_taken_all() {
    let mut rig = Rig::new();
    let mut output = reader(&rig.fifo("out"));
    let before = rig.descriptors();
    let socket = ended(&rig, b"last words", &output);
    assert_eq!(ask(&rig, 1), (10, 10, true));
    // The next snpd is told of it too.
    rig.link.stream.shutdown(Shutdown::Both).unwrap();
    let (link, hello) = rig.snpd.accept();
    assert_eq!(
        hello["streams"],
        json!([{"id": 1, "state": "open", "bytes": 10, "hostPort": 77}])
    );
    rig.link = link;
    let mut words = String::new();
    output.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
    rig.assert_ended(1, "done", 10);
    assert_eq!(rig.descriptors(), before);
    drop(socket);
}

#[test]
fn leaves_the_rest_to_the_next_reader_when_one_goes() {
    let rig = Rig::new();
    let path = rig.fifo("out");
    let output = reader(&path);
    let _socket = ended(&rig, b"last words", &output);
    drop(output);
    rig.assert_ended(1, "done", 10);
    let mut words = String::new();
    reader(&path).read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
}

#[test]
fn lets_go_of_what_a_reader_does_not_take() {
    for mode in ["abort", "drain", "linger"] {
        let rig = Rig::new();
        let mut output = reader(&rig.fifo("out"));
        let _socket = ended(&rig, b"last words", &output);
        rig.close(1, mode);
        if mode == "linger" {
            assert_silent(&rig);
        } else {
            rig.assert_ended(1, "done", 10);
        }
        let mut words = String::new();
        output.read_to_string(&mut words).unwrap();
        assert_eq!(words, "last words");
    }
}

#[test]
fn ends_with_the_pod_whether_a_reader_takes_it_or_not() {
    let rig = Rig::new();
    let mut output = reader(&rig.fifo("out"));
    let _socket = ended(&rig, b"last words", &output);
    rig.link.send(kind::END, 0, &[]);
    wait_gone(i32::try_from(rig.pid).unwrap());
    let mut words = String::new();
    output.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
}

#[test]
fn takes_all_that_is_left_from_the_guest_once_it_was_asked() {
    const SIZE: usize = 700_000;
    let rig = Rig::new();
    let path = rig.fifo("out");
    let mut output = reader(&path);
    let socket = rig.open(1, "out", text(&path));
    let mut noise = vec![0u8; SIZE];
    Noise::new(7).fill(&mut noise);
    let sent = noise.clone();
    let guest = std::thread::spawn(move || (&socket).write_all(&sent).unwrap());
    // Nobody has read a byte, and yet the guest is rid of everything, and may close.
    wait_moved(&rig, 1, SIZE as u64);
    guest.join().unwrap();
    let mut received = vec![0u8; SIZE];
    output.read_exact(&mut received).unwrap();
    assert!(received == noise);
    rig.assert_ended(1, "done", SIZE);
}
