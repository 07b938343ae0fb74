//! Finding snpd, or starting it (`docs/contracts.md`, "snpd's start").

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use crate::config::FILE_VARIABLE;
use crate::detached::Detached;
use crate::pod::Places;
use crate::sys;

const MAX_LOG_BYTES: u64 = 1 << 20;
/// The pause when another process has the lock or snpd's queue is full: neither is announced.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// The least time between two starts of snpd, whoever makes them: a hundred keepers may find it dead at the same moment.
const LAUNCH_PAUSE: Duration = Duration::from_millis(500);
/// How much of snpd's log a message to the operator has.
const LOG_END_BYTES: u64 = 800;
/// What snpd's programs are looked for in when this process has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What came of an attempt to connect.
pub enum Attempt {
    /// Connected; it may still end before snpd says HELLO.
    Connected(OwnedFd),
    /// Somebody else is starting snpd, or its queue is full, or it was started a moment ago: try again after this time.
    Later(Duration),
}

/// Connects to snpd, and starts it when nobody listens. Does not wait.
///
/// # Errors
/// A text with what was attempted, when snpd can't be started.
pub fn connect(places: &Places) -> Result<Attempt, String> {
    if let Some(attempt) = try_connect(places)? {
        return Ok(attempt);
    }
    let lock_path = places.snpd_lock();
    let describe = |error: io::Error| format!("lock {}: {error}", lock_path.display());
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(describe)?;
    match sys::lock(lock.as_fd(), false) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Attempt::Later(BUSY_PAUSE)),
        result => result.map_err(describe)?,
    }
    if let Some(attempt) = try_connect(places)? {
        return Ok(attempt);
    }
    if let Some(wait) = launched_within(places, LAUNCH_PAUSE) {
        return Ok(Attempt::Later(wait));
    }
    launch(places)?;
    sys::unlock(lock.as_fd());
    Ok(try_connect(places)?.unwrap_or(Attempt::Later(BUSY_PAUSE)))
}

/// Nothing when nobody listens.
fn try_connect(places: &Places) -> Result<Option<Attempt>, String> {
    let socket = places.snpd_socket();
    match sys::connect_unix(&socket) {
        Ok(connection) => Ok(Some(Attempt::Connected(connection))),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
            ErrorKind::WouldBlock => Ok(Some(Attempt::Later(BUSY_PAUSE))),
            _ => Err(format!("connect to {}: {error}", socket.display())),
        },
    }
}

/// How long it takes until the last start of snpd is `pause` ago. Its socket was made then.
fn launched_within(places: &Places, pause: Duration) -> Option<Duration> {
    let launched = std::fs::symlink_metadata(places.snpd_socket()).ok()?.modified().ok()?;
    // A clock that was set back gives an error here, and no pause.
    pause
        .checked_sub(launched.elapsed().ok()?)
        .filter(|wait| !wait.is_zero())
}

/// Binds snpd's socket and starts snpd with it.
fn launch(places: &Places) -> Result<(), String> {
    let own_file = std::env::current_exe().map_err(|error| format!("read /proc/self/exe: {error}"))?;
    let program = own_file.with_file_name("snpd");
    let socket = places.snpd_socket();
    let temporary = places.state_dir().join(format!("snpd.sock.{}", std::process::id()));
    let describe = |error: io::Error| format!("bind {}: {error}", socket.display());
    let _ = std::fs::remove_file(&temporary);
    let mask = sys::set_umask(0o177);
    let bound = UnixListener::bind(&temporary);
    sys::set_umask(mask);
    let listener = bound.map_err(describe)?;
    std::fs::rename(&temporary, &socket).map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        describe(error)
    })?;
    let log = open_log(places)?;
    let mut environment = vec![
        variable("PATH").unwrap_or_else(|| format!("PATH={DEFAULT_PATH}").into_bytes()),
        b"LISTEN_FDS=1".to_vec(),
    ];
    environment.extend(variable(FILE_VARIABLE));
    let state_dir = places.state_dir().as_os_str().as_encoded_bytes().to_vec();
    let plan = Detached {
        program: &program,
        fallback: None,
        arguments: vec![b"--state-dir".to_vec(), state_dir],
        environment,
        listener: listener.as_fd(),
        output: Some(log.as_fd()),
    };
    plan.spawn()
        .map_err(|error| format!("start {}: {error}", program.display()))
}

