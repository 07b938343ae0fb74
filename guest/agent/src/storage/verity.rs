//! Read-only layers that prove themselves: dm-verity checks each block against a hash tree, and the tree against the root hash that the host's
//! request names (and that a policy may vouch for). Options in the form of Kata's agents.

use super::partition::{size, Partition};
use crate::dm::{Mapped, Target};
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::uevent::Uevents;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

pub const ENABLED: &str = "X-kata.dmverity-enabled=true";
const PREFIX: &str = "X-kata.dmverity.";
const SECTOR_BYTES: u64 = 512;
/// Both kinds of blocks: no larger than a page, whatever the kernel's may be.
const BLOCK_BYTES: [u64; 4] = [512, 1024, 2048, 4096];
/// SHA-256 is what the guest's kernel has.
const ALGORITHM: &str = "sha256";
const DIGEST_BYTES: u64 = 32;
const SALT_BYTES_MAX: usize = 256;
/// Layers that are remembered by name: of several images with as many as there may be.
const NAMES_MAX: usize = 1024;
/// The layout of the superblock that `veritysetup` writes (cryptsetup's on-disk format, version 1).
const SUPERBLOCK_SIGNATURE: &[u8] = b"verity\0\0";
const SUPERBLOCK_BYTES: usize = 512;

/// What a storage's options say of its hash tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verity {
    pub root_hash: String,
    hash_offset: u64,
    superblock: bool,
    salt: String,
    data_block: u64,
    hash_block: u64,
    hash_type: u32,
}

impl Verity {
    /// Reads the options; None for a storage without verity. Options of verity that are unknown are refused: they might change what is checked.
    pub fn from_options(options: &[String]) -> Result<Option<Self>> {
        let given: Vec<&str> = options
            .iter()
            .filter_map(|option| option.strip_prefix(PREFIX))
            .collect();
        if !options.iter().any(|option| option == ENABLED) {
            return match given.first() {
                None => Ok(None),
                Some(option) => Err(Error::invalid(format!("{PREFIX}{option} without {ENABLED}"))),
            };
        }
        let mut verity = Self {
            root_hash: String::new(),
            hash_offset: 0,
            superblock: true,
            salt: String::new(),
            data_block: 4096,
            hash_block: 4096,
            hash_type: 1,
        };
        for option in given {
            verity
                .set(option)
                .ok_or_else(|| Error::invalid(format!("the option {PREFIX}{option} is not supported")))?;
        }
        if verity.root_hash.is_empty() || verity.hash_offset == 0 {
            return Err(Error::invalid(format!(
                "{PREFIX}roothash and {PREFIX}hashoffset are needed"
            )));
        }
        if !verity.hash_offset.is_multiple_of(verity.data_block)
            || !verity.hash_offset.is_multiple_of(verity.hash_block)
        {
            return Err(Error::invalid("hashoffset is no multiple of the blocks' sizes"));
        }
        Ok(Some(verity))
    }

    fn set(&mut self, option: &str) -> Option<()> {
        let (key, value) = option.split_once('=').unwrap_or((option, "true"));
        match key {
            "roothash" => self.root_hash = hexadecimal(value, DIGEST_BYTES as usize).filter(|hash| hash.len() == 64)?,
            "salt" if value == "-" => self.salt = String::new(),
            "salt" => self.salt = hexadecimal(value, SALT_BYTES_MAX)?,
            "hashoffset" => self.hash_offset = value.parse().ok()?,
            "no-superblock" => self.superblock = !value.parse::<bool>().ok()?,
            "blocksize" => self.data_block = block_size(value)?,
            "hashsize" => self.hash_block = block_size(value)?,
            "algorithm" if value == ALGORITHM => {}
            "hashtype" => self.hash_type = value.parse().ok().filter(|version| *version <= 1)?,
            _ => return None,
        }
        Some(())
    }

