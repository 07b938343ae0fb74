//! Records of a pax header (POSIX.1-2001, "pax Extended Header"), those that layers use.

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Beyond this a time is no time: about 292 million years.
const SECONDS_MAX: i64 = i64::MAX / 1000;

/// What the records of one entry say.
#[derive(Debug, Default)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub target: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// GNU's records of sparse files, versions 0.0 to 1.0.
#[derive(Debug, Default)]
pub struct Sparse {
    pub name: Option<Vec<u8>>,
    /// With the holes: its presence makes a file sparse.
    pub size: Option<u64>,
    /// Versions 0.0 and 0.1: offsets and lengths in turn. Version 1.0 has them before the contents.
    pub map: Option<Vec<u64>>,
}

/// Reads records: `<length> <key>=<value>\n`. A later one of the same key counts; an empty value takes the record back.
/// # Errors
/// what is wrong with them
pub fn parse(mut rest: &[u8]) -> Result<Records, String> {
    let mut records = Records::default();
    let mut version_one = false;
    while !rest.is_empty() {
        let (record, after) = split_record(rest).ok_or("its pax records are damaged")?;
        rest = after;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.ok_or("a pax record has no value")?);
        let value = &value[1..];
        if key == b"GNU.sparse.major" {
            version_one = value == b"1";
        }
        take(&mut records, key, value).ok_or_else(|| {
            format!(
                "its pax record {} is damaged",
                crate::error::shown(&key[..key.len().min(64)])
            )
        })?;
    }
    if version_one {
        records.sparse.map = None;
    } else if records.sparse.size.is_some() && records.sparse.map.is_none() {
        records.sparse.map = Some(Vec::new());
    }
    Ok(records)
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return None;
    }
    Some((&bytes[space + 1..length - 1], &bytes[length..]))
}

/// `None` when the value is not of the key's form.
fn take(records: &mut Records, key: &[u8], value: &[u8]) -> Option<()> {
    if let Some(name) = key.strip_prefix(XATTR) {
        records.xattrs.retain(|(known, _)| known != name);
        if !value.is_empty() {
            records.xattrs.push((name.to_vec(), value.to_vec()));
        }
        return Some(());
    }
    let text = || (!value.is_empty()).then(|| value.to_vec());
    let natural = || decimal(value).and_then(|number| u64::try_from(number).ok());
    let sparse = &mut records.sparse;
    match key {
        b"path" | b"linkpath" | b"GNU.sparse.name" if value.contains(&0) => return None,
        b"path" => records.path = text(),
        b"linkpath" => records.target = text(),
        b"size" if value.is_empty() => records.size = None,
        b"size" => records.size = Some(natural()?),
        b"uid" => records.uid = optional(value)?,
        b"gid" => records.gid = optional(value)?,
        b"mtime" if value.is_empty() => records.mtime = None,
        b"mtime" => records.mtime = Some(time(value)?),
        b"GNU.sparse.name" => sparse.name = text(),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = Some(natural()?),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.map.get_or_insert_default().push(natural()?),
        b"GNU.sparse.map" => {
            let numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
            let read = |number| decimal(number).and_then(|number| u64::try_from(number).ok());
            sparse.map = Some(numbers.map(read).collect::<Option<Vec<_>>>()?);
        }
        _ => {}
    }
    Some(())
}

fn optional(value: &[u8]) -> Option<Option<i64>> {
    if value.is_empty() {
        return Some(None);
    }
    decimal(value).map(Some)
}

/// A decimal number, with a sign when it is negative.
pub fn decimal(digits: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok()
}

/// Seconds with a fraction of any length; what is below a nanosecond is dropped. Gives whole seconds, rounded down, and nanoseconds.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds = decimal(whole.as_bytes())?;
    if seconds.abs() > SECONDS_MAX || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(if negative && nanos > 0 {
        (seconds - 1, 1_000_000_000 - nanos)
    } else {
        (seconds, nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b"99999999999999999999"), None);
    }

    #[test]
    fn damaged_records_are_refused() {
        for damaged in ["5 a=b", "99 path=x\n", "0 a=b\n", "9 path=\0x\n", "x", "6 size\n"] {
            assert!(parse(damaged.as_bytes()).is_err(), "{damaged:?}");
        }
        assert_eq!(parse(b"9 path=x\n").unwrap().path.as_deref(), Some(&b"x"[..]));
    }
}
