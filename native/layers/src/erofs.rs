//! The image: an uncompressed EROFS (Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst) whose every byte follows from the
//! tree. Block 0 has the superblock; then come the files' blocks in the order of the archive, the folders' blocks, and the inodes, each with
//! its attributes and the end of its contents beside it.

use crate::blocks::Blocks;
use crate::error::{Attempt, Error, Result};
use crate::spool::Spool;
use crate::tree::{Content, Id, Inode, Node, Tree, ROOT};
use crate::verity::BLOCK;
use crate::xattrs::{self, Xattr};
use std::collections::BTreeMap;

/// Where the superblock is in block 0.
pub const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
/// A checksum, and times of files that are their own.
const FEATURES_COMPATIBLE: u32 = 0x1 | 0x2;
const FEATURE_CHUNKED_FILE: u32 = 0x4;
/// Inodes are numbered by their places in units of 32 bytes.
const SLOT: usize = 32;
const INODE_BYTES: usize = 64;
/// `i_format`: bit 0 the long form, from bit 1 on the layout of the contents.
const LONG: u16 = 1;
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKED: u16 = 4;
/// No block: a hole.
const HOLE: u32 = u32::MAX;
const ENTRY_BYTES: usize = 12;
/// Blocks of inodes that a small one may still go into.
const OPEN_BLOCKS: usize = 32;

/// What an image came to.
pub struct Image {
    /// Block 0, which is written last: it names what comes after it.
    pub first_block: Vec<u8>,
    pub inodes: u64,
    /// Folders that the archive did not have itself.
    pub implicit: u64,
}

/// Where an inode's contents are besides its tail.
enum Body {
    /// From this block on.
    At(u32),
    /// A map of chunks behind the inode.
    Map,
    /// A device number.
    Device(u32),
}

/// An inode with its place.
struct Placed<'a> {
    inode: &'a Inode,
    links: u32,
    parent: Id,
    xattrs: Vec<Xattr>,
    size: u64,
    /// Bytes of the contents that lie behind the inode.
    tail: usize,
    position: u64,
    body: Body,
}

type Table<'a> = BTreeMap<Id, Placed<'a>>;

/// Whether the end of some contents fits beside its inode.
pub fn fits_inline(xattr_bytes: usize, tail: usize) -> bool {
    INODE_BYTES + xattr_bytes + tail <= BLOCK
}

/// Writes folders and inodes behind the files' blocks.
/// # Errors
/// `Layer` when the image gets too large, `Io` when the spool can't be read
pub fn write(tree: &Tree, spool: &Spool, blocks: &mut Blocks) -> Result<Image> {
    let mut table = measure(tree);
    place(&mut table);
    write_folders(tree, &mut table, blocks)?;
    let first_inode_block = blocks.next()?;
    write_inodes(&table, tree, spool, blocks)?;
    let end = blocks.next()?;
    let chunked = table.values().any(|placed| matches!(placed.body, Body::Map));
    Ok(Image {
        first_block: first_block(&table, first_inode_block, end, chunked),
        inodes: table.len() as u64,
        implicit: table.values().filter(|placed| placed.inode.implicit).count() as u64,
    })
}

fn measure(tree: &Tree) -> Table<'_> {
    let measured = tree.walk().into_iter().map(|(id, (links, parent))| {
        let inode = &tree.inodes[id];
        let mut attributes = inode.xattrs.clone();
        if inode.opaque {
            attributes.push(xattrs::opaque());
            attributes.sort();
        }
        let xattr_bytes = xattrs::bytes(&attributes);
        let (size, tail, body) = match &inode.node {
            Node::Folder(_) => {
                let size = folder_size(tree, id);
                (size, inline_tail(size, xattr_bytes), Body::At(0))
            }
            Node::Symlink(target) => (
                target.len() as u64,
                inline_tail(target.len() as u64, xattr_bytes),
                Body::At(0),
            ),
            Node::File(Content::Flat { size, block, tail }) => {
                (*size, tail.map_or(0, |tail| tail.bytes), Body::At(*block))
            }
            Node::File(Content::Chunks { size, blocks, .. }) => (*size, blocks.len() * 4, Body::Map),
            Node::Special { major, minor, .. } => (0, 0, Body::Device(device_number(*major, *minor))),
        };
        let placed = Placed {
            inode,
            links,
            parent,
            xattrs: attributes,
            size,
            tail,
            position: 0,
            body,
        };
        (id, placed)
    });
    measured.collect()
}

