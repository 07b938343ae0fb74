//! Files between host and guest: CopyFile brings one in pieces (it appears under its name when it is whole), ReadFile gives one back.
//!
//! Nothing is named by a path that the kernel could lead elsewhere: the way is walked folder by folder without following links, and modes
//! and owners are changed through the descriptor of what was opened or made.

use crate::error::{Context, Error, Result};
use crate::proto::grpc::CopyFileRequest;
use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, renameat, AtFlags, OFlag};
use nix::sys::stat::{fchmod, mkdirat, Mode, SFlag};
use nix::unistd::{fchown, fchownat, symlinkat, unlinkat, Gid, Uid, UnlinkatFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

/// Puts one piece of a file (or a whole folder, or symbolic link) below `run_dir`.
pub fn copy_file(run_dir: &Path, request: &CopyFileRequest) -> Result<()> {
    let parts = parts(run_dir, &request.path)?;
    copy(run_dir, &parts, request).with_context(|| format!("copy to {}", request.path))
}

/// One answer to ReadFile.
const READ_BYTES_MAX: u32 = 1 << 20;

/// The beginning of a plain file below `run_dir`, at most `max_bytes`.
pub fn read_file(run_dir: &Path, path: &str, max_bytes: u32) -> Result<Vec<u8>> {
    let parts = parts(run_dir, path)?;
    read(run_dir, &parts, max_bytes.min(READ_BYTES_MAX)).with_context(|| format!("read {path}"))
}

fn read(run_dir: &Path, parts: &[&OsStr], max_bytes: u32) -> Result<Vec<u8>> {
    let (name, way) = parts.split_last().ok_or_else(|| Error::invalid("the path is empty"))?;
    let mut folder: OwnedFd = File::open(run_dir)
        .with_context(|| format!("open {}", run_dir.display()))?
        .into();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    for part in way {
        folder = openat(&folder, *part, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    }
    let file: File = openat(&folder, *name, flags, Mode::empty())?.into();
    if !file.metadata()?.is_file() {
        return Err(Error::invalid("it is no plain file"));
    }
    let mut data = Vec::new();
    file.take(max_bytes.into()).read_to_end(&mut data)?;
    Ok(data)
}

/// Below the agent's folder: what the guest makes and mounts for itself and for emptyDirs, and what a policy expects no host to have written.
const OWN: &str = "sandbox";

/// The names on the way from `run_dir` to the path, when it stays below and out of what is the guest's own: no "..". Never empty.
fn parts<'a>(run_dir: &Path, path: &'a str) -> Result<Vec<&'a OsStr>> {
    let refuse = || Error::invalid(format!("{path} is not below {}", run_dir.display()));
    let inside = Path::new(path).strip_prefix(run_dir).map_err(|_| refuse())?;
    let name = |part| match part {
        Component::Normal(name) => Ok(name),
        _ => Err(refuse()),
    };
    let parts: Vec<&OsStr> = inside.components().map(name).collect::<Result<_>>()?;
    if parts.is_empty() {
        return Err(refuse());
    }
    if parts[0] == OWN {
        return Err(Error::invalid(format!(
            "{path} is in a folder that the guest keeps to itself: the host writes and reads no files there"
        )));
    }
    Ok(parts)
}

fn copy(run_dir: &Path, parts: &[&OsStr], request: &CopyFileRequest) -> Result<()> {
    let (name, way) = parts.split_last().ok_or_else(|| Error::invalid("the path is empty"))?;
    let mut folder: OwnedFd = File::open(run_dir)
        .with_context(|| format!("open {}", run_dir.display()))?
        .into();
    for (at, part) in way.iter().enumerate() {
        let (next, made) = enter(&folder, part)?;
        if made && at + 1 == way.len() {
            let mode = if request.dir_mode == 0 { 0o750 } else { request.dir_mode };
            fchmod(&next, permissions(mode)).context("set the folder's mode")?;
        }
        folder = next;
    }
    let kind = SFlag::from_bits_truncate(request.file_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFLNK => link(&folder, name, request),
        SFlag::S_IFDIR => finish(enter(&folder, name)?.0, request),
        kind if kind.is_empty() || kind == SFlag::S_IFREG => piece(&folder, name, request),
        _ => Err(Error::invalid(format!(
            "the mode {:o} is neither a file, a folder nor a link",
            request.file_mode
        ))),
    }
}

