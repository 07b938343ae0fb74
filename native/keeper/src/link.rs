//! The frames between keeper and snpd (`docs/contracts.md`, "The link") and the header of containerd's ttrpc frames.

/// Length of the link's own header before the payload: the length field, the kind and the channel.
pub const LINK_HEADER: usize = 9;
/// Largest value of the link's length field, which counts everything after itself.
pub const MAX_LINK_REST: usize = (4 << 20) + (64 << 10);
/// Length of a ttrpc header: u32 length, u32 stream, u8 type, u8 flags, all big-endian.
pub const TTRPC_HEADER: usize = 10;
/// Largest body of a ttrpc frame.
pub const MAX_TTRPC_BODY: usize = 4 << 20;
/// ttrpc's frame types that matter here.
pub const TTRPC_REQUEST: u8 = 1;
pub const TTRPC_RESPONSE: u8 = 2;

/// The kinds of link frames.
pub mod kind {
    pub const HELLO: u8 = 1;
    pub const OPENED: u8 = 2;
    pub const CLOSED: u8 = 3;
    pub const FRAME: u8 = 4;
    pub const REPLAY: u8 = 5;
    pub const STREAM_OPEN: u8 = 6;
    pub const STREAM_CLOSE: u8 = 7;
    pub const STREAM_STATE: u8 = 8;
    pub const END: u8 = 9;
    pub const STREAM_ASK: u8 = 10;
    pub const CONTROL: u8 = 16;
}

/// A frame was longer than the protocol allows; nothing after it can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong(pub usize);

/// Appends a link frame.
pub fn put(output: &mut Vec<u8>, kind: u8, channel: u32, payload: &[u8]) {
    let rest = u32::try_from(payload.len() + LINK_HEADER - 4).unwrap_or(u32::MAX);
    output.extend_from_slice(&rest.to_be_bytes());
    output.push(kind);
    output.extend_from_slice(&channel.to_be_bytes());
    output.extend_from_slice(payload);
}

/// A complete link frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct LinkFrame<'a> {
    pub kind: u8,
    pub channel: u32,
    pub payload: &'a [u8],
    /// How many bytes of the buffer it takes.
    pub size: usize,
}

/// The first link frame in the buffer; nothing while it is not complete.
///
/// # Errors
/// When its length is beyond the limit or too small for its own header.
pub fn take_link(buffer: &[u8]) -> Result<Option<LinkFrame<'_>>, TooLong> {
    let Some(length) = u32_at(buffer, 0) else {
        return Ok(None);
    };
    let rest = length as usize;
    if !(LINK_HEADER - 4..=MAX_LINK_REST).contains(&rest) {
        return Err(TooLong(rest));
    }
    let size = rest + 4;
    let (Some(frame), Some(channel)) = (buffer.get(..size), u32_at(buffer, 5)) else {
        return Ok(None);
    };
    Ok(Some(LinkFrame {
        kind: frame[4],
        channel,
        payload: &frame[LINK_HEADER..],
        size,
    }))
}

/// A complete ttrpc frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct TtrpcFrame<'a> {
    pub stream: u32,
    pub kind: u8,
    /// Header and body.
    pub whole: &'a [u8],
}

/// The first ttrpc frame in the buffer; nothing while it is not complete.
///
/// # Errors
/// When its body is longer than 4 MiB.
pub fn take_ttrpc(buffer: &[u8]) -> Result<Option<TtrpcFrame<'_>>, TooLong> {
    let Some(length) = u32_at(buffer, 0) else {
        return Ok(None);
    };
    let body = length as usize;
    if body > MAX_TTRPC_BODY {
        return Err(TooLong(body));
    }
    let (Some(whole), Some(stream)) = (buffer.get(..TTRPC_HEADER + body), u32_at(buffer, 4)) else {
        return Ok(None);
    };
    Ok(Some(TtrpcFrame {
        stream,
        kind: whole[8],
        whole,
    }))
}

/// A ttrpc response that carries an error: `Response.status` {code, message}.
pub fn ttrpc_error(stream: u32, code: u64, message: &str) -> Vec<u8> {
    use crate::protobuf::Writer;
    let status = Writer::new().number(1, code).bytes(2, message).done();
    let body = Writer::new().bytes(1, status).done();
    let mut frame = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[TTRPC_RESPONSE, 0]);
    frame.extend_from_slice(&body);
    frame
}

/// The method that a ttrpc `Request` names; nothing when the message is not well formed.
pub fn ttrpc_method(body: &[u8]) -> Option<&[u8]> {
    crate::protobuf::bytes(&crate::protobuf::fields(body)?, 2)
}

fn u32_at(buffer: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(buffer.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn reads_the_link_frames_it_writes() {
        let mut buffer = Vec::new();
        put(&mut buffer, kind::FRAME, 7, b"payload");
        put(&mut buffer, kind::END, 0, b"");
        for cut in 0..LINK_HEADER + 7 {
            assert_eq!(take_link(&buffer[..cut]), Ok(None));
        }
        let first = take_link(&buffer).unwrap().unwrap();
        assert_eq!(
            (first.kind, first.channel, first.payload),
            (kind::FRAME, 7, &b"payload"[..])
        );
        let second = take_link(&buffer[first.size..]).unwrap().unwrap();
        assert_eq!((second.kind, second.size), (kind::END, LINK_HEADER));
    }

    #[test]
    fn refuses_lengths_out_of_bounds() {
        assert_eq!(take_link(&4u32.to_be_bytes()), Err(TooLong(4)));
        assert!(take_link(&u32::try_from(MAX_LINK_REST + 1).unwrap().to_be_bytes()).is_err());
        assert!(take_ttrpc(&u32::try_from(MAX_TTRPC_BODY + 1).unwrap().to_be_bytes()).is_err());
        assert_eq!(
            take_ttrpc(&u32::try_from(MAX_TTRPC_BODY).unwrap().to_be_bytes()),
            Ok(None)
        );
    }

    #[test]
    fn words_an_error() {
        let frame = ttrpc_error(3, 14, "gone");
        let read = take_ttrpc(&frame).unwrap().unwrap();
        assert_eq!(
            (read.stream, read.kind, read.whole.len()),
            (3, TTRPC_RESPONSE, frame.len())
        );
        assert_eq!(&frame[TTRPC_HEADER..], b"\x0a\x08\x08\x0e\x12\x04gone");
    }

    #[test]
    fn survives_random_bytes() {
        let mut random = Random::new(23);
        for _ in 0..200_000 {
            let mut bytes = random.bytes(64);
            for byte in bytes.iter_mut().take(3) {
                *byte = 0;
            }
            if let Ok(Some(frame)) = take_link(&bytes) {
                assert!(frame.size <= bytes.len());
            }
            if let Ok(Some(frame)) = take_ttrpc(&bytes) {
                assert!(frame.whole.len() <= bytes.len());
            }
        }
    }
}
