//! Storages: what the host asks to be mounted in the guest before a container uses it. Mount points are counted: two containers
//! may name the same one.

mod block;
mod btrfs;
mod entry;
mod gpt;
mod huge;
mod layers;
mod local;
mod overlay;
mod partition;
mod scratch;
mod share;
mod verity;

use crate::error::{Code, Context, Error, Result};
use crate::mountopts::Parsed;
use crate::options::Options;
use crate::proto::grpc::{Device, Linux, Spec, Storage};
use entry::{undo, Entry};
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::sync::{Mutex, Notify};
use tokio::task::{spawn_local, JoinHandle};
use verity::{Layers, Verity};

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

/// A storage that is made while the host goes on.
#[derive(Default)]
struct Background {
    made: RefCell<Option<Result<()>>>,
    told: Notify,
}

/// All mount points in use.
pub struct Storages {
    table: RefCell<BTreeMap<String, Entry>>,
    background: RefCell<BTreeMap<String, Rc<Background>>>,
    lock: Mutex<()>,
    run_dir: PathBuf,
    /// The layers that prove themselves.
    pub verity: Layers,
}

impl Storages {
    /// None in use.
    pub fn new(options: &Options) -> Self {
        Self {
            table: RefCell::default(),
            background: RefCell::default(),
            lock: Mutex::default(),
            run_dir: options.run_dir.clone(),
            verity: Layers::default(),
        }
    }

