use super::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

const CREDIT: Header = Header {
    source_cid: 3,
    target_cid: HOST_CID,
    source_port: 1024,
    target_port: 1 << 30,
    length: 0,
    kind: TYPE_STREAM,
    operation: packet::OP_CREDIT_UPDATE,
    flags: 0,
    buffer_bytes: 100,
    consumed_bytes: 0,
};

/// An open connection to a guest that takes 100 bytes, and the client's end.
fn open() -> (Connection, UnixStream) {
    let (ours, mut client) = UnixStream::pair().expect("a socket pair");
    ours.set_nonblocking(true).expect("non-blocking");
    let mut connection = Connection::new(ours.into(), 16, 1 << 30, 1024, 3, true);
    assert_eq!(operation(&mut connection), Some(packet::OP_REQUEST));
    connection.take_packet(
        &Header {
            operation: packet::OP_RESPONSE,
            ..CREDIT
        },
        &[],
    );
    let mut line = [0u8; 14];
    client.read_exact(&mut line).expect("the answer");
    assert_eq!(&line, b"OK 1073741824\n");
    (connection, client)
}

fn next(connection: &mut Connection, room: usize) -> Option<(Header, Vec<u8>)> {
    let mut buffer = vec![0u8; room];
    let space = [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: room,
    }];
    let header = connection.next_packet(&space)?;
    buffer.truncate(header.length as usize);
    Some((header, buffer))
}

fn operation(connection: &mut Connection) -> Option<u16> {
    next(connection, 4096).map(|(header, _)| header.operation)
}

fn send(connection: &mut Connection, operation: u16, flags: u32, data: &[u8]) -> Verdict {
    connection.take_packet(
        &Header {
            operation,
            flags,
            length: data.len() as u32,
            ..CREDIT
        },
        &[data],
    )
}

#[test]
fn a_connect_line_is_a_word_and_a_port() {
    assert_eq!(parse_connect("CONNECT 1024"), Some(1024));
    assert_eq!(parse_connect("connect 1024\r"), Some(1024));
    for bad in ["CONNECT", "HELLO", "CONNECT 99999999999", "CONNECT 1024 x", ""] {
        assert_eq!(parse_connect(bad), None, "{bad}");
    }
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let (mut connection, mut client) = open();
    client.write_all(&[7; 150]).expect("150 bytes");
    connection.readable = true;
    assert_eq!(next(&mut connection, 4096).expect("data").1.len(), 100);
    assert_eq!(operation(&mut connection), Some(packet::OP_CREDIT_REQUEST));
    assert!(!connection.has_packet(), "it waits for credit");
    connection.take_packet(
        &Header {
            consumed_bytes: 100,
            ..CREDIT
        },
        &[],
    );
    assert_eq!(next(&mut connection, 4096).expect("data").1.len(), 50);
}

#[test]
fn the_end_of_the_hosts_half_comes_after_its_last_byte() {
    let (mut connection, mut client) = open();
    client.write_all(b"last").expect("bytes");
    client.shutdown(Shutdown::Write).expect("half-close");
    connection.readable = true;
    assert_eq!(next(&mut connection, 4096).expect("data").1, b"last");
    assert!(next(&mut connection, 4096)
        .is_some_and(|(h, _)| h.operation == packet::OP_SHUTDOWN && h.flags == SHUTDOWN_SEND));
    send(&mut connection, packet::OP_RW, 0, b"answer");
    let mut answer = [0u8; 6];
    client.read_exact(&mut answer).expect("the other half works");
}

#[test]
fn a_client_that_is_gone_ends_both_halves() {
    let (mut connection, client) = open();
    drop(client);
    connection.hang_up();
    assert!(next(&mut connection, 4096)
        .is_some_and(|(h, _)| h.operation == packet::OP_SHUTDOWN && h.flags == SHUTDOWN_BOTH));
    send(&mut connection, packet::OP_RW, 0, b"too late");
    assert_eq!(operation(&mut connection), Some(packet::OP_RST));
}

#[test]
fn what_the_guest_sent_before_it_closed_is_delivered_to_a_slow_reader() {
    let (mut connection, mut client) = open();
    let mut sent = 0;
    // More than a socket takes: the rest waits here.
    while connection.to_host.is_empty() {
        send(&mut connection, packet::OP_RW, 0, &[5; 4096]);
        sent += 4096;
    }
    send(&mut connection, packet::OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(
        operation(&mut connection),
        Some(packet::OP_RST),
        "the guest's end is free at once"
    );
    assert_eq!(connection.drain(), Verdict::Keep);
    client.set_nonblocking(true).expect("non-blocking");
    let mut got = 0;
    let mut verdict = Verdict::Keep;
    while verdict == Verdict::Keep {
        let mut part = [0u8; 65536];
        got += client.read(&mut part).unwrap_or(0);
        verdict = connection.flush();
    }
    drop(connection);
    client.set_nonblocking(false).expect("blocking");
    let mut rest = Vec::new();
    got += client.read_to_end(&mut rest).expect("the rest");
    assert_eq!(got, sent);
}

#[test]
fn a_refused_connection_closes_without_an_answer() {
    let (ours, mut client) = UnixStream::pair().expect("a socket pair");
    let mut connection = Connection::new(ours.into(), 16, 1 << 30, 1024, 3, true);
    assert_eq!(operation(&mut connection), Some(packet::OP_REQUEST));
    assert_eq!(send(&mut connection, packet::OP_RST, 0, &[]), Verdict::Close);
    drop(connection);
    assert_eq!(client.read(&mut [0u8; 8]).expect("the end"), 0);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let (mut connection, _client) = open();
    let big = vec![0u8; BUFFER_BYTES as usize];
    for _ in 0..8 {
        send(&mut connection, packet::OP_RW, 0, &big);
    }
    assert_eq!(operation(&mut connection), Some(packet::OP_RST));
    assert!(connection.to_host.len() <= BUFFER_BYTES as usize);
}
