//! The one place that reaps. A child whose exit someone awaits is in the table; all others are orphans that PID 1 adopted.

use crate::error::{Context, Error, Result};
use crate::io::Fd;
use nix::errno::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use tokio::io::Interest;
use tokio::sync::watch;

/// A process's end as it becomes known: None while it runs, then its exit code, or 128 + signal.
pub type Exit = watch::Receiver<Option<i32>>;

/// The table of awaited children. Used on one thread only: a child is entered before the thread can come to reap it.
#[derive(Default)]
pub struct Reaper {
    awaited: RefCell<HashMap<i32, watch::Sender<Option<i32>>>>,
}

impl Reaper {
    /// Enters a child that was started just now, without an `await` in between.
    pub fn watch(&self, pid: i32) -> Exit {
        let (sender, receiver) = watch::channel(None);
        self.awaited.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Reaps whenever a child ended, for ever. `shutdown` is called for SIGTERM and SIGINT.
    /// SIGCHLD, SIGTERM and SIGINT must be blocked already (see `block_signals`).
    pub async fn run(self: Rc<Self>, signals: Fd, shutdown: impl Fn()) {
        loop {
            self.reap();
            match read_signal(&signals).await {
                Ok(libc::SIGCHLD) => {}
                Ok(_) => shutdown(),
                Err(error) => {
                    crate::warn!("reading signals failed: {error}");
                    return;
                }
            }
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            match self.awaited.borrow_mut().remove(&pid) {
                Some(sender) => drop(sender.send_replace(Some(exit_code(status)))),
                None => crate::debug!("reaped orphan {pid}"),
            }
        }
    }
}

/// The exit code that runtimes report: the program's own, or 128 + signal.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    }
}

/// Waits for the end of a process.
pub async fn wait(mut exit: Exit) -> Result<i32> {
    let value = exit.wait_for(Option::is_some).await;
    let value = value.map_err(|_| Error::internal("the reaper is gone"))?;
    Ok(value.unwrap_or_default())
}

/// Blocks the signals that the reaper reads, in this thread and those it starts, and opens the descriptor to read them from.
pub fn block_signals() -> Result<Fd> {
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(Errno::last()).context("open a signalfd");
    }
    Fd::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

async fn read_signal(signals: &Fd) -> std::io::Result<i32> {
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&info);
    signals
        .when(Interest::READABLE, |fd| {
            match unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) } {
                n if n == size as isize => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
        .await?;
    Ok(info.ssi_signo as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(42 << 8), 42);
    }
}
