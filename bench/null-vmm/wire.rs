//! The little of protobuf that is needed: the fields of a message, and messages of a few fields.

/// The value of a field.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in their order; ends at what is malformed.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            1 => Value::Bytes(take(&mut self.0, 8)?),
            2 => {
                let length = varint(&mut self.0)?;
                Value::Bytes(take(&mut self.0, length as usize)?)
            }
            5 => Value::Bytes(take(&mut self.0, 4)?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// The text of a field; empty when there is none.
pub fn text(message: &[u8], field: u64) -> String {
    bytes(message, field).map_or(String::new(), |found| String::from_utf8_lossy(found).into_owned())
}

/// The bytes of a field.
pub fn bytes(message: &[u8], field: u64) -> Option<&[u8]> {
    Fields(message).find_map(|(number, value)| match value {
        Value::Bytes(found) if number == field => Some(found),
        _ => None,
    })
}

/// The texts of a repeated field.
pub fn texts(message: &[u8], field: u64) -> Vec<String> {
    let found = Fields(message).filter_map(|(number, value)| match value {
        Value::Bytes(found) if number == field => Some(String::from_utf8_lossy(found).into_owned()),
        _ => None,
    });
    found.collect()
}

/// The number of a field; 0 when there is none.
pub fn number(message: &[u8], field: u64) -> u64 {
    let found = Fields(message).find_map(|(number, value)| match value {
        Value::Number(found) if number == field => Some(found),
        _ => None,
    });
    found.unwrap_or(0)
}

/// Appends a number as a field.
pub fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(message, field << 3);
    put_varint(message, value);
}

/// Appends bytes as a field.
pub fn put_bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_varint(message, field << 3 | 2);
    put_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}
