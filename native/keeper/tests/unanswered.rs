//! Calls that have no answer yet: how many the keeper holds, for how long, and what the others get.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::json;
use support::{connect, kind, read_ttrpc, ttrpc, World};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

fn pid(hello: &serde_json::Value) -> i32 {
    i32::try_from(hello["pid"].as_i64().unwrap()).unwrap()
}

/// The body of a ttrpc request: its method and a payload.
fn call(method: &str, payload: usize) -> Vec<u8> {
    let mut body = vec![0x12, u8::try_from(method.len()).unwrap()];
    body.extend(method.as_bytes());
    if payload > 0 {
        body.push(0x1a);
        let mut left = payload;
        while left >= 0x80 {
            body.push(left as u8 | 0x80);
            left >>= 7;
        }
        body.push(left as u8);
        body.resize(body.len() + payload, 7);
    }
    body
}

/// An answer of the keeper itself: its stream, gRPC's code and the text.
fn refusal(containerd: &UnixStream) -> (u32, u8, String) {
    let (stream, frame, body) = read_ttrpc(containerd);
    assert_eq!(frame, RESPONSE);
    let code = body.iter().position(|byte| *byte == 0x08).unwrap() + 1;
    (stream, body[code], String::from_utf8_lossy(&body).into_owned())
}

fn resident_kib(pid: i32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn lets_calls_through_however_many_wait() {
    const WAITS: u32 = 8192;
    let world = World::new();
    let (_snpd, link, hello, mut containerd) = world.attached("pod");
    let before = resident_kib(pid(&hello));
    let wait = call("Wait", 100);
    let numbers = || (0..WAITS).map(|number| 2 * number + 1);
    let mut sender = containerd.try_clone().unwrap();
    let waits: Vec<u8> = numbers().flat_map(|stream| ttrpc(stream, REQUEST, &wait)).collect();
    let sending = std::thread::spawn(move || sender.write_all(&waits).unwrap());
    for stream in numbers() {
        assert_eq!(link.next().2[4..8], stream.to_be_bytes());
    }
    sending.join().unwrap();
    // One more Wait is refused, with the remedy; what does not wait for a process is served.
    for stream in [100_001, 100_003] {
        containerd.write_all(&ttrpc(stream, REQUEST, &wait)).unwrap();
        let (refused, code, text) = refusal(&containerd);
        assert_eq!((refused, code), (stream, 8));
        assert!(
            text.contains("8192 calls") && text.contains("restart containerd"),
            "{text}"
        );
    }
    let kill = ttrpc(100_005, REQUEST, &call("Kill", 100));
    containerd.write_all(&kill).unwrap();
    assert_eq!(link.next(), (kind::FRAME, 1, kill));
    link.send(kind::FRAME, 1, &ttrpc(100_005, RESPONSE, b""));
    assert_eq!(read_ttrpc(&containerd).0, 100_005);
    // The memory of answered calls is given back.
    for stream in numbers() {
        link.send(kind::FRAME, 1, &ttrpc(stream, RESPONSE, b""));
        assert_eq!(read_ttrpc(&containerd).0, stream);
    }
    let after = resident_kib(pid(&hello));
    assert!(after < before + 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn refuses_calls_beyond_16_mib_and_goes_on_reading() {
    let world = World::new();
    let (_snpd, link, _hello, mut containerd) = world.attached("pod");
    let large = call("Exec", 1 << 20);
    for number in 0..16u32 {
        containerd.write_all(&ttrpc(2 * number + 1, REQUEST, &large)).unwrap();
        assert_eq!(link.next().2[4..8], (2 * number + 1).to_be_bytes());
    }
    let refused: Vec<u32> = (1000..2000).collect();
    let calls: Vec<u8> = refused
        .iter()
        .flat_map(|stream| ttrpc(*stream, REQUEST, &call("State", 10)))
        .collect();
    containerd.write_all(&calls).unwrap();
    for stream in refused {
        let (number, code, _) = refusal(&containerd);
        assert_eq!((number, code), (stream, 8));
    }
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b""));
    assert_eq!(read_ttrpc(&containerd).0, 1);
    let next = ttrpc(105, REQUEST, &large);
    containerd.write_all(&next).unwrap();
    assert!(link.next() == (kind::FRAME, 1, next));
}

#[test]
fn does_not_read_from_a_peer_that_takes_no_refusals() {
    let world = World::new();
    let (_snpd, link, hello, mut containerd) = world.attached("pod");
    let large = call("Exec", 1 << 20);
    for number in 0..16u32 {
        containerd.write_all(&ttrpc(2 * number + 1, REQUEST, &large)).unwrap();
        assert_eq!(link.next().0, kind::FRAME);
    }
    // Every call is refused, and nobody reads the answers: the keeper must not gather them for ever.
    containerd.set_nonblocking(true).unwrap();
    let calls = ttrpc(101, REQUEST, &call("Kill", 20)).repeat(1000);
    let mut sent = 0;
    let mut entry = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&containerd),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, as the count says. A quarter of a second without room means that the keeper has stopped.
    while unsafe { libc::poll(&raw mut entry, 1, 250) } == 1 {
        sent += containerd.write(&calls).unwrap();
        assert!(sent < 16 << 20, "nothing stops the peer");
    }
    // Others are served meanwhile.
    let mut second = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next(), (kind::OPENED, 2, vec![]));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b""));
    second.write_all(&ttrpc(1, REQUEST, b"")).unwrap();
    while link.next().1 != 2 {}
}

