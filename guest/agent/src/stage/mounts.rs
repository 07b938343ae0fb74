//! The mounts of an OCI spec.

use super::root::{fd_path, Root};
use crate::error::{Context, Error, Result};
use crate::mountopts::Parsed;
use crate::proto::grpc::{Mount, Spec};
use nix::errno::Errno;
use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};
use nix::mount::{mount, MsFlags};
use nix::sys::stat::{mkdirat, Mode};
use nix::sys::statvfs::statvfs;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

const NONE: Option<&str> = None;
/// The source of a bind mount is a path below the one that is named (docs/contracts.md).
const SUB_OPTION: &str = "X-snp.sub=";

/// Makes all mounts of the spec, in its order, and `resolv_conf` (a guest file) at /etc/resolv.conf when the spec has nothing there.
pub fn mount_all(root: &Root, spec: &Spec, resolv_conf: &str) -> Result<()> {
    for entry in &spec.mounts {
        mount_one(root, entry)
            .with_context(|| format!("mount {:?} ({}) at {}", entry.source, entry.r#type, entry.destination))?;
    }
    let taken = spec
        .mounts
        .iter()
        .any(|entry| entry.destination == "/etc/resolv.conf" || entry.destination == "/etc");
    if !resolv_conf.is_empty() && !taken {
        // A read-only image without the file stays without it.
        if let Ok(target) = root.open_file(Path::new("/etc/resolv.conf")) {
            mount(
                Some(resolv_conf),
                fd_path(&target).as_str(),
                NONE,
                MsFlags::MS_BIND,
                NONE,
            )
            .context("mount /etc/resolv.conf")?;
        }
    }
    Ok(())
}

fn mount_one(root: &Root, entry: &Mount) -> Result<()> {
    let destination = Path::new(&entry.destination);
    if !destination.has_root() {
        return Err(Error::invalid("the destination is not an absolute path"));
    }
    let parsed = Parsed::from_options(&entry.options)?;
    let bind = entry.r#type == "bind" || parsed.flags.contains(MsFlags::MS_BIND);
    if bind {
        bind_mount(root, entry, destination, &parsed)?;
    } else {
        let kind = if entry.r#type == "cgroup" {
            "cgroup2"
        } else {
            entry.r#type.as_str()
        };
        // Parts of them are hidden, and made read-only, by name.
        let target = match kind {
            "proc" | "sysfs" | "cgroup2" => root.open_plain_folder(destination)?,
            _ => root.open_folder(destination)?,
        };
        // Options of cgroup1 hosts mean nothing to cgroup2.
        let data = if kind == "cgroup2" { "" } else { parsed.data.as_str() };
        let source = if entry.source.is_empty() {
            kind
        } else {
            entry.source.as_str()
        };
        mount(
            Some(source),
            fd_path(&target).as_str(),
            Some(kind),
            parsed.flags,
            Some(data),
        )?;
    }
    for flag in &parsed.propagation {
        let target = root.open(destination)?;
        mount(NONE, fd_path(&target).as_str(), NONE, *flag, NONE).context("set the propagation")?;
    }
    Ok(())
}

fn bind_mount(root: &Root, entry: &Mount, destination: &Path, parsed: &Parsed) -> Result<()> {
    let sub = entry.options.iter().find_map(|option| option.strip_prefix(SUB_OPTION));
    let below = sub
        .map(|sub| open_below(&entry.source, Path::new(sub)).with_context(|| format!("find {sub} in the volume")))
        .transpose()?;
    let source = below.as_ref().map_or_else(|| entry.source.clone(), fd_path);
    let folder = std::fs::metadata(&source)
        .with_context(|| format!("find {}", entry.source))?
        .is_dir();
    let target = if folder {
        root.open_folder(destination)?
    } else {
        root.open_file(destination)?
    };
    let how = MsFlags::MS_BIND | (parsed.flags & MsFlags::MS_REC);
    mount(Some(source.as_str()), fd_path(&target).as_str(), NONE, how, NONE)?;
    let rest = parsed.flags.difference(MsFlags::MS_BIND | MsFlags::MS_REC);
    if !rest.is_empty() {
        let target = root.open(destination)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | rest;
        mount(NONE, fd_path(&target).as_str(), NONE, flags, NONE).context("set the mount's flags")?;
    }
    if parsed.recursive_readonly {
        let target = root.open(destination)?;
        readonly_below(&fd_path(&target)).context("make the mount and those below it read-only")?;
    }
    Ok(())
}

/// Opens (O_PATH) a path below a volume that containers may have written: a link in it leads no further than the volume. Missing folders are
/// made with the volume's own mode, as kubelet does.
fn open_below(volume: &str, sub: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(volume, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let open = |path: &Path| {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    let mode = Mode::from_bits_truncate(std::fs::metadata(volume)?.mode() & 0o7777);
    let mut folder = root.try_clone()?;
    let mut path = PathBuf::new();
    for part in sub.components() {
        let Component::Normal(name) = part else {
            return Err(Error::invalid("the path leads out of the volume"));
        };
        path.push(name);
        folder = match open(&path) {
            Err(Errno::ENOENT) => {
                mkdirat(&folder, name, mode)?;
                let made = open(&path)?;
                // Not through the descriptor itself, which is only a path; what was just made is a folder, or somebody is playing.
                std::fs::set_permissions(fd_path(&made), std::fs::Permissions::from_mode(mode.bits()))?;
                made
            }
            other => other?,
        };
    }
    Ok(folder)
}

/// Makes a mount and all mounts below it read-only.
fn readonly_below(path: &str) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let path = CString::new(path).map_err(|_| Error::invalid("a path with a NUL byte"))?;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let size = std::mem::size_of::<MountAttr>();
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size,
        )
    };
    if code < 0 {
        return Err(Errno::last().into());
    }
    Ok(())
}

/// Makes the mount at `path` read-only and keeps its other flags.
pub fn remount_readonly(path: &str) -> Result<()> {
    let kept = MsFlags::from_bits_truncate(statvfs(path)?.flags().bits());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
    mount(NONE, path, NONE, flags, NONE)?;
    Ok(())
}

/// Makes `path` read-only by a mount of itself; a path that does not exist is read-only enough.
pub fn make_readonly(path: &str) -> Result<()> {
    match mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    }
    remount_readonly(path)
}

/// Hides `path`: a file behind /dev/null, a folder behind an empty read-only tmpfs; nothing to do when it does not exist.
pub fn mask(path: &str) -> Result<()> {
    let Ok(status) = std::fs::metadata(path) else {
        return Ok(());
    };
    if status.is_dir() {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::MS_RDONLY,
            Some("nr_blocks=1,nr_inodes=1"),
        )?;
    } else {
        mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE)?;
    }
    Ok(())
}
