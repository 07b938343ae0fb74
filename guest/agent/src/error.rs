//! The one error type: a ttrpc status code and a text that names what was attempted.

use nix::errno::Errno;
use std::fmt;

/// The status codes that this agent answers (google.rpc.Code).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    DataLoss = 15,
}

/// A failure on its way to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub text: String,
}

/// What fallible functions of the agent return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a code.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The caller's request is wrong.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, text)
    }

    /// Something in the guest failed.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Code::Internal, text)
    }

    /// What the guest has of the host is not what it was.
    pub fn damaged(text: impl Into<String>) -> Self {
        Self::new(Code::DataLoss, text)
    }

    /// There is no such container, process or path.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, text)
    }

    /// The thing is in a state that does not allow the request.
    pub fn precondition(text: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::internal(errno_text(errno))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Self::internal(error.to_string()),
        }
    }
}

/// The system's text for `errno`, with a small first letter, as runtimes print it ("no such file or directory").
pub fn errno_text(errno: Errno) -> String {
    let text = errno.desc();
    match text.as_bytes() {
        [_, second, ..] if second.is_ascii_lowercase() => text[..1].to_lowercase() + &text[1..],
        _ => text.to_string(),
    }
}

/// Puts what was attempted before the cause.
pub trait Context<T> {
    /// `what: cause`, keeping the code.
    fn context(self, what: impl fmt::Display) -> Result<T>;

    /// As `context`, with the text made only when it is needed.
    fn with_context<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.with_context(|| what)
    }

    fn with_context<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| {
            let cause = cause.into();
            Error::new(cause.code, format!("{}: {}", what(), cause.text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_code_and_names_the_attempt() {
        let failed: Result<()> = Err(Error::not_found("no such container \"a\""));
        let error = failed.context("kill").unwrap_err();
        assert_eq!(error, Error::not_found("kill: no such container \"a\""));
    }

    #[test]
    fn errno_text_reads_like_a_runtime_s() {
        assert_eq!(errno_text(Errno::ENOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::ENOEXEC), "exec format error");
        assert_eq!(errno_text(Errno::EIO), "I/O error");
    }
}
