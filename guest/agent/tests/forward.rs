//! Connections to ports of the guest's loopback. Needs root and cgroup2.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use support::Agent;

fn dial(agent: &Agent, head: &str) -> UnixStream {
    let mut stream = UnixStream::connect(agent.folder.join("forward")).unwrap();
    stream.set_read_timeout(Some(support::ANSWER_MAX)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn all(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn bytes_go_both_ways_and_the_host_may_end_its_half_first() {
    let agent = Agent::start();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let echo = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            peer.read_to_end(&mut text).unwrap();
            peer.write_all(&text).unwrap();
        });
        let mut stream = dial(&agent, &format!("{port}\nhello"));
        let long = "x".repeat(1 << 20);
        stream.write_all(long.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(all(stream), format!("OK\nhello{long}"), "{address}");
        echo.join().unwrap();
    }
}

#[test]
fn a_port_without_a_listener_and_nonsense_are_closed_without_an_answer() {
    let agent = Agent::start();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for head in [
        format!("{free}\n"),
        "65536\n".into(),
        "http\n".into(),
        "12345678901234\n".into(),
    ] {
        let mut answer = Vec::new();
        // What was sent and never read makes the end an error.
        let _ = dial(&agent, &head).read_to_end(&mut answer);
        assert!(answer.is_empty(), "{head:?}");
    }
}
