//! dm-verity (Linux, Documentation/admin-guide/device-mapper/verity.rst): SHA-256, hash type 1, blocks of 4096 bytes.

use crate::input::Hash;
use sha2::{Digest, Sha256};

/// Data and hash blocks.
pub const BLOCK: usize = 4096;
const HASH: usize = 32;
const HASHES_PER_BLOCK: usize = BLOCK / HASH;
/// The salt of our own layers, which is containerd's as well.
pub const SALT: [u8; 32] = [0; 32];

/// Hashes blocks with one salt.
#[derive(Clone)]
pub struct Hasher {
    salted: Sha256,
    of_zeros: Hash,
}

impl Hasher {
    /// Hash type 1: the salt comes first.
    pub fn new(salt: &[u8]) -> Self {
        let mut salted = Sha256::new();
        salted.update(salt);
        let of_zeros = salted.clone().chain_update([0; BLOCK]).finalize().into();
        Self { salted, of_zeros }
    }

    /// The hash of one block.
    pub fn block(&self, block: &[u8]) -> Hash {
        if is_zero(block) {
            return self.of_zeros;
        }
        self.salted.clone().chain_update(block).finalize().into()
    }

    /// Makes the tree over the hashes of the data blocks: the hash blocks, the topmost level first, and the root hash.
    pub fn tree(&self, hashes: Vec<Hash>) -> (Vec<u8>, Hash) {
        let mut level = hashes;
        let mut levels: Vec<Vec<u8>> = Vec::new();
        while level.len() > 1 {
            let mut blocks = vec![0; level.len().div_ceil(HASHES_PER_BLOCK) * BLOCK];
            for (place, hash) in blocks.chunks_exact_mut(HASH).zip(&level) {
                place.copy_from_slice(hash);
            }
            level = blocks.chunks_exact(BLOCK).map(|block| self.block(block)).collect();
            levels.push(blocks);
        }
        levels.reverse();
        (levels.concat(), level.first().copied().unwrap_or_default())
    }
}

/// Bytes of the tree over so many data blocks.
pub fn tree_bytes(data_blocks: u64) -> u64 {
    let (mut level, mut blocks) = (data_blocks, 0);
    while level > 1 {
        level = level.div_ceil(HASHES_PER_BLOCK as u64);
        blocks += level;
    }
    blocks * BLOCK as u64
}

/// Whether a block holds nothing.
pub fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(64)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_as_many_bytes_as_foretold() {
        let hasher = Hasher::new(&SALT);
        for blocks in [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
            let (tree, _) = hasher.tree(vec![[1; 32]; blocks]);
            assert_eq!(tree.len() as u64, tree_bytes(blocks as u64), "{blocks}");
        }
    }

    #[test]
    fn one_block_needs_no_tree() {
        let hasher = Hasher::new(&SALT);
        let (tree, root) = hasher.tree(vec![[7; 32]]);
        assert!(tree.is_empty());
        assert_eq!(root, [7; 32]);
    }
}
