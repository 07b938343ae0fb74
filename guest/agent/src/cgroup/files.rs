//! The formats of cgroup2's files.

use crate::error::{errno_text, Context, Error, Result};
use nix::errno::Errno;
use std::path::Path;

/// A file's whole text.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Writes a value; the error names both, and is the caller's when the kernel does not take the value.
pub fn write(path: &Path, value: &str) -> Result<()> {
    let written = std::fs::write(path, value).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::ERANGE) => Error::invalid(errno_text(Errno::EINVAL)),
        _ => error.into(),
    });
    written.with_context(|| format!("write {value:?} to {}", path.display()))
}

/// The number behind `key` in lines of the form "key number".
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    pairs(text).find_map(|(name, value)| (name == key).then_some(value))
}

/// All lines of the form "key number".
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// A file with one number; "max" is the largest.
pub fn number(path: &Path) -> Option<u64> {
    parse(read(path).ok()?.trim())
}

/// A number or "max".
pub fn parse(text: &str) -> Option<u64> {
    if text == "max" {
        return Some(u64::MAX);
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "low 0\noom 1\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), Some(1));
        assert_eq!(keyed(text, "kill"), None);
    }

    #[test]
    fn max_is_the_largest_number() {
        assert_eq!(parse("max"), Some(u64::MAX));
        assert_eq!(parse("12"), Some(12));
    }
}