/// Opens a folder in a folder, and makes it where there is none; whether it was made.
fn enter(folder: &OwnedFd, name: &OsStr) -> Result<(OwnedFd, bool)> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(folder, name, flags, Mode::empty());
    let opened = match open() {
        Err(Errno::ENOENT) => mkdirat(folder, name, permissions(0o755)).and_then(|()| Ok((open()?, true))),
        other => other.map(|opened| (opened, false)),
    };
    if opened.is_err() && readlinkat(folder, name).is_ok() {
        return Err(Error::invalid(format!(
            "{} is a symbolic link: files are not copied through it",
            name.display()
        )));
    }
    opened.with_context(|| format!("open or make the folder {}", name.display()))
}

fn link(folder: &OwnedFd, name: &OsStr, request: &CopyFileRequest) -> Result<()> {
    let temporary = temporary(name);
    let _ = unlinkat(folder, &*temporary, UnlinkatFlags::NoRemoveDir);
    symlinkat(OsStr::from_bytes(&request.data), folder, &*temporary).context("make the link")?;
    let (uid, gid) = owner(request);
    fchownat(folder, &*temporary, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).context("set the owner")?;
    renameat(folder, &*temporary, folder, name).context("put the link in place")
}

fn piece(folder: &OwnedFd, name: &OsStr, request: &CopyFileRequest) -> Result<()> {
    let (size, offset) = (request.file_size, request.offset);
    let end = offset
        .checked_add(request.data.len() as i64)
        .filter(|end| offset >= 0 && *end <= size);
    let end = end.ok_or_else(|| {
        Error::invalid(format!(
            "{} bytes at {offset} don't fit a file of {size}",
            request.data.len()
        ))
    })?;
    let temporary = temporary(name);
    let mut flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_TRUNC, offset == 0);
    let file: File = openat(folder, &*temporary, flags, permissions(0o600))
        .context("open a temporary file")?
        .into();
    file.write_all_at(&request.data, offset as u64).context("write")?;
    if end < size {
        return Ok(());
    }
    finish(file, request)?;
    renameat(folder, &*temporary, folder, name).context("put the file in place")
}

/// Owner first: a change of owner clears set-id bits.
fn finish(target: impl AsFd, request: &CopyFileRequest) -> Result<()> {
    let (uid, gid) = owner(request);
    fchown(&target, uid, gid).context("set the owner")?;
    fchmod(&target, permissions(request.file_mode)).context("set the mode")
}

