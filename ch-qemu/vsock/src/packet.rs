//! virtio-vsock's packet header (Virtual I/O Device 1.2, 5.10.6): 44 bytes, little endian.

/// The header's length.
pub const HEADER_BYTES: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
pub const TYPE_STREAM: u16 = 1;

pub const OP_REQUEST: u16 = 1;
pub const OP_RESPONSE: u16 = 2;
pub const OP_RST: u16 = 3;
pub const OP_SHUTDOWN: u16 = 4;
pub const OP_RW: u16 = 5;
pub const OP_CREDIT_UPDATE: u16 = 6;
pub const OP_CREDIT_REQUEST: u16 = 7;

/// The sender of a shutdown receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown sends no more.
pub const SHUTDOWN_SEND: u32 = 2;
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub source_cid: u64,
    pub target_cid: u64,
    pub source_port: u32,
    pub target_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    /// How much the sender buffers for this connection, and how much of it was consumed so far in all.
    pub buffer_bytes: u32,
    pub consumed_bytes: u32,
}

impl Header {
    pub fn parse(raw: &[u8; HEADER_BYTES]) -> Self {
        let long = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes"));
        let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_le_bytes(raw[at..at + 2].try_into().expect("two bytes"));
        Self {
            source_cid: long(0),
            target_cid: long(8),
            source_port: word(16),
            target_port: word(20),
            length: word(24),
            kind: half(28),
            operation: half(30),
            flags: word(32),
            buffer_bytes: word(36),
            consumed_bytes: word(40),
        }
    }

    pub fn format(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        raw[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        raw[8..16].copy_from_slice(&self.target_cid.to_le_bytes());
        for (at, word) in [
            (16, self.source_port),
            (20, self.target_port),
            (24, self.length),
            (32, self.flags),
            (36, self.buffer_bytes),
            (40, self.consumed_bytes),
        ] {
            raw[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        raw[28..30].copy_from_slice(&self.kind.to_le_bytes());
        raw[30..32].copy_from_slice(&self.operation.to_le_bytes());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_formatting_and_parsing() {
        let header = Header {
            source_cid: HOST_CID,
            target_cid: 3,
            source_port: 0x4000_0000,
            target_port: 1024,
            length: 77,
            kind: TYPE_STREAM,
            operation: OP_RW,
            flags: SHUTDOWN_BOTH,
            buffer_bytes: 1 << 18,
            consumed_bytes: u32::MAX,
        };
        assert_eq!(Header::parse(&header.format()), header);
    }
}
