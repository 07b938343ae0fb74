//! One inotify descriptor for all files whose changes are awaited (cgroup2's `*.events` files announce theirs this way).

use crate::error::{Context, Error, Result};
use crate::io::Fd;
use nix::errno::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use tokio::sync::Notify;

/// The descriptor and who waits for what.
pub struct Inotify {
    fd: Fd,
    waiting: RefCell<HashMap<i32, Rc<Notify>>>,
}

/// One watched file; the watch ends when this is dropped.
pub struct Watch {
    hub: Rc<Inotify>,
    number: i32,
    changed: Rc<Notify>,
}

impl Inotify {
    /// Opens the descriptor. `run` must run for watches to work.
    pub fn open() -> Result<Rc<Self>> {
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(Errno::last()).context("open inotify");
        }
        let fd = Fd::new(unsafe { OwnedFd::from_raw_fd(fd) })?;
        Ok(Rc::new(Self {
            fd,
            waiting: RefCell::default(),
        }))
    }

    /// Watches a file for modification. Each file can be watched once at a time.
    pub fn watch(self: &Rc<Self>, path: &Path) -> Result<Watch> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("a path with a NUL byte"))?;
        let number = unsafe { libc::inotify_add_watch(self.fd.as_fd().as_raw_fd(), name.as_ptr(), libc::IN_MODIFY) };
        if number < 0 {
            return Err(Errno::last()).with_context(|| format!("watch {}", path.display()));
        }
        let changed = Rc::new(Notify::new());
        self.waiting.borrow_mut().insert(number, changed.clone());
        Ok(Watch {
            hub: self.clone(),
            number,
            changed,
        })
    }

    /// Hands out changes for ever.
    pub async fn run(self: Rc<Self>) {
        const HEADER: usize = std::mem::size_of::<libc::inotify_event>();
        let mut buffer = vec![0u8; 16 << 10];
        while let Ok(length) = self.fd.read(&mut buffer).await {
            let mut at = 0;
            while at + HEADER <= length {
                let word = |from: usize| buffer[at + from..at + from + 4].try_into().unwrap_or_default();
                let number = i32::from_ne_bytes(word(0));
                if let Some(changed) = self.waiting.borrow().get(&number) {
                    changed.notify_one();
                }
                at += HEADER + u32::from_ne_bytes(word(12)) as usize;
            }
        }
    }
}

impl Watch {
    /// Waits for a change since the last call (changes in between are one).
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.waiting.borrow_mut().remove(&self.number);
        unsafe { libc::inotify_rm_watch(self.hub.fd.as_fd().as_raw_fd(), self.number) };
    }
}