/// What the request names; a negative number leaves it as it is.
fn owner(request: &CopyFileRequest) -> (Option<Uid>, Option<Gid>) {
    let number = |value| u32::try_from(value).ok();
    (
        number(request.uid).map(Uid::from_raw),
        number(request.gid).map(Gid::from_raw),
    )
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

fn temporary(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".part");
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("snp-agent-copy-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn request(&self, name: &str, mode: u32, size: i64, offset: i64, data: &[u8]) -> CopyFileRequest {
            CopyFileRequest {
                path: self.0.join(name).to_string_lossy().into_owned(),
                file_size: size,
                file_mode: mode,
                dir_mode: 0o755,
                uid: -1,
                gid: -1,
                offset,
                data: data.to_vec(),
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_appears_when_its_last_piece_came() {
        let folder = Folder::new("pieces");
        copy_file(&folder.0, &folder.request("a/f", 0o100640, 6, 0, b"abc")).unwrap();
        assert!(!folder.0.join("a/f").exists());
        copy_file(&folder.0, &folder.request("a/f", 0o100640, 6, 3, b"def")).unwrap();
        assert_eq!(fs::read(folder.0.join("a/f")).unwrap(), b"abcdef");
        let mode = fs::metadata(folder.0.join("a/f")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn an_empty_file_is_one_piece() {
        let folder = Folder::new("empty");
        copy_file(&folder.0, &folder.request("f", 0o100644, 0, 0, b"")).unwrap();
        assert_eq!(fs::read(folder.0.join("f")).unwrap(), b"");
    }

    #[test]
    fn links_are_made_and_not_followed() {
        let folder = Folder::new("links");
        copy_file(&folder.0, &folder.request("l", 0o120777, 4, 0, b"/etc")).unwrap();
        assert_eq!(fs::read_link(folder.0.join("l")).unwrap(), Path::new("/etc"));
        let error = copy_file(&folder.0, &folder.request("l/passwd", 0o100644, 1, 0, b"x")).unwrap_err();
        assert!(error.text.contains("symbolic link"), "{error}");
    }

    #[test]
    fn a_folder_behind_a_link_keeps_its_mode() {
        let (folder, outside) = (Folder::new("behind"), Folder::new("outside-of-it"));
        let mode = || fs::metadata(&outside.0).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(&outside.0, fs::Permissions::from_mode(0o700)).unwrap();
        let target = outside.0.to_string_lossy().into_owned();
        copy_file(&folder.0, &folder.request("l", 0o120777, 0, 0, target.as_bytes())).unwrap();
        let error = copy_file(&folder.0, &folder.request("l", 0o040777, 0, 0, b"")).unwrap_err();
        assert!(error.text.contains("symbolic link"), "{error}");
        assert!(copy_file(&folder.0, &folder.request("l/new", 0o040777, 0, 0, b"")).is_err());
        assert_eq!((mode(), fs::read_dir(&outside.0).unwrap().count()), (0o700, 0));
    }

    #[test]
    fn folders_get_the_modes_that_were_asked_for() {
        let folder = Folder::new("folders");
        let mode = |name: &str| fs::metadata(folder.0.join(name)).unwrap().permissions().mode() & 0o7777;
        copy_file(&folder.0, &folder.request("a/b", 0o041777, 0, 0, b"")).unwrap();
        assert_eq!((mode("a"), mode("a/b")), (0o755, 0o1777));
        copy_file(&folder.0, &folder.request("a/b", 0o040700, 0, 0, b"")).unwrap();
        assert_eq!((mode("a"), mode("a/b")), (0o755, 0o700));
    }

    #[test]
    fn the_beginning_of_a_plain_file_is_given_back() {
        let folder = Folder::new("read");
        copy_file(&folder.0, &folder.request("a/f", 0o100644, 6, 0, b"abcdef")).unwrap();
        copy_file(&folder.0, &folder.request("l", 0o120777, 4, 0, b"a/f")).unwrap();
        let read = |name: &str, bytes| read_file(&folder.0, &folder.0.join(name).to_string_lossy(), bytes);
        assert_eq!(read("a/f", 4).unwrap(), b"abcd");
        assert_eq!(read("a/f", u32::MAX).unwrap(), b"abcdef");
        for name in ["a", "l", "missing", "", "../x"] {
            assert!(read(name, 4).is_err(), "{name}");
        }
    }

    #[test]
    fn paths_outside_are_refused() {
        let folder = Folder::new("outside");
        for name in ["../x", "a/../../x", ""] {
            assert!(
                copy_file(&folder.0, &folder.request(name, 0o100644, 0, 0, b"")).is_err(),
                "{name}"
            );
        }
        let mut request = folder.request("f", 0o100644, 0, 0, b"");
        request.path = "/etc/x".into();
        assert!(copy_file(&folder.0, &request).is_err());
    }

    #[test]
    fn what_the_guest_makes_itself_is_out_of_reach() {
        let folder = Folder::new("own");
        fs::create_dir_all(folder.0.join("sandbox/volumes/v")).unwrap();
        fs::write(folder.0.join("sandbox/volumes/v/f"), "secret").unwrap();
        for name in [
            "sandbox",
            "sandbox/volumes/v/f",
            "./sandbox/volumes/v/new",
            "sandbox//x",
        ] {
            let error = copy_file(&folder.0, &folder.request(name, 0o100644, 1, 0, b"x")).unwrap_err();
            assert!(error.text.contains("the guest keeps to itself"), "{name}: {error}");
            let path = folder.0.join(name).to_string_lossy().into_owned();
            assert!(read_file(&folder.0, &path, 9).is_err(), "{name}");
        }
        assert_eq!(fs::read(folder.0.join("sandbox/volumes/v/f")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(folder.0.join("sandbox/volumes/v")).unwrap().count(), 1);
    }

    #[test]
    fn pieces_that_do_not_fit_are_refused() {
        let folder = Folder::new("misfit");
        assert!(copy_file(&folder.0, &folder.request("f", 0o100644, 2, 1, b"ab")).is_err());
        assert!(copy_file(&folder.0, &folder.request("f", 0o100644, 2, -1, b"a")).is_err());
    }
}
