//! One header block of a tar archive: fields at fixed places (POSIX.1-1988, pax Interchange Format; GNU tar manual, "Basic Tar Format").

use crate::tar::BLOCK;
use std::ops::Range;

const CHECKSUM: Range<usize> = 148..156;

/// A header with a valid checksum.
pub struct Header {
    block: [u8; BLOCK],
}

impl Header {
    /// `None` when the checksum is wrong.
    pub fn new(block: [u8; BLOCK]) -> Option<Self> {
        let given = number(&block[CHECKSUM])?;
        let counted = |index: usize, byte: u8| if CHECKSUM.contains(&index) { b' ' } else { byte };
        let bytes = || block.iter().enumerate().map(|(index, byte)| counted(index, *byte));
        let unsigned: i64 = bytes().map(i64::from).sum();
        // Old programs summed signed characters.
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        (given == unsigned || given == signed).then_some(Self { block })
    }

    /// All of it.
    pub fn block(&self) -> &[u8; BLOCK] {
        &self.block
    }

    /// The type flag.
    pub fn kind(&self) -> u8 {
        self.block[156]
    }

    /// A number; `None` when it is none or does not fit.
    pub fn number(&self, range: Range<usize>) -> Option<i64> {
        number(&self.block[range])
    }

    /// The name, with the prefix where the format has one.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let posix = self.block[257..263] == *b"ustar\0";
        let star = self.block[508..512] == *b"tar\0";
        let prefix = text(&self.block[if star { 345..476 } else { 345..500 }]);
        if !posix || prefix.is_empty() {
            return name;
        }
        [&prefix, &b"/"[..], &name].concat()
    }
}

/// A text field: up to the first NUL.
pub fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// A number: octal digits between spaces and NULs, or GNU's base 256, in two's complement, when the first bit is set.
pub fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base256(field);
    }
    let trimmed = field.trim_ascii_start();
    let start = trimmed
        .iter()
        .position(|byte| !matches!(byte, b' ' | 0))
        .unwrap_or(trimmed.len());
    let digits: &[u8] = &trimmed[start..];
    let end = digits
        .iter()
        .position(|byte| matches!(byte, b' ' | 0))
        .unwrap_or(digits.len());
    let rest_is_padding = digits[end..].iter().all(|byte| matches!(byte, b' ' | 0));
    if end == 0 {
        return Some(0);
    }
    if !rest_is_padding || !digits[..end].iter().all(|digit| matches!(digit, b'0'..=b'7')) {
        return None;
    }
    digits[..end].iter().try_fold(0_i64, |value, digit| {
        value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    // The flag bit gives way to the sign.
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let start: i64 = if negative { -1 } else { 0 };
    std::iter::once(&first)
        .chain(&field[1..])
        .try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(1 << 33));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            None
        );
    }
}
