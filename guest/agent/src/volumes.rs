//! Volumes that the host brings file by file: `Change` and `List` of `snp.v1.Files`.
//!
//! Containers write into some volumes, so nothing found there is trusted: every path is walked name by name without following links, and
//! modes and owners are set through descriptors.

use crate::error::{Context, Error, Result};
use crate::proto::extensions::{change::What, Change, ChangeRequest, File as Piece, Link, ListResponse, Listed};
use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, renameat, AtFlags, OFlag};
use nix::sys::stat::{fchmod, fstatat, futimens, mkdirat, Mode, SFlag};
use nix::sys::time::TimeSpec;
use nix::unistd::{fchown, fchownat, linkat, symlinkat, unlinkat, Gid, Uid, UnlinkatFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

/// Folders below the agent's where volumes lie: those of the pod, and those of one container each.
const AREAS: [&str; 2] = ["volumes", "snp"];
/// Changes of one request.
const CHANGES_MAX: usize = 4096;
/// Names that one answer to List has.
const LISTED_MAX: usize = 16384;
/// Folders on the way to a file.
const DEPTH_MAX: usize = 256;

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Does the changes of a request in their order.
pub fn change(run_dir: &Path, request: &ChangeRequest) -> Result<()> {
    if request.changes.len() > CHANGES_MAX {
        return Err(Error::invalid(format!("a request has at most {CHANGES_MAX} changes")));
    }
    let (area, name) = area(run_dir, &request.volume)?;
    let mut volume = None;
    for change in &request.changes {
        let path = Path::new(OsStr::from_bytes(&change.path));
        let done = match &change.what {
            None => Err(Error::invalid("a change of a kind that this agent does not know")),
            Some(what) if change.path.is_empty() => whole(&area, name, what, &mut volume),
            Some(what) => {
                if volume.is_none() {
                    volume = Some(make_folder(&area, name)?);
                }
                match &volume {
                    Some(root) => below(root, change, what),
                    None => Ok(()),
                }
            }
        };
        done.with_context(|| format!("change {} of the volume {}", path.display(), request.volume))?;
    }
    Ok(())
}

/// What lies directly in a volume. `complete` is false when there is no such folder, or more than an answer has.
pub fn list(run_dir: &Path, volume: &str) -> Result<ListResponse> {
    let (area, name) = area(run_dir, volume)?;
    let folder = match openat(&area, name, FOLDER, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(ListResponse::default()),
        other => other.with_context(|| format!("open the volume {volume}"))?,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(fd_path(&folder)).with_context(|| format!("read the volume {volume}"))? {
        if entries.len() == LISTED_MAX {
            return Ok(ListResponse {
                complete: false,
                entries,
            });
        }
        let name = entry?.file_name();
        let status = match fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        let target = readlinkat(&folder, name.as_os_str()).unwrap_or_default();
        entries.push(Listed {
            name: name.as_bytes().to_vec(),
            mode: status.st_mode,
            target: target.as_bytes().to_vec(),
        });
    }
    Ok(ListResponse {
        complete: true,
        entries,
    })
}

/// Opens the folder that holds a volume, making it, and gives the volume's own name.
fn area<'a>(run_dir: &Path, volume: &'a str) -> Result<(OwnedFd, &'a OsStr)> {
    let refuse = || Error::invalid(format!("{volume} is no volume below {}", run_dir.display()));
    let inside = Path::new(volume).strip_prefix(run_dir).map_err(|_| refuse())?;
    let names = names(inside).map_err(|_| refuse())?;
    let (name, way) = names.split_last().ok_or_else(refuse)?;
    if !way.first().is_some_and(|first| AREAS.iter().any(|area| first == area)) {
        return Err(refuse());
    }
    let mut folder: OwnedFd = File::open(run_dir)
        .with_context(|| format!("open {}", run_dir.display()))?
        .into();
    for part in way {
        folder = make_folder(&folder, part)?;
    }
    Ok((folder, name))
}

/// The names of a path; refuses "..", "." and a path that starts at the root.
fn names(path: &Path) -> Result<Vec<&OsStr>> {
    let name = |part| match part {
        Component::Normal(name) => Ok(name),
        _ => Err(Error::invalid("the path leads out of its volume")),
    };
    let names: Vec<&OsStr> = path.components().map(name).collect::<Result<_>>()?;
    if names.is_empty() || names.len() > DEPTH_MAX || path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::invalid("the path is empty, too deep or has a NUL byte"));
    }
    Ok(names)
}

