//! The host's end of a stream: containerd's FIFO, or a plain file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::stream::{Direction, Plan};
use crate::sys;

/// An open end.
pub enum Local {
    Fifo(OwnedFd),
    File(File),
}

/// Opens what the plan names, without waiting. A FIFO for output is opened for reading too, so that it stays while containerd
/// restarts.
///
/// # Errors
/// A text that names it.
pub fn open(plan: &Plan) -> Result<Local, String> {
    let describe = |error: io::Error| format!("open {}: {error}", plan.fifo);
    if let Some(path) = plan.fifo.strip_prefix("file://") {
        if plan.direction == Direction::In {
            return Err(format!("{} can't be a container's input: name a FIFO", plan.fifo));
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        return file.map(Local::File).map_err(describe);
    }
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(plan.direction == Direction::Out)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(&plan.fifo).map_err(describe)?;
    if !file.metadata().map_err(describe)?.file_type().is_fifo() {
        return Err(format!("{} is no FIFO", plan.fifo));
    }
    Ok(Local::Fifo(OwnedFd::from(file)))
}

/// Socket to plain file: `splice` refuses files opened for appending.
pub fn copy(socket: BorrowedFd<'_>, file: &mut File, most: usize) -> io::Result<usize> {
    let mut buffer = [0u8; 16 << 10];
    let size = buffer.len().min(most);
    let count = sys::receive(socket, &mut buffer[..size])?;
    file.write_all(&buffer[..count])?;
    Ok(count)
}
