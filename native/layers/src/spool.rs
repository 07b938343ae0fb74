//! The ends of files that will lie beside their inodes, kept in a file without a name until the inodes are written.

use crate::error::{Attempt, Result};
use crate::tree::Tail;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

const BUFFER_BYTES: usize = 256 * 1024;

/// Bytes that are written in order and read back in any.
pub struct Spool {
    writer: BufWriter<File>,
    bytes: u64,
}

impl Spool {
    /// Uses a file that nobody else has.
    pub fn new(file: File) -> Self {
        Self {
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
            bytes: 0,
        }
    }

    /// Keeps bytes.
    /// # Errors
    /// `Io`
    pub fn keep(&mut self, bytes: &[u8]) -> Result<Tail> {
        let tail = Tail {
            offset: self.bytes,
            bytes: bytes.len(),
        };
        self.writer.write_all(bytes).attempt("keeping the ends of files")?;
        self.bytes += bytes.len() as u64;
        Ok(tail)
    }

    /// Makes everything readable.
    /// # Errors
    /// `Io`
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().attempt("keeping the ends of files")
    }

    /// Appends kept bytes, after `flush`.
    /// # Errors
    /// what the file system says
    pub fn read(&self, tail: Tail, to: &mut Vec<u8>) -> io::Result<()> {
        let start = to.len();
        to.resize(start + tail.bytes, 0);
        self.writer.get_ref().read_exact_at(&mut to[start..], tail.offset)
    }
}
