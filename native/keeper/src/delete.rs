//! `delete`: asks snpd to remove what is left of a container, and prints how it ended.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::config::{self, FILE_VARIABLE};
use crate::flags::Flags;
use crate::link::{self, kind};
use crate::pod::{self, Places};
use crate::protobuf::Writer;
use crate::snpd::{self, Attempt};
use crate::start::make_folder;
use crate::sys;

/// How long snpd may take to be there and to answer. containerd gives the whole program five seconds by default
/// (`io.containerd.timeout.shim.cleanup`), and keeps the bundle when it has to kill it.
const DEADLINE: Duration = Duration::from_secs(4);
/// How long a killed keeper may take to close what it listens on.
const DYING: Duration = Duration::from_millis(200);
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The exit status of what was killed, or is unknown: 128 + SIGKILL.
const KILLED: u64 = 137;

/// snpd's answer.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    pid: u64,
    exit_status: u64,
    exited_at_seconds: u64,
    exited_at_nanos: u64,
    error: Option<String>,
}

/// What `delete` has to say: a `DeleteResponse` for standard output, and a warning if snpd could not remove everything.
pub struct Outcome {
    pub response: Vec<u8>,
    /// containerd logs it as a warning of the clean-up.
    pub warning: Option<String>,
}

/// Runs `delete`.
///
/// # Errors
/// A text when the command line lacks the id or namespace.
pub fn run(flags: &Flags) -> Result<Outcome, String> {
    if flags.id.is_empty() || flags.namespace.is_empty() {
        return Err("delete needs the flags -id and -namespace: this program is run by containerd".into());
    }
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().unwrap_or_default(),
        bundle => PathBuf::from(bundle),
    };
    let places = places(&bundle)?;
    make_folder(places.state_dir(), 0o711)?;
    let request = serde_json::json!({
        "op": "delete", "address": flags.address, "namespace": flags.namespace, "id": flags.id, "bundle": bundle,
    });
    let answer = ask(&places, request.to_string().as_bytes());
    remove_stale_socket(&places, flags);
    let killed = || Answer {
        exit_status: KILLED,
        ..Answer::default()
    };
    let (answer, warning) = match answer {
        Some(Answer { error: Some(error), .. }) => (killed(), Some(error)),
        Some(answer) => (answer, None),
        None => (killed(), None),
    };
    Ok(Outcome {
        response: encode(&answer),
        warning,
    })
}

/// The state folder: from the address that `start` left in the bundle (`delete` gets no runtime options), else from the configuration.
fn places(bundle: &Path) -> Result<Places, String> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let from_address = || Places::of_socket(fs::read_to_string(bundle.join("address")).ok()?.trim());
    let from_bootstrap = || {
        let text = fs::read(bundle.join("bootstrap.json")).ok()?;
        Places::of_socket(&serde_json::from_slice::<Bootstrap>(&text).ok()?.address)
    };
    if let Some(places) = from_address().or_else(from_bootstrap) {
        return Ok(places);
    }
    let file = config::named_file("", std::env::var(FILE_VARIABLE).ok());
    config::state_dir(file.as_deref()).map(Places::new)
}

/// Sends the request as often as it takes to find an snpd that answers; nothing when none does in time.
fn ask(places: &Places, request: &[u8]) -> Option<Answer> {
    let deadline = Instant::now() + DEADLINE;
    let mut pause = Duration::from_millis(100);
    while Instant::now() < deadline {
        match snpd::connect(places) {
            Ok(Attempt::Connected(connection)) => {
                let answer = exchange(UnixStream::from(connection), request, deadline);
                if answer.is_some() {
                    return answer;
                }
            }
            Ok(Attempt::Later(wait)) => {
                std::thread::sleep(wait);
                continue;
            }
            Err(_) => {}
        }
        std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(Duration::from_secs(2));
    }
    None
}

