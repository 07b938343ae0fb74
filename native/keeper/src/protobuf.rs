//! The little of protobuf's wire format that containerd's start-up messages need.

/// One field's value. Strings, bytes and messages are all `Bytes`.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// Reads a whole message into its fields, in order. Nothing when it is not well formed (a field that is cut off, a
/// number of more than ten bytes, field number zero, or a group, which no message here uses).
pub fn fields(message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut rest = message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(number(&mut rest)?),
            1 => take(&mut rest, 8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(number(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => take(&mut rest, 4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        found.push((key >> 3, value));
    }
    Some(found)
}

/// The last value of a bytes field, as protobuf wants it for a field that is not repeated.
pub fn bytes<'a>(fields: &[(u64, Value<'a>)], wanted: u64) -> Option<&'a [u8]> {
    fields.iter().rev().find_map(|(field, value)| match value {
        Value::Bytes(bytes) if *field == wanted => Some(*bytes),
        _ => None,
    })
}

/// As [`bytes`], for a string; nothing when it is no UTF-8.
pub fn text<'a>(fields: &[(u64, Value<'a>)], wanted: u64) -> Option<&'a str> {
    bytes(fields, wanted).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for index in 0..10 {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f).checked_shl(7 * index)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

/// Builds a message, field by field. Empty strings and zeros are left out, as proto3 does.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty message.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds an integer (not zig-zag; negative values as their 64-bit two's complement).
    pub fn number(mut self, field: u64, value: u64) -> Writer {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
        self
    }

    /// Adds a string, bytes or a message's encoding.
    pub fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Writer {
        let value = value.as_ref();
        if !value.is_empty() {
            self.varint(field << 3 | 2);
            self.varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }
        self
    }

    /// The encoded message.
    pub fn done(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let message = Writer::new()
            .number(1, 300)
            .bytes(2, "hello")
            .number(3, u64::MAX)
            .number(4, 0)
            .bytes(5, "")
            .done();
        let read = fields(&message).unwrap();
        assert_eq!(
            read,
            vec![
                (1, Value::Number(300)),
                (2, Value::Bytes(b"hello")),
                (3, Value::Number(u64::MAX))
            ]
        );
        assert_eq!(text(&read, 2), Some("hello"));
        assert_eq!(text(&read, 9), None);
    }

    #[test]
    fn refuses_broken_messages() {
        for broken in [
            &[0x0a, 5, 1][..],
            &[0x08],
            &[0x0b],
            &[0x02, 0],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
        ] {
            assert_eq!(fields(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn takes_the_last_of_repeated_fields() {
        let message = Writer::new().bytes(1, "a").bytes(1, "b").done();
        assert_eq!(text(&fields(&message).unwrap(), 1), Some("b"));
    }

    #[test]
    fn survives_random_bytes() {
        let mut random = crate::testing::Random::new(7);
        for _ in 0..200_000 {
            let message = random.bytes(40);
            if let Some(read) = fields(&message) {
                assert!(read.len() <= message.len());
            }
        }
    }
}
