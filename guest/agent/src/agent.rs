//! The agent's state: one sandbox, its containers, and what they share.

use crate::cgroup::Cgroups;
use crate::confidential::guard::Guard;
use crate::container::Container;
use crate::error::{Code, Context, Error, Result};
use crate::events::Events;
use crate::options::Options;
use crate::process::Process;
use crate::proto::grpc::{CreateContainerRequest, CreateSandboxRequest, RemoveContainerRequest};
use crate::proto::stage::Plan;
use crate::reaper::Reaper;
use crate::spawn::{self, Stage};
use crate::storage::Storages;
use crate::streams::Streams;
use nix::sched::{unshare, CloneFlags};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest host name (Linux).
const HOSTNAME_BYTES_MAX: usize = 64;
/// What a container is to its pod (Kata's annotation).
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
/// Below the agent's folder: a folder of each container for files that the host brought, which go with the container.
const FILES_FOLDER: &str = "snp";
/// A container's removal, when the request names no time.
const REMOVE_MAX: Duration = Duration::from_secs(60);

/// The namespaces that all containers of the sandbox share.
pub struct Namespaces {
    pub ipc: OwnedFd,
    pub uts: OwnedFd,
}

#[derive(Default)]
struct Sandbox {
    id: String,
    namespaces: Option<Rc<Namespaces>>,
    /// The pid namespace that containers share: the first container's, or that of the holder.
    pid_ns: Option<OwnedFd>,
    /// A process that does nothing but hold that namespace.
    holder: Option<Stage>,
    share_pid_ns: bool,
    resolv_conf: String,
}

/// Everything.
pub struct Agent {
    pub options: Options,
    pub reaper: Rc<Reaper>,
    pub streams: Rc<Streams>,
    pub cgroups: Cgroups,
    pub storages: Rc<Storages>,
    /// What the host may do.
    pub guard: Rc<Guard>,
    /// Containers that lost a process for want of memory.
    pub ooms: Rc<Events>,
    /// Told when the sandbox is destroyed: the agent ends.
    pub end: Notify,
    sandbox: RefCell<Sandbox>,
    containers: RefCell<BTreeMap<String, Rc<Container>>>,
    creating: RefCell<BTreeSet<String>>,
    ended: Cell<bool>,
}

impl Agent {
    /// An agent without a sandbox.
    pub fn new(options: Options, reaper: Rc<Reaper>, cgroups: Cgroups, guard: Rc<Guard>) -> Rc<Self> {
        let storages = Rc::new(Storages::new(&options));
        Rc::new(Self {
            options,
            reaper,
            streams: Rc::default(),
            cgroups,
            storages,
            guard,
            ooms: Rc::default(),
            end: Notify::new(),
            sandbox: RefCell::default(),
            containers: RefCell::default(),
            creating: RefCell::default(),
            ended: Cell::new(false),
        })
    }

