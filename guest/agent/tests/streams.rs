//! Stdio by streams with tokens, and terminals. Needs root and a mounted cgroup2.

mod support;

use snp_agent::proto::grpc::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use support::{process, terminal, Agent};

fn start(agent: &Agent, container: &str) {
    agent.call::<()>(
        "StartContainer",
        &StartContainerRequest {
            container_id: container.into(),
        },
    );
}

fn wait(agent: &Agent, container: &str, exec: &str) -> i32 {
    let request = WaitProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
    };
    agent.call::<WaitProcessResponse>("WaitProcess", &request).status
}

fn remove(agent: &Agent, container: &str) {
    agent.call::<()>(
        "RemoveContainer",
        &RemoveContainerRequest {
            container_id: container.into(),
            timeout: 0,
        },
    );
}

fn all(mut stream: impl Read) -> Vec<u8> {
    let mut out = Vec::new();
    stream.read_to_end(&mut out).unwrap();
    out
}

/// Bytes that no compressor or cut could make look right.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

#[test]
fn output_that_ends_with_the_process_is_whole() {
    const BYTES: usize = 256 << 20;
    let agent = Agent::start();
    agent.sandbox();
    let script = format!("yes 0123456 | head -c {BYTES}; echo last >&2");
    let mut request = agent.container("c1", &["sh", "-c", &script]);
    (request.stdout_port, request.stderr_port) = (11, 12);
    let (mut stdout, stderr) = (agent.stream(11), agent.stream(12));
    agent.call::<()>("CreateContainer", &request);
    start(&agent, "c1");
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0usize;
    loop {
        let length = stdout.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let expected = b"0123456\n".iter().cycle().skip(at % 8);
        assert!(
            buffer[..length].iter().zip(expected).all(|(got, wanted)| got == wanted),
            "wrong byte after {at}"
        );
        at += length;
    }
    assert_eq!(at, BYTES);
    assert_eq!(all(stderr), b"last\n");
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
}

#[test]
fn input_comes_back_bit_for_bit_and_its_end_ends_the_process() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["cat"]);
    (request.stdin_port, request.stdout_port) = (21, 22);
    let (mut stdin, stdout) = (agent.stream(21), agent.stream(22));
    agent.call::<()>("CreateContainer", &request);
    start(&agent, "c1");
    let data = noise(64 << 20);
    let back = std::thread::scope(|scope| {
        let reader = scope.spawn(move || all(stdout));
        stdin.write_all(&data).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
}

#[test]
fn input_by_requests_comes_back_and_ends() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["cat"]));
    start(&agent, "c1");
    let data = noise(3 << 20);
    let back = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let request = ReadStreamRequest {
                container_id: "c1".into(),
                exec_id: "c1".into(),
                len: 1 << 20,
            };
            let mut out = Vec::new();
            while let Ok(part) = agent.try_call::<ReadStreamResponse>("ReadStdout", &request) {
                out.extend(part.data);
            }
            out
        });
        for part in data.chunks(1 << 20) {
            let request = WriteStreamRequest {
                container_id: "c1".into(),
                exec_id: "c1".into(),
                data: part.to_vec(),
            };
            assert_eq!(
                agent.call::<WriteStreamResponse>("WriteStdin", &request).len as usize,
                part.len()
            );
        }
        agent.call::<()>(
            "CloseStdin",
            &CloseStdinRequest {
                container_id: "c1".into(),
                exec_id: "c1".into(),
            },
        );
        reader.join().unwrap()
    });
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
}

#[test]
fn a_stream_may_come_after_its_request_and_unnamed_ones_are_dev_null() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["sh", "-c", "cat; echo gone >&2; echo here"]);
    request.stdout_port = 31;
    std::thread::scope(|scope| {
        let create = scope.spawn(|| agent.call::<()>("CreateContainer", &request));
        let stdout = agent.stream(31);
        create.join().unwrap();
        start(&agent, "c1");
        assert_eq!(all(stdout), b"here\n");
    });
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
}

#[test]
fn a_host_that_stops_listening_does_not_stop_the_program() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["sh", "-c", "head -c 4000000 /dev/zero; exit 5"]);
    request.stdout_port = 41;
    drop(agent.stream(41));
    agent.call::<()>("CreateContainer", &request);
    start(&agent, "c1");
    assert_eq!(wait(&agent, "c1", ""), 5);
    remove(&agent, "c1");
}

