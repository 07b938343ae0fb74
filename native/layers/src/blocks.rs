//! The blocks of an image on their way into its file: written and hashed by a thread of its own, from the first to the last.

use crate::error::{Attempt, Error, Result};
use crate::input::Hash;
use crate::verity::{is_zero, Hasher, BLOCK};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::{spawn, JoinHandle};

const BUFFER_BYTES: usize = 1024 * 1024;
/// Buffers on their way at most.
const BUFFERS: usize = 4;
/// How much is written before the kernel is asked to begin writing it to the disk, so that the end need not wait for all of it.
const WRITE_BACK_BYTES: u64 = 32 * 1024 * 1024;

/// Takes whole blocks.
pub struct Blocks {
    buffer: Vec<u8>,
    /// Bytes taken so far.
    bytes: u64,
    buffers: SyncSender<Vec<u8>>,
    writer: JoinHandle<io::Result<Vec<Hash>>>,
}

impl Blocks {
    /// Begins at the beginning of the file.
    pub fn new(file: Arc<File>, hasher: Hasher) -> Self {
        let (buffers, taken) = sync_channel(BUFFERS);
        let writer = spawn(move || write_all(&file, &hasher, &taken));
        Self {
            buffer: Vec::with_capacity(BUFFER_BYTES),
            bytes: 0,
            buffers,
            writer,
        }
    }

    /// The number of the block that comes next.
    /// # Errors
    /// `Layer` when the image is larger than EROFS allows (2^32 blocks)
    pub fn next(&self) -> Result<u32> {
        u32::try_from(self.bytes / BLOCK as u64)
            .ok()
            .filter(|next| *next < u32::MAX)
            .ok_or_else(|| Error::Layer("the layer is larger than an EROFS image can be (16 TiB)".into()))
    }

    /// Takes bytes.
    pub fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = bytes.len().min(BUFFER_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.advance(count);
        }
    }

    /// Takes `count` bytes that `fill` writes into a buffer, a piece at a time.
    /// # Errors
    /// what `fill` gives
    pub fn put_from(&mut self, count: u64, mut fill: impl FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut rest = count;
        while rest > 0 {
            let start = self.buffer.len();
            let piece = (BUFFER_BYTES - start).min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.buffer.resize(start + piece, 0);
            fill(&mut self.buffer[start..])?;
            rest -= piece as u64;
            self.advance(piece);
        }
        Ok(())
    }

    /// Fills the last block with zeros.
    pub fn pad(&mut self) {
        let rest = usize::try_from(self.bytes.next_multiple_of(BLOCK as u64) - self.bytes).unwrap_or(0);
        self.put(&[0; BLOCK][..rest]);
    }

    /// Takes `count` zeros.
    pub fn zeros(&mut self, count: u64) {
        let filled = self.put_from(count, |_| Ok(()));
        debug_assert!(filled.is_ok());
    }

    fn advance(&mut self, count: usize) {
        self.bytes += count as u64;
        if self.buffer.len() == BUFFER_BYTES {
            let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER_BYTES));
            // A writer that failed is gone, and `finish` says why.
            let _ = self.buffers.send(full);
        }
    }

    /// Writes the last of them. Gives the hash of each block.
    /// # Errors
    /// `Io` when something could not be written
    pub fn finish(mut self) -> Result<Vec<Hash>> {
        self.pad();
        let last = std::mem::take(&mut self.buffer);
        let _ = self.buffers.send(last);
        drop(self.buffers);
        let hashes = self.writer.join().expect("the thread that writes does not panic");
        hashes.attempt("writing the image")
    }
}

fn write_all(file: &File, hasher: &Hasher, buffers: &Receiver<Vec<u8>>) -> io::Result<Vec<Hash>> {
    let mut hashes = Vec::new();
    let (mut offset, mut begun) = (0, 0);
    for buffer in buffers {
        hashes.extend(buffer.chunks(BLOCK).map(|block| hasher.block(block)));
        write_sparse(file, &buffer, offset)?;
        offset += buffer.len() as u64;
        if offset - begun >= WRITE_BACK_BYTES {
            begin_write_back(file, begun, offset - begun);
            begun = offset;
        }
    }
    // Empty blocks at the end were not written.
    file.set_len(offset)?;
    Ok(hashes)
}

/// Writes all blocks but the empty ones: the file has holes there.
fn write_sparse(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    let mut start = 0;
    for (index, block) in buffer.chunks(BLOCK).enumerate() {
        let at = index * BLOCK;
        if is_zero(block) {
            file.write_all_at(&buffer[start..at], offset + start as u64)?;
            start = at + block.len();
        }
    }
    file.write_all_at(&buffer[start..], offset + start as u64)
}

fn begin_write_back(file: &File, from: u64, bytes: u64) {
    // A hint only: `sync` at the end does what this could not.
    let (from, bytes) = (i64::try_from(from).unwrap_or(0), i64::try_from(bytes).unwrap_or(0));
    // SAFETY: no memory is handed over.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}
