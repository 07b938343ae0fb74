//! What the keeper does with containerd's frames, with snpd there, gone and back.

mod support;

use std::fs;
use std::io::Write;
use std::net::Shutdown;

use serde_json::json;
use support::{connect, is_closed, kill, kind, read_ttrpc, ttrpc, wait_gone, World};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

fn pid(hello: &serde_json::Value) -> i32 {
    i32::try_from(hello["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn forwards_frames_both_ways() {
    let world = World::new();
    let (_snpd, link, hello, mut containerd) = world.attached("pod");
    let request = ttrpc(1, REQUEST, b"create");
    containerd.write_all(&request).unwrap();
    assert_eq!(link.next(), (kind::FRAME, 1, request));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b"created"));
    assert_eq!(read_ttrpc(&containerd), (1, RESPONSE, b"created".to_vec()));
    let second = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next(), (kind::OPENED, 2, vec![]));
    drop(containerd);
    assert_eq!(link.next(), (kind::CLOSED, 1, vec![]));
    link.send(kind::CLOSED, 2, &[]);
    assert!(is_closed(&second));
}

#[test]
fn takes_frames_in_any_pieces() {
    let world = World::new();
    let (_snpd, link, _hello, mut containerd) = world.attached("pod");
    let body: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let large = ttrpc(3, REQUEST, &body);
    let (small, empty) = (ttrpc(1, REQUEST, b"x"), ttrpc(5, REQUEST, b""));
    let all = [&small[..], &large, &empty].concat();
    let sender = std::thread::spawn(move || {
        for piece in all[..100].chunks(1).chain(all[100..].chunks(70_001)) {
            containerd.write_all(piece).unwrap();
        }
        containerd
    });
    for wanted in [small, large, empty] {
        assert!(link.next() == (kind::FRAME, 1, wanted));
    }
    let containerd = sender.join().unwrap();
    link.send(kind::FRAME, 1, &ttrpc(3, RESPONSE, &body));
    assert!(read_ttrpc(&containerd) == (3, RESPONSE, body));
}

#[test]
fn sends_unanswered_requests_again_in_their_order() {
    let world = World::new();
    let (snpd, link, hello, mut containerd) = world.attached("pod");
    assert_eq!(hello["resumed"], false);
    let mut second = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next(), (kind::OPENED, 2, vec![]));
    for (number, stream) in [(1, 1u32), (1, 3), (2, 1), (1, 5)] {
        let connection = if number == 1 { &mut containerd } else { &mut second };
        connection.write_all(&ttrpc(stream, REQUEST, b"r")).unwrap();
        assert_eq!(link.next(), (kind::FRAME, number, ttrpc(stream, REQUEST, b"r")));
    }
    containerd.write_all(&ttrpc(5, DATA, b"more")).unwrap();
    assert_eq!(link.next().1, 1);
    link.send(kind::FRAME, 1, &ttrpc(3, RESPONSE, b"done"));
    assert_eq!(read_ttrpc(&containerd).0, 3);
    drop(link);
    let (link, hello) = snpd.accept_silently();
    assert_eq!((&hello["resumed"], &hello["channels"]), (&json!(true), &json!([1, 2])));
    containerd.write_all(&ttrpc(7, REQUEST, b"new")).unwrap();
    link.send_json(kind::HELLO, 0, &json!({"version": 1, "pid": 3}));
    assert_eq!(link.next(), (kind::REPLAY, 1, ttrpc(1, REQUEST, b"r")));
    assert_eq!(link.next(), (kind::REPLAY, 2, ttrpc(1, REQUEST, b"r")));
    assert_eq!(link.next(), (kind::REPLAY, 1, ttrpc(5, REQUEST, b"r")));
    assert_eq!(link.next(), (kind::FRAME, 1, ttrpc(7, REQUEST, b"new")));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b"once"));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b"twice"));
    link.send(kind::FRAME, 1, &ttrpc(7, RESPONSE, b"new"));
    assert_eq!(read_ttrpc(&containerd), (1, RESPONSE, b"once".to_vec()));
    assert_eq!(read_ttrpc(&containerd), (7, RESPONSE, b"new".to_vec()));
}

#[test]
fn forgets_the_requests_of_a_closed_connection() {
    let world = World::new();
    let (snpd, link, hello, mut containerd) = world.attached("pod");
    containerd.write_all(&ttrpc(1, REQUEST, b"wait")).unwrap();
    assert_eq!(link.next().0, kind::FRAME);
    let mut second = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next(), (kind::OPENED, 2, vec![]));
    containerd.shutdown(Shutdown::Both).unwrap();
    assert_eq!(link.next(), (kind::CLOSED, 1, vec![]));
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, b"late"));
    drop(link);
    let (link, hello) = snpd.accept();
    assert_eq!(hello["channels"], json!([2]));
    second.write_all(&ttrpc(1, REQUEST, b"state")).unwrap();
    assert_eq!(link.next(), (kind::FRAME, 2, ttrpc(1, REQUEST, b"state")));
}

