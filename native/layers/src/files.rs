//! Single small files of a layer, for those who have to know an image's accounts before there is a disk of it.

use crate::convert::{check_digests, Expected};
use crate::error::{shown, Error, Result};
use crate::input::Input;
use crate::tar::{Archive, Entry, Kind};
use crate::tree::{role, Role};
use std::collections::BTreeMap;
use std::io::Read;

const WHITEOUT: &str = ".wh.";
/// Account files of large sites have some ten thousand lines.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// What a layer says of files: their text, or nothing where it hides those of lower layers (by a whiteout, or something else in that place). Files of which
/// the layer says nothing are missing.
pub type Files = BTreeMap<String, Option<String>>;

/// Reads the layer to its end.
/// # Errors
/// `Layer` for a blob that is not what is expected, or a file that is too large; `Io`
pub fn read(input: Input, expected: &Expected, paths: &[String]) -> Result<Files> {
    let mut archive = Archive::new(input);
    let found = find(&mut archive, paths);
    check_digests(archive.into_inner().finish()?, expected)?;
    found
}

fn find(archive: &mut Archive<impl Read>, paths: &[String]) -> Result<Files> {
    let (mut files, mut hidden) = (Files::new(), Files::new());
    while let Some(entry) = archive.next()? {
        let name = plain(&entry.path);
        let role = role(&entry);
        for path in paths {
            if role != Role::Plain {
                if hides(&name, role, path) {
                    hidden.insert(path.clone(), None);
                }
            } else if name == *path {
                files.insert(path.clone(), text(archive, &entry)?);
            } else if entry.kind != Kind::Folder && is_below(path, &name) {
                files.insert(path.clone(), None);
            }
        }
    }
    // A whiteout is about what lies below the layer, wherever it stands in the archive.
    hidden.append(&mut files);
    Ok(hidden)
}

fn text(archive: &mut Archive<impl Read>, entry: &Entry) -> Result<Option<String>> {
    if entry.kind != Kind::File || entry.pieces.is_some() {
        return Ok(None);
    }
    let size = usize::try_from(entry.size)
        .ok()
        .filter(|_| entry.size <= FILE_MAX_BYTES);
    let size = size.ok_or_else(|| {
        let text = format!(
            "{}: it has {} bytes, more than {FILE_MAX_BYTES}",
            shown(&entry.path),
            entry.size
        );
        Error::Layer(text)
    })?;
    let mut bytes = vec![0; size];
    archive.read_exact(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The path without what says nothing: `./etc//passwd` is `etc/passwd`.
fn plain(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    names.join("/")
}

fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether a whiteout is one of the file, of a folder above it, or of all that lower layers have in one.
fn hides(name: &str, role: Role, path: &str) -> bool {
    let (folder, last) = name.rsplit_once('/').unwrap_or(("", name));
    match role {
        Role::Opaque => is_below(path, folder),
        Role::Whiteout => {
            let gone = last.strip_prefix(WHITEOUT).unwrap_or(last);
            let gone = if folder.is_empty() {
                gone.to_string()
            } else {
                format!("{folder}/{gone}")
            };
            gone == path || is_below(path, &gone)
        }
        Role::Plain | Role::Nothing => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::BLOCK;

    fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, data) in entries {
            let mut header = vec![0u8; BLOCK];
            header[..path.len()].copy_from_slice(path.as_bytes());
            for (at, value) in [
                (100, "0000644"),
                (108, "0000000"),
                (116, "0000000"),
                (136, "00000000000"),
            ] {
                header[at..at + value.len()].copy_from_slice(value.as_bytes());
            }
            header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            header[156] = *kind;
            header[257..263].copy_from_slice(b"ustar\0");
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            bytes.extend(header);
            bytes.extend(data.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend([0; 2 * BLOCK]);
        bytes
    }

    fn found(entries: &[(&str, u8, &str)]) -> Vec<(String, Option<String>)> {
        let bytes = archive(entries);
        let paths = ["etc/passwd".to_string(), "etc/group".to_string()];
        let files = find(&mut Archive::new(bytes.as_slice()), &paths).unwrap();
        files.into_iter().collect()
    }

    fn told(path: &str, text: Option<&str>) -> (String, Option<String>) {
        (path.into(), text.map(String::from))
    }

    #[test]
    fn files_are_given_by_their_plain_names() {
        let files = found(&[
            ("./etc//passwd", b'0', "a"),
            ("etc/groups", b'0', "b"),
            ("x/etc/group", b'0', "c"),
        ]);
        assert_eq!(files, [told("etc/passwd", Some("a"))]);
        assert_eq!(
            found(&[("etc/passwd", b'0', "a"), ("etc/passwd", b'0', "")]),
            [told("etc/passwd", Some(""))]
        );
    }

    #[test]
    fn whiteouts_hide_lower_layers_and_not_their_own() {
        let both = [told("etc/group", None), told("etc/passwd", None)];
        assert_eq!(found(&[("etc/.wh.passwd", b'0', "")]), [told("etc/passwd", None)]);
        assert_eq!(found(&[(".wh.etc", b'0', "")]), both);
        assert_eq!(found(&[("etc/.wh..wh..opq", b'0', "")]), both);
        let replaced = [told("etc/group", None), told("etc/passwd", Some("new"))];
        assert_eq!(
            found(&[("etc/passwd", b'0', "new"), ("etc/.wh..wh..opq", b'0', "")]),
            replaced
        );
        assert_eq!(
            found(&[("other/.wh..wh..opq", b'0', ""), ("etc/.wh.pass", b'0', "")]),
            []
        );
    }

    #[test]
    fn what_is_no_plain_file_hides_one() {
        assert_eq!(found(&[("etc/passwd", b'5', "")]), [told("etc/passwd", None)]);
        assert_eq!(
            found(&[("etc", b'2', "")]),
            [told("etc/group", None), told("etc/passwd", None)]
        );
        assert_eq!(found(&[("etc", b'5', "")]), []);
    }

    #[test]
    fn a_file_that_is_too_large_is_named() {
        let large = "x".repeat(FILE_MAX_BYTES as usize + 1);
        let bytes = archive(&[("etc/passwd", b'0', &large)]);
        let error = find(&mut Archive::new(bytes.as_slice()), &["etc/passwd".to_string()]).unwrap_err();
        assert!(
            error.to_string().contains("\"etc/passwd\": it has 4194305 bytes"),
            "{error}"
        );
    }
}