/// One request on one connection; nothing when the connection ends, or time is over, before a whole answer.
fn exchange(mut connection: UnixStream, request: &[u8], deadline: Instant) -> Option<Answer> {
    // A time-out of zero would mean none at all.
    let left = || {
        Some(
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1)),
        )
    };
    connection.set_nonblocking(false).ok()?;
    connection.set_write_timeout(left()).ok()?;
    let mut frame = Vec::new();
    link::put(&mut frame, kind::CONTROL, 1, request);
    connection.write_all(&frame).ok()?;
    let mut received = Vec::new();
    let mut part = [0u8; 4096];
    while received.len() < MAX_ANSWER_BYTES {
        if let Some(frame) = link::take_link(&received).ok()? {
            return (frame.kind == kind::CONTROL).then(|| serde_json::from_slice(frame.payload).ok())?;
        }
        connection.set_read_timeout(left()).ok()?;
        match connection.read(&mut part).ok()? {
            0 => return None,
            count => received.extend_from_slice(&part[..count]),
        }
    }
    None
}

/// Removes the socket of a keeper that died without doing so. One that answers is left alone.
fn remove_stale_socket(places: &Places, flags: &Flags) {
    let Ok(socket) = places.keeper_socket(&pod::key(&flags.address, &flags.namespace, &flags.id)) else {
        return;
    };
    let mut connected = sys::connect_unix(&socket);
    if let Ok(connection) = connected {
        // One that was killed loses containerd's connections a moment before it stops to listen.
        if !ends_within(UnixStream::from(connection), DYING) {
            return;
        }
        connected = sys::connect_unix(&socket);
    }
    if connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        let _ = fs::remove_file(socket);
    }
}

/// Whether the other side closes a connection on which nothing is said.
fn ends_within(mut connection: UnixStream, time: Duration) -> bool {
    let waiting = connection
        .set_nonblocking(false)
        .and_then(|()| connection.set_read_timeout(Some(time)));
    match waiting.and_then(|()| connection.read(&mut [0])) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// `DeleteResponse` {pid, exit_status, exited_at}; a time of zero becomes the present.
fn encode(answer: &Answer) -> Vec<u8> {
    let (seconds, nanos) = match (answer.exited_at_seconds, answer.exited_at_nanos) {
        (0, 0) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            (now.as_secs(), u64::from(now.subsec_nanos()))
        }
        given => given,
    };
    let exited_at = Writer::new().number(1, seconds).number(2, nanos).done();
    Writer::new()
        .number(1, answer.pid)
        .number(2, answer.exit_status)
        .bytes(3, exited_at)
        .done()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::testing::Folder;

    fn flags() -> Flags {
        Flags {
            address: "/a.sock".into(),
            namespace: "n".into(),
            id: "i".into(),
            ..Flags::default()
        }
    }

    fn bind(places: &Places) -> (PathBuf, UnixListener) {
        let flags = flags();
        let socket = places
            .keeper_socket(&pod::key(&flags.address, &flags.namespace, &flags.id))
            .unwrap();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        (socket, listener)
    }

    #[test]
    fn removes_the_socket_of_a_keeper_that_is_dying_or_dead() {
        let folder = Folder::new("dying");
        let places = Places::new(folder.path(""));
        let (socket, listener) = bind(&places);
        let dying = thread::spawn(move || {
            // It is there when it is asked, and gone before it answers.
            let mut ready = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(&listener),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one descriptor that is open.
            unsafe { libc::poll(&mut ready, 1, -1) };
            drop(listener);
        });
        remove_stale_socket(&places, &flags());
        dying.join().unwrap();
        assert!(!socket.exists());
        drop(bind(&places));
        remove_stale_socket(&places, &flags());
        assert!(!socket.exists());
    }

    #[test]
    fn leaves_a_keeper_that_listens_alone() {
        let folder = Folder::new("alive");
        let places = Places::new(folder.path(""));
        let (socket, _listener) = bind(&places);
        remove_stale_socket(&places, &flags());
        assert!(socket.exists());
    }
}
