//! Storages: what the host asks to be mounted in the guest before a container uses it. Mount points are counted: two containers
//! may name the same one.

mod block;
mod huge;
mod layers;
mod local;

use crate::error::{Code, Context, Error, Result};
use crate::mountopts::Parsed;
use crate::options::Options;
use crate::proto::grpc::{Device, Linux, Spec, Storage};
use nix::errno::Errno;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Storage drivers, as GetGuestDetails tells them.
pub const DRIVERS: [&str; 8] = [
    "blk",
    "mmioblk",
    "ephemeral",
    "local",
    "overlayfs",
    "virtio-fs",
    "erofs.multi-layer",
    "snp.hugepages",
];
/// Device kinds, as GetGuestDetails tells them.
pub const DEVICES: [&str; 2] = ["blk", "mmioblk"];
/// Storages of one request.
const COUNT_MAX: usize = 1024;

/// One mount point in use.
#[derive(Default)]
struct Entry {
    users: usize,
    /// What to unmount, in the order of mounting; empty for a plain folder.
    mounts: Vec<PathBuf>,
    /// Folders to remove after that, with what is in them on the guest's own memory file systems.
    folders: Vec<PathBuf>,
    /// Huge pages to give back in the end.
    pages: Option<huge::Reserved>,
}

/// All mount points in use.
pub struct Storages {
    table: RefCell<BTreeMap<String, Entry>>,
    lock: Mutex<()>,
    run_dir: PathBuf,
}

impl Storages {
    /// None in use.
    pub fn new(options: &Options) -> Self {
        Self {
            table: RefCell::default(),
            lock: Mutex::default(),
            run_dir: options.run_dir.clone(),
        }
    }

