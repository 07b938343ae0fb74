//! Mount options as words, to the flags and the data string of mount(2).

use crate::error::{Error, Result};
use nix::mount::MsFlags;

/// What a list of options means.
#[derive(Debug)]
pub struct Parsed {
    pub flags: MsFlags,
    /// Propagation changes, each a mount call of its own.
    pub propagation: Vec<MsFlags>,
    /// What the file system itself reads, joined by commas.
    pub data: String,
    /// `rro`: read-only for mounts below, too.
    pub recursive_readonly: bool,
}

impl Parsed {
    /// Reads OCI or Kata mount options. `X-...` words are for other readers and passed over; identity-mapped mounts are refused.
    pub fn from_options(options: &[String]) -> Result<Self> {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            propagation: Vec::new(),
            data: String::new(),
            recursive_readonly: false,
        };
        let mut data = Vec::new();
        for option in options {
            if let Some((set, flag)) = flag(option) {
                parsed.flags.set(flag, set);
            } else if let Some(flag) = propagation(option) {
                parsed.propagation.push(flag);
            } else if option == "rro" {
                parsed.flags |= MsFlags::MS_RDONLY;
                parsed.recursive_readonly = true;
            } else if option == "idmap" || option == "ridmap" {
                return Err(Error::invalid(format!("the mount option {option} is not supported")));
            } else if !matches!(option.as_str(), "" | "defaults" | "rrw" | "tmpcopyup") && !option.starts_with("X-") {
                data.push(option.as_str());
            }
        }
        parsed.data = data.join(",");
        Ok(parsed)
    }
}

fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "suid" => (false, MsFlags::MS_NOSUID),
        "nodev" => (true, MsFlags::MS_NODEV),
        "dev" => (false, MsFlags::MS_NODEV),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "atime" => (false, MsFlags::MS_NOATIME),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "lazytime" => (true, MsFlags::MS_LAZYTIME),
        "nolazytime" => (false, MsFlags::MS_LAZYTIME),
        "silent" => (true, MsFlags::MS_SILENT),
        "loud" => (false, MsFlags::MS_SILENT),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "bind" => (true, MsFlags::MS_BIND),
        "rbind" => (true, MsFlags::from_bits_truncate(libc::MS_BIND | libc::MS_REC)),
        "nosymfollow" => (true, MsFlags::from_bits_retain(256)),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MsFlags> {
    let (word, recursive) = match option.strip_prefix('r') {
        Some(word) => (word, MsFlags::MS_REC),
        None => (option, MsFlags::empty()),
    };
    Some(
        recursive
            | match word {
                "shared" => MsFlags::MS_SHARED,
                "slave" => MsFlags::MS_SLAVE,
                "private" => MsFlags::MS_PRIVATE,
                "unbindable" => MsFlags::MS_UNBINDABLE,
                _ => return None,
            },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Parsed {
        Parsed::from_options(&options.iter().map(|option| option.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn flags_data_and_propagation_are_told_apart() {
        let parsed = parse(&[
            "nosuid",
            "rbind",
            "rprivate",
            "mode=755",
            "size=64k",
            "X-kata.overlay-lower",
            "ro",
            "rw",
        ]);
        assert_eq!(parsed.flags, MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(parsed.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(parsed.data, "mode=755,size=64k");
    }

    #[test]
    fn rro_is_read_only_below_too() {
        let parsed = parse(&["rbind", "rro"]);
        assert!(parsed.recursive_readonly && parsed.flags.contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn an_identity_mapped_mount_is_refused() {
        let error = Parsed::from_options(&["idmap".to_string()]).unwrap_err();
        assert!(error.text.contains("idmap"));
    }
}