    /// What of the tree a superblock may tell. It must agree with the options; a salt that these leave out is the superblock's.
    fn place(&self, device: &File) -> Result<Place> {
        let blocks = self.hash_offset / self.data_block;
        let start = self.hash_offset / self.hash_block;
        if !self.superblock {
            let salt = self.salt.clone();
            return Ok(Place { start, blocks, salt });
        }
        let mut block = [0u8; SUPERBLOCK_BYTES];
        device
            .read_exact_at(&mut block, self.hash_offset)
            .context("read the hash tree's superblock")?;
        let told = read_superblock(&block).ok_or_else(|| Error::invalid("there is no superblock of a hash tree"))?;
        let same = told.salt == self.salt || self.salt.is_empty();
        let expected = (self.data_block, self.hash_block, self.hash_type);
        if !same || (told.data_block, told.hash_block, told.hash_type) != expected || told.blocks > blocks {
            return Err(Error::invalid("the hash tree's superblock differs from the options"));
        }
        Ok(Place {
            start: start + 1,
            blocks: told.blocks,
            salt: told.salt,
        })
    }

    /// Blocks of the tree over so many blocks of data.
    fn tree_blocks(&self, data_blocks: u64) -> Option<u64> {
        let fan_out = self.hash_block / DIGEST_BYTES;
        let (mut level, mut total) = (data_blocks, 0u64);
        // One block's digest is the root hash itself.
        while level > 1 {
            level = level.div_ceil(fan_out);
            total = total.checked_add(level)?;
        }
        Some(total)
    }

    /// The target's parameters (admin-guide/device-mapper/verity). What does not verify is a read error, not the guest's end.
    fn table(&self, device: &str, place: &Place) -> String {
        let Place { start, blocks, salt } = place;
        let salt = if salt.is_empty() { "-" } else { salt };
        format!(
            "{} {device} {device} {} {} {blocks} {start} {ALGORITHM} {} {salt}",
            self.hash_type, self.data_block, self.hash_block, self.root_hash
        )
    }
}

fn block_size(value: &str) -> Option<u64> {
    value.parse().ok().filter(|size| BLOCK_BYTES.contains(size))
}

/// A hexadecimal number of whole bytes, in small letters.
fn hexadecimal(value: &str, bytes_max: usize) -> Option<String> {
    let plain = value.len().is_multiple_of(2) && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    (plain && value.len() <= 2 * bytes_max).then(|| value.to_ascii_lowercase())
}

/// Where the tree begins (in its blocks), how many blocks of data it covers, and its salt.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    start: u64,
    blocks: u64,
    salt: String,
}

struct Superblock {
    hash_type: u32,
    data_block: u64,
    hash_block: u64,
    blocks: u64,
    salt: String,
}

/// signature[8], version, hash_type, uuid[16], algorithm[32], data_block_size, hash_block_size, data_blocks (u64), salt_size (u16), pad[6], salt[256].
fn read_superblock(block: &[u8; SUPERBLOCK_BYTES]) -> Option<Superblock> {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let salt_bytes = usize::from(u16::from_le_bytes([block[80], block[81]]));
    let algorithm = block[32..64].split(|byte| *byte == 0).next()?;
    if &block[..8] != SUPERBLOCK_SIGNATURE
        || word(8) != 1
        || algorithm != ALGORITHM.as_bytes()
        || salt_bytes > SALT_BYTES_MAX
    {
        return None;
    }
    Some(Superblock {
        hash_type: word(12),
        data_block: word(64).into(),
        hash_block: word(68).into(),
        blocks: u64::from(word(72)) | u64::from(word(76)) << 32,
        salt: block[88..88 + salt_bytes]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    })
}

/// An open layer: the device that checks, and what it stands on. Whoever holds it keeps it.
#[derive(Debug)]
pub struct Opened {
    // The order counts: the device goes before the partition that it stands on.
    device: Mapped,
    _partition: Option<Partition>,
    /// How messages name it.
    name: String,
    pub root_hash: String,
}

impl Opened {
    /// The device file.
    pub fn path(&self) -> PathBuf {
        self.device.path()
    }

    /// A sentence when a block of the layer did not verify.
    pub fn damage(&self) -> Option<String> {
        // "V" while everything was valid, "C" after corruption.
        let corrupted = self.device.status().is_ok_and(|status| status.starts_with('C'));
        corrupted.then(|| format!("{} does not verify: its data or its hash tree were changed", self.name))
    }
}

