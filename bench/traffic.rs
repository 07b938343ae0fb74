//! TCP traffic for the bench, the same program at both ends: `traffic receive PORT STREAMS` and `traffic send HOST PORT STREAMS MILLISECONDS`.
//!
//! The receiver prints `ready` when it listens, and at the end the bytes that came and the microseconds from the first to the last of them.

use std::env;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const BUFFER: usize = 128 << 10;

fn send(host: String, port: u16, until: Instant) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((host.as_str(), port))?;
    let buffer = vec![0u8; BUFFER];
    while Instant::now() < until {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

/// Bytes of one stream, and when the first and the last came.
fn drain(mut stream: TcpStream) -> std::io::Result<(u64, Instant, Instant)> {
    let mut buffer = vec![0u8; BUFFER];
    let (mut bytes, mut first, mut last) = (0, None, Instant::now());
    loop {
        let length = stream.read(&mut buffer)?;
        last = if length > 0 {
            Instant::now()
        } else {
            return Ok((bytes, first.unwrap_or(last), last));
        };
        first.get_or_insert(last);
        bytes += length as u64;
    }
}

fn receive(port: u16, streams: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("ready");
    let accepted: Vec<TcpStream> = (0..streams)
        .map(|_| Ok(listener.accept()?.0))
        .collect::<std::io::Result<_>>()?;
    let readers: Vec<_> = accepted
        .into_iter()
        .map(|stream| thread::spawn(|| drain(stream)))
        .collect();
    let ends: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.join().expect("a reader panicked"))
        .collect::<std::io::Result<_>>()?;
    let bytes: u64 = ends.iter().map(|end| end.0).sum();
    let first = ends.iter().map(|end| end.1).min().expect("at least one stream");
    let last = ends.iter().map(|end| end.2).max().expect("at least one stream");
    println!("{bytes} {}", last.duration_since(first).as_micros());
    Ok(())
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| {
        args[at]
            .parse::<u64>()
            .unwrap_or_else(|_| panic!("{:?} is no number", args[at]))
    };
    match (args.first().map(String::as_str), args.len()) {
        (Some("receive"), 3) => receive(number(1) as u16, number(2) as usize),
        (Some("send"), 5) => {
            let until = Instant::now() + Duration::from_millis(number(4));
            let (host, port) = (args[1].clone(), number(2) as u16);
            let senders: Vec<_> = (0..number(3))
                .map(|_| {
                    let host = host.clone();
                    thread::spawn(move || send(host, port, until))
                })
                .collect();
            senders
                .into_iter()
                .try_for_each(|sender| sender.join().expect("a sender panicked"))
        }
        _ => panic!("usage: traffic receive PORT STREAMS | traffic send HOST PORT STREAMS MILLISECONDS"),
    }
}