#[test]
fn holds_what_an_snpd_has_seen_until_the_next_one_comes() {
    let world = World::new();
    let (snpd, link, _hello, mut containerd) = world.attached("pod");
    let wait = ttrpc(1, REQUEST, &call("Wait", 0));
    containerd.write_all(&wait).unwrap();
    assert_eq!(link.next(), (kind::FRAME, 1, wait.clone()));
    world.install_snpd("exit 1");
    drop((snpd, link));
    // The answer to a call that comes now tells that snpd has been away for long enough.
    containerd.write_all(&ttrpc(3, REQUEST, &call("State", 0))).unwrap();
    let (stream, code, _) = refusal(&containerd);
    assert_eq!((stream, code), (3, 14));
    let snpd = world.snpd();
    let (link, _) = snpd.accept();
    assert_eq!(link.next(), (kind::REPLAY, 1, wait));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b"exited"));
    assert_eq!(read_ttrpc(&containerd), (1, RESPONSE, b"exited".to_vec()));
}

#[test]
fn answers_unavailable_with_the_end_of_the_log() {
    let world = World::new();
    world.install_snpd("echo the reason why snpd does not start >&2");
    let mut containerd = connect(&world.started("pod"));
    containerd.write_all(&ttrpc(1, REQUEST, b"create")).unwrap();
    let (stream, frame, body) = read_ttrpc(&containerd);
    let text = String::from_utf8_lossy(&body);
    assert_eq!((stream, frame, body[3..5].to_vec()), (1, RESPONSE, vec![0x08, 14]));
    assert!(
        text.contains("snpd does not answer") && text.contains("the reason why snpd does not start"),
        "{text}"
    );
    // What comes now is not held as long.
    containerd.write_all(&ttrpc(3, REQUEST, b"shutdown")).unwrap();
    assert_eq!(read_ttrpc(&containerd).0, 3);
    // snpd comes back: what comes now is served, what was answered is not sent again.
    let snpd = world.snpd();
    let (link, hello) = snpd.accept();
    assert_eq!((&hello["resumed"], &hello["channels"]), (&json!(false), &json!([1])));
    containerd.write_all(&ttrpc(5, REQUEST, b"again")).unwrap();
    assert_eq!(link.next(), (kind::FRAME, 1, ttrpc(5, REQUEST, b"again")));
}
