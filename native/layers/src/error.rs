//! What can go wrong, told apart by what the caller does about it.

use std::fmt;
use std::io;

/// A failure.
#[derive(Debug)]
pub enum Error {
    /// The layer, or a file made of one, is not what it claims to be, or can't be an image: trying again does not help.
    Layer(String),
    /// The command line or the order on standard input is wrong.
    Usage(String),
    /// The machine: a file, the disk's space.
    Io(String, io::Error),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Exit status of the program: 2 usage, 3 the layer, 4 no space, 1 all else.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Layer(_) => 3,
            Self::Io(_, error) if is_full(error) => 4,
            Self::Io(..) => 1,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(text) | Self::Usage(text) => to.write_str(text),
            Self::Io(what, error) => write!(to, "{what}: {error}"),
        }
    }
}

/// Says what was attempted when a system call fails.
pub trait Attempt<T> {
    /// Turns the error into ours.
    fn attempt(self, what: &str) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::Io(what.to_owned(), error))
    }
}

/// A name of a tar archive as it is shown in a message: printable, and not longer than a line.
pub fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    let text: String = name
        .iter()
        .take(MOST)
        .flat_map(|byte| std::ascii::escape_default(*byte))
        .map(char::from)
        .collect();
    format!("\"{text}{}\"", if name.len() > MOST { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_printable_and_bounded() {
        assert_eq!(shown(b"a\n\xff"), "\"a\\n\\xff\"");
        assert_eq!(shown(&[b'x'; 300]).len(), 205);
    }
}
