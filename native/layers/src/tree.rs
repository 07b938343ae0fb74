//! The files of a layer: what entries of its archive make of them, as containerd's applier has it (OCI image specification, "Image Layer
//! Filesystem Changeset"), except that deletions stay as overlayfs knows them.

use crate::error::{shown, Error, Result};
use crate::tar::{Entry, Kind};
use crate::xattrs::{self, Xattr};
use std::collections::{BTreeMap, VecDeque};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Linux, NAME_MAX and PATH_MAX.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Symbolic links on the way to one entry.
const LINKS_MAX: usize = 255;
/// Files of one layer.
const INODES_MAX: usize = 1 << 22;
/// What names, link targets and extended attributes of one layer take.
const NAMES_MAX_BYTES: usize = 512 * 1024 * 1024;

/// The place of an inode in the tree's table.
pub type Id = usize;
/// The root folder.
pub const ROOT: Id = 0;

/// The contents of a plain file, where the image has them.
#[derive(Debug)]
pub enum Content {
    /// Whole blocks from `block` on, then what is kept in the spool to be stored beside the inode.
    Flat { size: u64, block: u32, tail: Option<Tail> },
    /// Equal chunks of `1 << bits` blocks, each somewhere or a hole.
    Chunks { size: u64, bits: u8, blocks: Vec<u32> },
}

/// Bytes in the spool.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    pub offset: u64,
    pub bytes: usize,
}

/// What an inode is.
#[derive(Debug)]
pub enum Node {
    Folder(BTreeMap<Box<[u8]>, Id>),
    File(Content),
    Symlink(Box<[u8]>),
    /// Character and block devices, FIFOs, with their type bits.
    Special {
        kind: u16,
        major: u32,
        minor: u32,
    },
}

/// One inode.
#[derive(Debug)]
pub struct Inode {
    pub node: Node,
    /// The lower twelve bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub xattrs: Vec<Xattr>,
    /// Of a folder: nothing of lower layers shows in it.
    pub opaque: bool,
    /// Of a folder: the archive has things in it, but not itself.
    pub implicit: bool,
}

impl Inode {
    fn bare(node: Node, mode: u16) -> Self {
        Self {
            node,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: Vec::new(),
            opaque: false,
            implicit: false,
        }
    }

    fn folder() -> Self {
        Self {
            implicit: true,
            ..Self::bare(Node::Folder(BTreeMap::new()), 0o755)
        }
    }
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Something that the layer has.
    Plain,
    /// The deletion of what lower layers have.
    Whiteout,
    /// The deletion of all that lower layers have in the folder.
    Opaque,
    /// Records of old storage drivers.
    Nothing,
}

/// All inodes of a layer. Those that were replaced stay in the table.
pub struct Tree {
    pub inodes: Vec<Inode>,
    whiteout: Option<Id>,
    name_bytes: usize,
}

/// Where a path leads.
struct Place {
    folder: Id,
    /// Empty for the root.
    name: Vec<u8>,
}

impl Tree {
    /// An empty root.
    pub fn new() -> Self {
        Self {
            inodes: vec![Inode::folder()],
            whiteout: None,
            name_bytes: 0,
        }
    }

    /// Puts an entry into the tree; `content` for a plain file.
    /// # Errors
    /// `Layer` for what can't be a file of a container, with the entry's name
    pub fn apply(&mut self, entry: &Entry, role: Role, content: Option<Content>) -> Result<()> {
        if role == Role::Nothing {
            return Ok(());
        }
        let place = self.place(&entry.path, true)?;
        self.name_bytes += place.name.len() + entry.target.len();
        self.name_bytes += entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        if self.inodes.len() >= INODES_MAX || self.name_bytes > NAMES_MAX_BYTES {
            return Err(refused(
                entry,
                &format!("the layer has more than {INODES_MAX} files, or more than {NAMES_MAX_BYTES} bytes of names and attributes"),
            ));
        }
        match role {
            Role::Plain => self.put(entry, place, content),
            Role::Whiteout => self.delete(entry, &place),
            _ => self.make_opaque(entry, place.folder),
        }
    }

