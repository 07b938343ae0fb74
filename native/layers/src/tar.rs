//! Tar archives, as layers are: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax) headers, GNU's long names, numbers in base 256 and sparse files
//! in all four forms (GNU tar manual, "Tar Internals"). What is read as what follows Go's archive/tar, which containerd unpacks with.

use crate::error::{shown, Attempt, Error, Result};
use crate::header::{number, text, Header};
use crate::pax::{self, Records};
use std::io::Read;

/// Sizes of headers and of the padding of contents.
pub const BLOCK: usize = 512;
/// Names and pax records of one entry, in bytes.
const SPECIAL_MAX: u64 = 1024 * 1024;
/// Pieces of one sparse file.
const PIECES_MAX: usize = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Link,
    Symlink,
    Character,
    Block,
    Folder,
    Fifo,
}

/// A piece of a sparse file that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub bytes: u64,
}

/// One entry.
#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The target of a link.
    pub target: Vec<u8>,
    /// The lower twelve bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Of a plain file: with its holes.
    pub size: u64,
    /// Of a sparse file: what is not a hole, in order.
    pub pieces: Option<Vec<Piece>>,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub device: (u32, u32),
    /// Names with their prefixes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is read from its beginning to its end.
pub struct Archive<R> {
    input: R,
    /// Stored bytes of the current entry that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    number: u64,
}

