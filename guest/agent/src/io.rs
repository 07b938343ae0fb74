//! Non-blocking descriptors on the event loop: pipes, terminals, sockets, and the listeners that make them.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::socket::{bind, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 1024;

/// A descriptor owned by the event loop. Reading and writing take `&self`: one task may read while another writes.
pub struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Takes over a pipe's end, a terminal's master or a socket and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        set_nonblocking(fd.as_fd())?;
        // The descriptor is owned here and never handed out: it stays what it is as long as it is registered.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(std::io::Error::from)?))
    }

    /// Reads some bytes; 0 is the end. A terminal whose last slave was closed (EIO) is at its end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self
            .0
            .async_io(Interest::READABLE, |fd| {
                result(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
            })
            .await;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// Reads exactly the buffer's length; an early end is `UnexpectedEof`.
    pub async fn read_exact(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read(buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => buffer = &mut buffer[n..],
            }
        }
        Ok(())
    }

    /// Writes all bytes, waiting as long as the reader lets it.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self
                .0
                .async_io(Interest::WRITABLE, |fd| {
                    result(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) })
                })
                .await?;
            data = &data[n..];
        }
        Ok(())
    }

    /// Runs a system call when the descriptor is ready; it returns `WouldBlock` to wait on.
    pub async fn when<R>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.async_io(interest, |fd| call(fd.as_fd())).await
    }

    /// Waits until the last reader of a pipe closed its end (never, for other kinds).
    pub async fn reader_gone(&self) {
        loop {
            match self.0.ready(Interest::ERROR).await {
                Ok(mut guard) if !guard.ready().is_error() => guard.clear_ready(),
                _ => return,
            }
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

fn result(n: isize) -> io::Result<usize> {
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    }
}

fn set_nonblocking(fd: BorrowedFd) -> Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A pipe, both ends close-on-exec: (reading end, writing end).
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0 as RawFd; 2];
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(Error::from(Errno::last())).context("make a pipe");
    }
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Lets a pipe hold so many bytes; what is no pipe, or may not hold more, stays as it is.
pub fn resize_pipe(fd: BorrowedFd, bytes: i32) {
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A vsock port, from any context id.
    Vsock(u32),
    /// A path of a unix socket.
    Unix(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "vsock port {port}"),
            Self::Unix(path) => write!(f, "unix socket {path}"),
        }
    }
}

/// A listening socket.
pub struct Listener(Fd);

/// Binds a socket and listens; connections wait from then on.
pub fn listen_at(address: &Address) -> Result<OwnedFd> {
    let open = || -> Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        match address {
            Address::Vsock(port) => {
                let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
                bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, *port))?;
                Ok(fd)
            }
            Address::Unix(path) => {
                let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
                let _ = std::fs::remove_file(path);
                bind(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
                Ok(fd)
            }
        }
    };
    let fd = open().with_context(|| format!("bind {address}"))?;
    listen(&fd, Backlog::new(BACKLOG)?).with_context(|| format!("listen on {address}"))?;
    Ok(fd)
}

impl Listener {
    /// Binds and listens.
    pub fn bind(address: &Address) -> Result<Self> {
        Self::take(listen_at(address)?)
    }

    /// Takes over a socket that listens.
    pub fn take(fd: OwnedFd) -> Result<Self> {
        Ok(Self(Fd::new(fd)?))
    }

    /// The next connection, and the peer's port when it is a vsock one (0 otherwise).
    pub async fn accept(&self) -> Result<(Fd, u32)> {
        let (fd, port) = self
            .0
            .when(Interest::READABLE, |fd| {
                let mut peer: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
                let mut len = std::mem::size_of_val(&peer) as libc::socklen_t;
                let raw = unsafe {
                    libc::accept4(
                        fd.as_raw_fd(),
                        (&raw mut peer).cast(),
                        &mut len,
                        libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    )
                };
                if raw < 0 {
                    return Err(io::Error::last_os_error());
                }
                let port = if i32::from(peer.svm_family) == libc::AF_VSOCK {
                    peer.svm_port
                } else {
                    0
                };
                Ok((unsafe { OwnedFd::from_raw_fd(raw) }, port))
            })
            .await?;
        Ok((Fd::new(fd)?, port))
    }
}
