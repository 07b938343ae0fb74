//! The container's program: found as a shell finds it, refused with the texts that users know from other runtimes.

use super::identity::User;
use crate::error::{errno_text, Context, Error, Result};
use crate::proto::grpc::Process;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The environment as `NAME=value` words, with HOME when the process brings none.
pub fn environment(process: &Process, user: &User) -> Vec<String> {
    let mut words = process.env.clone();
    if !words.iter().any(|word| word.starts_with("HOME=")) {
        words.push(format!("HOME={}", user.home));
    }
    words
}

/// Makes the working folder of a container's first process where it is missing, as runtimes do. What can't be made is named by `enter_cwd`.
pub fn make_cwd(process: &Process) -> Result<()> {
    if process.cwd.is_empty() {
        return Ok(());
    }
    match std::fs::create_dir_all(&process.cwd) {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("make the working folder {:?}", process.cwd)),
    }
}

/// Changes to the working folder, as the user when `must`; before that, as root, without complaint (only root may be able to reach it).
pub fn enter_cwd(process: &Process, must: bool) -> Result<()> {
    let cwd = if process.cwd.is_empty() {
        "/"
    } else {
        process.cwd.as_str()
    };
    match nix::unistd::chdir(cwd) {
        Err(Errno::EACCES) if must => {
            // Root was there before: the folder stands, and the process may stay in it.
            let here = std::env::current_dir().unwrap_or_default();
            if here == Path::new(cwd) {
                return Ok(());
            }
            Err(Errno::EACCES).with_context(|| format!("chdir to cwd ({cwd:?})"))
        }
        Err(Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("chdir to cwd ({cwd:?})")),
        Ok(()) => Ok(()),
    }
}

/// A program to become.
pub struct Program {
    path: PathBuf,
}

/// Finds the process's first argument: a path as it is, a bare name along PATH.
pub fn find(process: &Process, environment: &[String]) -> Result<Program> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid("the process has no arguments: nothing to execute"));
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(Program { path }),
            Err(Errno::EACCES) => Err(Error::internal(format!("exec: {name:?}: permission denied"))),
            Err(Errno::EISDIR) => Err(Error::internal(format!("exec: {name:?}: is a directory"))),
            Err(errno) => Err(Error::internal(format!(
                "exec: {name:?}: stat {name}: {}",
                errno_text(errno)
            ))),
        };
    }
    let search = environment
        .iter()
        .find_map(|word| word.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut denied = false;
    for folder in search.split(':') {
        let path = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(Program { path }),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    let why = if denied {
        "permission denied"
    } else {
        "executable file not found in $PATH"
    };
    Err(Error::internal(format!("exec: {name:?}: {why}")))
}

fn executable(path: &Path) -> nix::Result<()> {
    let status = std::fs::metadata(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if status.is_dir() {
        return Err(Errno::EISDIR);
    }
    nix::unistd::faccessat(
        nix::fcntl::AT_FDCWD,
        path,
        nix::unistd::AccessFlags::X_OK,
        nix::fcntl::AtFlags::AT_EACCESS,
    )
}

impl Program {
    /// Becomes the program; returns only the reason why not.
    pub fn become_it(&self, process: &Process, environment: &[String]) -> Error {
        let attempt = || -> Result<std::convert::Infallible> {
            let path = CString::new(self.path.as_os_str().as_bytes()).map_err(|_| nul())?;
            let arguments = words(&process.args)?;
            let environment = words(environment)?;
            Ok(nix::unistd::execve(&path, &arguments, &environment)?)
        };
        let cause = match attempt() {
            Err(error) => error.text,
            Ok(never) => match never {},
        };
        Error::internal(format!("exec {}: {cause}", self.path.display()))
    }
}

fn words(words: &[String]) -> Result<Vec<CString>> {
    words
        .iter()
        .map(|word| CString::new(word.as_str()).map_err(|_| nul()))
        .collect()
}

fn nul() -> Error {
    Error::invalid("an argument or environment word has a NUL byte")
}
