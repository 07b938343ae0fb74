//! Writable disks that last as long as the VM: the host gives a file of zeros, the guest puts a file system on it, and (as a rule) encrypts it with a
//! key that nobody else has. The file system keeps SHA-256 checksums of everything in trees whose root never leaves the guest's memory while it is
//! mounted, so that blocks that the host changed, moved or put back to an older state are read errors (docs/adr/0009).

use super::partition::size;
use super::{block, btrfs, local, Entry};
use crate::dm::{Mapped, Target};
use crate::error::{Code, Context, Error, Result};
use crate::mountopts::Parsed;
use crate::proto::grpc::Storage;
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const CREATE: &str = "create_filesystem";
const ENCRYPTION: &str = "encryption_key=";
const EPHEMERAL: &str = "ephemeral";
/// The host need not wait for it: who uses the disk first does.
const BACKGROUND: &str = "X-snp.background";
/// A storage in a folder of a disk that the sandbox has: the disk's mount point.
const INSIDE: &str = "X-snp.in=";
/// Two keys of AES-256, as XTS takes them.
const KEY_BYTES: usize = 64;
const SECTOR_BYTES: u64 = 512;
/// What the device encrypts at once; the file system's blocks are as large.
const CRYPT_BYTES: u64 = 4096;
/// Space that is free again goes back to the host. Nothing survives the VM, so nothing is written out before it must be.
const MOUNT_DATA: &str = "discard=sync,nobarrier,commit=10";

/// Whether a storage is a disk on which the guest makes a file system, encrypted (true) or not; None for others.
pub fn wanted(storage: &Storage) -> Result<Option<bool>> {
    let encryption = storage
        .driver_options
        .iter()
        .find_map(|option| option.strip_prefix(ENCRYPTION));
    let create = storage.driver_options.iter().any(|option| option == CREATE);
    match encryption {
        None => Ok(create.then_some(false)),
        Some(EPHEMERAL) if create => Ok(Some(true)),
        Some(EPHEMERAL) => Err(Error::invalid(format!("{ENCRYPTION}{EPHEMERAL} without {CREATE}"))),
        Some(other) => Err(Error::new(
            Code::Unimplemented,
            format!("the driver option {ENCRYPTION}{other} is not supported: keys are made in the guest ({EPHEMERAL})"),
        )),
    }
}

/// Whether the host does not wait for the storage.
pub fn in_background(storage: &Storage) -> bool {
    storage.options.iter().any(|option| option == BACKGROUND)
}

/// The mount point of the sandbox's disk that a storage is to be in, for one that is.
pub fn inside(storage: &Storage) -> Option<&str> {
    storage.options.iter().find_map(|option| option.strip_prefix(INSIDE))
}

/// A folder of a volume in a disk of the sandbox.
pub fn folder_inside(storage: &Storage, disk: &Path) -> Result<Entry> {
    let point = PathBuf::from(&storage.mount_point);
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = "volume".chars().chain(storage.mount_point.chars()).map(plain).collect();
    btrfs::make_folder(disk, &name)?;
    let mut entry = Entry {
        inside: Some((disk.to_path_buf(), name.clone())),
        ..Entry::default()
    };
    let source = disk.join(&name);
    let made = fs::create_dir_all(&point)
        .with_context(|| format!("make {}", point.display()))
        .and_then(|()| {
            mount(Some(&source), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("mount {}", point.display()))
        });
    if made.is_ok() {
        entry.mounts.push(point.clone());
    }
    if let Err(error) = made.and_then(|()| finish(storage, &point)) {
        let _ = super::undo(&entry);
        return Err(error);
    }
    Ok(entry)
}

/// Makes a file system on the storage's disk and mounts it.
pub async fn make(storage: Storage, encrypted: bool) -> Result<Entry> {
    let disk = block::find(&storage.source).await?;
    let point = PathBuf::from(&storage.mount_point);
    let work = move || {
        let device = make_at(&disk, &point, encrypted)?;
        Ok((device, point))
    };
    let made: Result<(Option<Mapped>, PathBuf)> = tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::internal("the thread that makes file systems failed")));
    let (device, point) = made?;
    let entry = Entry {
        mounts: vec![point.clone()],
        scratch: Some(point.clone()),
        devices: device.into_iter().collect(),
        ..Entry::default()
    };
    let owned = finish(&storage, &point);
    if let Err(error) = owned {
        let _ = super::undo(&entry);
        return Err(error);
    }
    Ok(entry)
}

