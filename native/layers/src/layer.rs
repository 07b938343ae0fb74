//! The description at the end of a layer file (docs/contracts.md, "Layers").

use crate::erofs::Image;
use crate::error::{Attempt, Error, Result};
use crate::input::{hex, Hash};
use crate::verity::{tree_bytes, BLOCK};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;

const FORMAT: &str = "snp-layer-1";

/// What a layer file holds.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Description {
    format: String,
    pub diff_id: String,
    pub data_bytes: u64,
    pub tree_bytes: u64,
    pub root_hash: String,
    inodes: u64,
    implicit: u64,
}

impl Description {
    /// Of a file that was just made.
    pub fn new(diff: &Hash, data_bytes: u64, tree_bytes: u64, root: &Hash, image: &Image) -> Self {
        Self {
            format: FORMAT.into(),
            diff_id: format!("sha256:{}", hex(diff)),
            data_bytes,
            tree_bytes,
            root_hash: hex(root),
            inodes: image.inodes,
            implicit: image.implicit,
        }
    }

    /// The block that is stored.
    pub fn block(&self) -> Vec<u8> {
        let mut block = serde_json::to_vec(self).expect("numbers and strings have a form in JSON");
        block.resize(BLOCK - 1, b' ');
        block.push(b'\n');
        block
    }

    /// Reads and checks the description of a layer file.
    /// # Errors
    /// `Layer` when the file is none, `Io`
    pub fn read(file: &File, name: &str) -> Result<Self> {
        let what = format!("reading {name}");
        let bytes = file.metadata().attempt(&what)?.len();
        let none = || Error::Layer(format!("{name} is no layer file"));
        let mut block = vec![0; BLOCK];
        let place = bytes.checked_sub(BLOCK as u64).ok_or_else(none)?;
        file.read_exact_at(&mut block, place).attempt(&what)?;
        let found: Self = serde_json::from_slice(&block).map_err(|_| none())?;
        let blocks = found.data_bytes / BLOCK as u64;
        let sound = found.format == FORMAT
            && blocks > 0
            && found.data_bytes.is_multiple_of(BLOCK as u64)
            && found.tree_bytes == tree_bytes(blocks)
            && found.data_bytes.checked_add(found.tree_bytes) == Some(place);
        sound.then_some(found).ok_or_else(none)
    }
}