/// `NAME=value` of a variable that is set and not empty.
pub fn variable(name: &str) -> Option<Vec<u8>> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some([name.as_bytes(), b"=", value.as_encoded_bytes()].concat())
}

fn open_log(places: &Places) -> Result<File, String> {
    let path = places.snpd_log();
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = opened.map_err(|error| format!("open {}: {error}", path.display()))?;
    if log.metadata().is_ok_and(|data| data.len() > MAX_LOG_BYTES) {
        let _ = log.set_len(0);
    }
    Ok(log)
}

/// What an operator is told when snpd does not answer, with the end of its log.
pub fn explain_absence(places: &Places, problem: Option<&str>) -> String {
    let log = places.snpd_log();
    let mut text = format!("snpd does not answer at {}", places.snpd_socket().display());
    if let Some(problem) = problem {
        text.push_str(&format!(" ({problem})"));
    }
    if let Some(problem) = lack_of_room(places.state_dir()) {
        text.push_str(&format!("; {problem}"));
    }
    match log_end(&log) {
        Some(end) => text.push_str(&format!("; the end of {}: {end}", log.display())),
        None => text.push_str(&format!("; {} is empty", log.display())),
    }
    text
}

/// What keeps files from being written in the state folder, and with them snpd's log and journals. Tried out, since what a
/// file system says of its free space is not what it gives.
fn lack_of_room(state_dir: &Path) -> Option<String> {
    let probe = state_dir.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::write(&probe, b"\n");
    let _ = std::fs::remove_file(&probe);
    let error = written.err()?;
    let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
    let remedy = if full { ": free space on its file system" } else { "" };
    Some(format!(
        "nothing can be written in state_dir {} ({error}){remedy}",
        state_dir.display()
    ))
}

/// The last lines, each once: an snpd that can't start says the same at every attempt.
fn log_end(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let start = file.metadata().ok()?.len().saturating_sub(LOG_END_BYTES);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut end = Vec::new();
    file.take(LOG_END_BYTES).read_to_end(&mut end).ok()?;
    let text = String::from_utf8_lossy(&end);
    let mut lines: Vec<&str> = Vec::new();
    // The first line is cut when the log has more.
    for line in text
        .lines()
        .skip(usize::from(start > 0))
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    (!lines.is_empty()).then(|| lines.join(" | "))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::Folder;

    #[test]
    fn names_a_state_folder_that_can_not_be_written() {
        let folder = Folder::new("room");
        assert_eq!(lack_of_room(&folder.path("")), None);
        assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 0);
        let text = explain_absence(&Places::new(folder.path("gone")), Some("why"));
        assert!(text.contains("(why); nothing can be written in state_dir"), "{text}");
        assert!(text.contains("No such file") && !text.contains("free space"), "{text}");
    }

    #[test]
    fn names_a_full_file_system_with_the_remedy() {
        // SAFETY: no pointers.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let folder = Folder::new("full");
        let place = folder.path("");
        let run = |program: &str, options: &[&str]| {
            let status = Command::new(program).args(options).arg(&place).status();
            assert!(status.unwrap().success(), "{program}");
        };
        run("mount", &["-t", "tmpfs", "-o", "size=4k", "none"]);
        let filled = std::fs::write(folder.path("filler"), [0; 4096]);
        let text = lack_of_room(&place);
        run("umount", &[]);
        filled.unwrap();
        let text = text.unwrap();
        assert!(text.contains("No space left") && text.contains("free space"), "{text}");
    }
}
