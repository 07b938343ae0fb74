//! Partitions of a disk as devices of their own. The kernel reads no tables: it is told where each partition is.

use super::gpt;
use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// linux/blkpg.h
const BLKPG: u64 = 0x1269;
const ADD_PARTITION: libc::c_int = 1;
const DEL_PARTITION: libc::c_int = 2;
/// linux/fs.h: `_IOR(0x12, 114, size_t)`
const BLKGETSIZE64: u64 = 0x8008_1272;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub bytes: u64,
}

/// `struct blkpg_partition`
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: libc::c_int,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *const BlkpgPartition,
}

/// A partition's device; it goes with its owner.
#[derive(Debug)]
pub struct Partition {
    disk: PathBuf,
    number: u32,
    /// The device file.
    pub path: PathBuf,
}

impl Partition {
    /// Finds partition `number` in a disk's table and has the kernel make its device.
    pub fn open(disk: &Path, number: u32) -> Result<Self> {
        let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
        let partitions = gpt::read(&file, size(&file)? / gpt::SECTOR_BYTES)?;
        let found = partitions.get(number.wrapping_sub(1) as usize).copied().flatten();
        let region = found.ok_or_else(|| Error::invalid(format!("there is no partition {number}")))?;
        match change(&file, ADD_PARTITION, number, region) {
            Ok(()) => {}
            // It stays while its last user goes, which another container's end may be: it is the same when it is at the same place.
            Err(Errno::EBUSY) if present(disk, number)? == Some(region) => {}
            Err(errno) => return Err(errno).with_context(|| format!("make a device of partition {number}")),
        }
        Ok(Self {
            disk: disk.to_path_buf(),
            number,
            path: name(disk, number).into(),
        })
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        // One that is still in use, or whose disk was pulled, goes with the disk.
        if let Ok(file) = File::open(&self.disk) {
            let _ = change(&file, DEL_PARTITION, self.number, Region { start: 0, bytes: 0 });
        }
    }
}

fn change(disk: &File, operation: libc::c_int, number: u32, region: Region) -> std::result::Result<(), Errno> {
    let partition = BlkpgPartition {
        start: region.start as i64,
        length: region.bytes as i64,
        number: number as libc::c_int,
        names: [0; 128],
    };
    let argument = BlkpgArgument {
        operation,
        flags: 0,
        length: std::mem::size_of::<BlkpgPartition>() as libc::c_int,
        data: &raw const partition,
    };
    Errno::result(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const argument) }).map(drop)
}

/// Where the kernel has a partition now, if it has it.
fn present(disk: &Path, number: u32) -> Result<Option<Region>> {
    let partition = name(disk, number);
    let Some(name) = Path::new(&partition).file_name() else {
        return Ok(None);
    };
    let folder = Path::new("/sys/class/block").join(name);
    let sectors = |file: &str| -> Option<u64> { fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok() };
    let region = |(start, count): (u64, u64)| Region {
        start: start * gpt::SECTOR_BYTES,
        bytes: count * gpt::SECTOR_BYTES,
    };
    Ok(sectors("start").zip(sectors("size")).map(region))
}

/// The device file of a disk's partition: `vda` and 2 give `vda2`; a name that ends in a digit gets a `p` in between.
fn name(disk: &Path, number: u32) -> String {
    let name = disk.to_string_lossy();
    let between = if name.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{name}{between}{number}")
}

/// A block device's length in bytes.
pub fn size(device: &File) -> Result<u64> {
    let mut bytes = 0u64;
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) })
        .context("ask a disk for its size")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(name(Path::new("/dev/vda"), 2), "/dev/vda2");
        assert_eq!(name(Path::new("/dev/nvme0n1"), 2), "/dev/nvme0n1p2");
    }
}
