//! What one storage has made, and how it is undone.

use super::partition::Partition;
use super::verity::Opened;
use super::{btrfs, huge};
use crate::dm::Mapped;
use crate::error::{Context, Result};
use nix::mount::{umount2, MntFlags};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One mount point in use.
#[derive(Default)]
pub struct Entry {
    pub users: usize,
    /// What to unmount, in the order of mounting; empty for a plain folder.
    pub mounts: Vec<PathBuf>,
    /// Folders to remove after that, with what is in them on the guest's own memory file systems.
    pub folders: Vec<PathBuf>,
    /// Huge pages to give back in the end.
    pub pages: Option<huge::Reserved>,
    /// Devices under the mounts; they go after everything else.
    pub layers: Vec<Rc<Opened>>,
    pub partitions: Vec<Partition>,
    pub devices: Vec<Mapped>,
    /// Where a file system of the guest's own is mounted that tells what the host changed.
    pub scratch: Option<PathBuf>,
    /// A folder of one to remove: where it is mounted, and the name.
    pub inside: Option<(PathBuf, String)>,
}

impl Entry {
    /// Takes over what another one has.
    pub fn take(&mut self, other: Self) {
        self.mounts.extend(other.mounts);
        self.devices.extend(other.devices);
        self.scratch = self.scratch.take().or(other.scratch);
    }

    /// Takes a partition and gives its device file.
    pub fn keep_partition(&mut self, partition: Partition) -> PathBuf {
        let path = partition.path.clone();
        self.partitions.push(partition);
        path
    }
}

/// Unmounts and removes what a storage made; goes on after a failure and reports the first.
pub fn undo(entry: &Entry) -> Result<()> {
    let mut first = Ok(());
    for path in entry.mounts.iter().rev() {
        // What the host reads from the disk after this must be there, whoever still holds the file system.
        sync(path);
        // Still used by a process that is dying: detached, it goes away with the last user.
        let unmounted = umount2(path, MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH));
        first = first.and(unmounted.with_context(|| format!("unmount {}", path.display())));
        remove_empty(path);
    }
    if let Some((parent, name)) = &entry.inside {
        first = first.and(btrfs::remove_folder(parent, name));
    }
    for path in &entry.folders {
        let _ = fs::remove_dir_all(path);
        path.parent().map(remove_empty);
    }
    first.and(entry.pages.as_ref().map_or(Ok(()), huge::give_back))
}

fn sync(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&folder)) };
    }
}

/// Removes a mount point and the folder that was made for it, where nothing is in them.
fn remove_empty(path: &Path) {
    if fs::remove_dir(path).is_ok() {
        let _ = path.parent().map(fs::remove_dir);
    }
}
