//! A disk's partition table (UEFI specification 2.10, section 5.3), read in the guest: the kernel is built without, and the disk is the host's, who
//! is not trusted. What is not as it must be is refused.

use super::partition::Region;
use crate::error::{Context, Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Sectors of virtio disks.
pub const SECTOR_BYTES: u64 = 512;
const SIGNATURE: &[u8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: usize = 128;
/// Partitions of one table: as many as the specification's smallest table has.
const ENTRIES_MAX: usize = 128;

/// Numbers of a header that say where things are, in sectors.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    own: u64,
    other: u64,
    first_usable: u64,
    last_usable: u64,
    entries_at: u64,
    entries: usize,
    entries_crc: u32,
    disk: [u8; 16],
}

/// The partitions of a disk of `sectors` sectors by number (the first is 1), None where there is none.
pub fn read(disk: &File, sectors: u64) -> Result<Vec<Option<Region>>> {
    let primary = read_header(disk, 1, sectors).context("the partition table")?;
    let partitions = read_entries(disk, &primary).context("the partition table")?;
    let backup = read_header(disk, primary.other, sectors).context("the partition table's backup")?;
    let same = Header {
        own: backup.own,
        other: backup.other,
        entries_at: backup.entries_at,
        ..primary
    };
    if backup.other != 1 || backup != same {
        return Err(Error::damaged("the partition table's backup is of another table"));
    }
    read_entries(disk, &backup).context("the partition table's backup")?;
    Ok(partitions)
}

fn read_header(disk: &File, sector: u64, sectors: u64) -> Result<Header> {
    if sector == 0 || sector >= sectors {
        return Err(Error::damaged(format!(
            "its header can't be in sector {sector} of {sectors}"
        )));
    }
    let mut bytes = [0u8; SECTOR_BYTES as usize];
    disk.read_exact_at(&mut bytes, sector * SECTOR_BYTES)
        .context("read its header")?;
    let header = parse_header(&bytes)?;
    let table = (header.entries * ENTRY_BYTES) as u64 / SECTOR_BYTES;
    let table_end = header.entries_at.checked_add(table);
    let usable = header.first_usable <= header.last_usable && header.last_usable < sectors;
    if header.own != sector || !usable || table_end.is_none_or(|end| end > sectors) {
        return Err(Error::damaged("its header points out of the disk"));
    }
    Ok(header)
}

fn parse_header(bytes: &[u8; SECTOR_BYTES as usize]) -> Result<Header> {
    if &bytes[..8] != SIGNATURE || u32_at(bytes, 8) != REVISION || u32_at(bytes, 12) as usize != HEADER_BYTES {
        return Err(Error::damaged("its header is none"));
    }
    let mut summed = bytes[..HEADER_BYTES].to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != u32_at(bytes, 16) {
        return Err(Error::damaged("its header has a wrong checksum"));
    }
    if bytes[20..24]
        .iter()
        .chain(&bytes[HEADER_BYTES..])
        .any(|byte| *byte != 0)
    {
        return Err(Error::damaged("its header has something where nothing belongs"));
    }
    let entries = u32_at(bytes, 80) as usize;
    if entries == 0 || entries > ENTRIES_MAX || !entries.is_multiple_of(4) || u32_at(bytes, 84) as usize != ENTRY_BYTES
    {
        return Err(Error::damaged(format!(
            "it has {entries} entries of {} bytes",
            u32_at(bytes, 84)
        )));
    }
    let mut disk = [0; 16];
    disk.copy_from_slice(&bytes[56..72]);
    Ok(Header {
        own: u64_at(bytes, 24),
        other: u64_at(bytes, 32),
        first_usable: u64_at(bytes, 40),
        last_usable: u64_at(bytes, 48),
        entries_at: u64_at(bytes, 72),
        entries,
        entries_crc: u32_at(bytes, 88),
        disk,
    })
}

fn read_entries(disk: &File, header: &Header) -> Result<Vec<Option<Region>>> {
    let mut bytes = vec![0; header.entries * ENTRY_BYTES];
    disk.read_exact_at(&mut bytes, header.entries_at * SECTOR_BYTES)
        .context("read its entries")?;
    if crc32fast::hash(&bytes) != header.entries_crc {
        return Err(Error::damaged("its entries have a wrong checksum"));
    }
    let partitions = bytes
        .chunks_exact(ENTRY_BYTES)
        .enumerate()
        .map(|(at, entry)| parse_entry(entry, header).with_context(|| format!("partition {}", at + 1)))
        .collect::<Result<Vec<_>>>()?;
    let mut used: Vec<&Region> = partitions.iter().flatten().collect();
    used.sort_by_key(|region| region.start);
    if used
        .windows(2)
        .any(|pair| pair[0].start + pair[0].bytes > pair[1].start)
    {
        return Err(Error::damaged("partitions overlap"));
    }
    Ok(partitions)
}

fn parse_entry(entry: &[u8], header: &Header) -> Result<Option<Region>> {
    if entry[..16].iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    if first < header.first_usable || last > header.last_usable || first > last {
        return Err(Error::damaged("it is not within the disk"));
    }
    // The last usable sector is on the disk, so nothing here overflows.
    Ok(Some(Region {
        start: first * SECTOR_BYTES,
        bytes: (last - first + 1) * SECTOR_BYTES,
    }))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
mod tests;
