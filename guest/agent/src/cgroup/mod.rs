//! Control groups of containers, version 2 only. Each container has one, below a folder of the agent.

mod cpuset;
mod devices;
mod files;
mod limits;
mod stats;

use crate::error::{Code, Context, Error, Result};
use crate::inotify::Inotify;
use crate::proto::grpc::{CgroupStats, LinuxResources, Spec};
use files::{keyed, read, write};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// The kernel has this long to freeze or to end the processes of a cgroup.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// The folder that holds the containers' cgroups.
pub struct Cgroups {
    root: PathBuf,
    folder: PathBuf,
    /// A limit whose controller is missing is an error. False on a test host, where version 1 holds the controllers.
    strict: bool,
    inotify: Rc<Inotify>,
}

impl Cgroups {
    /// Makes the folder `name` below the mount `root` and hands it all controllers.
    pub fn prepare(root: &Path, name: &str, strict: bool, inotify: Rc<Inotify>) -> Result<Self> {
        let folder = root.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make the cgroup {}", folder.display()))?;
        enable_controllers(root)?;
        enable_controllers(&folder)?;
        Ok(Self {
            root: root.to_path_buf(),
            folder,
            strict,
            inotify,
        })
    }

    /// Makes a container's cgroup with its limits and its devices.
    pub fn create(&self, id: &str, spec: &Spec) -> Result<Cgroup> {
        let path = self.folder.join(id);
        fs::create_dir(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        let root = self.root.clone();
        let cgroup = Cgroup {
            path,
            root,
            strict: self.strict,
            inotify: self.inotify.clone(),
        };
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let limit = || -> Result<()> {
            devices::limit(cgroup.open()?.as_fd(), spec)?;
            resources.map_or(Ok(()), |resources| cgroup.apply(resources))
        };
        limit().inspect_err(|_| drop(fs::remove_dir(&cgroup.path)))?;
        Ok(cgroup)
    }

    /// Removes the folder (a test's end).
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

fn enable_controllers(folder: &Path) -> Result<()> {
    let available = read(&folder.join("cgroup.controllers"))?;
    let words: Vec<String> = available
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    let file = folder.join("cgroup.subtree_control");
    // All at once is quick. One that can't be handed down (realtime processes and the like) doesn't keep the others.
    if write(&file, &words.join(" ")).is_err() {
        for word in words {
            if let Err(error) = write(&file, &word) {
                crate::warn!("{error}");
            }
        }
    }
    Ok(())
}

/// One container's cgroup.
pub struct Cgroup {
    path: PathBuf,
    root: PathBuf,
    strict: bool,
    inotify: Rc<Inotify>,
}

impl Cgroup {
    /// The folder, for clone3.
    pub fn open(&self) -> Result<OwnedFd> {
        Ok(File::open(&self.path)
            .with_context(|| format!("open the cgroup {}", self.path.display()))?
            .into())
    }

    /// The folder that process `pid` of this container is in now: one that runs a service manager moves itself further down,
    /// and its processes can't be joined from above.
    pub fn open_of(&self, pid: i32) -> Result<OwnedFd> {
        let table = read(Path::new(&format!("/proc/{pid}/cgroup"))).unwrap_or_default();
        let place = table.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = place
            .map(|place| self.root.join(place))
            .filter(|path| path.starts_with(&self.path));
        match path {
            Some(path) => Ok(File::open(&path)
                .with_context(|| format!("open the cgroup {}", path.display()))?
                .into()),
            None => self.open(),
        }
    }

    /// Sets limits; absent ones stay as they are. Nothing is set when one of them is wrong; what has no meaning here is named in the log.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let change = limits::change(resources, &self.present())?;
        let mut passed_over = change.passed_over;
        let mut files = Vec::new();
        for (file, value) in change.files {
            let path = self.path.join(&file);
            if path.exists() {
                files.push((path, value));
            } else if self.strict && limits::must_hold(&file) {
                let text = format!("the guest's kernel has no {file}: the limit {value:?} can't be set");
                return Err(Error::new(Code::FailedPrecondition, text));
            } else if value != "0" {
                passed_over.push(format!("{file} {value:?} (this kernel has no such file)"));
            }
        }
        if !passed_over.is_empty() {
            crate::info!("{}: passed over: {}", self.path.display(), passed_over.join(", "));
        }
        files.iter().try_for_each(|(path, value)| write(path, value))
    }

    /// As `apply`, for a container that exists: it keeps the device rules that it was made with, as under runc.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        if !resources.devices.is_empty() {
            let rules = resources.devices.len();
            crate::info!("{}: passed over: {rules} device rules", self.path.display());
        }
        self.apply(resources)
    }

    /// What a change depends on.
    fn present(&self) -> limits::Present {
        let value = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).ok();
        let parent = self.path.parent().unwrap_or(&self.root);
        limits::Present {
            cpu_max: value(&self.path, "cpu.max"),
            memory_max: value(&self.path, "memory.max"),
            cpus: value(parent, "cpuset.cpus.effective"),
            mems: value(parent, "cpuset.mems.effective"),
        }
    }

    /// Kills all processes, those of sub-groups too.
    pub fn kill(&self) -> Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Waits until no process lives here.
    pub async fn emptied(&self) -> Result<()> {
        self.until("populated", 0).await
    }

    /// Stops all processes, or lets them go on. One that does not come to a stop, or whose caller gives up, leaves none of them stopped.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let file = self.path.join("cgroup.freeze");
        let thaw = Thaw(frozen.then(|| file.clone()));
        write(&file, if frozen { "1" } else { "0" })?;
        self.until("frozen", frozen.into()).await?;
        thaw.forget();
        Ok(())
    }

    async fn until(&self, key: &str, value: u64) -> Result<()> {
        let path = self.path.join("cgroup.events");
        let watch = self.inotify.watch(&path)?;
        let wait = async {
            while keyed(&read(&path)?, key) != Some(value) {
                watch.changed().await;
            }
            Ok(())
        };
        let late = || {
            Error::internal(format!(
                "{} did not reach \"{key} {value}\" in {SETTLE_MAX:?}",
                path.display()
            ))
        };
        tokio::time::timeout(SETTLE_MAX, wait)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// Calls `oom` for each kill that the kernel reports for want of memory, until dropped. Returns at once without the controller.
    pub async fn watch_oom(&self, mut oom: impl FnMut()) {
        let path = self.path.join("memory.events");
        let Ok(watch) = self.inotify.watch(&path) else { return };
        let count = || read(&path).ok().and_then(|text| keyed(&text, "oom_kill"));
        let mut seen = 0;
        while let Some(now) = count() {
            if now > seen {
                seen = now;
                oom();
            }
            watch.changed().await;
        }
    }

    /// How many processes were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        read(&self.path.join("memory.events"))
            .ok()
            .and_then(|text| keyed(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Present usage.
    pub fn stats(&self) -> CgroupStats {
        stats::read_all(&self.path)
    }

    /// Removes the folder and what the container made below it; no process may live there.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path, 0).with_context(|| format!("remove the cgroup {}", self.path.display()))
    }
}

/// Takes a freeze back when it is dropped: half of the processes would stand still in a container that counts as running.
struct Thaw(Option<PathBuf>);

impl Thaw {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Thaw {
    fn drop(&mut self) {
        let undone = self.0.take().map_or(Ok(()), |file| write(&file, "0"));
        if let Err(error) = undone {
            crate::warn!("{error}");
        }
    }
}

/// A cgroup's folder disappears with its files, but not with its sub-folders.
fn remove_tree(path: &Path, depth: usize) -> std::io::Result<()> {
    const DEPTH_MAX: usize = 64;
    if depth < DEPTH_MAX {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type()?.is_dir() {
                remove_tree(&entry.path(), depth + 1)?;
            }
        }
    }
    fs::remove_dir(path)
}