    /// Makes the sandbox: shared namespaces, host name, resolv.conf, storages. Empties the agent's folder first.
    pub async fn create_sandbox(&self, request: CreateSandboxRequest) -> Result<()> {
        if self.sandbox.borrow().namespaces.is_some() {
            let text = format!("the sandbox {:?} exists already", self.sandbox.borrow().id);
            return Err(Error::new(Code::AlreadyExists, text));
        }
        if !self.containers.borrow().is_empty() || !self.creating.borrow().is_empty() {
            return Err(Error::precondition(
                "there are containers already: making the sandbox would empty their folders",
            ));
        }
        if request.hostname.len() > HOSTNAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a host name has at most {HOSTNAME_BYTES_MAX} bytes"
            )));
        }
        if let Some(module) = request.kernel_modules.first() {
            let text = format!("the guest's kernel loads no modules: {:?} can't be had", module.name);
            return Err(Error::new(Code::Unimplemented, text));
        }
        empty_folder(&self.options.run_dir)?;
        let resolv_conf = self.write_resolv_conf(&request.dns)?;
        if self.options.init && !request.hostname.is_empty() {
            nix::unistd::sethostname(&request.hostname).context("set the host name")?;
        }
        let namespaces = make_namespaces(request.hostname)?;
        *self.sandbox.borrow_mut() = Sandbox {
            id: request.sandbox_id,
            namespaces: Some(Rc::new(namespaces)),
            pid_ns: None,
            holder: None,
            share_pid_ns: request.sandbox_pidns,
            resolv_conf,
        };
        let made = self.storages.add("sandbox", &request.storages).await;
        if made.is_err() {
            *self.sandbox.borrow_mut() = Sandbox::default();
        }
        made.map(|_| ())
    }

    /// The path of the sandbox's resolv.conf, or an empty one.
    fn write_resolv_conf(&self, lines: &[String]) -> Result<String> {
        if lines.is_empty() {
            return Ok(String::new());
        }
        let folder = self.options.run_dir.join("sandbox");
        let path = folder.join("resolv.conf");
        let text = lines.join("\n") + "\n";
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, &text))
            .context("write resolv.conf")?;
        if self.options.init {
            fs::create_dir_all("/etc")
                .and_then(|()| fs::write("/etc/resolv.conf", &text))
                .context("write resolv.conf")?;
        }
        Ok(path.to_string_lossy().into_owned())
    }

    /// Removes all containers and storages, and ends the agent (and the VM).
    pub async fn destroy_sandbox(self: &Rc<Self>) -> Result<()> {
        let containers: Vec<_> = self.containers.borrow().values().cloned().collect();
        for container in containers {
            if let Err(error) = container.remove(self).await {
                crate::warn!("{error}");
            }
            self.containers.borrow_mut().remove(&container.id);
        }
        self.storages.release_all().await;
        if let Some(holder) = self.sandbox.borrow_mut().holder.take() {
            crate::process::signal(&holder.pidfd, libc::SIGKILL)?;
        }
        *self.sandbox.borrow_mut() = Sandbox::default();
        self.ended.set(true);
        self.end.notify_one();
        Ok(())
    }

    /// Creates a container; its id must be free and a plain name.
    pub async fn create_container(self: &Rc<Self>, mut request: CreateContainerRequest) -> Result<()> {
        let id = request.container_id.clone();
        check_id(&id)?;
        if request.sandbox_pidns && wants_holder(&request) {
            self.hold_pid_ns().await?;
        }
        let taken = self.containers.borrow().contains_key(&id) || !self.creating.borrow_mut().insert(id.clone());
        if taken {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("there is a container {id:?} already"),
            ));
        }
        let created = self.create_with_storages(&id, &mut request).await;
        self.creating.borrow_mut().remove(&id);
        let container = created?;
        if self.sandbox.borrow().pid_ns.is_none() && self.shares_pid_ns(&request) {
            self.sandbox.borrow_mut().pid_ns = Some(container.share_pid_ns()?);
        }
        self.containers.borrow_mut().insert(id, container);
        Ok(())
    }

    /// Makes the pid namespace that containers share, with a first process that outlives them all.
    async fn hold_pid_ns(&self) -> Result<()> {
        if self.sandbox.borrow().pid_ns.is_some() {
            return Ok(());
        }
        let plan = Plan {
            holder: true,
            ..Plan::default()
        };
        let how = spawn::Clone {
            flags: libc::CLONE_NEWPID as u64,
            cgroup: None,
            pid_ns: None,
            inherited: &[],
        };
        let stage = spawn::spawn(&plan, &how)?;
        drop(self.reaper.watch(stage.pid));
        stage.ready().await.context("hold a pid namespace")?;
        let pid_ns = File::open(format!("/proc/{}/ns/pid", stage.pid)).context("find the pid namespace")?;
        let mut sandbox = self.sandbox.borrow_mut();
        if sandbox.pid_ns.is_some() {
            return crate::process::signal(&stage.pidfd, libc::SIGKILL);
        }
        sandbox.pid_ns = Some(pid_ns.into());
        sandbox.holder = Some(stage);
        Ok(())
    }

    fn shares_pid_ns(&self, request: &CreateContainerRequest) -> bool {
        self.sandbox.borrow().share_pid_ns || request.sandbox_pidns
    }

    async fn create_with_storages(
        self: &Rc<Self>,
        id: &str,
        request: &mut CreateContainerRequest,
    ) -> Result<Rc<Container>> {
        if let Some(spec) = &mut request.oci {
            self.storages.add_devices(&request.devices, spec).await?;
        }
        let storages = self.storages.add(id, &request.storages).await?;
        let mut plain = request.clone();
        plain.storages.clear();
        let created = Container::create(self, plain, storages.clone()).await;
        let created = created.map_err(|error| self.with_damage(&storages, error));
        if created.is_err() {
            if let Err(error) = self.storages.release(&storages).await {
                crate::warn!("{error}");
            }
        }
        created
    }

    /// A failure that came with a block of a layer that did not verify says so: the layer is the cause.
    pub fn with_damage(&self, storages: &[String], error: Error) -> Error {
        let damage = self.storages.damage(storages);
        if damage.is_empty() {
            return error;
        }
        Error::damaged(format!("{error}; {}", damage.join("; ")))
    }

    /// Removes a container, whatever it does; bounded by the request's time.
    pub async fn remove_container(self: &Rc<Self>, request: RemoveContainerRequest) -> Result<()> {
        let container = self.container(&request.container_id)?;
        let bound = match request.timeout {
            0 => REMOVE_MAX,
            seconds => Duration::from_secs(seconds.into()),
        };
        let late = || {
            Error::new(
                Code::DeadlineExceeded,
                format!("removing {:?} took longer than {bound:?}", container.id),
            )
        };
        let removed = tokio::time::timeout(bound, container.remove(self))
            .await
            .map_err(|_| late())?;
        self.containers.borrow_mut().remove(&container.id);
        let _ = fs::remove_dir_all(self.options.run_dir.join(FILES_FOLDER).join(&container.id));
        removed
    }

    /// The container of that id.
    pub fn container(&self, id: &str) -> Result<Rc<Container>> {
        let missing = || Error::not_found(format!("there is no container {id:?}"));
        self.containers.borrow().get(id).cloned().ok_or_else(missing)
    }

    /// The process of a container, see `Container::process`.
    pub fn process(&self, container: &str, exec: &str) -> Result<Rc<Process>> {
        self.container(container)?.process(exec)
    }

    /// Root hashes of the layers of each container that prove themselves, the topmost first.
    pub fn layers(&self) -> Vec<(String, Vec<String>)> {
        let containers = self.containers.borrow();
        let layers = |container: &Container| self.storages.root_hashes(&container.storages());
        containers
            .values()
            .map(|container| (container.id.clone(), layers(container)))
            .collect()
    }

    /// The shared namespaces, once there is a sandbox.
    pub fn namespaces(&self) -> Option<Rc<Namespaces>> {
        self.sandbox.borrow().namespaces.clone()
    }

    /// The pid namespace for a new container: the shared one, when the pod shares one and it exists.
    pub fn shared_pid_ns(&self, asked: bool) -> Result<Option<OwnedFd>> {
        let sandbox = self.sandbox.borrow();
        if !(sandbox.share_pid_ns || asked) {
            return Ok(None);
        }
        Ok(sandbox.pid_ns.as_ref().map(OwnedFd::try_clone).transpose()?)
    }

    /// The sandbox's resolv.conf as a guest path, or an empty string.
    pub fn resolv_conf(&self) -> String {
        self.sandbox.borrow().resolv_conf.clone()
    }

    /// Whether the sandbox was destroyed.
    pub fn ended(&self) -> bool {
        self.ended.get()
    }
}

