//! What is needed of btrfs: an empty file system, folders that go as a whole, and its count of blocks that failed their checksums.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Written by guest/make-empty-btrfs.mjs, which has the form.
const EMPTY: &[u8] = include_bytes!("empty.btrfs");
/// What the empty one has; a smaller disk might have no room for what is in it.
pub const BYTES_MIN: u64 = 48 << 20;
const SECTOR_BYTES: u64 = 4096;
const RECORD_BYTES: usize = 16;
/// Of SHA-256, at the beginning of every block that has one.
const CHECKSUM_BYTES: usize = 32;
/// linux/btrfs.h: `_IOW(0x94, 14 | 15, struct btrfs_ioctl_vol_args)`, and `_IOWR(0x94, 52, struct btrfs_ioctl_get_dev_stats)`.
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

/// linux/btrfs_tree.h: places in `struct btrfs_super_block`, `struct btrfs_header`, `struct btrfs_item` and `struct btrfs_dev_item`.
mod place {
    pub const MAGIC: std::ops::Range<usize> = 64..72;
    pub const SUPER_TOTAL_BYTES: usize = 112;
    pub const SUPER_DEVICE: usize = 201;
    pub const OWNER: usize = 88;
    pub const ITEMS: usize = 101;
    pub const ITEM_TYPE: usize = 8;
    pub const ITEM_DATA: std::ops::Range<usize> = 17..21;
    pub const DEVICE_TOTAL_BYTES: usize = 8;
}
const MAGIC: &[u8] = b"_BHRfS_M";
const CHUNK_TREE: u64 = 3;
const DEVICE_ITEM: u8 = 216;

/// Makes an empty file system of this size at the beginning of a device; the rest of it is neither read nor written.
pub fn format(device: &Path, bytes: u64) -> Result<()> {
    let file = File::options()
        .write(true)
        .open(device)
        .with_context(|| format!("open {}", device.display()))?;
    for record in records() {
        let mut block = vec![0; record.length];
        block[..record.head.len()].copy_from_slice(record.head);
        block[record.length - record.tail.len()..].copy_from_slice(record.tail);
        resize(&mut block, bytes / SECTOR_BYTES * SECTOR_BYTES);
        file.write_all_at(&block, record.offset)
            .context("write a file system")?;
    }
    file.sync_all().context("write a file system")
}

/// Writes the file system's size where it stands: twice in the superblock, and in the device's item, the first one of the tree of chunks.
fn resize(block: &mut [u8], bytes: u64) {
    if &block[place::MAGIC] == MAGIC {
        put(block, place::SUPER_TOTAL_BYTES, bytes);
        put(block, place::SUPER_DEVICE + place::DEVICE_TOTAL_BYTES, bytes);
    } else if block[place::OWNER..place::OWNER + 8] == CHUNK_TREE.to_le_bytes() {
        let item = &block[place::ITEMS..];
        debug_assert_eq!(item[place::ITEM_TYPE], DEVICE_ITEM);
        let data = item[place::ITEM_DATA]
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        put(block, place::ITEMS + data + place::DEVICE_TOTAL_BYTES, bytes);
    } else {
        return;
    }
    let checksum = Sha256::digest(&block[CHECKSUM_BYTES..]);
    block[..CHECKSUM_BYTES].copy_from_slice(&checksum);
}

fn put(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
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
        let tree = all
            .iter()
            .find(|record| record.head[place::OWNER..place::OWNER + 8] == CHUNK_TREE.to_le_bytes());
        assert_eq!(tree.unwrap().head[place::ITEMS + place::ITEM_TYPE], DEVICE_ITEM);
        let superblock = all.last().unwrap();
        assert_eq!(superblock.offset, 64 << 10);
        assert_eq!(&superblock.head[64..72], b"_BHRfS_M");
        // total_bytes, see struct btrfs_super_block
        assert_eq!(superblock.head[112..120], BYTES_MIN.to_le_bytes());
    }

    #[test]
    fn a_file_system_has_the_size_that_it_is_made_with() {
        let made = |bytes: u64| {
            let path = std::env::temp_dir().join(format!("snp-agent-btrfs-{}", std::process::id()));
            File::create(&path).unwrap();
            format(&path, bytes).unwrap();
            let content = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            content
        };
        let block = |image: &[u8], record: &Record| {
            image[record.offset as usize..record.offset as usize + record.length].to_vec()
        };
        let (same, other) = (made(BYTES_MIN), made((300 << 20) + 5));
        for record in records() {
            let [same, other] = [&same, &other].map(|image| block(image, &record));
            assert_eq!(same[..record.head.len()], *record.head);
            assert_eq!(other[..CHECKSUM_BYTES], *Sha256::digest(&other[CHECKSUM_BYTES..]));
            let sizes = other
                .windows(8)
                .filter(|part| **part == (300u64 << 20).to_le_bytes())
                .count();
            let changed = other != same;
            assert_eq!(changed, sizes > 0);
        }
    }
}