/// The mode and the owner that the host wants the root to have, and the flags of its mount.
fn finish(storage: &Storage, point: &Path) -> Result<()> {
    let rest = local::own_folder(&storage.options, point)?;
    let parsed = Parsed::from_options(&rest)?;
    if !parsed.flags.is_empty() {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOATIME | parsed.flags;
        mount(None::<&str>, point, None::<&str>, flags, None::<&str>).context("set the mount's flags")?;
    }
    local::set_group(storage, point)
}

fn make_at(disk: &Path, point: &Path, encrypted: bool) -> Result<Option<Mapped>> {
    let device = if encrypted { Some(encrypt(disk)?) } else { None };
    let path = device.as_ref().map_or(disk.to_path_buf(), Mapped::path);
    let bytes = size(&File::open(&path).with_context(|| format!("open {}", path.display()))?)?;
    if bytes < btrfs::BYTES_MIN {
        return Err(Error::invalid(format!(
            "a disk of {bytes} bytes is too small for a file system: {} are needed",
            btrfs::BYTES_MIN
        )));
    }
    btrfs::format(&path, bytes)?;
    fs::create_dir_all(point).with_context(|| format!("make {}", point.display()))?;
    mount(Some(&path), point, Some("btrfs"), MsFlags::MS_NOATIME, Some(MOUNT_DATA))
        .with_context(|| format!("mount {}", path.display()))?;
    Ok(device)
}

/// Puts dm-crypt over a disk. The key is random, and known to the kernel alone when this returns.
fn encrypt(disk: &Path) -> Result<Mapped> {
    let bytes = size(&File::open(disk).with_context(|| format!("open {}", disk.display()))?)?;
    let (major, minor) = block::numbers(disk)?;
    let mut key = [0u8; KEY_BYTES];
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), KEY_BYTES, 0) };
    if got != KEY_BYTES as isize {
        return Err(Errno::last()).context("make a key");
    }
    let mut parameters = String::with_capacity(512);
    parameters.push_str("aes-xts-plain64 ");
    for byte in &key {
        let _ = write!(parameters, "{byte:02x}");
    }
    let _ = write!(
        parameters,
        " 0 {major}:{minor} 0 4 allow_discards no_read_workqueue no_write_workqueue sector_size:{CRYPT_BYTES}"
    );
    let made = Mapped::create(
        "scratch",
        &Target {
            kind: "crypt",
            sectors: bytes / CRYPT_BYTES * (CRYPT_BYTES / SECTOR_BYTES),
            parameters: &parameters,
            readonly: false,
            secret: true,
        },
    );
    wipe(&mut key);
    wipe(unsafe { parameters.as_bytes_mut() });
    made.context("encrypt a disk")
}

/// Overwrites a key; the compiler may not leave it out.
fn wipe(bytes: &mut [u8]) {
    for byte in bytes {
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(options: &[&str]) -> Storage {
        Storage {
            driver: "blk".into(),
            driver_options: options.iter().map(|option| option.to_string()).collect(),
            ..Storage::default()
        }
    }

    #[test]
    fn the_driver_options_say_what_is_made() {
        assert_eq!(wanted(&storage(&[])).unwrap(), None);
        assert_eq!(wanted(&storage(&[CREATE])).unwrap(), Some(false));
        assert_eq!(
            wanted(&storage(&["encryption_key=ephemeral", CREATE])).unwrap(),
            Some(true)
        );
    }

    #[test]
    fn a_key_of_the_host_is_refused_as_is_one_without_a_file_system() {
        assert!(wanted(&storage(&["encryption_key=ephemeral"])).is_err());
        assert!(wanted(&storage(&["encryption_key=kbs:///a/b", CREATE])).is_err());
    }
}
