//! From the blob of a layer to the image with its tree, in one pass.

use crate::blocks::Blocks;
use crate::erofs;
use crate::error::{shown, Attempt, Error, Result};
use crate::input::{hex, Digests, Hash, Input};
use crate::layer::Description;
use crate::spool::Spool;
use crate::tar::{Archive, Entry, Kind, Piece};
use crate::tree::{role, Content, Role, Tree};
use crate::verity::{Hasher, BLOCK, SALT};
use crate::xattrs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What the blob must be.
pub struct Expected {
    /// Of the uncompressed tar.
    pub diff: Hash,
    /// Of the blob as it is stored; not checked unless given.
    pub blob: Option<Hash>,
}

/// Writes a layer file, to its last byte.
/// # Errors
/// `Layer` for a blob that is not what is expected or can't be an image, `Io`
pub fn convert(input: Input, expected: &Expected, output: &Arc<File>, spool: File) -> Result<Description> {
    let hasher = Hasher::new(&SALT);
    let mut making = Making {
        blocks: Blocks::new(output.clone(), hasher.clone()),
        spool: Spool::new(spool),
        tree: Tree::new(),
        map_entries: 0,
        padding_bytes: 0,
    };
    // The superblock's place.
    making.blocks.put(&[0; BLOCK]);
    let mut archive = Archive::new(input);
    let taken = making.take_all(&mut archive);
    let digests = archive.into_inner().finish();
    // A blob that can't be read on looks like an archive that ends too early: what was wrong with the blob says more.
    check_digests(digests?, expected)?;
    taken?;
    making.finish(&expected.diff, output, &hasher)
}

/// Compares what was read to its end with what it should be.
/// # Errors
/// `Layer` that says which of the digests is another
pub fn check_digests(found: Digests, expected: &Expected) -> Result<()> {
    let blob = expected.blob.as_ref().unwrap_or(&found.blob);
    check(&found.blob, blob, "the layer's blob")?;
    check(&found.diff, &expected.diff, "the uncompressed layer")
}

fn check(found: &Hash, expected: &Hash, what: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Layer(format!(
        "{what} has the digest sha256:{}, and sha256:{} was expected",
        hex(found),
        hex(expected)
    )))
}

/// How much zeros a sparse file's chunks may bring beside what is stored, and those of all of a layer's.
const PADDING_MAX_BYTES: u64 = 1 << 30;
const PADDINGS_MAX_BYTES: u64 = 1 << 34;
/// Entries of the chunk maps of all sparse files of a layer: 256 MiB of them. A map takes 4 MiB for an entry of the archive that has hardly anything.
const MAPS_MAX: u64 = 1 << 26;

/// What the chunks of a sparse file take besides its pieces.
fn padding(pieces: &[Piece], chunk: u64) -> u64 {
    let (mut chunks, mut stored, mut next) = (0, 0, 0);
    for piece in pieces {
        let (first, after) = (piece.offset / chunk, (piece.offset + piece.bytes).div_ceil(chunk));
        chunks += after - first.max(next).min(after);
        stored += piece.bytes;
        next = after;
    }
    chunks * chunk - stored
}

struct Making {
    blocks: Blocks,
    spool: Spool,
    tree: Tree,
    /// Of all sparse files so far.
    map_entries: u64,
    padding_bytes: u64,
}

impl Making {
    fn take_all(&mut self, archive: &mut Archive<Input>) -> Result<()> {
        while let Some(entry) = archive.next()? {
            let role = role(&entry);
            let content = match entry.kind {
                Kind::File if role == Role::Plain => Some(self.store(&entry, archive)?),
                _ => None,
            };
            self.tree.apply(&entry, role, content)?;
        }
        Ok(())
    }

