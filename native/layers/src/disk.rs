//! A disk of layers (docs/contracts.md, "Layers"): the partition table, and behind it each layer's image with its tree.

use crate::copy::copy;
use crate::error::{Attempt, Error, Result};
use crate::gpt::{self, Partition, LAYERS_MAX};
use crate::input::{hex, parse_hex, Hash};
use crate::layer::Description as LayerDescription;
use crate::verity::{tree_bytes, Hasher, BLOCK, SALT};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;

const FORMAT: &str = "snp-disk-1";
const DESCRIPTION_PLACE: u64 = 32_768;
const DESCRIPTION_MAX: usize = 512 * 1024;
const READ_BYTES: usize = 1024 * 1024;

/// What a disk is to be made of, topmost first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    layers: Vec<Source>,
}

/// Where a layer comes from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, untagged)]
enum Source {
    /// A layer file of ours.
    Layer { layer: String },
    /// An EROFS image that another program made, with its hash tree when that is known.
    #[serde(rename_all = "camelCase")]
    Image {
        image: String,
        diff_id: String,
        tree: Option<Tree>,
    },
}

/// A hash tree in the file of its image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tree {
    data_bytes: u64,
    tree_offset: u64,
    root_hash: String,
    salt: String,
}

/// What a disk holds.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Description {
    format: String,
    pub layers: Vec<Part>,
}

/// One partition's contents.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    diff_id: String,
    data_bytes: u64,
    tree_bytes: u64,
    root_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
}

/// A layer whose bytes are known.
struct Opened {
    file: File,
    name: String,
    part: Part,
    tree_offset: u64,
    /// A tree that no file has.
    tree: Option<Vec<u8>>,
}

/// Writes a disk.
/// # Errors
/// `Usage` for a wrong order, `Layer` when a source is not what it must be, `Io`
pub fn assemble(order: Order, output: &File) -> Result<Description> {
    if order.layers.is_empty() || order.layers.len() > LAYERS_MAX {
        let text = format!("a disk has 1 to {LAYERS_MAX} layers, not {}", order.layers.len());
        return Err(Error::Usage(text));
    }
    let opened = order.layers.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let parts: Vec<Partition> = opened
        .iter()
        .map(|layer| partition(&layer.part))
        .collect::<Result<_>>()?;
    let table = gpt::table(&parts);
    output.set_len(table.disk_bytes).attempt("making the disk")?;
    for (layer, start) in opened.iter().zip(&table.starts) {
        let what = format!("copying {}", layer.name);
        copy(&layer.file, 0, output, *start, layer.part.data_bytes).attempt(&what)?;
        let place = start + layer.part.data_bytes;
        match &layer.tree {
            Some(tree) => output.write_all_at(tree, place).attempt(&what)?,
            None => copy(&layer.file, layer.tree_offset, output, place, layer.part.tree_bytes).attempt(&what)?,
        }
    }
    let description = Description {
        format: FORMAT.into(),
        layers: opened.into_iter().map(|layer| layer.part).collect(),
    };
    let writing = "writing the partition table";
    output.write_all_at(&table.head, 0).attempt(writing)?;
    output
        .write_all_at(&description.bytes(), DESCRIPTION_PLACE)
        .attempt(writing)?;
    output
        .write_all_at(&table.tail, table.disk_bytes - gpt::TAIL_BYTES as u64)
        .attempt(writing)?;
    Ok(description)
}

fn open(source: Source) -> Result<Opened> {
    match source {
        Source::Layer { layer } => {
            let file = open_file(&layer)?;
            let found = LayerDescription::read(&file, &layer)?;
            Ok(Opened {
                file,
                name: layer,
                tree_offset: found.data_bytes,
                tree: None,
                part: Part {
                    diff_id: found.diff_id,
                    data_bytes: found.data_bytes,
                    tree_bytes: found.tree_bytes,
                    root_hash: found.root_hash,
                    salt: None,
                },
            })
        }
        Source::Image { image, diff_id, tree } => open_image(image, diff_id, tree),
    }
}

fn open_file(path: &str) -> Result<File> {
    File::open(path).attempt(&format!("opening {path}"))
}

fn open_image(image: String, diff_id: String, tree: Option<Tree>) -> Result<Opened> {
    let file = open_file(&image)?;
    let bytes = file.metadata().attempt(&format!("reading {image}"))?.len();
    let Some(tree) = tree else {
        let data_bytes = bytes.next_multiple_of(BLOCK as u64);
        let (tree, root) = Hasher::new(&SALT).tree(hashes(&file, 0, data_bytes, &Hasher::new(&SALT), &image)?);
        let part = Part {
            diff_id,
            data_bytes,
            tree_bytes: tree.len() as u64,
            root_hash: hex(&root),
            salt: None,
        };
        return Ok(Opened {
            file,
            name: image,
            part,
            tree_offset: 0,
            tree: Some(tree),
        });
    };
    let wrong = || Error::Layer(format!("{image}: the hash tree does not lie where it is said to"));
    let size = tree_bytes(tree.data_bytes / BLOCK as u64);
    let end = tree.tree_offset.checked_add(size).ok_or_else(wrong)?;
    if !tree.data_bytes.is_multiple_of(BLOCK as u64)
        || tree.data_bytes == 0
        || tree.data_bytes > tree.tree_offset
        || end > bytes
    {
        return Err(wrong());
    }
    let part = Part {
        diff_id,
        data_bytes: tree.data_bytes,
        tree_bytes: size,
        root_hash: tree.root_hash,
        salt: Some(tree.salt),
    };
    Ok(Opened {
        file,
        name: image,
        part,
        tree_offset: tree.tree_offset,
        tree: None,
    })
}

