//! Copies between files, without moving a byte where the file system can share them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const BUFFER_BYTES: usize = 1024 * 1024;

/// Copies bytes; holes stay holes in an output that has one there.
/// # Errors
/// what the file system says; `UnexpectedEof` when the source is shorter
pub fn copy(from: &File, start: u64, to: &File, place: u64, bytes: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let at = start + done;
        let Some(data) = seek(from, at, libc::SEEK_DATA)?.map(|data| data.min(start + bytes)) else {
            break;
        };
        let end = seek(from, data, libc::SEEK_HOLE)?.unwrap_or(data).min(start + bytes);
        copy_data(from, data, to, place + (data - start), end - data)?;
        done = end - start;
    }
    if from.metadata()?.len() < start + bytes && done < bytes && !ends_in_padding(from, start + bytes)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// An image that is no multiple of a block ends in zeros that its file does not have.
fn ends_in_padding(from: &File, end: u64) -> io::Result<bool> {
    Ok(end - from.metadata()?.len() < crate::verity::BLOCK as u64)
}

/// The next data or hole; `None` when there is no data any more.
fn seek(file: &File, at: u64, whence: i32) -> io::Result<Option<u64>> {
    let offset = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: no memory is handed over.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

fn copy_data(from: &File, start: u64, to: &File, place: u64, bytes: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        match in_kernel(from, start + done, to, place + done, bytes - done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if unsupported(&error) => return by_hand(from, start + done, to, place + done, bytes - done),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn in_kernel(from: &File, start: u64, to: &File, place: u64, bytes: u64) -> io::Result<u64> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (mut start, mut place) = (offset(start)?, offset(place)?);
    let count = usize::try_from(bytes.min(1 << 30)).unwrap_or(0);
    // SAFETY: both offsets live through the call.
    let copied = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &raw mut start,
            to.as_raw_fd(),
            &raw mut place,
            count,
            0,
        )
    };
    u64::try_from(copied).map_err(|_| io::Error::last_os_error())
}

fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EBADF)
    )
}

fn by_hand(from: &File, start: u64, to: &File, place: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    while done < bytes {
        let count = BUFFER_BYTES.min(usize::try_from(bytes - done).unwrap_or(BUFFER_BYTES));
        from.read_exact_at(&mut buffer[..count], start + done)?;
        to.write_all_at(&buffer[..count], place + done)?;
        done += count as u64;
    }
    Ok(())
}
