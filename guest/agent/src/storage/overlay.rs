//! overlayfs over many layers, by the file system context calls (fsopen(2) and its like): mount(2)'s option string has one page.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// linux/mount.h
const SET_FLAG: libc::c_uint = 0;
const SET_STRING: libc::c_uint = 1;
const CMD_CREATE: libc::c_uint = 6;
const CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
/// One message of a context, as the kernel makes them.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
const MESSAGES_MAX: usize = 8;

/// Joins the folders at `point`, the topmost first; writes go to `upper`. It goes with the VM, so a program that asks for its data to be safe on a disk
/// does not wait for that.
pub fn mount(lowers: &[PathBuf], upper: &Path, work: &Path, point: &Path) -> Result<()> {
    let context = open(c"overlay")?;
    let all = lowers.iter().map(|lower| (c"lowerdir+", lower.as_path()));
    for (key, value) in all.chain([(c"upperdir", upper), (c"workdir", work)]) {
        let text = CString::new(value.as_os_str().as_bytes()).map_err(|_| Error::invalid("a path has a NUL"))?;
        configure(&context, SET_STRING, key.as_ptr(), text.as_ptr())
            .with_context(|| format!("{} {}", key.to_string_lossy(), value.display()))?;
    }
    configure(&context, SET_FLAG, c"volatile".as_ptr(), std::ptr::null())?;
    configure(&context, CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    let mounted = call(libc::SYS_fsmount, [context.as_raw_fd() as i64, CLOEXEC.into(), 0, 0, 0])?;
    let mounted = unsafe { OwnedFd::from_raw_fd(mounted) };
    let point = CString::new(point.as_os_str().as_bytes()).map_err(|_| Error::invalid("a path has a NUL"))?;
    let arguments = [
        mounted.as_raw_fd() as i64,
        c"".as_ptr() as i64,
        libc::AT_FDCWD.into(),
        point.as_ptr() as i64,
        MOVE_MOUNT_F_EMPTY_PATH.into(),
    ];
    call(libc::SYS_move_mount, arguments).context("attach the mount")?;
    Ok(())
}

fn open(kind: &CStr) -> Result<OwnedFd> {
    let raw = call(libc::SYS_fsopen, [kind.as_ptr() as i64, CLOEXEC.into(), 0, 0, 0]).context("open overlayfs")?;
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: *const libc::c_char,
    value: *const libc::c_char,
) -> Result<()> {
    let arguments = [context.as_raw_fd() as i64, command.into(), key as i64, value as i64, 0];
    match call(libc::SYS_fsconfig, arguments) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::from(errno)).context(messages(context)),
    }
}

/// What the file system has to say about a failure.
fn messages(context: &OwnedFd) -> String {
    let mut texts = Vec::new();
    let mut buffer = [0u8; MESSAGE_BYTES_MAX];
    while texts.len() < MESSAGES_MAX {
        let length = unsafe { libc::read(context.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(length @ 1..) = usize::try_from(length) else {
            break;
        };
        texts.push(String::from_utf8_lossy(&buffer[..length]).trim().to_string());
    }
    format!("overlayfs ({})", texts.join("; "))
}

fn call(number: libc::c_long, arguments: [i64; 5]) -> std::result::Result<RawFd, Errno> {
    let [a, b, c, d, e] = arguments;
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e) }).map(|result| result as RawFd)
}