/// What of the contents comes beside the inode: the end that fills no block, where there is room for it.
fn inline_tail(size: u64, xattr_bytes: usize) -> usize {
    let tail = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if fits_inline(xattr_bytes, tail) {
        tail
    } else {
        0
    }
}

/// `new_encode_dev` (Linux, include/linux/kdev_t.h).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Gives every inode its place: the root first, the others in the order of the archive. Nothing crosses a block that fits into one.
fn place(table: &mut Table<'_>) {
    // The first slots stay empty: number 0 is no inode.
    let mut open: Vec<(u64, usize)> = vec![(0, INODE_BYTES)];
    let mut blocks = 1_u64;
    for placed in table.values_mut() {
        let bytes = (INODE_BYTES + xattrs::bytes(&placed.xattrs) + placed.tail).next_multiple_of(SLOT);
        let found = open.iter().position(|(_, used)| BLOCK - used >= bytes);
        let (block, used) = match found {
            Some(index) => open.remove(index),
            None => (blocks, 0),
        };
        placed.position = block * BLOCK as u64 + used as u64;
        let end = used + bytes;
        if found.is_none() {
            blocks += end.div_ceil(BLOCK) as u64;
        }
        let (last, rest) = (block + (end / BLOCK) as u64, end % BLOCK);
        if rest > 0 && rest + INODE_BYTES <= BLOCK {
            open.push((last, rest));
            if open.len() > OPEN_BLOCKS {
                open.remove(0);
            }
        }
    }
}

fn number(placed: &Placed<'_>) -> u64 {
    placed.position / SLOT as u64
}

/// How the entries of a folder fall into blocks: names in order, and how many each block has.
fn folder_blocks(tree: &Tree, id: Id, parent: Id) -> Vec<Vec<(&[u8], Id)>> {
    let Node::Folder(children) = &tree.inodes[id].node else {
        return Vec::new();
    };
    let mut names: Vec<(&[u8], Id)> = children.iter().map(|(name, child)| (&**name, *child)).collect();
    names.extend([(&b"."[..], id), (&b".."[..], parent)]);
    names.sort_unstable();
    let (mut blocks, mut used) = (vec![Vec::new()], 0);
    for (name, child) in names {
        let bytes = ENTRY_BYTES + name.len();
        if used + bytes > BLOCK {
            blocks.push(Vec::new());
            used = 0;
        }
        used += bytes;
        blocks.last_mut().expect("there is one").push((name, child));
    }
    blocks
}

fn folder_size(tree: &Tree, id: Id) -> u64 {
    let blocks = folder_blocks(tree, id, ROOT);
    let last = blocks.last().map_or(0, |entries| {
        entries.iter().map(|(name, _)| ENTRY_BYTES + name.len()).sum()
    });
    (blocks.len() as u64 - 1) * BLOCK as u64 + last as u64
}

/// A block of a folder: entries (`erofs_dirent`), then their names.
fn folder_block(table: &Table<'_>, entries: &[(&[u8], Id)]) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut name_offset = entries.len() * ENTRY_BYTES;
    for (name, id) in entries {
        let placed = &table[id];
        block.extend(number(placed).to_le_bytes());
        block.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
        block.push(entry_type(&placed.inode.node));
        block.push(0);
        name_offset += name.len();
    }
    for (name, _) in entries {
        block.extend(*name);
    }
    block
}

