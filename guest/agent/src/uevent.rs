//! The kernel's announcements of devices (netlink, NETLINK_KOBJECT_UEVENT, group 1).

use crate::error::{Context, Result};
use crate::io::Fd;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A message is at most a page and a header; more would be cut, which does no harm.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// An open ear.
pub struct Uevents(Fd);

impl Uevents {
    /// Begins to listen.
    pub fn open() -> Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
        if raw < 0 {
            return Err(Errno::last()).context("open a uevent socket");
        }
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = 1;
        let size = std::mem::size_of_val(&address) as libc::socklen_t;
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) } < 0 {
            return Err(Errno::last()).context("listen to uevents");
        }
        Ok(Self(Fd::new(fd)?))
    }

    /// Waits for a message about a new device of a subsystem (or for lost messages, after which anything may be there).
    pub async fn added(&self, subsystem: &str) -> Result<()> {
        let mut buffer = vec![0u8; MESSAGE_BYTES_MAX];
        loop {
            match self.0.read(&mut buffer).await {
                Ok(length) if is_new(&buffer[..length], subsystem) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error).context("hear uevents"),
            }
        }
    }
}

impl Uevents {
    /// The next message's variables (DEVNAME, SUBSYSTEM, ...); none of them when messages were lost.
    pub async fn next(&self) -> Result<BTreeMap<String, String>> {
        let mut buffer = vec![0u8; MESSAGE_BYTES_MAX];
        match self.0.read(&mut buffer).await {
            Ok(length) => Ok(variables(&buffer[..length])),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(BTreeMap::new()),
            Err(error) => Err(error).context("hear uevents"),
        }
    }
}

fn variables(message: &[u8]) -> BTreeMap<String, String> {
    let words = message.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let pairs = words.filter_map(|word| word.split_once('=').map(|(key, value)| (key.into(), value.into())));
    pairs.collect()
}

/// Whether a message ("add@/devices/..." NUL "KEY=value" NUL ...) is about a new device of the subsystem.
fn is_new(message: &[u8], subsystem: &str) -> bool {
    let mut words = message.split(|byte| *byte == 0);
    let added = words
        .next()
        .is_some_and(|head| head.starts_with(b"add@") || head.starts_with(b"change@"));
    let wanted = format!("SUBSYSTEM={subsystem}");
    added && words.any(|word| word == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_devices_of_the_subsystem_count() {
        assert!(is_new(
            b"add@/devices/pci0000:00/x/block/vdb\0ACTION=add\0SUBSYSTEM=block\0",
            "block"
        ));
        assert!(!is_new(b"remove@/devices/x\0SUBSYSTEM=block\0", "block"));
        assert!(!is_new(b"add@/devices/x\0SUBSYSTEM=net\0", "block"));
    }

    #[test]
    fn a_message_s_variables_are_read() {
        let read = variables(b"change@/devices/virtual/block/dm-1\0DEVNAME=dm-1\0DM_VERITY_ERR_BLOCK_NR=0,7\0");
        assert_eq!(read["DEVNAME"], "dm-1");
        assert_eq!(read["DM_VERITY_ERR_BLOCK_NR"], "0,7");
    }
}
