//! Storages without a device: memory file systems and folders of the guest.

use super::{huge, mount_at, Entry};
use crate::error::{Context, Error, Result};
use crate::mountopts::Parsed;
use crate::proto::grpc::Storage;
use nix::unistd::{chown, Gid, Uid};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Folders deeper than this keep their group.
const DEPTH_MAX: usize = 128;
const SETGID: u32 = 0o2000;

/// Says that the pages of a hugetlbfs are reserved elsewhere.
const RESERVED: &str = "X-snp.reserved";

/// Driver `ephemeral`: a tmpfs, or a hugetlbfs with the pages that its size needs.
pub async fn ephemeral(storage: &Storage) -> Result<Entry> {
    let point = PathBuf::from(&storage.mount_point);
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    let (ours, theirs): (Vec<_>, Vec<_>) = storage
        .options
        .iter()
        .cloned()
        .partition(|option| option.starts_with("fsgid="));
    let elsewhere = theirs.iter().any(|option| option == RESERVED);
    let pages = if storage.fstype == "hugetlbfs" && !elsewhere {
        huge::reserve_by_options(&theirs).await?
    } else {
        None
    };
    let fstype = if storage.fstype.is_empty() {
        "tmpfs"
    } else {
        storage.fstype.as_str()
    };
    let source = if storage.source.is_empty() {
        fstype
    } else {
        storage.source.as_str()
    };
    let parsed = Parsed::from_options(&theirs);
    let mounted = parsed.and_then(|parsed| mount_at(source, &point, fstype, &parsed));
    if let (Err(_), Some(pages)) = (&mounted, &pages) {
        huge::give_back(pages)?;
    }
    mounted?;
    let entry = Entry {
        mounts: vec![point.clone()],
        pages,
        ..Entry::default()
    };
    if let Some(group) = ours.first() {
        own(&point, parse_group(group)?)?;
    }
    set_group(storage, &point)?;
    Ok(entry)
}

/// Driver `local`: a folder with a mode, a group and an owner.
pub fn folder(storage: &Storage) -> Result<Entry> {
    let point = PathBuf::from(&storage.mount_point);
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    own_folder(&storage.options, &point)?;
    set_group(storage, &point)?;
    Ok(Entry {
        folders: vec![point],
        ..Entry::default()
    })
}

/// Gives a folder the mode, the group and the owner that options name, in their order; gives the options that are about something else.
pub fn own_folder(options: &[String], point: &Path) -> Result<Vec<String>> {
    let mut rest = Vec::new();
    for option in options {
        if let Some(mode) = option.strip_prefix("mode=") {
            let mode = u32::from_str_radix(mode, 8).map_err(|_| Error::invalid(format!("{option:?} is no mode")))?;
            fs::set_permissions(point, fs::Permissions::from_mode(mode)).context("set the mode")?;
        } else if option.starts_with("fsgid=") {
            own(point, parse_group(option)?)?;
        } else if let Some(user) = option.strip_prefix("uid=") {
            let user = user
                .parse()
                .map_err(|_| Error::invalid(format!("{option:?} is no user")))?;
            chown(point, Some(Uid::from_raw(user)), None).context("set the volume's owner")?;
        } else {
            rest.push(option.clone());
        }
    }
    Ok(rest)
}

/// Folders that an overlay's host wants made first.
pub fn make_overlay_folders(storage: &Storage) -> Result<()> {
    const KEY: &str = "io.katacontainers.volume.overlayfs.create_directory=";
    for path in storage
        .driver_options
        .iter()
        .filter_map(|option| option.strip_prefix(KEY))
    {
        fs::create_dir_all(path).with_context(|| format!("make {path}"))?;
    }
    Ok(())
}

/// A pod's fsGroup: everything in the volume gets the group, unless the root has it and the policy is content with that.
pub fn set_group(storage: &Storage, point: &Path) -> Result<()> {
    const ON_ROOT_MISMATCH: i32 = 1;
    let Some(wanted) = &storage.fs_group else { return Ok(()) };
    let root = fs::metadata(point).with_context(|| format!("look at {}", point.display()))?;
    if wanted.group_change_policy == ON_ROOT_MISMATCH && root.gid() == wanted.group_id {
        return Ok(());
    }
    regroup(point, wanted.group_id, 0)
}

fn regroup(path: &Path, group: u32, depth: usize) -> Result<()> {
    let status = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if status.is_symlink() {
        return Ok(());
    }
    let writable = status.mode() & 0o200 != 0;
    let mut mode = status.mode() & 0o7777 | if writable { 0o060 } else { 0o040 };
    if status.is_dir() {
        mode |= SETGID | 0o010;
    }
    chown(path, None, Some(Gid::from_raw(group))).with_context(|| format!("set the group of {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("set the mode")?;
    if status.is_dir() && depth < DEPTH_MAX {
        for entry in fs::read_dir(path)
            .with_context(|| format!("read {}", path.display()))?
            .flatten()
        {
            regroup(&entry.path(), group, depth + 1)?;
        }
    }
    Ok(())
}

fn own(point: &Path, group: u32) -> Result<()> {
    let mode = fs::metadata(point).context("look at the volume")?.mode() & 0o7777;
    chown(point, None, Some(Gid::from_raw(group))).context("set the volume's group")?;
    fs::set_permissions(point, fs::Permissions::from_mode(mode | SETGID | 0o070)).context("set the volume's mode")
}

fn parse_group(option: &str) -> Result<u32> {
    let number = option.strip_prefix("fsgid=").and_then(|number| number.parse().ok());
    number.ok_or_else(|| Error::invalid(format!("{option:?} is no group")))
}
