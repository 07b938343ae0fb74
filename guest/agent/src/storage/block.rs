//! Block devices: from what the host calls them to the guest's device file, waiting for hot-plug.

use crate::error::{Code, Context, Error, Result};
use crate::uevent::Uevents;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A device that the host plugged in is there within this time.
const APPEAR_MAX: Duration = Duration::from_secs(10);
/// The PCI bus on which the host plugs devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// The device file for `source`: two hexadecimal digits (the slot on PCI bus 0), a whole PCI address, or a path below /dev. Waits for it.
pub async fn find(source: &str) -> Result<PathBuf> {
    let wanted = Wanted::parse(source)?;
    if let Some(path) = wanted.look() {
        return Ok(path);
    }
    // Listening begins before the second look: nothing is missed in between.
    let uevents = Uevents::open()?;
    let _ = fs::write("/sys/bus/pci/rescan", "1");
    let wait = async {
        loop {
            if let Some(path) = wanted.look() {
                return Ok(path);
            }
            uevents.added("block").await?;
        }
    };
    let late = || {
        Error::new(
            Code::DeadlineExceeded,
            format!("the block device {source:?} did not appear in {APPEAR_MAX:?}"),
        )
    };
    tokio::time::timeout(APPEAR_MAX, wait)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// What a source names.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// A PCI function's address, as the kernel writes it.
    Function(String),
    File(PathBuf),
}

impl Wanted {
    fn parse(source: &str) -> Result<Self> {
        if let Some(name) = source.strip_prefix("/dev/") {
            if !name.is_empty() && !name.contains("..") {
                return Ok(Self::File(source.into()));
            }
        }
        pci_address(source).map(Self::Function).ok_or_else(|| {
            Error::invalid(format!(
                "{source:?} is no block device (two hexadecimal digits of a PCI slot, a PCI address DDDD:BB:SS.F, or /dev/NAME)"
            ))
        })
    }

    fn look(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => ready(path).then(|| path.clone()),
            Self::Function(address) => {
                let name = block_below(&Path::new(PCI_DEVICES).join(address))?;
                let path = Path::new("/dev").join(name);
                ready(&path).then_some(path)
            }
        }
    }
}

/// The address of a PCI function: `SS` stands for `0000:00:SS.0`.
fn pci_address(source: &str) -> Option<String> {
    let full = if source.len() == 2 {
        format!("0000:00:{source}.0")
    } else {
        source.to_owned()
    };
    let (place, function) = full.split_once('.')?;
    let parts: Vec<&str> = place.split(':').collect();
    let [segment, bus, slot] = parts[..] else { return None };
    let number = |text: &str, digits: usize| {
        let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    };
    let (segment, bus, slot, function) = (
        number(segment, 4)?,
        number(bus, 2)?,
        number(slot, 2)?,
        number(function, 1)?,
    );
    (slot < 32 && function < 8).then(|| format!("{segment:04x}:{bus:02x}:{slot:02x}.{function}"))
}

/// Whether the device file is there and its disk can be opened: the file comes first, the disk behind it a moment later (ENXIO until then);
/// the kernel announces it after that.
fn ready(path: &Path) -> bool {
    match fs::File::open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => false,
        _ => path.exists(),
    }
}

/// The name of the disk of a PCI function's virtio device.
fn block_below(function: &Path) -> Option<String> {
    let virtio = fs::read_dir(function)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"))?;
    let disk = fs::read_dir(virtio.path().join("block")).ok()?.flatten().next()?;
    disk.file_name().into_string().ok()
}

/// Major and minor number of a device file.
pub fn numbers(path: &Path) -> Result<(i64, i64)> {
    let device = fs::metadata(path)
        .with_context(|| format!("look at {}", path.display()))?
        .rdev();
    Ok((libc::major(device).into(), libc::minor(device).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_slot_an_address_or_a_device_file() {
        for (source, address) in [
            ("0a", "0000:00:0a.0"),
            ("0A", "0000:00:0a.0"),
            ("0001:00:05.0", "0001:00:05.0"),
            ("0000:1f:1F.7", "0000:1f:1f.7"),
        ] {
            assert_eq!(Wanted::parse(source).unwrap(), Wanted::Function(address.into()));
        }
        assert_eq!(Wanted::parse("/dev/vda").unwrap(), Wanted::File("/dev/vda".into()));
        for source in [
            "",
            "20",
            "5",
            "zz",
            "/etc/passwd",
            "/dev/../etc",
            "+5",
            "00:05.0",
            "0000:00:20.0",
            "0000:00:05.8",
            "0000:00:05",
            "0000:00:05.0/..",
            "+001:00:05.0",
            "../0:00:05.0",
        ] {
            assert!(Wanted::parse(source).is_err(), "{source}");
        }
    }
}
