//! The few system calls that the standard library has no words for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Turns a system call's result into a `Result`.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// As [`check`] for calls that count bytes.
pub fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An epoll instance. Every registration fires once and must be armed again: a hang-up is reported whether it is wanted or not, and would fire for ever.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is ours alone.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: token,
        };
        // SAFETY: the event outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// Watches a descriptor for input for as long as it is open.
    pub fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLIN)
    }

    /// Registers a descriptor that [`arm`](Self::arm) will wake up.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLONESHOT)
    }

    /// Waits for one event of a registered descriptor. With neither input nor output wanted a hang-up still comes.
    pub fn arm(&self, fd: RawFd, token: u64, input: bool, output: bool) -> io::Result<()> {
        let wanted = if input { libc::EPOLLIN } else { 0 } | if output { libc::EPOLLOUT } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, token, wanted | libc::EPOLLONESHOT)
    }

    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Waits for events: pairs of token and event bits.
    pub fn wait(&self, into: &mut Vec<(u64, u32)>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        into.clear();
        // SAFETY: the array outlives the call and its length is told.
        let n = match check(unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, -1)
        }) {
            Ok(n) => n as usize,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        into.extend(events[..n].iter().map(|e| (e.u64, e.events)));
        Ok(())
    }
}

/// Descriptors that one message may carry: as many as a memory table has regions.
pub const FDS_MAX: usize = 32;

/// Fills `data`, and collects descriptors that come with it. `Ok(false)`: the other side closed before the first byte.
pub fn receive_exact(fd: RawFd, data: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut done = 0;
    while done < data.len() {
        let mut part = libc::iovec {
            iov_base: data[done..].as_mut_ptr().cast(),
            iov_len: data.len() - done,
        };
        let mut control = [0u64; 2 + FDS_MAX / 2];
        // SAFETY: a zeroed msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&control);
        // SAFETY: all buffers outlive the call.
        let n = match check_size(unsafe { libc::recvmsg(fd, &mut message, libc::MSG_CMSG_CLOEXEC) }) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        collect_fds(&message, fds);
        if n == 0 {
            return if done == 0 {
                Ok(false)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        done += n;
    }
    Ok(true)
}

fn collect_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel filled the control buffer of this message; the macros stay inside it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..bytes / std::mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

/// Reads into several buffers.
///
/// # Safety
/// Each vector must name memory that may be written.
pub unsafe fn read_vectored(fd: RawFd, parts: &[libc::iovec]) -> io::Result<usize> {
    check_size(unsafe { libc::readv(fd, parts.as_ptr(), parts.len() as libc::c_int) })
}

/// Writes without a signal when the other side is gone.
pub fn send(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice outlives the call.
    check_size(unsafe {
        libc::send(
            fd,
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    })
}

/// Looks at what can be read and leaves it there.
pub fn peek(fd: RawFd, data: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the slice outlives the call.
    check_size(unsafe {
        libc::recv(
            fd,
            data.as_mut_ptr().cast(),
            data.len(),
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    })
}

/// Adds one to an event counter: a kick or a call.
pub fn signal(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the array outlives the call. A full counter is a signal that was not taken yet: nothing is lost.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

/// Empties an event counter.
pub fn acknowledge(fd: RawFd) {
    let mut count = [0u8; 8];
    // SAFETY: the array outlives the call.
    unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

/// As many descriptors as the system allows: one a connection.
pub fn raise_descriptor_limit() {
    // SAFETY: the structure outlives both calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
