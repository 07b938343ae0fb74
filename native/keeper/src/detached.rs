//! Starting a program that shares nothing with this process but what is named: the keeper, and snpd.

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use crate::sys::{check, path_string};

/// A program to start in a session of its own, with nothing of this process but what is named here.
pub struct Detached<'a> {
    pub program: &'a Path,
    /// Tried when the first can't be executed.
    pub fallback: Option<&'a Path>,
    /// Without the program's name, which is taken from `program`.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// Becomes descriptor 3.
    pub listener: BorrowedFd<'a>,
    /// Becomes standard output and error; `/dev/null` when not given. Standard input is always `/dev/null`.
    pub output: Option<BorrowedFd<'a>>,
}

impl Detached<'_> {
    /// Forks and executes, and does not wait for the execution: if it fails, the child writes why to `output` and ends.
    /// Only for processes with one thread.
    ///
    /// # Errors
    /// When the process can't be made.
    pub fn spawn(&self) -> io::Result<()> {
        let strings = |list: &[Vec<u8>]| {
            list.iter()
                .map(|text| CString::new(text.as_slice()))
                .collect::<Result<Vec<_>, _>>()
        };
        let program = path_string(self.program)?;
        let fallback = self.fallback.map(path_string).transpose()?;
        let mut arguments = vec![program.clone()];
        arguments.extend(strings(&self.arguments)?);
        let environment = strings(&self.environment)?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let output = self.output.unwrap_or(null.as_fd());
        let mut places = [0; 3];
        let sources = [null.as_fd(), output, self.listener];
        // SAFETY: one thread, so the child may do what its parent may.
        match check(unsafe { libc::fork() })? {
            0 => {}
            _ => return Ok(()),
        }
        for (place, source) in places.iter_mut().zip(sources) {
            // SAFETY: no pointers. Copies above the standard numbers, so that putting one in place can't overwrite another.
            *place = unsafe { libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
        }
        let [null, output, listener] = places;
        // SAFETY: in the child, which does nothing but arrange itself and execute; the arrays end with null and live until then.
        unsafe {
            libc::setsid();
            reset_signals();
            for (from, to) in [(null, 0), (output, 1), (output, 2), (listener, 3)] {
                libc::dup2(from, to);
            }
            close_above(3);
            libc::chdir(c"/".as_ptr());
            let argument_list = pointers(&arguments);
            let environment_list = pointers(&environment);
            libc::execve(program.as_ptr(), argument_list.as_ptr(), environment_list.as_ptr());
            let reason = Error::last_os_error();
            if let Some(fallback) = &fallback {
                libc::execve(fallback.as_ptr(), argument_list.as_ptr(), environment_list.as_ptr());
            }
            let text = format!(
                "{} can't be executed: {reason}. Install it beside containerd-shim-snp-v2.\n",
                self.program.display()
            );
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::_exit(127);
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Gives back what [`crate::sys::signals`] and Rust's start changed and an executed program would inherit.
///
/// # Safety
/// Only in a child that executes another program next.
unsafe fn reset_signals() {
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        libc::signal(signal, libc::SIG_DFL);
    }
    let mut none: libc::sigset_t = std::mem::zeroed();
    libc::sigemptyset(&raw mut none);
    libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
}

/// Closes every descriptor above the last one to keep.
///
/// # Safety
/// Only where no owner of such a descriptor runs afterwards.
unsafe fn close_above(last: RawFd) {
    if libc::syscall(libc::SYS_close_range, last + 1, libc::c_uint::MAX, 0) == 0 {
        return;
    }
    for descriptor in last + 1..65536 {
        libc::close(descriptor);
    }
}