/// A change of the volume itself.
fn whole(area: &OwnedFd, name: &OsStr, what: &What, volume: &mut Option<OwnedFd>) -> Result<()> {
    match what {
        What::Remove(_) => {
            *volume = None;
            remove(area, name)
        }
        What::File(piece) => write(area, name, piece),
        What::Folder(folder) => {
            let opened = make_folder(area, name)?;
            own(&opened, folder.uid, folder.gid, folder.mode)?;
            *volume = Some(opened);
            Ok(())
        }
        _ => Err(Error::invalid("the volume itself is a folder or a plain file")),
    }
}

/// A change below the volume.
fn below(root: &OwnedFd, change: &Change, what: &What) -> Result<()> {
    let (folder, name) = parent(root, &change.path)?;
    match what {
        What::Folder(wanted) => own(make_folder(&folder, name)?, wanted.uid, wanted.gid, wanted.mode),
        What::File(piece) => write(&folder, name, piece),
        What::Link(link) => make_link(&folder, name, link),
        What::HardLink(from) => {
            let (other, other_name) = parent(root, from)?;
            linkat(&other, other_name, &folder, name, AtFlags::empty()).context("give a file a second name")
        }
        What::Rename(from) => {
            let (other, other_name) = parent(root, from)?;
            renameat(&other, other_name, &folder, name).context("move")
        }
        What::Remove(_) => remove(&folder, name),
    }
}

/// The folder that holds what a path names, and its name there.
fn parent<'a>(root: &OwnedFd, path: &'a [u8]) -> Result<(OwnedFd, &'a OsStr)> {
    let names = names(Path::new(OsStr::from_bytes(path)))?;
    let (name, way) = names.split_last().ok_or_else(|| Error::invalid("the path is empty"))?;
    let mut folder = root.try_clone()?;
    for part in way {
        folder = openat(&folder, *part, FOLDER, Mode::empty())
            .with_context(|| format!("open the folder {}", part.display()))?;
    }
    Ok((folder, name))
}

/// Opens a folder in a folder, and makes it where there is none.
fn make_folder(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    match mkdirat(folder, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).with_context(|| format!("make the folder {}", name.display())),
    }
    openat(folder, name, FOLDER, Mode::empty()).with_context(|| format!("open the folder {}", name.display()))
}

fn write(folder: &OwnedFd, name: &OsStr, piece: &Piece) -> Result<()> {
    let mut flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    if piece.offset == 0 {
        flags |= OFlag::O_CREAT | OFlag::O_EXCL;
    }
    let file: File = openat(folder, name, flags, Mode::from_bits_truncate(0o600))
        .context("open the file")?
        .into();
    if !file.metadata()?.is_file() {
        return Err(Error::invalid("it is no plain file"));
    }
    file.write_all_at(&piece.data, piece.offset).context("write")?;
    if !piece.last {
        return Ok(());
    }
    own(&file, piece.uid, piece.gid, piece.mode)?;
    let second = 1_000_000_000;
    let time = TimeSpec::new(
        piece.modified_ns.div_euclid(second),
        piece.modified_ns.rem_euclid(second),
    );
    futimens(&file, &time, &time).context("set the time")
}

fn make_link(folder: &OwnedFd, name: &OsStr, link: &Link) -> Result<()> {
    symlinkat(OsStr::from_bytes(&link.target), folder, name).context("make the link")?;
    let (uid, gid) = (Uid::from_raw(link.uid), Gid::from_raw(link.gid));
    fchownat(folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).context("set the owner")
}

/// Owner first: a change of owner clears set-id bits.
fn own(target: impl AsFd, uid: u32, gid: u32, mode: u32) -> Result<()> {
    fchown(&target, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("set the owner")?;
    fchmod(&target, Mode::from_bits_truncate(mode & 0o7777)).context("set the mode")
}

fn remove(folder: &OwnedFd, name: &OsStr) -> Result<()> {
    let kind = match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        other => SFlag::from_bits_truncate(other?.st_mode & SFlag::S_IFMT.bits()),
    };
    if kind == SFlag::S_IFDIR {
        // The standard library removes by descriptors and follows no links; the way to the folder is a descriptor, too.
        let path = Path::new(&fd_path(folder)).join(name);
        return fs::remove_dir_all(path).context("remove the folder");
    }
    unlinkat(folder, name, UnlinkatFlags::NoRemoveDir).context("remove")
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
