//! Bytes to a process and back, timed: `stdio fifo IN OUT BYTES CHUNK` through a container's FIFOs, `stdio vsock SOCKET PORT BYTES CHUNK` through a VM's
//! hybrid vsock. Whatever is at the other end brings back what comes. Prints the microseconds from the first write to the last byte's return.
//! `stdio echo IN OUT PIECE` is such an other end with nothing between: it lets both FIFOs hold what the keeper lets busy ones hold, reads and writes at most PIECE bytes at a time, and serves until it is killed.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const BUFFER: usize = 128 << 10;
/// What the keeper lets a busy FIFO hold.
const BUSY_BYTES: i32 = 256 << 10;
const F_SETPIPE_SZ: i32 = 1031;

extern "C" {
    fn fcntl(fd: i32, command: i32, ...) -> i32;
}

/// Sent before the clock runs: whatever starts late has started then.
const WARM_UP: usize = 64 << 10;

/// Sends bytes in writes of `chunk`, and takes as many.
fn exchange(mut writer: impl Write + Send, reader: &mut impl Read, bytes: usize, chunk: usize) -> io::Result<Duration> {
    let began = Instant::now();
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let piece = vec![b'x'; chunk];
            let mut left = bytes;
            while left > 0 {
                let length = left.min(chunk);
                writer.write_all(&piece[..length])?;
                left -= length;
            }
            Ok(())
        });
        let mut buffer = vec![0; BUFFER];
        let mut left = bytes;
        while left > 0 {
            match reader.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => left -= length,
            }
        }
        sender.join().expect("the sender panicked")
    })?;
    Ok(began.elapsed())
}

/// Both ends are kept open for both directions: neither opening nor an end of the other side is waited for.
fn fifo(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// A connection to a port of the guest.
fn dial(socket: &str, port: &str) -> io::Result<UnixStream> {
    let mut connection = UnixStream::connect(socket)?;
    writeln!(connection, "CONNECT {port}")?;
    let mut byte = [0];
    while byte[0] != b'\n' {
        connection.read_exact(&mut byte)?;
    }
    Ok(connection)
}

/// Writes what is read, at most so many bytes at a time.
fn echo(first: &str, second: &str, piece: usize) -> io::Result<()> {
    let (mut input, mut output) = (fifo(first)?, fifo(second)?);
    for end in [&input, &output] {
        // SAFETY: a plain call on an open descriptor.
        if unsafe { fcntl(end.as_raw_fd(), F_SETPIPE_SZ, BUSY_BYTES) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    println!("ready");
    let mut buffer = vec![0; piece];
    loop {
        let length = input.read(&mut buffer)?;
        output.write_all(&buffer[..length])?;
    }
}

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"));
    if let ["echo", first, second, piece] = words[..] {
        return echo(first, second, number(piece));
    }
    let [kind, first, second, bytes, chunk] = words[..] else {
        panic!("usage: stdio fifo IN OUT BYTES CHUNK | stdio vsock SOCKET PORT BYTES CHUNK | stdio echo IN OUT PIECE");
    };
    let (bytes, chunk) = (number(bytes), number(chunk));
    let took = if kind == "fifo" {
        let (input, mut output) = (fifo(first)?, fifo(second)?);
        exchange(&input, &mut output, WARM_UP, WARM_UP)?;
        exchange(&input, &mut output, bytes, chunk)?
    } else {
        let mut connection = dial(first, second)?;
        let writer = connection.try_clone()?;
        exchange(&writer, &mut connection, WARM_UP, WARM_UP)?;
        exchange(&writer, &mut connection, bytes, chunk)?
    };
    println!("{}", took.as_micros());
    Ok(())
}