/// A pod's sandbox container holds the shared pid namespace itself; a host that names none leaves that to the agent.
fn wants_holder(request: &CreateContainerRequest) -> bool {
    let kind = request
        .oci
        .as_ref()
        .and_then(|spec| spec.annotations.get(CONTAINER_TYPE));
    kind.is_some_and(|kind| kind == "pod_container")
}

/// An id names folders: it must be a plain file name.
fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(Error::invalid(format!(
            "{id:?} is no container id (letters, digits, _ . -; at most 128)"
        )));
    }
    Ok(())
}

fn empty_folder(path: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(path),
    }
    .with_context(|| format!("empty {}", path.display()))
}

/// Makes new ipc and uts namespaces. A thread of its own steps into them; the descriptors keep them when it ends.
fn make_namespaces(hostname: String) -> Result<Namespaces> {
    let work = std::thread::spawn(move || -> Result<Namespaces> {
        unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).context("make ipc and uts namespaces")?;
        if !hostname.is_empty() {
            nix::unistd::sethostname(&hostname).context("set the host name")?;
        }
        let open = |name| File::open(format!("/proc/thread-self/ns/{name}")).map(OwnedFd::from);
        Ok(Namespaces {
            ipc: open("ipc").context("open a namespace")?,
            uts: open("uts").context("open a namespace")?,
        })
    });
    work.join()
        .unwrap_or_else(|_| Err(Error::internal("the namespace thread failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        assert!(check_id("a1_b-2.c").is_ok());
        for id in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
