//! The layer's blob: read, checked against its digest, decompressed and checked against the digest of what comes out (the diff id),
//! in threads beside the one that takes it apart.

use crate::error::{Attempt, Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::{spawn, JoinHandle};

const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks on their way at most, to each of the two takers.
const CHUNKS: usize = 8;
const GZIP: &[u8] = &[0x1f, 0x8b];
/// RFC 8878, 3.1.1.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames (RFC 8878, 3.1.2) have 0x5? as their first byte.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// The window that a zstd layer may ask for: 128 MiB, zstd's own default bound.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// The uncompressed layer.
pub struct Input {
    chunks: Receiver<Arc<Vec<u8>>>,
    current: Arc<Vec<u8>>,
    taken: usize,
    feeder: JoinHandle<io::Result<Option<Hash>>>,
    hasher: JoinHandle<Hash>,
    progress: Arc<AtomicU64>,
}

/// What a layer was found to be once it was read to its end.
pub struct Digests {
    /// Of the blob as it is stored.
    pub blob: Hash,
    /// Of the uncompressed tar.
    pub diff: Hash,
}

impl Input {
    /// Begins to read.
    pub fn new(file: File) -> Self {
        let (to_reader, chunks) = sync_channel(CHUNKS);
        let (to_hasher, hashed) = sync_channel(CHUNKS);
        let progress = Arc::new(AtomicU64::new(0));
        let counter = progress.clone();
        let feeder = spawn(move || feed(file, counter, &to_reader, &to_hasher));
        let hasher = spawn(move || hash(&hashed));
        Self {
            chunks,
            current: Arc::default(),
            taken: 0,
            feeder,
            hasher,
            progress,
        }
    }

    /// Bytes of the blob that were read so far.
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.progress.clone()
    }

    /// Reads what is left, which counts for the digests, and gives them.
    /// # Errors
    /// `Layer` when the blob can't be decompressed
    pub fn finish(mut self) -> Result<Digests> {
        while self.next_chunk() {}
        let blob = self.feeder.join().expect("the thread that reads does not panic");
        let diff = self.hasher.join().expect("the thread that hashes does not panic");
        let blob = blob.map_err(|error| unreadable(&error))?;
        Ok(Digests {
            blob: blob.unwrap_or(diff),
            diff,
        })
    }

    fn next_chunk(&mut self) -> bool {
        match self.chunks.recv() {
            Ok(chunk) => {
                (self.current, self.taken) = (chunk, 0);
                true
            }
            Err(_) => false,
        }
    }
}

impl Read for Input {
    /// Ends early when the blob can't be read on: `finish` says why.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.current.len() && !self.next_chunk() {
            return Ok(0);
        }
        let from = &self.current[self.taken..];
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
        self.taken += count;
        Ok(count)
    }
}

fn unreadable(error: &io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return Error::Io(
            "reading the layer's blob".into(),
            io::Error::new(error.kind(), error.to_string()),
        );
    }
    Error::Layer(format!("the layer's blob can't be decompressed: {error}"))
}

/// Counts and hashes what is read.
struct Counted {
    file: File,
    /// None for a blob that is not compressed: its digest is that of what comes out.
    hash: Option<Sha256>,
    progress: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(to)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&to[..count]);
        }
        self.progress.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

type Takers<'a> = (&'a SyncSender<Arc<Vec<u8>>>, &'a SyncSender<Arc<Vec<u8>>>);

fn feed(
    file: File,
    progress: Arc<AtomicU64>,
    reader: &SyncSender<Arc<Vec<u8>>>,
    hasher: &SyncSender<Arc<Vec<u8>>>,
) -> io::Result<Option<Hash>> {
    let counted = Counted {
        file,
        hash: Some(Sha256::new()),
        progress,
    };
    let mut blob = BufReader::with_capacity(CHUNK_BYTES, counted);
    let start = blob.fill_buf()?;
    let takers = (reader, hasher);
    if start.starts_with(GZIP) {
        let mut stream = flate2::bufread::MultiGzDecoder::new(blob);
        pass_on(&mut stream, takers)?;
        blob = stream.into_inner();
    } else if start.starts_with(ZSTD) || (start.len() > 4 && start[0] >> 4 == 5 && &start[1..4] == ZSTD_SKIPPABLE) {
        let mut stream = zstd::stream::read::Decoder::with_buffer(blob)?;
        stream.window_log_max(ZSTD_WINDOW_LOG)?;
        pass_on(&mut stream, takers)?;
        blob = stream.finish();
    } else {
        blob.get_mut().hash = None;
        pass_on(&mut blob, takers)?;
    }
    // What lies behind the compressed data counts for the blob's digest.
    io::copy(&mut blob, &mut io::sink())?;
    Ok(blob.into_inner().hash.map(|hash| hash.finalize().into()))
}

fn pass_on(from: &mut impl Read, (reader, hasher): Takers) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while filled < chunk.len() {
            match from.read(&mut chunk[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        chunk.truncate(filled);
        let chunk = Arc::new(chunk);
        // A taker that is gone has failed, and says so itself.
        if hasher.send(chunk.clone()).is_err() || reader.send(chunk).is_err() {
            return Ok(());
        }
    }
}

fn hash(chunks: &Receiver<Arc<Vec<u8>>>) -> Hash {
    let mut hash = Sha256::new();
    for chunk in chunks {
        hash.update(chunk.as_slice());
    }
    hash.finalize().into()
}

/// Reads a digest of the form `sha256:<64 hexadecimal digits>`.
/// # Errors
/// `Usage` when it is of another form
pub fn parse_digest(text: &str) -> Result<Hash> {
    let wrong = || {
        Error::Usage(format!(
            "{text:?} is no digest of the form sha256:<64 hexadecimal digits>"
        ))
    };
    parse_hex(text.strip_prefix("sha256:").ok_or_else(wrong)?).ok_or_else(wrong)
}

/// Reads 64 lower-case hexadecimal digits.
pub fn parse_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let lower = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 64 || !lower {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens the blob.
/// # Errors
/// `Io` when it can't be opened
pub fn open(path: &str) -> Result<File> {
    if path == "-" {
        use std::os::fd::FromRawFd;
        // SAFETY: standard input is ours, and nothing else reads it.
        return Ok(unsafe { File::from_raw_fd(0) });
    }
    File::open(path).attempt(&format!("opening the layer's blob {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_strictly() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(parse_digest(&text).unwrap(), [10; 32]);
        for wrong in ["", "sha256:", "sha512:00", &text.to_uppercase(), &format!("{text}0")] {
            assert!(parse_digest(wrong).is_err(), "{wrong}");
        }
    }
}