    /// Mounts what is not mounted yet, for one more user; gives the mount points for `release`. A failed call leaves nothing behind.
    pub async fn add(self: &Rc<Self>, owner: &str, storages: &[Storage]) -> Result<Vec<String>> {
        if storages.len() > COUNT_MAX {
            return Err(Error::invalid(format!("a request has at most {COUNT_MAX} storages")));
        }
        // Disks that are still being plugged in are awaited before the lock: others go on meanwhile.
        for storage in storages.iter().filter(|storage| on_block_device(storage)) {
            let found = block::find(&storage.source).await;
            found.with_context(|| describe(storage))?;
        }
        for storage in storages {
            if let Some(point) = scratch::inside(storage) {
                self.made(point).await?;
            }
        }
        let _guard = self.lock.lock().await;
        let mut begun = self.begin_file_systems(storages)?;
        let mut done: Vec<String> = Vec::new();
        for storage in storages {
            if scratch::in_background(storage) {
                self.clone().begin(storage)?;
                continue;
            }
            let point = &storage.mount_point;
            if done.contains(point) && layers::is_layer(storage) {
                continue;
            }
            let known = self.table.borrow().contains_key(point);
            let made = if known {
                Ok(Entry::default())
            } else if let Some(task) = begun.remove(point) {
                task.await
                    .unwrap_or_else(|_| Err(Error::internal("the making of a file system failed")))
            } else {
                self.make(owner, storage, storages).await
            };
            match made.with_context(|| describe(storage)) {
                Ok(mut entry) => {
                    entry.users = outlives_containers(storage).into();
                    self.table.borrow_mut().entry(point.clone()).or_insert(entry).users += 1;
                    done.push(point.clone());
                }
                Err(error) => {
                    for task in begun.into_values() {
                        if let Ok(Ok(entry)) = task.await {
                            let _ = undo(&entry);
                        }
                    }
                    let _ = self.release_locked(&done);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// Begins to make the file systems of a request's disks, all at once: the disks keep each other waiting no more than they must.
    fn begin_file_systems(&self, storages: &[Storage]) -> Result<BTreeMap<String, JoinHandle<Result<Entry>>>> {
        let mut begun = BTreeMap::new();
        for storage in storages {
            let point = &storage.mount_point;
            let another = layers::is_layer(storage) || scratch::in_background(storage) || !on_block_device(storage);
            if another || begun.contains_key(point) || self.table.borrow().contains_key(point) {
                continue;
            }
            if let Some(encrypted) = scratch::wanted(storage)? {
                begun.insert(point.clone(), spawn_local(scratch::make(storage.clone(), encrypted)));
            }
        }
        Ok(begun)
    }

    /// Begins to make a disk's file system. What comes of it is told to those who use it.
    fn begin(self: Rc<Self>, storage: &Storage) -> Result<()> {
        let point = storage.mount_point.clone();
        let encrypted = scratch::wanted(storage)?;
        let encrypted = encrypted
            .ok_or_else(|| Error::invalid("only disks with a file system to make can be made in the background"))?;
        if self.background.borrow().contains_key(&point) {
            return Err(Error::invalid(format!("{point:?} is made already")));
        }
        let background = Rc::new(Background::default());
        self.background.borrow_mut().insert(point.clone(), background.clone());
        let storage = storage.clone();
        spawn_local(async move {
            let what = describe(&storage);
            let made = scratch::make(storage, encrypted).await.context(what);
            let told = match made {
                Ok(entry) => {
                    let entry = Entry { users: 1, ..entry };
                    self.table.borrow_mut().insert(point, entry);
                    Ok(())
                }
                Err(error) => {
                    crate::warn!("{error}");
                    Err(error)
                }
            };
            *background.made.borrow_mut() = Some(told);
            background.told.notify_waiters();
        });
        Ok(())
    }

    /// Waits until what was begun at a mount point is there; fails as its making did.
    async fn made(&self, point: &str) -> Result<()> {
        let Some(background) = self.background.borrow().get(point).cloned() else {
            return Err(Error::invalid(format!(
                "there is no disk at {point:?} for a writable layer"
            )));
        };
        loop {
            let told = background.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(made) = background.made.borrow().clone() {
                return made;
            }
            told.await;
        }
    }

    async fn make(&self, owner: &str, storage: &Storage, all: &[Storage]) -> Result<Entry> {
        if !Path::new(&storage.mount_point).has_root() {
            return Err(Error::invalid("the mount point is not an absolute path"));
        }
        if layers::is_layer(storage) {
            return layers::mount_all(owner, &storage.mount_point, all, &self.run_dir, &self.verity).await;
        }
        match storage.driver.as_str() {
            "blk" | "mmioblk" => {
                let device = block::find(&storage.source).await?;
                match Verity::from_options(&storage.options)? {
                    None => mount_storage(storage, &device.to_string_lossy()),
                    Some(verity) => {
                        let mut entry = Entry::default();
                        let layer = self.verity.open(&device, None, &verity)?;
                        layers::mount_verified(&mut entry, storage, Path::new(&storage.mount_point), &layer)?;
                        Ok(entry)
                    }
                }
            }
            "virtio-fs" => {
                share::find(&storage.source).await?;
                mount_storage(storage, &storage.source)
            }
            "overlayfs" => {
                local::make_overlay_folders(storage)?;
                mount_storage(storage, &storage.source)
            }
            "ephemeral" => local::ephemeral(storage).await,
            "snp.hugepages" => Ok(Entry {
                pages: Some(huge::reserve_for(storage).await?),
                ..Entry::default()
            }),
            "local" => match scratch::inside(storage) {
                Some(disk) => scratch::folder_inside(storage, Path::new(disk)),
                None => local::folder(storage),
            },
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

    /// What to say of the layers below these mount points of which a block did not verify; empty when all is well.
    pub fn damage(&self, points: &[String]) -> Vec<String> {
        let table = self.table.borrow();
        let layers = points
            .iter()
            .filter_map(|point| table.get(point))
            .flat_map(|entry| &entry.layers);
        let mut damage: Vec<String> = layers.filter_map(|layer| layer.damage()).collect();
        for point in table.values().filter_map(|entry| entry.scratch.as_ref()) {
            if let Ok(count @ 1..) = btrfs::changed_blocks(point) {
                let text = format!(
                    "{count} blocks of the writable disk at {} were changed outside of the guest",
                    point.display()
                );
                damage.push(text);
            }
        }
        damage
    }

    /// Root hashes of the layers below these mount points, the topmost first.
    pub fn root_hashes(&self, points: &[String]) -> Vec<String> {
        let table = self.table.borrow();
        let layers = points
            .iter()
            .filter_map(|point| table.get(point))
            .flat_map(|entry| &entry.layers);
        layers.map(|layer| layer.root_hash.clone()).collect()
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
    let block = matches!(storage.driver.as_str(), "blk" | "mmioblk" | "erofs.multi-layer");
    block && scratch::inside(storage).is_none() && !scratch::in_background(storage)
}

/// Volumes of the pod stay when a container is started anew: the sandbox uses them, too.
fn outlives_containers(storage: &Storage) -> bool {
    let upper = layers::is_layer(storage);
    matches!(storage.driver.as_str(), "ephemeral" | "local")
        || (!upper && matches!(scratch::wanted(storage), Ok(Some(_))))
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
