//! Extended attributes as EROFS stores them beside an inode (Linux, fs/erofs/erofs_fs.h: `erofs_xattr_ibody_header`, `erofs_xattr_entry`).

const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4;
/// Namespaces by their indices; `system.posix_acl_*` have the whole name in theirs.
const NAMESPACES: [(&[u8], u8); 4] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
];
const TRUSTED: u8 = 4;
const NAME_MAX: usize = 255;
/// `e_value_size` has 16 bits.
const VALUE_MAX: usize = 0xffff;
/// `i_xattr_icount` counts units of four bytes in 16 bits.
const ALL_MAX: usize = 0xffff * 4;

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// The mark of a folder in which nothing of lower layers shows (Linux, Documentation/filesystems/overlayfs.rst).
pub fn opaque() -> Xattr {
    Xattr {
        index: TRUSTED,
        name: b"overlay.opaque".to_vec(),
        value: b"y".to_vec(),
    }
}

/// Those attributes of an entry that a container gets, in the order of their names: `trusted.` ones belong to the host's overlayfs, and
/// containerd leaves them out as well, as it does with namespaces that Linux does not know.
/// # Errors
/// what can't be stored
pub fn kept(given: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Xattr>, String> {
    let mut kept = Vec::new();
    for (whole, value) in given {
        let known = NAMESPACES.iter().find(|(prefix, _)| match prefix.last() {
            Some(b'.') => whole.starts_with(prefix) && whole.len() > prefix.len(),
            _ => whole == prefix,
        });
        let Some((prefix, index)) = known else { continue };
        if whole.len() > NAME_MAX || whole.contains(&0) || value.len() > VALUE_MAX {
            return Err("an extended attribute is too long".into());
        }
        kept.push(Xattr {
            index: *index,
            name: whole[prefix.len()..].to_vec(),
            value: value.clone(),
        });
    }
    kept.sort();
    // The mark of an opaque folder may come to them.
    if bytes(&kept) + bytes(&[opaque()]) > ALL_MAX {
        return Err("its extended attributes are too long together".into());
    }
    Ok(kept)
}

/// What attributes take beside the inode.
pub fn bytes(xattrs: &[Xattr]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let one = |xattr: &Xattr| (ENTRY_BYTES + xattr.name.len() + xattr.value.len()).next_multiple_of(4);
    HEADER_BYTES + xattrs.iter().map(one).sum::<usize>()
}

/// `i_xattr_icount`.
pub fn count(bytes: usize) -> u16 {
    let units = bytes.checked_sub(HEADER_BYTES).map_or(0, |entries| entries / 4 + 1);
    u16::try_from(units).unwrap_or(u16::MAX)
}

/// Appends them in the form of the image.
pub fn write(xattrs: &[Xattr], to: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    to.extend([0; HEADER_BYTES]);
    for xattr in xattrs {
        let value_bytes = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
        to.push(u8::try_from(xattr.name.len()).unwrap_or(u8::MAX));
        to.push(xattr.index);
        to.extend(value_bytes.to_le_bytes());
        to.extend(&xattr.name);
        to.extend(&xattr.value);
        let padding = (xattr.name.len() + xattr.value.len()).next_multiple_of(4) - xattr.name.len() - xattr.value.len();
        to.extend(&[0; 4][..padding]);
    }
}
