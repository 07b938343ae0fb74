//! Device nodes and the customary links of /dev.

use super::root::{split, Root};
use crate::error::{Context, Error, Result};
use crate::proto::grpc::{LinuxDevice, Spec};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{makedev, mknodat, Mode, SFlag};
use nix::unistd::{fchownat, symlinkat, Gid, Uid};
use std::path::Path;

/// Devices that every container has: path, major, minor.
const DEFAULT: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Fills /dev, unless the spec binds a folder there.
pub fn make(root: &Root, spec: &Spec) -> Result<()> {
    let bound = |entry: &crate::proto::grpc::Mount| entry.destination == "/dev" && entry.r#type == "bind";
    if spec.mounts.iter().any(bound) {
        return Ok(());
    }
    let asked = spec
        .linux
        .as_ref()
        .map(|linux| linux.devices.as_slice())
        .unwrap_or_default();
    for (path, major, minor) in DEFAULT {
        if !asked.iter().any(|device| device.path == path) {
            let device = LinuxDevice {
                path: path.into(),
                r#type: "c".into(),
                major,
                minor,
                file_mode: 0o666,
                ..LinuxDevice::default()
            };
            node(root, &device)?;
        }
    }
    for device in asked {
        node(root, device)?;
    }
    for (target, path) in LINKS {
        let (parent, name) = split(Path::new(path))?;
        match symlinkat(target, root.open_folder(parent)?, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("make the link {path}")),
        }
    }
    Ok(())
}

fn node(root: &Root, device: &LinuxDevice) -> Result<()> {
    let kind = match device.r#type.as_str() {
        "c" | "u" => SFlag::S_IFCHR,
        "b" => SFlag::S_IFBLK,
        "p" => SFlag::S_IFIFO,
        other => {
            return Err(Error::invalid(format!(
                "the device {} has the unknown type {other:?}",
                device.path
            )))
        }
    };
    let attempt = || -> Result<()> {
        let (parent, name) = split(Path::new(&device.path))?;
        let folder = root.open_folder(parent)?;
        let mode = if device.file_mode == 0 {
            0o666
        } else {
            device.file_mode & 0o7777
        };
        let number = makedev(device.major as u64, device.minor as u64);
        // The node's mode is exact, whatever the mask.
        let mask = nix::sys::stat::umask(Mode::empty());
        let made = mknodat(&folder, name, kind, Mode::from_bits_truncate(mode), number);
        nix::sys::stat::umask(mask);
        match made {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
        fchownat(&folder, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(())
    };
    attempt().with_context(|| format!("make the device {}", device.path))
}
