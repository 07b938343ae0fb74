//! What is needed of btrfs: an empty file system, its growth, folders that go as a whole, and its count of blocks that failed their checksums.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Written by guest/make-empty-btrfs.mjs, which has the form.
const EMPTY: &[u8] = include_bytes!("empty.btrfs");
/// btrfs grows to no less.
pub const BYTES_MIN: u64 = 256 << 20;
const RECORD_BYTES: usize = 16;
/// linux/btrfs.h: `_IOW(0x94, 3 | 14 | 15, struct btrfs_ioctl_vol_args)`, and `_IOWR(0x94, 52, struct btrfs_ioctl_get_dev_stats)`.
const RESIZE: u64 = 0x5000_9403;
const SUBVOL_CREATE: u64 = 0x5000_940e;
const SNAP_DESTROY: u64 = 0x5000_940f;
const GET_DEV_STATS: u64 = 0xc408_9434;
const NAME_BYTES_MAX: usize = 4087;
/// The only device of these file systems.
const DEVICE: u64 = 1;
/// Indexes of the statistics: blocks with a wrong checksum, blocks of another generation than their parent says.
const CHANGED: [usize; 2] = [3, 4];

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; NAME_BYTES_MAX + 1],
}

/// `struct btrfs_ioctl_get_dev_stats`
#[repr(C)]
struct DeviceStatistics {
    device: u64,
    items: u64,
    flags: u64,
    values: [u64; 5],
    unused: [u64; 121],
}

/// A block of the empty file system: its place, its length, its first and its last bytes; zeros in between.
struct Record<'a> {
    offset: u64,
    length: usize,
    head: &'a [u8],
    tail: &'a [u8],
}

fn records() -> impl Iterator<Item = Record<'static>> {
    let mut rest = EMPTY;
    std::iter::from_fn(move || {
        let (header, after) = rest.split_at_checked(RECORD_BYTES)?;
        let number = |from: usize, to: usize| {
            header[from..to]
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (head, after) = after.split_at_checked(number(12, 14) as usize)?;
        let (tail, after) = after.split_at_checked(number(14, 16) as usize)?;
        rest = after;
        Some(Record {
            offset: number(0, 8),
            length: number(8, 12) as usize,
            head,
            tail,
        })
    })
}

/// Makes an empty file system at the beginning of a device; the rest of it is neither read nor written.
pub fn format(device: &Path) -> Result<()> {
    let file = File::options()
        .write(true)
        .open(device)
        .with_context(|| format!("open {}", device.display()))?;
    for record in records() {
        let mut block = vec![0; record.length];
        block[..record.head.len()].copy_from_slice(record.head);
        block[record.length - record.tail.len()..].copy_from_slice(record.tail);
        file.write_all_at(&block, record.offset)
            .context("write a file system")?;
    }
    file.sync_all().context("write a file system")
}

/// Lets a mounted file system take all of its device.
pub fn grow(mounted: &Path) -> Result<()> {
    call(mounted, RESIZE, "max").context("grow the file system")
}

/// Makes a folder that `remove_folder` removes in one step, however much is in it.
pub fn make_folder(parent: &Path, name: &str) -> Result<()> {
    call(parent, SUBVOL_CREATE, name).with_context(|| format!("make {}", parent.join(name).display()))
}

/// Removes what `make_folder` made; the space is free a moment later.
pub fn remove_folder(parent: &Path, name: &str) -> Result<()> {
    call(parent, SNAP_DESTROY, name).with_context(|| format!("remove {}", parent.join(name).display()))
}

/// How many blocks were not what was written: somebody changed them below.
pub fn changed_blocks(mounted: &Path) -> Result<u64> {
    let folder = File::open(mounted).with_context(|| format!("open {}", mounted.display()))?;
    let mut statistics = DeviceStatistics {
        device: DEVICE,
        items: 5,
        flags: 0,
        values: [0; 5],
        unused: [0; 121],
    };
    Errno::result(unsafe { libc::ioctl(folder.as_raw_fd(), GET_DEV_STATS as _, &raw mut statistics) })
        .context("ask a file system for its errors")?;
    Ok(CHANGED.iter().map(|at| statistics.values[*at]).sum())
}

fn call(folder: &Path, command: u64, name: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid("a name is too long"));
    }
    let folder = fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    let mut arguments = VolumeArguments {
        fd: 0,
        name: [0; NAME_BYTES_MAX + 1],
    };
    arguments.name[..name.len()].copy_from_slice(name.as_bytes());
    Errno::result(unsafe { libc::ioctl(folder.as_raw_fd(), command as _, &raw const arguments) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_file_system_is_whole() {
        let all: Vec<_> = records().collect();
        let stored: usize = all
            .iter()
            .map(|record| RECORD_BYTES + record.head.len() + record.tail.len())
            .sum();
        assert_eq!(stored, EMPTY.len());
        assert!(all
            .iter()
            .all(|record| record.offset + record.length as u64 <= BYTES_MIN));
        assert!(all
            .iter()
            .all(|record| record.head.len() + record.tail.len() <= record.length));
        let superblock = all.last().unwrap();
        assert_eq!(superblock.offset, 64 << 10);
        assert_eq!(&superblock.head[64..72], b"_BHRfS_M");
        // total_bytes, see struct btrfs_super_block
        assert_eq!(superblock.head[112..120], (48u64 << 20).to_le_bytes());
    }
}
