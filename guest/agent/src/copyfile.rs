//! CopyFile: a file from the host in pieces. It appears under its name when it is whole.

use crate::error::{Context, Error, Result};
use crate::proto::grpc::CopyFileRequest;
use nix::fcntl::{AtFlags, AT_FDCWD};
use nix::sys::stat::SFlag;
use nix::unistd::{fchownat, Gid, Uid};
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Puts one piece of a file (or a whole folder, or symbolic link) below `run_dir`.
pub fn copy_file(run_dir: &Path, request: &CopyFileRequest) -> Result<()> {
    let path = confined(run_dir, &request.path)?;
    copy(&path, request).with_context(|| format!("copy to {}", request.path))
}

fn copy(path: &Path, request: &CopyFileRequest) -> Result<()> {
    let parent = path.parent().ok_or_else(|| Error::invalid("the path has no parent"))?;
    if !parent.is_dir() {
        fs::create_dir_all(parent).context("make the folder")?;
        let mode = if request.dir_mode == 0 {
            0o750
        } else {
            request.dir_mode & 0o7777
        };
        fs::set_permissions(parent, fs::Permissions::from_mode(mode)).context("set the folder's mode")?;
    }
    let kind = SFlag::from_bits_truncate(request.file_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFLNK => link(path, request),
        SFlag::S_IFDIR => {
            fs::create_dir_all(path).context("make the folder")?;
            finish(path, request)
        }
        kind if kind.is_empty() || kind == SFlag::S_IFREG => piece(path, request),
        _ => Err(Error::invalid(format!(
            "the mode {:o} is neither a file, a folder nor a link",
            request.file_mode
        ))),
    }
}

fn link(path: &Path, request: &CopyFileRequest) -> Result<()> {
    let temporary = temporary(path)?;
    let _ = fs::remove_file(&temporary);
    let target = Path::new(std::ffi::OsStr::from_bytes(&request.data));
    std::os::unix::fs::symlink(target, &temporary).context("make the link")?;
    own(&temporary, request)?;
    fs::rename(&temporary, path).context("put the link in place")
}

fn piece(path: &Path, request: &CopyFileRequest) -> Result<()> {
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
    let temporary = temporary(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(offset == 0)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)
        .context("open a temporary file")?;
    file.write_all_at(&request.data, offset as u64).context("write")?;
    if end < size {
        return Ok(());
    }
    drop(file);
    finish(&temporary, request)?;
    fs::rename(&temporary, path).context("put the file in place")
}

/// Owner first: a change of owner clears set-id bits.
fn finish(path: &Path, request: &CopyFileRequest) -> Result<()> {
    own(path, request)?;
    let mode = fs::Permissions::from_mode(request.file_mode & 0o7777);
    fs::set_permissions(path, mode).context("set the mode")
}

fn own(path: &Path, request: &CopyFileRequest) -> Result<()> {
    let uid = u32::try_from(request.uid).ok().map(Uid::from_raw);
    let gid = u32::try_from(request.gid).ok().map(Gid::from_raw);
    fchownat(AT_FDCWD, path, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).context("set the owner")
}

fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid("the path has no file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".part");
    Ok(path.with_file_name(hidden))
}

/// The path, when it stays below `run_dir`: no "..", and no symbolic link (which a host may have made before) on the way to its parent.
fn confined(run_dir: &Path, path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let refuse = || Error::invalid(format!("{} is not below {}", path.display(), run_dir.display()));
    let inside = path.strip_prefix(run_dir).map_err(|_| refuse())?;
    if inside.as_os_str().is_empty() || !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(refuse());
    }
    let mut reached = run_dir.to_path_buf();
    for part in inside.parent().unwrap_or(Path::new("")).components() {
        reached.push(part);
        if reached.is_symlink() {
            return Err(Error::invalid(format!(
                "{} is a symbolic link: files are not copied through it",
                reached.display()
            )));
        }
    }
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn pieces_that_do_not_fit_are_refused() {
        let folder = Folder::new("misfit");
        assert!(copy_file(&folder.0, &folder.request("f", 0o100644, 2, 1, b"ab")).is_err());
        assert!(copy_file(&folder.0, &folder.request("f", 0o100644, 2, -1, b"a")).is_err());
    }
}