#[test]
fn closes_a_connection_with_a_frame_too_long() {
    let world = World::new();
    let (_snpd, link, _hello, mut containerd) = world.attached("pod");
    let header = [&((4u32 << 20) + 1).to_be_bytes()[..], &[0, 0, 0, 1, REQUEST, 0]].concat();
    containerd.write_all(&header).unwrap();
    assert!(is_closed(&containerd));
    assert_eq!(link.next(), (kind::CLOSED, 1, vec![]));
    support::wait_for_text(&world.state().join("keeper.log"), "4194305 bytes");
}

#[test]
fn drops_a_link_that_breaks_the_contract() {
    let world = World::new();
    let (snpd, mut link, _hello, mut containerd) = world.attached("pod");
    containerd.write_all(&ttrpc(1, REQUEST, b"r")).unwrap();
    assert_eq!(link.next().0, kind::FRAME);
    let too_long = [&((5u32 << 20).to_be_bytes())[..], &[kind::FRAME, 0, 0, 0, 1]].concat();
    let no_ttrpc = [&[0, 0, 0, 6, kind::FRAME, 0, 0, 0, 1], &b"x"[..]].concat();
    let garbage: Vec<u8> = (0..60u8).map(|byte| byte.wrapping_mul(73)).collect();
    for bytes in [too_long, no_ttrpc, garbage] {
        link.stream.write_all(&bytes).unwrap();
        assert_eq!(link.read(), None);
        link = snpd.accept().0;
        assert_eq!(link.next(), (kind::REPLAY, 1, ttrpc(1, REQUEST, b"r")));
    }
    drop(link);
    let (link, _) = snpd.accept_silently();
    link.send_json(kind::HELLO, 0, &json!({"version": 2, "pid": 3}));
    assert_eq!(link.read(), None);
    let (link, _) = snpd.accept_silently();
    link.send(kind::END, 0, &[]);
    assert_eq!(link.read(), None);
    assert_eq!(snpd.accept().0.next().0, kind::REPLAY);
}

#[test]
fn ends_after_paying_what_is_owed() {
    let world = World::new();
    let (_snpd, link, hello, mut containerd) = world.attached("pod");
    containerd.write_all(&ttrpc(1, REQUEST, b"shutdown")).unwrap();
    assert_eq!(link.next().0, kind::FRAME);
    let body = vec![9u8; 2 << 20];
    link.send(kind::FRAME, 1, &ttrpc(1, RESPONSE, &body));
    link.send(kind::END, 0, &[]);
    assert_eq!(read_ttrpc(&containerd), (1, RESPONSE, body));
    assert!(is_closed(&containerd));
    wait_gone(pid(&hello));
    assert!(!fs::exists(hello["socket"].as_str().unwrap()).unwrap());
}

#[test]
fn ends_when_containerd_goes_before_any_snpd_came() {
    let world = World::new();
    let _snpd = world.snpd();
    let socket = world.started("pod");
    let pids = world.processes();
    drop(connect(&socket));
    assert_eq!(pids.len(), 1);
    wait_gone(pids[0]);
    assert!(!fs::exists(&socket).unwrap());
}

#[test]
fn ends_cleanly_on_sigterm() {
    let world = World::new();
    let (_snpd, link, hello, containerd) = world.attached("pod");
    kill(pid(&hello), libc::SIGTERM);
    assert_eq!(link.read(), None);
    assert!(is_closed(&containerd));
    wait_gone(pid(&hello));
    assert!(!fs::exists(hello["socket"].as_str().unwrap()).unwrap());
}

#[test]
fn stays_when_the_last_connection_closes() {
    let world = World::new();
    let (_snpd, link, hello, containerd) = world.attached("pod");
    drop(containerd);
    assert_eq!(link.next(), (kind::CLOSED, 1, vec![]));
    let mut again = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next(), (kind::OPENED, 2, vec![]));
    again.write_all(&ttrpc(1, REQUEST, b"state")).unwrap();
    assert_eq!(link.next().1, 2);
}

#[test]
fn starts_snpd_again_when_its_socket_is_gone() {
    let world = World::new();
    let (snpd, link, _hello, _containerd) = world.attached("pod");
    world.install_snpd(&format!("echo again > {}", world.path("again").display()));
    drop(snpd);
    drop(link);
    support::wait_for_text(&world.path("again"), "again");
}

#[test]
fn survives_random_bytes_from_containerd() {
    let world = World::new();
    let (_snpd, link, hello, containerd) = world.attached("pod");
    drop(containerd);
    assert_eq!(link.next().0, kind::CLOSED);
    let mut noise = support::Noise::new(99);
    for _ in 0..200 {
        let mut bytes = vec![0u8; 700];
        noise.fill(&mut bytes);
        bytes[0] &= 0x80;
        let mut connection = connect(hello["socket"].as_str().unwrap().as_ref());
        // The keeper may close before everything is written.
        let _ = connection.write_all(&bytes);
        drop(connection);
        let channel = link.next();
        assert_eq!(channel.0, kind::OPENED);
        while link.next().0 != kind::CLOSED {}
    }
    let mut connection = connect(hello["socket"].as_str().unwrap().as_ref());
    assert_eq!(link.next().0, kind::OPENED);
    connection.write_all(&ttrpc(1, REQUEST, b"alive")).unwrap();
    assert_eq!(link.next().2, ttrpc(1, REQUEST, b"alive"));
}
