//! Files that are there whole or not at all, and made by one process at a time.

use crate::error::{Attempt, Result};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file without a name, or with one that tells who makes it: `<pid>-<start time>-<number>.<what>`.
pub struct Staged {
    pub file: File,
    /// On file systems that know no files without a name.
    name: Option<PathBuf>,
}

impl Staged {
    /// Makes an empty one in `folder`.
    /// # Errors
    /// `Io`
    pub fn new(folder: &Path, what: &str) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
            Ok(file) => Ok(Self { file, name: None }),
            Err(error) if unnamed_unknown(&error) => Self::named(folder, what),
            Err(error) => Err(error).attempt(&format!("making a file in {}", folder.display())),
        }
    }

    fn named(folder: &Path, what: &str) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = folder.join(format!("{pid}-{}-{number}.{what}", start_time()?));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&name).attempt(&format!("making {}", name.display()))?;
        Ok(Self { file, name: Some(name) })
    }

    /// Gives the file its name once all of it is on the disk. A file that is there already stays.
    /// # Errors
    /// `Io`
    pub fn publish(mut self, place: &Path) -> Result<()> {
        let what = format!("putting {} in place", place.display());
        self.file.sync_data().attempt(&what)?;
        let linked = match &self.name {
            Some(name) => fs::hard_link(name, place),
            None => link_unnamed(&self.file, place),
        };
        if let Some(name) = self.name.take() {
            fs::remove_file(name).attempt(&what)?;
        }
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).attempt(&what),
            _ => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn unnamed_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL)
    )
}

fn link_unnamed(file: &File, place: &Path) -> io::Result<()> {
    // open(2), O_TMPFILE: a file without a name gets one through its entry in /proc.
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: both strings end in NUL and live through the call.
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// When this process started, in clock ticks since the boot (proc(5), /proc/pid/stat, field 22).
fn start_time() -> Result<u64> {
    let what = "reading /proc/self/stat";
    let text = fs::read_to_string("/proc/self/stat").attempt(what)?;
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let field = fields.into_iter().nth(19).and_then(|field| field.parse().ok());
    field
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        .attempt(what)
}

/// Waits until nobody else holds the lock; held until it is dropped or the process ends, however that happens.
/// # Errors
/// `Io`
pub fn lock(path: &Path) -> Result<File> {
    let what = format!("locking {}", path.display());
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).attempt(&what)?;
    // SAFETY: no memory is handed over.
    while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).attempt(&what);
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("snp-layers-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_staged_file_appears_whole_under_its_name() {
        for named in [false, true] {
            let folder = folder("publish");
            let mut staged = if named {
                Staged::named(&folder, "x")
            } else {
                Staged::new(&folder, "x")
            }
            .unwrap();
            staged.file.write_all(b"whole").unwrap();
            let place = folder.join("place");
            staged.publish(&place).unwrap();
            assert_eq!(fs::read(&place).unwrap(), b"whole");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
            fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_there_stays_and_an_unpublished_one_goes() {
        let folder = folder("stays");
        let place = folder.join("place");
        fs::write(&place, "first").unwrap();
        Staged::named(&folder, "x").unwrap().publish(&place).unwrap();
        drop(Staged::named(&folder, "x").unwrap());
        assert_eq!(fs::read(&place).unwrap(), b"first");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