/// The hashes of blocks of a file; what is missing at its end counts as zeros.
pub fn hashes(file: &File, start: u64, bytes: u64, hasher: &Hasher, name: &str) -> Result<Vec<Hash>> {
    let mut hashes = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < bytes {
        let count = READ_BYTES.min(usize::try_from(bytes - at).unwrap_or(READ_BYTES));
        let mut filled = 0;
        while filled < count {
            match file
                .read_at(&mut buffer[filled..count], start + at + filled as u64)
                .attempt(&format!("reading {name}"))?
            {
                0 => break,
                more => filled += more,
            }
        }
        buffer[filled..count].fill(0);
        hashes.extend(buffer[..count].chunks(BLOCK).map(|block| hasher.block(block)));
        at += count as u64;
    }
    Ok(hashes)
}

fn partition(part: &Part) -> Result<Partition> {
    let root = parse_hex(&part.root_hash);
    Ok(Partition {
        bytes: part.data_bytes + part.tree_bytes,
        root: root.ok_or_else(|| Error::Layer(format!("{:?} is no root hash", part.root_hash)))?,
    })
}

impl Description {
    fn bytes(&self) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("numbers and strings have a form in JSON");
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [&length.to_le_bytes()[..], &text].concat()
    }

    /// Reads the description of a disk; `None` when the file is no disk of layers.
    /// # Errors
    /// `Io`
    pub fn read(file: &File, name: &str) -> Result<Option<Self>> {
        let what = format!("reading {name}");
        let mut bytes = vec![0; DESCRIPTION_MAX];
        let count = file.read_at(&mut bytes, DESCRIPTION_PLACE).attempt(&what)?;
        if count < 4 {
            return Ok(None);
        }
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let text = usize::try_from(length).ok().and_then(|length| bytes.get(4..4 + length));
        let found: Option<Self> = text.and_then(|text| serde_json::from_slice(text).ok());
        Ok(found.filter(|found| found.format == FORMAT && found.layers.iter().all(Part::sound)))
    }

    /// Checks every byte of a disk against it.
    /// # Errors
    /// `Layer` that names what differs, `Io`
    pub fn verify(&self, file: &File, name: &str) -> Result<()> {
        let parts: Vec<Partition> = self.layers.iter().map(partition).collect::<Result<_>>()?;
        let table = gpt::table(&parts);
        let what = format!("reading {name}");
        let bytes = file.metadata().attempt(&what)?.len();
        if bytes != table.disk_bytes {
            return Err(Error::Layer(format!(
                "{name} has {bytes} bytes, and its layers need {}",
                table.disk_bytes
            )));
        }
        let mut head = vec![0; table.head.len()];
        let mut tail = vec![0; table.tail.len()];
        let read = file.read_exact_at(&mut head, 0);
        read.and_then(|()| file.read_exact_at(&mut tail, table.disk_bytes - table.tail.len() as u64))
            .attempt(&what)?;
        if head != table.head || tail != table.tail {
            return Err(Error::Layer(format!("{name}: the partition table is damaged")));
        }
        for (part, start) in self.layers.iter().zip(table.starts) {
            verify_part(
                file,
                start,
                part.data_bytes,
                &part.root_hash,
                part.salt.as_deref(),
                name,
            )?;
        }
        Ok(())
    }
}

impl Part {
    fn sound(&self) -> bool {
        let blocks = self.data_bytes / BLOCK as u64;
        blocks > 0 && self.data_bytes.is_multiple_of(BLOCK as u64) && self.tree_bytes == tree_bytes(blocks)
    }
}

/// Checks an image and the tree behind it against a root hash.
/// # Errors
/// `Layer` that tells image from tree, `Io`
pub fn verify_part(file: &File, start: u64, data_bytes: u64, root: &str, salt: Option<&str>, name: &str) -> Result<()> {
    let salt = salt.map_or(Some(SALT.to_vec()), unhex);
    let hasher = Hasher::new(&salt.ok_or_else(|| Error::Layer(format!("{name}: the salt is damaged")))?);
    let (tree, found) = hasher.tree(hashes(file, start, data_bytes, &hasher, name)?);
    if hex(&found) != root {
        return Err(Error::Layer(format!(
            "{name}: the image at byte {start} is damaged: its root hash is {}, not {root}",
            hex(&found)
        )));
    }
    let mut stored = vec![0; tree.len()];
    file.read_exact_at(&mut stored, start + data_bytes)
        .attempt(&format!("reading {name}"))?;
    if stored != tree {
        return Err(Error::Layer(format!(
            "{name}: the hash tree of the image at byte {start} is damaged"
        )));
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}
