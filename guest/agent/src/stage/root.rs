//! The container's root folder while the stage still sees the guest's: every path below it is resolved as if it were `/`,
//! so that a symbolic link in an image never leads out.

use crate::error::{Context, Error, Result};
use crate::proto::grpc::Spec;
use nix::errno::Errno;
use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::stat::{mkdirat, mknodat, Mode, SFlag};
use nix::unistd::{chdir, chroot, pivot_root};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Symbolic links that lead to missing folders are followed this often while folders are made.
const LINKS_MAX: usize = 16;

/// A container's root folder, a mount of its own.
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Sets the propagation, and makes the root folder a mount.
    pub fn prepare(spec: &Spec) -> Result<Self> {
        let given = spec.root.as_ref().map(|root| root.path.as_str()).unwrap_or_default();
        if given.is_empty() {
            return Err(Error::invalid("the OCI spec names no root folder"));
        }
        let propagation = match spec.linux.as_ref().map(|linux| linux.rootfs_propagation.as_str()) {
            Some("shared" | "rshared") => MsFlags::MS_SHARED,
            Some("private" | "rprivate") => MsFlags::MS_PRIVATE,
            _ => MsFlags::MS_SLAVE,
        };
        let none = None::<&str>;
        mount(none, "/", none, propagation | MsFlags::MS_REC, none).context("set the propagation of mounts")?;
        let path = std::fs::canonicalize(given).with_context(|| format!("open the root folder {given}"))?;
        mount(Some(&path), &path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("make the root folder {given} a mount"))?;
        let fd = nix::fcntl::open(
            &path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open the root folder {given}"))?;
        Ok(Self { fd, path })
    }

    /// Opens (O_PATH) what stands at `path` of the container.
    pub fn open(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.open_by(path, OFlag::O_PATH, ResolveFlag::empty())
    }

    fn open_by(&self, path: &Path, flags: OFlag, further: ResolveFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | further);
        let raw = openat2(&self.fd, path, how)?;
        Ok(unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(raw)) })
    }

    /// Opens the folder at `path`, making it and its parents where they are missing.
    pub fn open_folder(&self, path: &Path) -> Result<OwnedFd> {
        self.make_folder(path, &mut 0)
            .with_context(|| format!("make the folder {}", path.display()))
    }

    /// As `open_folder`, for what must lie where its name says: an image may not lead it elsewhere by a symbolic link.
    pub fn open_plain_folder(&self, path: &Path) -> Result<OwnedFd> {
        let plain = ResolveFlag::RESOLVE_NO_SYMLINKS;
        let opened = match self.open_by(path, OFlag::O_PATH, plain) {
            Err(Errno::ENOENT) => {
                self.open_folder(path)?;
                self.open_by(path, OFlag::O_PATH, plain)
            }
            other => other,
        };
        opened.map_err(|errno| match errno {
            Errno::ELOOP => Error::invalid(format!(
                "{} leads over a symbolic link of the image: it has to be a plain folder",
                path.display()
            )),
            other => other.into(),
        })
    }

    fn make_folder(&self, path: &Path, links: &mut usize) -> Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::ENOENT) => {}
            other => return Ok(other?),
        }
        let (parent, name) = split(path)?;
        let folder = self.make_folder(parent, links)?;
        match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {}
            Err(Errno::EEXIST) if *links < LINKS_MAX => {
                *links += 1;
                let target = nix::fcntl::readlinkat(&folder, name)?;
                return self.make_folder(&parent.join(target), links);
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.open(path)?)
    }

    /// Opens the file at `path`, making it (empty) and its parents where they are missing.
    pub fn open_file(&self, path: &Path) -> Result<OwnedFd> {
        let make = || -> Result<OwnedFd> {
            match self.open(path) {
                Err(Errno::ENOENT) => {}
                other => return Ok(other?),
            }
            let (parent, name) = split(path)?;
            let folder = self.make_folder(parent, &mut 0)?;
            match mknodat(&folder, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(self.open(path)?)
        };
        make().with_context(|| format!("make the file {}", path.display()))
    }

    /// The container becomes the root of everything; the guest's own mounts disappear.
    pub fn enter(self) -> Result<()> {
        let attempt = || -> nix::Result<()> {
            nix::unistd::fchdir(&self.fd)?;
            match pivot_root(".", ".") {
                // The old root lies on top of the new one: what is at "." is the old.
                Ok(()) => {
                    let none = None::<&str>;
                    mount(none, ".", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
                    umount2(".", MntFlags::MNT_DETACH)?;
                }
                // The first root file system of a kernel can't be pivoted away from.
                Err(Errno::EINVAL) => {
                    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
                    chroot(".")?;
                }
                Err(errno) => return Err(errno),
            }
            chdir("/")
        };
        attempt().with_context(|| format!("make {} the root", self.path.display()))
    }
}

/// A path that reaches an open descriptor by way of /proc: the form in which mount() takes one.
pub fn fd_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Parent and last name of a path inside the container.
pub fn split(path: &Path) -> Result<(&Path, &std::ffi::OsStr)> {
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => Ok((parent, name)),
        _ => Err(Error::invalid(format!("{} has no last name", path.display()))),
    }
}