type Key = (PathBuf, Option<u32>, Verity);

/// The open layers. Those of one image are shared by the containers that use its disk.
#[derive(Default)]
pub struct Layers {
    open: RefCell<BTreeMap<Key, Weak<Opened>>>,
    /// Names of the latest layers by their devices, closed ones too: the kernel's word of one may come later than its end.
    names: RefCell<VecDeque<(String, String)>>,
    /// Sentences about layers that were changed, one for each.
    pub damaged: Events,
}

impl Layers {
    /// Opens a layer, in a partition or (None) on the whole disk.
    pub fn open(&self, disk: &Path, partition: Option<u32>, verity: &Verity) -> Result<Rc<Opened>> {
        let key = (disk.to_path_buf(), partition, verity.clone());
        let mut open = self.open.borrow_mut();
        open.retain(|_, layer| layer.strong_count() > 0);
        if let Some(layer) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        let layer = Rc::new(open_layer(disk, partition, verity)?);
        let mut names = self.names.borrow_mut();
        if names.len() == NAMES_MAX {
            names.pop_front();
        }
        names.push_back((layer.device.kernel_name(), layer.name.clone()));
        open.insert(key, Rc::downgrade(&layer));
        Ok(layer)
    }

    fn name_of(&self, device: &str) -> String {
        let names = self.names.borrow();
        let found = names.iter().find(|(known, _)| known == device);
        found.map_or_else(|| device.to_string(), |(_, name)| name.clone())
    }

    /// Logs, with its layer, each block that did not verify, as the kernel tells it. Ends when the kernel can't be heard.
    pub async fn report(&self, uevents: Uevents) -> Result<()> {
        let mut told = BTreeSet::new();
        loop {
            let event = uevents.next().await?;
            let Some((kind, block)) = event
                .get("DM_VERITY_ERR_BLOCK_NR")
                .and_then(|text| text.split_once(','))
            else {
                continue;
            };
            let device = event.get("DEVNAME").map_or("", String::as_str);
            let name = self.name_of(device);
            let what = if kind == "0" { "data" } else { "hash tree" };
            let text = format!("{name} was changed: block {block} of its {what} does not verify");
            crate::log::write(crate::log::Level::Error, &text);
            if told.insert(device.to_string()) {
                self.damaged.push(&text);
            }
            // Numbers of devices only go up: the oldest are those that nothing more is heard of.
            if told.len() > NAMES_MAX {
                told.pop_first();
            }
        }
    }
}

fn open_layer(disk: &Path, number: Option<u32>, verity: &Verity) -> Result<Opened> {
    let partition = number.map(|number| Partition::open(disk, number)).transpose()?;
    let path = partition.as_ref().map_or(disk, |partition| &partition.path);
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = size(&file)?;
    let place = verity.place(&file)?;
    let blocks = place.blocks;
    let tree = verity.tree_blocks(blocks);
    let end = tree.and_then(|tree| tree.checked_add(place.start)?.checked_mul(verity.hash_block));
    if blocks == 0 || end.is_none_or(|end| end > bytes) {
        return Err(Error::invalid(format!(
            "{bytes} bytes have no room for {blocks} blocks and their hash tree from byte {} on",
            verity.hash_offset
        )));
    }
    let (major, minor) = super::block::numbers(path)?;
    let device = Mapped::create(
        "verity",
        &Target {
            kind: "verity",
            sectors: blocks * (verity.data_block / SECTOR_BYTES),
            parameters: &verity.table(&format!("{major}:{minor}"), &place),
            readonly: true,
            secret: false,
        },
    )?;
    let layer = number.map_or("the layer".to_string(), |number| format!("layer {number}"));
    let name = format!("{layer} of {} (root hash {})", disk.display(), verity.root_hash);
    Ok(Opened {
        device,
        _partition: partition,
        name,
        root_hash: verity.root_hash.clone(),
    })
}

#[cfg(test)]
#[path = "verity_tests.rs"]
mod tests;
