use super::*;
use std::io::{Seek, SeekFrom, Write};

const SECTORS: u64 = 4096;
const FIRST: u64 = 2048;
const LAST_USABLE: u64 = SECTORS - 34;

/// A sound table with partitions of the given first and last sectors.
fn table(partitions: &[(u64, u64)]) -> Vec<u8> {
    let mut entries = vec![0u8; ENTRIES_MAX * ENTRY_BYTES];
    for (at, (first, last)) in partitions.iter().enumerate() {
        let entry = &mut entries[at * ENTRY_BYTES..];
        entry[..16].fill(0xaf);
        entry[16..32].fill(at as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let mut disk = vec![0u8; (SECTORS * SECTOR_BYTES) as usize];
    let places = [(1, SECTORS - 1, 2), (SECTORS - 1, 1, SECTORS - 33)];
    for (own, other, entries_at) in places {
        let mut header = vec![0u8; HEADER_BYTES];
        header[..8].copy_from_slice(SIGNATURE);
        header[8..12].copy_from_slice(&REVISION.to_le_bytes());
        header[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        for (at, number) in [(24, own), (32, other), (40, 34), (48, LAST_USABLE), (72, entries_at)] {
            header[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        header[56..72].fill(7);
        header[80..84].copy_from_slice(&(ENTRIES_MAX as u32).to_le_bytes());
        header[84..88].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let sum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let at = (own * SECTOR_BYTES) as usize;
        disk[at..at + HEADER_BYTES].copy_from_slice(&header);
        let at = (entries_at * SECTOR_BYTES) as usize;
        disk[at..at + entries.len()].copy_from_slice(&entries);
    }
    disk
}

/// An unnamed file with the bytes.
fn file(bytes: &[u8]) -> File {
    let raw = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

#[test]
fn partitions_are_found_by_their_numbers() {
    let disk = table(&[(FIRST, FIRST + 7), (FIRST + 8, FIRST + 8)]);
    let partitions = read(&file(&disk), SECTORS).unwrap();
    let region = |sector: u64, count: u64| {
        Some(Region {
            start: sector * SECTOR_BYTES,
            bytes: count * SECTOR_BYTES,
        })
    };
    assert_eq!(partitions.len(), ENTRIES_MAX);
    assert_eq!(partitions[..3], [region(FIRST, 8), region(FIRST + 8, 1), None]);
}

#[test]
fn a_flipped_byte_anywhere_in_the_two_tables_is_noticed() {
    let sound = table(&[(FIRST, FIRST + 7), (FIRST + 8, FIRST + 8)]);
    let table_bytes = 33 * SECTOR_BYTES as usize;
    let primary = SECTOR_BYTES as usize..SECTOR_BYTES as usize + table_bytes;
    let backup = sound.len() - table_bytes..sound.len();
    for at in primary.chain(backup).step_by(7) {
        let mut disk = sound.clone();
        disk[at] ^= 0x10;
        let error = read(&file(&disk), SECTORS).unwrap_err();
        assert!(error.text.contains("partition table"), "byte {at}: {error}");
    }
}

#[test]
fn partitions_out_of_the_disk_or_over_each_other_are_refused() {
    for wrong in [
        vec![(FIRST, SECTORS)],
        vec![(2, FIRST)],
        vec![(FIRST + 1, FIRST)],
        vec![(FIRST, u64::MAX)],
        vec![(FIRST, FIRST + 8), (FIRST + 8, FIRST + 9)],
    ] {
        assert!(read(&file(&table(&wrong)), SECTORS).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_disk_that_was_cut_is_refused() {
    let disk = table(&[(FIRST, FIRST + 7)]);
    assert!(read(&file(&disk[..disk.len() / 2]), SECTORS / 2).is_err());
    assert!(read(&file(&disk[..512]), 1).is_err());
}