    /// Mounts what is not mounted yet, for one more user; gives the mount points for `release`. A failed call leaves nothing behind.
    pub async fn add(&self, owner: &str, storages: &[Storage]) -> Result<Vec<String>> {
        if storages.len() > COUNT_MAX {
            return Err(Error::invalid(format!("a request has at most {COUNT_MAX} storages")));
        }
        // Disks that are still being plugged in are awaited before the lock: others go on meanwhile.
        for storage in storages.iter().filter(|storage| on_block_device(storage)) {
            let found = block::find(&storage.source).await;
            found.with_context(|| describe(storage))?;
        }
        let _guard = self.lock.lock().await;
        let mut done: Vec<String> = Vec::new();
        for storage in storages {
            let point = &storage.mount_point;
            if done.contains(point) && layers::is_layer(storage) {
                continue;
            }
            let known = self.table.borrow().contains_key(point);
            let made = if known {
                Ok(Entry::default())
            } else {
                self.make(owner, storage, storages).await
            };
            match made.with_context(|| describe(storage)) {
                Ok(mut entry) => {
                    // Volumes of the pod outlive a container that is started anew: the sandbox uses them, too.
                    entry.users = matches!(storage.driver.as_str(), "ephemeral" | "local").into();
                    self.table.borrow_mut().entry(point.clone()).or_insert(entry).users += 1;
                    done.push(point.clone());
                }
                Err(error) => {
                    let _ = self.release_locked(&done);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    async fn make(&self, owner: &str, storage: &Storage, all: &[Storage]) -> Result<Entry> {
        if !Path::new(&storage.mount_point).has_root() {
            return Err(Error::invalid("the mount point is not an absolute path"));
        }
        if layers::is_layer(storage) {
            return layers::mount_all(owner, &storage.mount_point, all, &self.run_dir).await;
        }
        match storage.driver.as_str() {
            "blk" | "mmioblk" => {
                refuse_driver_options(storage)?;
                let device = block::find(&storage.source).await?;
                mount_storage(storage, &device.to_string_lossy())
            }
            "virtio-fs" => mount_storage(storage, &storage.source),
            "overlayfs" => {
                local::make_overlay_folders(storage)?;
                mount_storage(storage, &storage.source)
            }
            "ephemeral" => local::ephemeral(storage).await,
            "snp.hugepages" => Ok(Entry {
                pages: Some(huge::reserve_for(storage).await?),
                ..Entry::default()
            }),
            "local" => local::folder(storage),
            other => Err(Error::new(
                Code::Unimplemented,
                format!(
                    "there is no storage driver {other:?} (there are {})",
                    DRIVERS.join(", ")
                ),
            )),
        }
    }

    /// One user less for each mount point; the last one unmounts.
    pub async fn release(&self, points: &[String]) -> Result<()> {
        let _guard = self.lock.lock().await;
        self.release_locked(points)
    }

    fn release_locked(&self, points: &[String]) -> Result<()> {
        let mut first = Ok(());
        for point in points.iter().rev() {
            let mut table = self.table.borrow_mut();
            let Some(entry) = table.get_mut(point) else { continue };
            entry.users -= 1;
            if entry.users > 0 {
                continue;
            }
            if let Some(entry) = table.remove(point) {
                first = first.and(undo(&entry));
            }
        }
        first
    }

    /// Unmounts everything.
    pub async fn release_all(&self) {
        let _guard = self.lock.lock().await;
        for entry in std::mem::take(&mut *self.table.borrow_mut()).into_values().rev() {
            if let Err(error) = undo(&entry) {
                crate::warn!("{error}");
            }
        }
    }

    /// Raw block devices: puts the guest's device numbers in place of the host's, into the spec's devices of the same path and into the rules
    /// for them.
    pub async fn add_devices(&self, devices: &[Device], spec: &mut Spec) -> Result<()> {
        let mut numbers = Vec::new();
        for device in devices {
            if !DEVICES.contains(&device.r#type.as_str()) {
                let text = format!(
                    "there is no device handler {:?} (there are {})",
                    device.r#type,
                    DEVICES.join(", ")
                );
                return Err(Error::new(Code::Unimplemented, text));
            }
            let source = if device.id.is_empty() {
                &device.vm_path
            } else {
                &device.id
            };
            let path = block::find(source).await?;
            numbers.push((device.container_path.as_str(), block::numbers(&path)?));
        }
        if let Some(linux) = &mut spec.linux {
            renumber(linux, &numbers);
        }
        Ok(())
    }
}

/// Gives devices, by their paths, other numbers. Rules are changed in one go: a number of the host's may be another disk's in the guest.
fn renumber(linux: &mut Linux, numbers: &[(&str, (i64, i64))]) {
    let mut changes = BTreeMap::new();
    for device in &mut linux.devices {
        let Some((_, new)) = numbers.iter().find(|(path, _)| *path == device.path) else {
            continue;
        };
        changes.insert((device.major, device.minor), *new);
        (device.major, device.minor) = *new;
    }
    for rule in linux.resources.iter_mut().flat_map(|resources| &mut resources.devices) {
        let new = changes.get(&(rule.major, rule.minor)).filter(|_| rule.r#type == "b");
        if let Some(new) = new {
            (rule.major, rule.minor) = *new;
        }
    }
}

/// How errors name a storage.
fn describe(storage: &Storage) -> String {
    format!(
        "storage {} {:?} at {:?}",
        storage.driver, storage.source, storage.mount_point
    )
}

fn on_block_device(storage: &Storage) -> bool {
    matches!(storage.driver.as_str(), "blk" | "mmioblk" | "erofs.multi-layer")
}

/// Unmounts and removes what a storage made; goes on after a failure and reports the first.
fn undo(entry: &Entry) -> Result<()> {
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

/// A plain mount of `source` as the storage says.
fn mount_storage(storage: &Storage, source: &str) -> Result<Entry> {
    let point = PathBuf::from(&storage.mount_point);
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    let parsed = Parsed::from_options(&storage.options)?;
    let source_is_file = parsed.flags.contains(MsFlags::MS_BIND) && Path::new(source).is_file();
    if source_is_file {
        fs::remove_dir(&point)
            .and_then(|()| fs::write(&point, ""))
            .context("make the mount point")?;
    }
    mount_at(source, &point, &storage.fstype, &parsed)?;
    local::set_group(storage, &point)?;
    Ok(Entry {
        mounts: vec![point],
        ..Entry::default()
    })
}

/// mount(2) with parsed options.
fn mount_at(source: &str, point: &Path, fstype: &str, parsed: &Parsed) -> Result<()> {
    let kind = match fstype {
        "bind" | "" => None,
        "virtio-fs" => Some("virtiofs"),
        other => Some(other),
    };
    let mut flags = parsed.flags;
    if kind == Some("erofs") {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some(source), point, kind, flags, Some(parsed.data.as_str()))
        .map_err(|errno| match errno {
            Errno::ENODEV => Error::precondition(format!("this guest's kernel has no file system {fstype:?}")),
            other => other.into(),
        })
        .with_context(|| format!("mount {source} ({fstype}) with options {:?}", parsed.data))
}

/// Things that need programs or services which the guest has not.
fn refuse_driver_options(storage: &Storage) -> Result<()> {
    for option in &storage.driver_options {
        if option == "create_filesystem" || option.starts_with("encryption_key=") {
            let text = format!("the driver option {option:?} is not supported: hand over a device with a file system");
            return Err(Error::new(Code::Unimplemented, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::grpc::{LinuxDevice, LinuxDeviceCgroup, LinuxResources};

    #[test]
    fn a_disk_has_the_guests_numbers_and_so_have_its_rules() {
        let device = |path: &str, major, minor| LinuxDevice {
            path: path.into(),
            r#type: "b".into(),
            major,
            minor,
            ..LinuxDevice::default()
        };
        let rule = |kind: &str, major, minor| LinuxDeviceCgroup {
            r#type: kind.into(),
            major,
            minor,
            ..LinuxDeviceCgroup::default()
        };
        let mut linux = Linux {
            devices: vec![
                device("/dev/a", 7, 0),
                device("/dev/b", 254, 16),
                device("/dev/c", 7, 9),
            ],
            resources: Some(LinuxResources {
                devices: vec![rule("b", 7, 0), rule("b", 254, 16), rule("c", 7, 0), rule("b", 7, 9)],
                ..LinuxResources::default()
            }),
            ..Linux::default()
        };
        renumber(&mut linux, &[("/dev/a", (254, 16)), ("/dev/b", (254, 32))]);
        let devices: Vec<_> = linux
            .devices
            .iter()
            .map(|device| (device.major, device.minor))
            .collect();
        assert_eq!(devices, [(254, 16), (254, 32), (7, 9)]);
        let rules = linux.resources.unwrap_or_default().devices;
        let rules: Vec<_> = rules.iter().map(|rule| (rule.major, rule.minor)).collect();
        assert_eq!(rules, [(254, 16), (254, 32), (7, 0), (7, 9)]);
    }
}
