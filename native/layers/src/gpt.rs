//! The partition table of a disk of layers (UEFI specification, section 5, "GUID Partition Table"), which follows from its layers alone.

use crate::input::Hash;
use sha2::{Digest, Sha256};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Where the first partition begins.
pub const FIRST_SECTOR: u64 = 2048;
/// Layers of one disk.
pub const LAYERS_MAX: usize = 128;
const ENTRY_BYTES: usize = 128;
const TABLE_SECTORS: u64 = (LAYERS_MAX * ENTRY_BYTES) as u64 / SECTOR;
const HEADER_BYTES: u32 = 92;
/// Behind the last partition: the second table with its header, and zeros before it up to whole blocks of 4096 bytes.
pub const TAIL_BYTES: usize = 20_480;
/// 0FC63DAF-8483-4772-8E79-3D69D8477DE4, "Linux filesystem data", as it is stored.
const TYPE: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// One partition.
pub struct Partition {
    pub bytes: u64,
    pub root: Hash,
}

/// What of a disk lies before and behind its partitions.
pub struct Table {
    /// The protective MBR, the header and the entries.
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    /// Where each partition begins, in bytes.
    pub starts: Vec<u64>,
    pub disk_bytes: u64,
}

/// Lays partitions out, the topmost layer first.
pub fn table(partitions: &[Partition]) -> Table {
    let mut starts = Vec::new();
    let mut end = FIRST_SECTOR * SECTOR;
    let mut entries = Vec::with_capacity(LAYERS_MAX * ENTRY_BYTES);
    for (index, partition) in partitions.iter().enumerate() {
        starts.push(end);
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        entries.extend(TYPE);
        entries.extend(identifier(&[b"snp-layer", &number.to_le_bytes(), &partition.root]));
        entries.extend((end / SECTOR).to_le_bytes());
        end += partition.bytes;
        entries.extend((end / SECTOR - 1).to_le_bytes());
        entries.resize((index + 1) * ENTRY_BYTES, 0);
    }
    entries.resize(LAYERS_MAX * ENTRY_BYTES, 0);
    let roots = partitions.iter().map(|partition| partition.root.as_slice());
    let parts: Vec<&[u8]> = std::iter::once(b"snp-disk".as_slice()).chain(roots).collect();
    let disk = identifier(&parts);
    let disk_bytes = end + TAIL_BYTES as u64;
    let last = disk_bytes / SECTOR - 1;
    let header =
        |here: u64, other: u64, table: u64| header(&disk, here, other, table, last - TABLE_SECTORS - 1, crc(&entries));
    let head = [protective_mbr(last), header(1, last, 2), entries.clone()].concat();
    let second = [entries.clone(), header(last, 1, last - TABLE_SECTORS)].concat();
    let mut tail = vec![0; TAIL_BYTES - second.len()];
    tail.extend(second);
    Table {
        head,
        tail,
        starts,
        disk_bytes,
    }
}

/// The first 16 bytes of a hash, marked as an identifier of one's own making (RFC 9562, version 8).
fn identifier(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let whole: Hash = hash.finalize().into();
    let mut bytes: [u8; 16] = std::array::from_fn(|index| whole[index]);
    // The third field is stored with its low byte first.
    bytes[7] = (bytes[7] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

fn protective_mbr(last: u64) -> Vec<u8> {
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    let mut mbr = vec![0; 446];
    mbr.extend([0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr.extend(1_u32.to_le_bytes());
    mbr.extend(sectors.to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xaa]);
    mbr
}

fn header(disk: &[u8; 16], here: u64, other: u64, table: u64, last_usable: u64, entries_crc: u32) -> Vec<u8> {
    let mut header = b"EFI PART".to_vec();
    header.extend(0x1_0000_u32.to_le_bytes());
    header.extend(HEADER_BYTES.to_le_bytes());
    header.extend([0; 8]);
    for sector in [here, other, FIRST_SECTOR, last_usable] {
        header.extend(sector.to_le_bytes());
    }
    header.extend(disk);
    header.extend(table.to_le_bytes());
    header.extend((LAYERS_MAX as u32).to_le_bytes());
    header.extend((ENTRY_BYTES as u32).to_le_bytes());
    header.extend(entries_crc.to_le_bytes());
    let own = crc(&header);
    header[16..20].copy_from_slice(&own.to_le_bytes());
    header.resize(SECTOR as usize, 0);
    header
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