    fn finish(mut self, diff: &Hash, output: &File, hasher: &Hasher) -> Result<Description> {
        self.spool.flush()?;
        let image = erofs::write(&self.tree, &self.spool, &mut self.blocks)?;
        let mut hashes = self.blocks.finish()?;
        output
            .write_all_at(&image.first_block, 0)
            .attempt("writing the image")?;
        hashes[0] = hasher.block(&image.first_block);
        let data_bytes = (hashes.len() * BLOCK) as u64;
        let (tree, root) = hasher.tree(hashes);
        output
            .write_all_at(&tree, data_bytes)
            .attempt("writing the hash tree")?;
        let description = Description::new(diff, data_bytes, tree.len() as u64, &root, &image);
        let place = data_bytes + tree.len() as u64;
        output
            .write_all_at(&description.block(), place)
            .attempt("writing the description")?;
        Ok(description)
    }

    /// Stores the contents of a plain file.
    fn store(&mut self, entry: &Entry, archive: &mut Archive<Input>) -> Result<Content> {
        match &entry.pieces {
            Some(pieces) => self.store_sparse(entry, pieces, archive),
            None => self.store_flat(entry, archive),
        }
    }

    fn store_flat(&mut self, entry: &Entry, archive: &mut Archive<Input>) -> Result<Content> {
        let size = entry.size;
        let end = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let named = |text: String| Error::Layer(format!("{}: {text}", shown(&entry.path)));
        let xattr_bytes = xattrs::bytes(&xattrs::kept(&entry.xattrs).map_err(named)?);
        let beside = end > 0 && erofs::fits_inline(xattr_bytes, end);
        let outside = if beside { size - end as u64 } else { size };
        let block = if outside > 0 { self.blocks.next()? } else { 0 };
        self.blocks.put_from(outside, |to| archive.read_exact(to))?;
        self.blocks.pad();
        let tail = if beside {
            let mut bytes = [0; BLOCK];
            archive.read_exact(&mut bytes[..end])?;
            Some(self.spool.keep(&bytes[..end])?)
        } else {
            None
        };
        Ok(Content::Flat { size, block, tail })
    }

    /// Stores what of a sparse file is no hole, in chunks as small as its map allows.
    fn store_sparse(&mut self, entry: &Entry, pieces: &[Piece], archive: &mut Archive<Input>) -> Result<Content> {
        let size = entry.size;
        let named = |text: &str| Error::Layer(format!("{}: {text}", shown(&entry.path)));
        let bits = erofs::chunk_bits(size)
            .ok_or_else(|| named("it is larger than a sparse file of an image can be (4 TiB)"))?;
        let chunk = (BLOCK as u64) << bits;
        let padding = padding(pieces, chunk);
        if padding > PADDING_MAX_BYTES {
            return Err(named("its pieces are too many for its size"));
        }
        let entries = size.div_ceil(chunk);
        self.map_entries += entries;
        self.padding_bytes += padding;
        if self.map_entries > MAPS_MAX || self.padding_bytes > PADDINGS_MAX_BYTES {
            return Err(named("the layer's sparse files are too many for their sizes"));
        }
        let count = usize::try_from(entries).unwrap_or(0);
        let mut map = vec![erofs::hole(); count];
        // Where in the file the stored blocks have come to.
        let mut stored = 0;
        for piece in pieces {
            let end = piece.offset + piece.bytes;
            let mut at = piece.offset;
            while at < end {
                let index = at / chunk;
                let start = index * chunk;
                if stored <= start {
                    self.blocks.zeros(stored.next_multiple_of(chunk) - stored);
                    map[usize::try_from(index).unwrap_or(0)] = self.blocks.next()?;
                    stored = start;
                }
                self.blocks.zeros(at - stored);
                let upto = end.min(start + chunk);
                self.blocks.put_from(upto - at, |to| archive.read_exact(to))?;
                (at, stored) = (upto, upto);
            }
        }
        self.blocks.zeros(stored.next_multiple_of(chunk) - stored);
        Ok(Content::Chunks {
            size,
            bits,
            blocks: map,
        })
    }
}