    /// The root and everything below, each inode once: a folder comes before what is in it. With each the number of its names and, for a
    /// folder, the folder above.
    pub fn walk(&self) -> BTreeMap<Id, (u32, Id)> {
        let mut found: BTreeMap<Id, (u32, Id)> = BTreeMap::from([(ROOT, (2, ROOT))]);
        let mut folders = vec![ROOT];
        while let Some(folder) = folders.pop() {
            let Node::Folder(children) = &self.inodes[folder].node else {
                continue;
            };
            for child in children.values() {
                if matches!(self.inodes[*child].node, Node::Folder(_)) {
                    found.insert(*child, (2, folder));
                    found.get_mut(&folder).expect("it was found before").0 += 1;
                    folders.push(*child);
                } else {
                    found.entry(*child).or_insert((0, folder)).0 += 1;
                }
            }
        }
        found
    }

    fn child(&self, folder: Id, name: &[u8]) -> Option<Id> {
        match &self.inodes[folder].node {
            Node::Folder(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn attach(&mut self, folder: Id, name: &[u8], id: Id) {
        if let Node::Folder(children) = &mut self.inodes[folder].node {
            children.insert(name.into(), id);
        }
    }

    fn add(&mut self, inode: Inode) -> Id {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn is_folder(&self, id: Id) -> bool {
        matches!(self.inodes[id].node, Node::Folder(_))
    }

    /// Finds the folder of a path and the name in it; symbolic links of the layer on the way are followed, never out of the root. Folders
    /// that are missing are made when `make` is set.
    fn place(&mut self, path: &[u8], make: bool) -> Result<Place> {
        let wrong = |text: &str| Error::Layer(format!("{}: {text}", shown(path)));
        if path.contains(&0) || path.len() >= PATH_MAX {
            return Err(wrong("its name has a NUL or is too long"));
        }
        let mut parts: VecDeque<Vec<u8>> = clean(path).into();
        let Some(name) = parts.pop_back() else {
            return Ok(Place {
                folder: ROOT,
                name: Vec::new(),
            });
        };
        let mut stack = vec![ROOT];
        let mut links = 0;
        while let Some(part) = parts.pop_front() {
            let folder = *stack.last().unwrap_or(&ROOT);
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let found = self.child(folder, &part);
            match found.map(|id| (id, &self.inodes[id].node)) {
                Some((id, Node::Folder(_))) => stack.push(id),
                Some((_, Node::Symlink(target))) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(wrong("too many symbolic links lead to it"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let names = target
                        .split(|byte| *byte == b'/')
                        .filter(|name| !name.is_empty() && *name != b".");
                    for name in names.rev() {
                        parts.push_front(name.to_vec());
                    }
                }
                Some((id, _)) if Some(id) != self.whiteout => {
                    return Err(wrong("something on the way to it is no folder"))
                }
                _ if !make => return Err(wrong("it is not in this layer")),
                deleted => {
                    if part.len() > NAME_MAX {
                        return Err(wrong("a part of its name is too long"));
                    }
                    let opaque = deleted.is_some();
                    let id = self.add(Inode {
                        opaque,
                        ..Inode::folder()
                    });
                    self.attach(folder, &part, id);
                    stack.push(id);
                }
            }
        }
        if name.len() > NAME_MAX {
            return Err(wrong("its name is longer than 255 bytes"));
        }
        let folder = *stack.last().unwrap_or(&ROOT);
        Ok(Place { folder, name })
    }

    fn put(&mut self, entry: &Entry, place: Place, content: Option<Content>) -> Result<()> {
        let here = if place.name.is_empty() {
            Some(ROOT)
        } else {
            self.child(place.folder, &place.name)
        };
        if place.name.is_empty() && entry.kind != Kind::Folder {
            return Err(refused(entry, "the root of a layer is a folder"));
        }
        if entry.kind == Kind::Link {
            return self.link(entry, &place);
        }
        let deleted = here.is_some() && here == self.whiteout;
        let mut inode = Inode {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: xattrs::kept(&entry.xattrs).map_err(|text| refused(entry, &text))?,
            ..Inode::bare(node_of(entry, content)?, 0)
        };
        if entry.kind == Kind::Folder {
            inode.opaque = deleted;
            if let Some(id) = here.filter(|id| self.is_folder(*id)) {
                let known = &mut self.inodes[id];
                std::mem::swap(&mut known.node, &mut inode.node);
                inode.opaque = known.opaque;
                *known = inode;
                return Ok(());
            }
        }
        let id = self.add(inode);
        self.attach(place.folder, &place.name, id);
        Ok(())
    }

    fn link(&mut self, entry: &Entry, place: &Place) -> Result<()> {
        let missing = || {
            let text = format!(
                "it is a hard link to {}, which is not in this layer",
                shown(&entry.target)
            );
            refused(entry, &text)
        };
        let source = self.place(&entry.target, false).map_err(|_| missing())?;
        let id = self.child(source.folder, &source.name).ok_or_else(missing)?;
        if Some(id) == self.whiteout {
            return Err(missing());
        }
        if self.is_folder(id) {
            return Err(refused(entry, "it is a hard link to a folder"));
        }
        if self.child(place.folder, &place.name) != Some(id) {
            self.attach(place.folder, &place.name, id);
        }
        Ok(())
    }

    /// A deletion. What the layer has itself under that name stays, whichever came first.
    fn delete(&mut self, entry: &Entry, place: &Place) -> Result<()> {
        let name = &place.name[WHITEOUT.len()..];
        if name.is_empty() || name == b"." || name == b".." {
            return Err(refused(entry, "it deletes no name"));
        }
        match self.child(place.folder, name) {
            Some(id) if self.is_folder(id) => self.inodes[id].opaque = true,
            Some(_) => {}
            None => {
                let id = match self.whiteout {
                    Some(id) => id,
                    None => {
                        let node = Node::Special {
                            kind: libc::S_IFCHR as u16,
                            major: 0,
                            minor: 0,
                        };
                        self.add(Inode::bare(node, 0))
                    }
                };
                self.whiteout = Some(id);
                self.attach(place.folder, name, id);
            }
        }
        Ok(())
    }

    fn make_opaque(&mut self, entry: &Entry, folder: Id) -> Result<()> {
        if folder == ROOT {
            return Err(refused(
                entry,
                "it deletes the whole of the lower layers, which overlayfs has no sign for",
            ));
        }
        self.inodes[folder].opaque = true;
        Ok(())
    }
}

/// What an entry is for, by its name.
pub fn role(entry: &Entry) -> Role {
    let parts = clean(&entry.path);
    if parts
        .iter()
        .any(|part| part.starts_with(WHITEOUT_META) && part != OPAQUE)
    {
        return Role::Nothing;
    }
    match parts.last() {
        Some(name) if name == OPAQUE => Role::Opaque,
        Some(name) if name.starts_with(WHITEOUT) => Role::Whiteout,
        _ => Role::Plain,
    }
}

fn node_of(entry: &Entry, content: Option<Content>) -> Result<Node> {
    let (major, minor) = entry.device;
    let special = |kind: libc::mode_t| {
        // Linux has twelve bits of a major and twenty of a minor number.
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(refused(entry, "its device number is out of range"));
        }
        Ok(Node::Special {
            kind: kind as u16,
            major,
            minor,
        })
    };
    match entry.kind {
        Kind::File => content
            .map(Node::File)
            .ok_or_else(|| refused(entry, "it has no contents")),
        Kind::Folder => Ok(Node::Folder(BTreeMap::new())),
        Kind::Character => special(libc::S_IFCHR),
        Kind::Block => special(libc::S_IFBLK),
        Kind::Fifo => special(libc::S_IFIFO),
        Kind::Symlink | Kind::Link => {
            let target = &entry.target;
            if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
                return Err(refused(entry, "the target of the symbolic link is empty or too long"));
            }
            Ok(Node::Symlink(target.as_slice().into()))
        }
    }
}

fn refused(entry: &Entry, text: &str) -> Error {
    Error::Layer(format!("{}: {text}", shown(&entry.path)))
}

/// The parts of a path without what changes nothing; `..` takes back what comes before, and what leads out of the root is left out.
fn clean(path: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name.to_vec()),
        }
    }
    parts
}