#[test]
fn a_terminal_echoes_resizes_and_ends() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["sh"]);
    request.oci.as_mut().unwrap().process = Some(terminal(&["sh"]));
    (request.stdin_port, request.stdout_port) = (51, 52);
    let (mut stdin, stdout) = (agent.stream(51), agent.stream(52));
    agent.call::<()>("CreateContainer", &request);
    start(&agent, "c1");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    stdin.write_all(b"stty size; tty\n").unwrap();
    assert!(lines.any(|line| line.trim_end() == "24 80"));
    assert_eq!(lines.next().unwrap().trim_end(), "/dev/pts/0");
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: String::new(),
        row: 50,
        column: 132,
    };
    agent.call::<()>("TtyWinResize", &resize);
    stdin
        .write_all(b"stty size; echo to-console > /dev/console; exit 9\n")
        .unwrap();
    assert!(lines.any(|line| line.trim_end() == "50 132"));
    assert!(lines.any(|line| line.trim_end() == "to-console"));
    assert_eq!(lines.count(), 0);
    assert_eq!(wait(&agent, "c1", ""), 9);
    remove(&agent, "c1");
}

#[test]
fn an_exec_has_its_own_terminal() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    start(&agent, "c1");
    let exec = ExecProcessRequest {
        container_id: "c1".into(),
        exec_id: "e1".into(),
        process: Some(terminal(&["tty"])),
        stdout_port: 61,
        ..ExecProcessRequest::default()
    };
    let stdout = agent.stream(61);
    agent.call::<()>("ExecProcess", &exec);
    assert_eq!(all(stdout), b"/dev/pts/0\r\n");
    assert_eq!(wait(&agent, "c1", "e1"), 0);
    let plain = ExecProcessRequest {
        exec_id: "e2".into(),
        process: Some(process(&["tty"])),
        stdout_port: 0,
        ..exec
    };
    agent.call::<()>("ExecProcess", &plain);
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: "e2".into(),
        row: 1,
        column: 1,
    };
    assert_eq!(agent.refused("TtyWinResize", &resize).0, 9);
    assert_eq!(wait(&agent, "c1", "e2"), 1);
    remove(&agent, "c1");
}

#[test]
fn an_exec_whose_streams_do_not_come_holds_up_no_other_request() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    start(&agent, "c1");
    let exec = |exec_id: &str, stdout_port: u32| ExecProcessRequest {
        container_id: "c1".into(),
        exec_id: exec_id.into(),
        process: Some(process(&["true"])),
        stdout_port,
        ..ExecProcessRequest::default()
    };
    let mut connection = agent.connect();
    // In this order on one connection: the first waits for a stream when the second is begun.
    connection.send(1, "ExecProcess", &exec("waits", 71));
    connection.send(3, "ExecProcess", &exec("other", 0));
    assert_eq!(connection.answered(), 3);
    let stdout = agent.stream(71);
    assert_eq!(connection.answered(), 1);
    assert_eq!(all(stdout), b"");
    for exec_id in ["waits", "other"] {
        assert_eq!(wait(&agent, "c1", exec_id), 0);
    }
    remove(&agent, "c1");
}

#[test]
fn an_exec_that_is_asked_for_again_is_not_run_again() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    start(&agent, "c1");
    let exec = ExecProcessRequest {
        container_id: "c1".into(),
        exec_id: "e1".into(),
        process: Some(process(&["sh", "-c", "echo once; exit 6"])),
        stdout_port: 81,
        ..ExecProcessRequest::default()
    };
    let mut connection = agent.connect();
    // The second waits for the first, which waits for its stream.
    connection.send(1, "ExecProcess", &exec);
    connection.send(3, "ExecProcess", &exec);
    let stdout = agent.stream(81);
    assert_eq!(connection.answered(), 1);
    assert_eq!(connection.refused(), (3, 6));
    assert_eq!(all(stdout), b"once\n");
    assert_eq!(wait(&agent, "c1", "e1"), 6);
    assert_eq!(agent.refused("ExecProcess", &exec).0, 6, "also when it has ended");
    assert_eq!(wait(&agent, "c1", "e1"), 6);
    remove(&agent, "c1");
}

#[test]
fn three_hundred_execs_at_once_get_their_streams() {
    const EXECS: u32 = 300;
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    start(&agent, "c1");
    // All streams before any request names one, as a busy host may have them.
    let streams: Vec<_> = (0..EXECS)
        .map(|number| [1000, 2000, 3000].map(|base| agent.stream(base + number)))
        .collect();
    let mut connection = agent.connect();
    for number in 0..EXECS {
        let exec = ExecProcessRequest {
            container_id: "c1".into(),
            exec_id: number.to_string(),
            process: Some(process(&["echo", &number.to_string()])),
            stdin_port: 1000 + number,
            stdout_port: 2000 + number,
            stderr_port: 3000 + number,
            ..ExecProcessRequest::default()
        };
        connection.send(1 + 2 * number, "ExecProcess", &exec);
    }
    for _ in 0..EXECS {
        connection.answered();
    }
    for (number, [_stdin, stdout, stderr]) in streams.into_iter().enumerate() {
        assert_eq!(all(stdout), format!("{number}\n").into_bytes());
        assert_eq!(all(stderr), b"");
    }
    remove(&agent, "c1");
}