fn entry_type(node: &Node) -> u8 {
    match node {
        Node::File(_) => 1,
        Node::Folder(_) => 2,
        Node::Special { kind, .. } => match libc::mode_t::from(*kind) {
            libc::S_IFCHR => 3,
            libc::S_IFBLK => 4,
            _ => 5,
        },
        Node::Symlink(_) => 7,
    }
}

/// Writes what of folders and long symbolic links does not lie beside their inodes.
fn write_folders(tree: &Tree, table: &mut Table<'_>, blocks: &mut Blocks) -> Result<()> {
    let ids: Vec<Id> = table.keys().copied().collect();
    for id in ids {
        let placed = &table[&id];
        let outside = placed.size - placed.tail as u64;
        if outside == 0 || !matches!(placed.inode.node, Node::Folder(_) | Node::Symlink(_)) {
            continue;
        }
        let contents = contents_of(tree, table, id);
        let start = blocks.next()?;
        blocks.put(&contents[..usize::try_from(outside).unwrap_or(contents.len())]);
        blocks.pad();
        if let Some(placed) = table.get_mut(&id) {
            placed.body = Body::At(start);
        }
    }
    Ok(())
}

/// The contents of a folder or symbolic link.
fn contents_of(tree: &Tree, table: &Table<'_>, id: Id) -> Vec<u8> {
    let placed = &table[&id];
    if let Node::Symlink(target) = &placed.inode.node {
        return target.to_vec();
    }
    let mut contents = Vec::new();
    for entries in folder_blocks(tree, id, placed.parent) {
        contents.resize(contents.len().next_multiple_of(BLOCK), 0);
        contents.extend(folder_block(table, &entries));
    }
    contents
}

fn write_inodes(table: &Table<'_>, tree: &Tree, spool: &Spool, blocks: &mut Blocks) -> Result<()> {
    let mut order: Vec<Id> = table.keys().copied().collect();
    order.sort_unstable_by_key(|id| table[id].position);
    let mut position = 0_u64;
    let mut bytes = Vec::with_capacity(2 * BLOCK);
    for id in order {
        let placed = &table[&id];
        let gap = usize::try_from(placed.position - position).unwrap_or(0);
        bytes.clear();
        bytes.resize(gap, 0);
        write_inode(placed, id, &mut bytes)?;
        xattrs::write(&placed.xattrs, &mut bytes);
        write_tail(placed, id, tree, table, spool, &mut bytes)?;
        blocks.put(&bytes);
        position += bytes.len() as u64;
    }
    blocks.pad();
    Ok(())
}

/// `erofs_inode_extended`.
fn write_inode(placed: &Placed<'_>, id: Id, to: &mut Vec<u8>) -> Result<()> {
    let inode = placed.inode;
    let layout = match placed.body {
        Body::Map => CHUNKED,
        _ if placed.tail > 0 => INLINE,
        _ => PLAIN,
    };
    let kind = match &inode.node {
        Node::Folder(_) => libc::S_IFDIR as u16,
        Node::File(_) => libc::S_IFREG as u16,
        Node::Symlink(_) => libc::S_IFLNK as u16,
        Node::Special { kind, .. } => *kind,
    };
    let where_it_is = match (&placed.body, &inode.node) {
        (Body::At(block), _) => *block,
        (Body::Device(number), _) => *number,
        (Body::Map, Node::File(Content::Chunks { bits, .. })) => u32::from(*bits),
        (Body::Map, _) => 0,
    };
    let serial = u32::try_from(id + 1).map_err(|_| Error::Layer("the layer has too many files".into()))?;
    // A symbolic link may be of any mode in an archive, and is of one in Linux.
    let mode = if matches!(inode.node, Node::Symlink(_)) {
        0o777
    } else {
        inode.mode
    };
    to.extend((LONG | (layout << 1)).to_le_bytes());
    to.extend(xattrs::count(xattrs::bytes(&placed.xattrs)).to_le_bytes());
    to.extend((kind | mode).to_le_bytes());
    to.extend([0; 2]);
    to.extend(placed.size.to_le_bytes());
    to.extend(where_it_is.to_le_bytes());
    to.extend(serial.to_le_bytes());
    to.extend(inode.uid.to_le_bytes());
    to.extend(inode.gid.to_le_bytes());
    to.extend(inode.mtime.to_le_bytes());
    to.extend(inode.mtime_nsec.to_le_bytes());
    to.extend(placed.links.to_le_bytes());
    to.extend([0; 16]);
    Ok(())
}

