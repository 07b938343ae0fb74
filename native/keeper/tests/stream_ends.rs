//! How the containers' stdio begins and ends: drained, aborted, failed, and while snpd is away.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;

use serde_json::{json, Value};
use support::rig::{line, reader, text, Rig, PORT};
use support::{accept, is_closed, kind};

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
    let keep = OpenOptions::new().read(true).write(true).open(&path).unwrap();
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
    let sockets = [rig.open(1, "in", text(&input)), rig.open(2, "out", text(&output))];
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
        let error = rig.assert_ended(id, "failed", 0)["error"].as_str().unwrap().to_owned();
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
        [(1, "done", 5), (2, "done", 10), (3, "failed", 0), (4, "opening", 0)]
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
        assert_eq!((kind, &state["state"]), (kind::STREAM_STATE, &json!("open")));
        sockets.push(socket);
    }
}