impl<R: Read> Archive<R> {
    /// Reads an archive.
    pub fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            number: 0,
        }
    }

    /// The source, wherever it is by now.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the archive's end.
    /// # Errors
    /// `Layer` for what is no archive, with the entry's name or number
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let (mut records, mut long_name, mut long_target) = (Records::default(), None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.number += 1;
            let size = self.size(&header)?;
            match header.kind() {
                // Records for all that follows carry nothing that layers use; containerd passes them over too.
                b'g' => self.begin(size),
                b'x' => records = pax::parse(&self.special(size, "pax records")?).map_err(|text| self.wrong(&text))?,
                b'L' => long_name = long_text(self.special(size, "name")?),
                b'K' => long_target = long_text(self.special(size, "link target")?),
                _ => return self.entry(&header, records, long_name, long_target).map(Some),
            }
        }
    }

    /// Reads from the contents of the current entry (of a sparse file: what is stored of it).
    /// # Errors
    /// `Layer` when the archive ends within them
    pub fn read_exact(&mut self, to: &mut [u8]) -> Result<()> {
        let count = to.len() as u64;
        if count > self.left {
            return Err(self.wrong("its contents are shorter than it says"));
        }
        self.fill(to)?;
        self.left -= count;
        Ok(())
    }

    fn wrong(&self, text: &str) -> Error {
        Error::Layer(format!("entry {} of the archive: {text}", self.number))
    }

    /// Fills the buffer.
    fn fill(&mut self, to: &mut [u8]) -> Result<()> {
        if self.fill_some(to)? < to.len() {
            return Err(self.wrong("the archive ends within it"));
        }
        Ok(())
    }

    /// Fills as much as there is.
    fn fill_some(&mut self, to: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < to.len() {
            match self.input.read(&mut to[filled..]).attempt("reading the layer")? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_rest(&mut self) -> Result<()> {
        let mut scratch = [0; 16 * BLOCK];
        let mut rest = self.left + self.padding;
        while rest > 0 {
            let count = scratch.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let filled = self.fill_some(&mut scratch[..count])? as u64;
            rest -= filled;
            // The last entry's padding may be missing.
            if filled < count as u64 {
                if rest > self.padding {
                    return Err(self.wrong("the archive ends within it"));
                }
                break;
            }
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at the end: two empty blocks, or nothing at all.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            if self.block(&mut block)? && block != [0; BLOCK] {
                return Err(Error::Layer(format!(
                    "the archive goes on after an empty block behind entry {}",
                    self.number
                )));
            }
            return Ok(None);
        }
        Header::new(block)
            .map(Some)
            .ok_or_else(|| Error::Layer(format!("entry {} of the archive has no valid header", self.number + 1)))
    }

    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        match self.fill_some(block)? {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(Error::Layer(format!(
                "the archive ends within a header behind entry {}",
                self.number
            ))),
        }
    }

    fn size(&self, header: &Header) -> Result<u64> {
        let size = header.number(124..136).and_then(|size| u64::try_from(size).ok());
        size.filter(|size| i64::try_from(*size).is_ok())
            .ok_or_else(|| self.wrong("its size is no number"))
    }

    /// The contents of an entry that describes the next one.
    fn special(&mut self, size: u64, what: &str) -> Result<Vec<u8>> {
        if size > SPECIAL_MAX {
            return Err(self.wrong(&format!("its {what} take {size} bytes, and {SPECIAL_MAX} is the most")));
        }
        self.begin(size);
        let mut contents = vec![0; usize::try_from(size).unwrap_or(0)];
        self.read_exact(&mut contents)?;
        Ok(contents)
    }

    fn entry(
        &mut self,
        header: &Header,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry> {
        // As Go has it: where an entry has GNU's header and a pax record, GNU's counts.
        let mut path = long_name.or(records.path).unwrap_or_else(|| header.path());
        let target = long_target
            .or(records.target)
            .unwrap_or_else(|| text(&header.block()[157..257]));
        let kind = self.kind(header, &path)?;
        let named = |text: &str| Error::Layer(format!("{}: {text}", shown(&path)));
        let id = |range, given: Option<i64>, what: &str| {
            let found = given.or_else(|| header.number(range));
            found
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| named(&format!("its {what} is out of range")))
        };
        let uid = id(108..116, records.uid, "owner")?;
        let gid = id(116..124, records.gid, "group")?;
        let mode = header.number(100..108).ok_or_else(|| named("its mode is no number"))?;
        let header_time = || header.number(136..148).map(|seconds| (seconds, 0));
        let (mtime, mtime_nsec) = records
            .mtime
            .or_else(header_time)
            .ok_or_else(|| named("its time is no number"))?;
        let device = match kind {
            Kind::Character | Kind::Block => (id(329..337, None, "device")?, id(337..345, None, "device")?),
            _ => (0, 0),
        };
        let stored = match kind {
            Kind::File => records.size.map_or_else(|| self.size(header), Ok)?,
            // Whatever their headers say, nothing is stored of the others.
            _ => 0,
        };
        self.begin(stored);
        let (size, pieces) = match kind {
            Kind::File => self.sparse(header, &records.sparse, &path)?,
            _ => (0, None),
        };
        if let Some(name) = records.sparse.name {
            path = name;
        }
        Ok(Entry {
            path,
            kind,
            target,
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid,
            gid,
            size,
            pieces,
            mtime,
            mtime_nsec,
            device,
            xattrs: records.xattrs,
        })
    }

    fn kind(&self, header: &Header, path: &[u8]) -> Result<Kind> {
        Ok(match header.kind() {
            // Archives from before POSIX tell folders by the slash.
            0 if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => {
                return Err(Error::Layer(format!(
                    "{}: entries of type '{}' are not known",
                    shown(path),
                    std::ascii::escape_default(other)
                )))
            }
        })
    }

    /// The size of a file with its holes, and its pieces when it is sparse.
    fn sparse(&mut self, header: &Header, records: &pax::Sparse, path: &[u8]) -> Result<(u64, Option<Vec<Piece>>)> {
        let wrong = |text: &str| Error::Layer(format!("{}: its map of holes {text}", shown(path)));
        let (size, pieces) = if header.kind() == b'S' {
            let size = header.number(483..495).and_then(|size| u64::try_from(size).ok());
            (size.ok_or_else(|| wrong("has no size"))?, self.gnu_map(header)?)
        } else if let Some(size) = records.size {
            let pieces = match &records.map {
                Some(map) => pairs(map).ok_or_else(|| wrong("is not made of pairs"))?,
                None => self.pax_map(path)?,
            };
            (size, pieces)
        } else {
            return Ok((self.left, None));
        };
        check_pieces(&pieces, size, self.left).map_err(wrong)?;
        Ok((size, Some(pieces.into_iter().filter(|piece| piece.bytes > 0).collect())))
    }

    /// GNU's old form: four pieces in the header, 21 in each block that follows.
    fn gnu_map(&mut self, header: &Header) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut table = header.block()[386..482].to_vec();
        let mut more = header.block()[482] != 0;
        loop {
            for pair in table.chunks_exact(24) {
                if pair[0] == 0 && pair[12] == 0 {
                    break;
                }
                let at = |field: &[u8]| number(field).and_then(|value| u64::try_from(value).ok());
                match (at(&pair[..12]), at(&pair[12..])) {
                    (Some(offset), Some(bytes)) if pieces.len() < PIECES_MAX => pieces.push(Piece { offset, bytes }),
                    _ => return Err(self.wrong("its map of holes is damaged or too long")),
                }
            }
            if !more {
                return Ok(pieces);
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            table = block[..504].to_vec();
            more = block[504] != 0;
        }
    }

    /// Version 1.0: decimal numbers in lines before the contents, padded to a block.
    fn pax_map(&mut self, path: &[u8]) -> Result<Vec<Piece>> {
        let wrong = |text: &str| Error::Layer(format!("{}: its map of holes {text}", shown(path)));
        let (mut numbers, mut line, mut count) = (Vec::new(), Vec::new(), None);
        loop {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let value = pax::decimal(&line).and_then(|value| u64::try_from(value).ok());
                let value = value.ok_or_else(|| wrong("is damaged"))?;
                line.clear();
                match count {
                    None => count = Some(usize::try_from(value).unwrap_or(usize::MAX)),
                    Some(_) => numbers.push(value),
                }
                if count.is_some_and(|count| count > PIECES_MAX) {
                    return Err(wrong("is too long"));
                }
                if count.is_some_and(|count| numbers.len() == count * 2) {
                    return pairs(&numbers).ok_or_else(|| wrong("is not made of pairs"));
                }
            }
            if line.len() > 20 {
                return Err(wrong("is damaged"));
            }
        }
    }
}

fn pairs(numbers: &[u64]) -> Option<Vec<Piece>> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > PIECES_MAX {
        return None;
    }
    let pair = |pair: &[u64]| Piece {
        offset: pair[0],
        bytes: pair[1],
    };
    Some(numbers.chunks_exact(2).map(pair).collect())
}

/// Pieces must be in order, within the file, and as long together as what is stored.
fn check_pieces(pieces: &[Piece], size: u64, stored: u64) -> std::result::Result<(), &'static str> {
    let (mut end, mut sum) = (0, 0_u64);
    for piece in pieces {
        let after = piece.offset.checked_add(piece.bytes).filter(|after| *after <= size);
        let after = after.ok_or("leads out of the file")?;
        if piece.offset < end {
            return Err("is not in order");
        }
        end = after;
        sum += piece.bytes;
    }
    if sum == stored {
        Ok(())
    } else {
        Err("does not fit what is stored")
    }
}

/// GNU's long names: up to the first NUL. An empty one is none.
fn long_text(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let found = text(&bytes);
    (!found.is_empty()).then_some(found)
}
