//! Which Go modules a program was built from: every Go program says so in its section `.go.buildinfo`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Whether the program contains the Go module. False when that can't be read.
pub fn is_built_from(program: &Path, module: &str) -> bool {
    let modules = File::open(program).ok().and_then(|file| go_modules(&file));
    modules.is_some_and(|text| text.windows(module.len()).any(|part| part == module.as_bytes()))
}

/// The module text of a Go program: section `.go.buildinfo` of a 64-bit little-endian ELF file, in the form of Go 1.18
/// and later (a 32-byte header whose byte 15 has bit 1 set, then two strings, each after its length as a varint).
fn go_modules(file: &File) -> Option<Vec<u8>> {
    let header = read_at(file, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64::from_le_bytes(header[40..48].try_into().ok()?);
    let (entry, count, names) = (u16_at(&header, 58)?, u16_at(&header, 60)?, u16_at(&header, 62)?);
    if entry != 64 || names >= count || count > 512 {
        return None;
    }
    let sections = read_at(file, table, 64 * usize::from(count))?;
    let section = |index: u16| sections.get(64 * usize::from(index)..64 * (usize::from(index) + 1));
    let place = |entry: &[u8]| -> Option<(u64, usize)> {
        let offset = u64::from_le_bytes(entry[24..32].try_into().ok()?);
        let size = u64::from_le_bytes(entry[32..40].try_into().ok()?);
        Some((offset, usize::try_from(size.min(1 << 20)).ok()?))
    };
    let (offset, size) = place(section(names)?)?;
    let names = read_at(file, offset, size)?;
    let wanted = b".go.buildinfo\0";
    let found = (0..count).filter_map(section).find(|entry| {
        let name = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        names.get(name..).is_some_and(|name| name.starts_with(wanted))
    })?;
    let (offset, size) = place(found)?;
    let info = read_at(file, offset, size)?;
    if !info.starts_with(b"\xff Go buildinf:") || info.get(15)? & 2 == 0 {
        return None;
    }
    let (_, rest) = go_string(info.get(32..)?)?;
    go_string(rest).map(|(modules, _)| modules.to_vec())
}

fn go_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = bytes.iter().take(4).take_while(|byte| **byte & 0x80 != 0).count();
    let length = bytes
        .iter()
        .take(digits + 1)
        .rev()
        .fold(0usize, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
    bytes.get(digits + 1..)?.split_at_checked(length)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, Random};

    const V1: &str = "path\tgithub.com/containerd/containerd/cmd/containerd\n";
    const V2: &str = "path\tgithub.com/containerd/containerd/v2/cmd/containerd\n";

    /// An ELF file with nothing but a `.go.buildinfo` section.
    fn go_program(modules: &str) -> Vec<u8> {
        let names = b"\0.go.buildinfo\0.shstrtab\0";
        let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
        info.resize(32, 0);
        info.extend_from_slice(b"\x08go1.27.1");
        info.extend_from_slice(&[modules.len() as u8 & 0x7f | 0x80, (modules.len() >> 7) as u8]);
        info.extend_from_slice(modules.as_bytes());
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        let table = 64 + info.len() + names.len();
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        let sections = [(0u32, 0, 0), (1, 64, info.len()), (15, 64 + info.len(), names.len())];
        file.extend_from_slice(&info);
        file.extend_from_slice(names);
        for (name, offset, size) in sections {
            let mut section = [0u8; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&section);
        }
        file
    }

    #[test]
    fn tells_containerd_2_from_1_7_by_its_module() {
        let folder = Folder::new("containerd");
        for (modules, wanted) in [(V2, true), (V1, false)] {
            let program = folder.path("containerd");
            std::fs::write(&program, go_program(modules)).unwrap();
            assert_eq!(is_built_from(&program, "github.com/containerd/containerd/v2"), wanted);
        }
    }

    #[test]
    fn survives_programs_that_are_broken() {
        let folder = Folder::new("broken");
        let program = folder.path("containerd");
        let whole = go_program(V2);
        let mut random = Random::new(3);
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                let place = random.below(bytes.len());
                bytes[place] = random.below(256) as u8;
            }
            bytes.truncate(random.below(bytes.len() + 1));
            std::fs::write(&program, &bytes).unwrap();
            is_built_from(&program, "github.com/containerd/containerd/v2");
        }
    }
}
