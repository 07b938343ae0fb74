//! The Linux calls that the standard library lacks, as safe functions.

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Turns the -1 of a system call into the error that `errno` names.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Takes over a descriptor that the kernel just gave.
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers pass the result of a successful call that made a new descriptor.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// A path as C wants it.
///
/// # Errors
/// When it has a zero byte.
pub fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::from(io::ErrorKind::InvalidInput))
}

/// Takes over a descriptor that the parent left open under a known number, and marks it close-on-exec.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherit(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call on a number; it fails when nothing is open there.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(own(descriptor))
}

/// Connects a stream socket without waiting.
///
/// # Errors
/// `ENOENT` or `ECONNREFUSED` when nobody listens, `WouldBlock` when the listener's queue is full, `InvalidInput` when
/// the path does not fit.
pub fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    // SAFETY: `sockaddr_un` is plain data, for which all zeros is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        let text = format!("{} bytes are too long a path for a socket", bytes.len());
        return Err(Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = own(check(unsafe { libc::socket(libc::AF_UNIX, flags, 0) })?);
    let size = std::mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives across the call and `size` is its size.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(socket)
}

/// Receives what is there, up to the buffer's size, without waiting.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is writable for its whole length.
    check_size(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

/// Sends without waiting and without a SIGPIPE; returns how many bytes were taken.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are readable for their whole length.
    check_size(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Says to the peer that nothing more comes.
pub fn shutdown_write(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Moves up to `most` bytes between a pipe and something else, in either direction, inside the kernel and without waiting.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    let null = std::ptr::null_mut();
    // SAFETY: null offsets mean "the descriptors' own positions".
    check_size(unsafe { libc::splice(from.as_raw_fd(), null, to.as_raw_fd(), null, most, flags) })
}

/// Whether reading would find bytes now.
pub fn has_bytes(descriptor: BorrowedFd<'_>) -> bool {
    poll_now(descriptor, libc::POLLIN) & libc::POLLIN != 0
}

/// Whether all readers of a pipe, whose writing end this is, are gone.
pub fn has_no_reader(descriptor: BorrowedFd<'_>) -> bool {
    poll_now(descriptor, 0) & libc::POLLERR != 0
}

/// Whether the peer of a socket has closed both directions.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    poll_now(socket, 0) & (libc::POLLHUP | libc::POLLERR) != 0
}

fn poll_now(descriptor: BorrowedFd<'_>, events: libc::c_short) -> libc::c_short {
    let mut entry = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one entry, as the count says.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
    if ready > 0 {
        entry.revents
    } else {
        0
    }
}

/// How many bytes wait in a pipe or a stream socket.
pub fn waiting_bytes(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Lets a pipe hold at least so many bytes.
///
/// # Errors
/// `EPERM` beyond `/proc/sys/fs/pipe-max-size`, or when the user's pipes have all that they may have.
pub fn enlarge_pipe(pipe: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    if pipe_bytes(pipe)? >= bytes {
        return Ok(());
    }
    resize_pipe(pipe, bytes)
}

/// How many bytes a pipe may hold.
///
/// # Errors
/// `EBADF` when it is no pipe.
pub fn pipe_bytes(pipe: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: a plain system call on an open descriptor.
    let bytes = check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) })?;
    Ok(bytes.unsigned_abs())
}

/// Lets a pipe hold so many bytes.
///
/// # Errors
/// `EBUSY` when it has more than that in it, and those of [`enlarge_pipe`].
pub fn resize_pipe(pipe: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: a plain system call on an open descriptor.
    check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, wanted) }).map(drop)
}

/// Waits until bytes can be read or the time is over; says which.
pub fn wait_for_bytes(descriptor: BorrowedFd<'_>, most: Duration) -> bool {
    let mut entry = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = libc::c_int::try_from(most.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one entry, as the count says.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) > 0 }
}

/// Takes the exclusive lock of an open file; it goes with the last copy of the descriptor, or with [`unlock`].
/// With `wait` false, `WouldBlock` says that another process has it.
pub fn lock(file: BorrowedFd<'_>, wait: bool) -> io::Result<()> {
    let operation = libc::LOCK_EX | if wait { 0 } else { libc::LOCK_NB };
    // SAFETY: no pointers.
    check(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

/// Gives the lock back, also when a child still has the file open.
pub fn unlock(file: BorrowedFd<'_>) {
    // SAFETY: no pointers; unlocking what is not locked does nothing.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Sets the mask of permissions that new files do not get; returns the mask before.
pub fn set_umask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::umask(mask) }
}

/// Asks the allocator to give large blocks back to the system as soon as they are free, whatever was allocated before.
pub fn return_memory_early() {
    // SAFETY: no pointers; called before anything large is allocated.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
    }
}

/// Gives the holes that many small blocks left in the heap back to the system.
pub fn return_memory() {
    // SAFETY: no pointers.
    unsafe { libc::malloc_trim(0) };
}

/// Names the process, as `ps` and `/proc/PID/comm` show it (15 bytes at most).
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: a string that ends with zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Lets ended children vanish, and turns SIGTERM and SIGINT into events of the returned descriptor.
pub fn signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used; SIG_IGN is a valid disposition for SIGCHLD.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        Ok(own(check(libc::signalfd(
            -1,
            &raw const set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?))
    }
}

/// Tells when a file is opened: one inotify instance, without watches yet.
pub fn watcher() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    Ok(own(check(unsafe {
        libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK)
    })?))
}

/// Adds a watch for opens of the file; gives its number.
pub fn watch_opens(watcher: BorrowedFd<'_>, path: &Path) -> io::Result<i32> {
    let path = path_string(path)?;
    // SAFETY: a string that ends with zero.
    check(unsafe { libc::inotify_add_watch(watcher.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) })
}

/// Ends a watch; one that is gone already is no error.
pub fn unwatch(watcher: BorrowedFd<'_>, watch: i32) {
    // SAFETY: no pointers.
    unsafe { libc::inotify_rm_watch(watcher.as_raw_fd(), watch) };
}

/// Reads and forgets what a descriptor has to say, a page at a time.
pub fn discard(descriptor: BorrowedFd<'_>) {
    let mut buffer = [0u8; 4096];
    for _ in 0..64 {
        // SAFETY: the buffer is writable for its whole length.
        let count = unsafe { libc::read(descriptor.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if count <= 0 {
            return;
        }
    }
}

/// One event: the number given with the descriptor, and what happened (`EPOLLIN` and so on).
pub type Event = libc::epoll_event;

/// An epoll instance, level-triggered.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers.
        Ok(Epoll(own(check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?)))
    }

    /// Changes what is watched of a descriptor from `old` to `new`; 0 means not at all, not even its end.
    pub fn change(&self, descriptor: impl AsFd, number: u64, old: i32, new: i32) -> io::Result<()> {
        let operation = match (old, new) {
            _ if old == new => return Ok(()),
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        let mut event = libc::epoll_event {
            events: new as u32,
            u64: number,
        };
        // SAFETY: the event lives across the call.
        check(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                operation,
                descriptor.as_fd().as_raw_fd(),
                &raw mut event,
            )
        })
        .map(drop)
    }

    /// Waits for events, at most until `timeout` is over (rounded up to milliseconds; none waits for ever).
    pub fn wait(&self, events: &mut [Event], timeout: Option<Duration>) -> io::Result<usize> {
        let milliseconds = timeout.map_or(-1, |time| {
            libc::c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: the pointer and the count describe the slice.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                milliseconds,
            )
        };
        match check(count) {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }
}