fn write_tail(
    placed: &Placed<'_>,
    id: Id,
    tree: &Tree,
    table: &Table<'_>,
    spool: &Spool,
    to: &mut Vec<u8>,
) -> Result<()> {
    match &placed.inode.node {
        Node::File(Content::Chunks { blocks, .. }) => {
            for block in blocks {
                to.extend(block.to_le_bytes());
            }
        }
        Node::File(Content::Flat { tail: Some(tail), .. }) => {
            spool.read(*tail, to).attempt("reading back the ends of files")?;
        }
        Node::Folder(_) | Node::Symlink(_) if placed.tail > 0 => {
            let contents = contents_of(tree, table, id);
            to.extend(&contents[contents.len() - placed.tail..]);
        }
        _ => {}
    }
    Ok(())
}

/// Block 0: nothing but `erofs_super_block`.
fn first_block(table: &Table<'_>, first_inode_block: u32, blocks: u32, chunked: bool) -> Vec<u8> {
    let mut superblock = Vec::with_capacity(SUPERBLOCK_BYTES);
    let root = u16::try_from(number(&table[&ROOT])).unwrap_or(u16::MAX);
    superblock.extend(MAGIC.to_le_bytes());
    superblock.extend([0; 4]);
    superblock.extend(FEATURES_COMPATIBLE.to_le_bytes());
    superblock.extend([BLOCK_BITS, 0]);
    superblock.extend(root.to_le_bytes());
    superblock.extend((table.len() as u64).to_le_bytes());
    // The time of creation.
    superblock.extend([0; 12]);
    superblock.extend(blocks.to_le_bytes());
    superblock.extend(first_inode_block.to_le_bytes());
    // No shared attributes, no UUID, no name.
    superblock.extend([0; 4 + 16 + 16]);
    superblock.extend(if chunked { FEATURE_CHUNKED_FILE } else { 0 }.to_le_bytes());
    let mut block = vec![0; BLOCK];
    block[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + superblock.len()].copy_from_slice(&superblock);
    let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
    block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// CRC-32C as the kernel calls it: all ones at first, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

/// Entries of one chunk map at most: 4 MiB of them.
const CHUNKS_MAX: u64 = 1 << 20;
/// Chunks of 4 MiB at most: files of 4 TiB.
const CHUNK_BITS_MAX: u8 = 10;

/// How large the chunks of a sparse file are, in blocks, as a power of two: the smallest with which its map stays small. `None` for a file that is too large.
pub fn chunk_bits(size: u64) -> Option<u8> {
    let blocks = size.div_ceil(BLOCK as u64);
    (0..=CHUNK_BITS_MAX).find(|bits| blocks.div_ceil(1 << bits) <= CHUNKS_MAX)
}

/// An entry of a chunk map that is a hole.
pub fn hole() -> u32 {
    HOLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernels() {
        // The inverse of the well-known check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(8, 0x12345), 0x1230_0845);
    }

    #[test]
    fn a_map_of_chunks_stays_small() {
        assert_eq!(chunk_bits(4096), Some(0));
        assert_eq!(chunk_bits(1 << 32), Some(0));
        assert_eq!(chunk_bits((1 << 32) + 1), Some(1));
        assert_eq!(chunk_bits(1 << 42), Some(10));
        assert_eq!(chunk_bits((1 << 42) + 1), None);
    }
}
