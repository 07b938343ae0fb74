//! A container's terminal, opened in the container's own devpts, so that `tty` and `ttyname` work inside.

use crate::error::{Context, Result};
use crate::proto::grpc::Process;
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::mount::{mount, MsFlags};
use nix::sys::stat::{fchmod, Mode};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A new terminal: (master, slave).
fn open_pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = fcntl::open("/dev/ptmx", flags, Mode::empty())
        .context("open /dev/ptmx for a terminal (does the spec mount devpts at /dev/pts?)")?;
    let unlock: libc::c_int = 0;
    let slave = unsafe {
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0 {
            return Err(Errno::last()).context("unlock the terminal");
        }
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits())
    };
    if slave < 0 {
        return Err(Errno::last()).context("open the terminal");
    }
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave) }))
}

/// Puts the terminal at /dev/console too. An image whose /dev takes no file does without.
fn mount_console(slave: &OwnedFd) -> Result<()> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd()));
    let Ok(path) = path else { return Ok(()) };
    let made = fcntl::open(
        "/dev/console",
        OFlag::O_CREAT | OFlag::O_CLOEXEC,
        Mode::from_bits_truncate(0o666),
    );
    if made.is_ok() {
        mount(
            Some(&path),
            "/dev/console",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("mount /dev/console")?;
    }
    Ok(())
}

/// Gives the process a terminal: the session's, its standard descriptors and, for a container's first process (`console`),
/// /dev/console. Returns the master, which is the agent's.
pub fn open(process: &Process, console: bool, uid: u32) -> Result<OwnedFd> {
    let (master, slave) = open_pair()?;
    if let Some(size) = process
        .console_size
        .as_ref()
        .filter(|size| size.width > 0 && size.height > 0)
    {
        resize(master.as_raw_fd(), size.height, size.width)?;
    }
    if console {
        mount_console(&slave)?;
    }
    // The user that the process becomes may open its terminal anew.
    let _ = nix::unistd::fchown(&slave, Some(uid.into()), None);
    let _ = fchmod(&slave, Mode::from_bits_truncate(0o620));
    unsafe {
        if libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) < 0 {
            return Err(Errno::last()).context("make the terminal the session's");
        }
        for at in 0..3 {
            libc::dup2(slave.as_raw_fd(), at);
        }
    }
    Ok(master)
}

/// Sets a terminal's size in characters.
pub fn resize(master: impl AsRawFd, rows: u32, columns: u32) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows.min(u16::MAX.into()) as u16,
        ws_col: columns.min(u16::MAX.into()) as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(Errno::last()).context("resize the terminal");
    }
    Ok(())
}
