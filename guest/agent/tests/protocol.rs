//! The wire: what a wrong or hostile host may send, and what it gets. Needs root and a mounted cgroup2.

mod support;

use prost::Message;
use snp_agent::proto::grpc::*;
use snp_agent::ttrpc::{frame, Request, Response};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use support::Agent;

fn connect(agent: &Agent) -> UnixStream {
    let stream = UnixStream::connect(agent.folder.join("agent")).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .unwrap();
    stream
}

fn request(service: &str, method: &str, payload: Vec<u8>) -> Vec<u8> {
    Request {
        service: service.into(),
        method: method.into(),
        payload,
        timeout_nano: 0,
    }
    .encode_to_vec()
}

/// The next answer: stream, code, text.
fn answer(stream: &mut UnixStream) -> (u32, i32, String) {
    let mut header = [0u8; 10];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0u8; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).unwrap();
    assert_eq!(header[8], 2);
    let status = Response::decode(payload.as_slice()).unwrap().status.unwrap_or_default();
    (
        u32::from_be_bytes(header[4..8].try_into().unwrap()),
        status.code,
        status.message,
    )
}

fn serves(agent: &Agent) {
    assert_eq!(
        agent
            .call::<HealthCheckResponse>("Check", &CheckRequest::default())
            .status,
        1
    );
}

#[test]
fn a_request_that_is_too_long_is_refused_and_the_connection_goes_on() {
    let agent = Agent::start();
    let mut stream = connect(&agent);
    stream.write_all(&frame(1, 1, &vec![0u8; (4 << 20) + 1])).unwrap();
    let (number, code, text) = answer(&mut stream);
    assert!(number == 1 && code == 8 && text.contains("4194305"), "{text}");
    stream
        .write_all(&frame(3, 1, &request("grpc.Health", "Check", Vec::new())))
        .unwrap();
    assert_eq!(answer(&mut stream), (3, 0, String::new()));
}

#[test]
fn nonsense_is_answered_or_cut_off_and_others_are_served() {
    let agent = Agent::start();
    let mut stream = connect(&agent);
    stream.write_all(&frame(1, 1, b"\xff\xff\xff")).unwrap();
    assert_eq!(answer(&mut stream).1, 3);
    stream
        .write_all(&frame(
            3,
            1,
            &request("grpc.AgentService", "StartContainer", vec![0xff; 9]),
        ))
        .unwrap();
    assert_eq!(answer(&mut stream).1, 3);
    stream
        .write_all(&frame(5, 1, &request("grpc.Nothing", "Check", Vec::new())))
        .unwrap();
    assert_eq!(answer(&mut stream).1, 12);
    // A frame that claims 4 GiB ends its connection.
    stream.write_all(&[0xff; 10]).unwrap();
    assert_eq!(stream.read(&mut [0u8; 1]).unwrap(), 0);
    serves(&agent);
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let agent = Agent::start();
    let mut stream = connect(&agent);
    for number in 0..8193u32 {
        stream
            .write_all(&frame(
                2 * number + 1,
                1,
                &request("grpc.AgentService", "GetOOMEvent", Vec::new()),
            ))
            .unwrap();
    }
    let (number, code, _) = answer(&mut stream);
    assert_eq!((number, code), (16385, 8));
    serves(&agent);
}

#[test]
fn a_time_out_of_the_host_is_kept() {
    let agent = Agent::start();
    let mut stream = connect(&agent);
    let waiting = Request {
        service: "grpc.AgentService".into(),
        method: "GetOOMEvent".into(),
        payload: Vec::new(),
        timeout_nano: 1_000_000,
    };
    stream.write_all(&frame(1, 1, &waiting.encode_to_vec())).unwrap();
    let (_, code, text) = answer(&mut stream);
    assert!(code == 4 && text.contains("GetOOMEvent"), "{text}");
}

#[test]
fn a_container_id_that_names_a_path_is_refused() {
    let agent = Agent::start();
    let mut request = agent.container("c1", &["true"]);
    for id in ["", "../x", "a/b", "."] {
        request.container_id = id.into();
        assert_eq!(agent.refused("CreateContainer", &request).0, 3, "{id}");
    }
}

#[test]
fn the_log_comes_as_lines_of_json() {
    let agent = Agent::start();
    agent.refused("Dance", &CheckRequest::default());
    let mut lines = BufReader::new(UnixStream::connect(agent.folder.join("log")).unwrap()).lines();
    let line = lines
        .find(|line| line.as_ref().unwrap().contains("Dance"))
        .unwrap()
        .unwrap();
    assert!(
        line.starts_with("{\"msg\":\"Dance: ") && line.contains("\"level\":\"WARN\"") && line.ends_with('}'),
        "{line}"
    );
}

#[test]
fn a_stream_without_a_number_is_closed() {
    let agent = Agent::start();
    for text in ["x\n", "0\n", "99999999999", "-1\n"] {
        let mut stream = UnixStream::connect(agent.folder.join("streams")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        // Closed, or reset when the agent left some of it unread.
        assert!(matches!(stream.read(&mut [0u8; 1]), Ok(0) | Err(_)), "{text}");
    }
    serves(&agent);
}

#[test]
fn a_destroyed_sandbox_ends_the_agent() {
    let mut agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    agent.call::<()>(
        "StartContainer",
        &StartContainerRequest {
            container_id: "c1".into(),
        },
    );
    agent.call::<()>("DestroySandbox", &DestroySandboxRequest {});
    assert!(agent.ended());
}
