//! A container: its cgroup, its processes, its storages.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::error::{Code, Context, Error, Result};
use crate::process::{Birth, Ports, Process};
use crate::proto::grpc::{CreateContainerRequest, ExecProcessRequest, LinuxSeccomp, Spec};
use crate::proto::stage::Plan;
use crate::reaper;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use tokio::sync::{Mutex, Notify};
use tokio::task::{spawn_local, AbortHandle};

/// Ended exec'ed processes that a container remembers for a late WaitProcess.
const ENDED_MAX: usize = 128;
/// Processes of one container that the host may have at once.
const PROCESSES_MAX: usize = 4096;

/// One container.
pub struct Container {
    pub id: String,
    pub cgroup: Cgroup,
    pub init: Rc<Process>,
    /// The exec'ed processes, by exec id.
    execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Exec ids whose processes are being made.
    beginning: RefCell<BTreeSet<String>>,
    /// Told when one of them is made, or is not.
    begun: Notify,
    /// Exec ids in the order of their creation.
    order: RefCell<Vec<String>>,
    /// Mount points of the storages that it uses.
    storages: RefCell<Vec<String>>,
    seccomp: Option<LinuxSeccomp>,
    pid_ns: OwnedFd,
    /// One change at a time.
    lock: Mutex<()>,
    removed: Cell<bool>,
    paused: Cell<bool>,
    watchers: RefCell<Vec<AbortHandle>>,
}

impl Container {
    /// Creates the container up to the point before its program starts. What a failed attempt made is removed.
    pub async fn create(agent: &Rc<Agent>, request: CreateContainerRequest, storages: Vec<String>) -> Result<Rc<Self>> {
        let spec = request
            .oci
            .clone()
            .ok_or_else(|| Error::invalid("the request has no OCI spec"))?;
        check(&spec)?;
        let cgroup = agent.cgroups.create(&request.container_id, &spec)?;
        match Self::create_init(agent, &request, spec, &cgroup).await {
            Ok((init, seccomp, pid_ns)) => {
                let container = Rc::new(Self {
                    id: request.container_id,
                    cgroup,
                    init: Rc::new(init),
                    execs: RefCell::default(),
                    beginning: RefCell::default(),
                    begun: Notify::new(),
                    order: RefCell::default(),
                    storages: RefCell::new(storages),
                    seccomp,
                    pid_ns,
                    lock: Mutex::default(),
                    removed: Cell::new(false),
                    paused: Cell::new(false),
                    watchers: RefCell::default(),
                });
                container.clone().watch(agent);
                Ok(container)
            }
            Err(error) => {
                let _ = cgroup.kill();
                let _ = cgroup.emptied().await;
                if let Err(error) = cgroup.remove() {
                    crate::warn!("{error}");
                }
                Err(error)
            }
        }
    }

    /// Mount points of the storages that it uses.
    pub fn storages(&self) -> Vec<String> {
        self.storages.borrow().clone()
    }

    async fn create_init(
        agent: &Rc<Agent>,
        request: &CreateContainerRequest,
        spec: Spec,
        cgroup: &Cgroup,
    ) -> Result<(Process, Option<LinuxSeccomp>, OwnedFd)> {
        let process = spec.process.clone();
        let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.clone());
        let wants = |name: &str| {
            spec.linux
                .iter()
                .flat_map(|linux| &linux.namespaces)
                .any(|namespace| namespace.r#type == name)
        };
        let shared = agent.namespaces();
        let shared = shared.as_ref();
        let pick = |name: &str, fd: Option<&OwnedFd>| fd.filter(|_| wants(name)).map_or(-1, AsRawFd::as_raw_fd);
        let ipc_ns = pick("ipc", shared.map(|shared| &shared.ipc));
        let uts_ns = pick("uts", shared.map(|shared| &shared.uts));
        let pid_ns = agent.shared_pid_ns(request.sandbox_pidns)?;
        let inherited = [ipc_ns, uts_ns].into_iter().filter(|fd| *fd >= 0).collect();
        let plan = Plan {
            init: true,
            spec: Some(spec),
            process,
            ipc_ns,
            uts_ns,
            init_pidfd: -1,
            string_user: request.string_user.clone(),
            resolv_conf: agent.resolv_conf(),
            seccomp: seccomp.clone(),
            ..Plan::default()
        };
        let folder = cgroup.open()?;
        let flags = if pid_ns.is_some() { 0 } else { libc::CLONE_NEWPID as u64 };
        let birth = Birth {
            flags,
            cgroup: folder.as_fd(),
            pid_ns: pid_ns.as_ref().map(AsFd::as_fd),
            inherited,
        };
        let ports = Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        };
        let allowed = agent.guard.streams(&request.container_id, &request.exec_id).await;
        let host = ports.claim(&agent.streams, allowed).await?;
        let init = Process::create(&agent.reaper, plan, birth, host).await?;
        let pid_ns = File::open(format!("/proc/{}/ns/pid", init.pid)).context("find the pid namespace")?;
        Ok((init, seccomp, pid_ns.into()))
    }

    /// Tells the agent of kills for want of memory, and lets no process outlive the first one.
    fn watch(self: Rc<Self>, agent: &Rc<Agent>) {
        let (container, ooms) = (self.clone(), agent.ooms.clone());
        let oom = spawn_local(async move {
            let killed = || {
                crate::warn!("a process of container {} was killed: out of memory", container.id);
                ooms.push(&container.id);
            };
            container.cgroup.watch_oom(killed).await;
        });
        let container = self.clone();
        let end = spawn_local(async move {
            if reaper::wait(container.init.exit.clone()).await.is_ok() {
                let _ = container.cgroup.kill();
            }
        });
        self.watchers
            .borrow_mut()
            .extend([oom.abort_handle(), end.abort_handle()]);
    }

    /// Starts the first process.
    pub async fn start(&self) -> Result<()> {
        let _guard = self.change().await?;
        self.init.start().await
    }

    /// Starts a further process.
    pub async fn exec(&self, agent: &Rc<Agent>, request: ExecProcessRequest) -> Result<()> {
        let exec_id = request.exec_id.clone();
        // A host that has lost its connection asks again while the first request goes on: it has the streams.
        while self.beginning.borrow().contains(&exec_id) {
            self.begun.notified().await;
        }
        self.beginning.borrow_mut().insert(exec_id.clone());
        let result = self.begin_exec(agent, request).await;
        self.beginning.borrow_mut().remove(&exec_id);
        self.begun.notify_waiters();
        result
    }

    async fn begin_exec(&self, agent: &Rc<Agent>, request: ExecProcessRequest) -> Result<()> {
        self.takes_execs()?;
        let ports = Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        };
        self.refuse_known(&request.exec_id, ports)?;
        // Before the container is held: streams that never come would keep every other request from it.
        let allowed = agent.guard.streams(&request.container_id, &request.exec_id).await;
        let host = ports.claim(&agent.streams, allowed).await?;
        let _guard = self.change().await?;
        self.takes_execs()?;
        self.make_room(&request.exec_id)?;
        let process = request
            .process
            .ok_or_else(|| Error::invalid("the request has no process"))?;
        let plan = Plan {
            init: false,
            process: Some(process),
            ipc_ns: -1,
            uts_ns: -1,
            init_pidfd: self.init.pidfd.as_raw_fd(),
            string_user: request.string_user,
            seccomp: self.seccomp.clone(),
            ..Plan::default()
        };
        let folder = self.cgroup.open_of(self.init.pid)?;
        let birth = Birth {
            flags: 0,
            cgroup: folder.as_fd(),
            pid_ns: Some(self.pid_ns.as_fd()),
            inherited: vec![plan.init_pidfd],
        };
        let process = Process::create(&agent.reaper, plan, birth, host).await?;
        process.start().await?;
        self.order.borrow_mut().push(request.exec_id.clone());
        let process = Rc::new(process);
        self.execs.borrow_mut().insert(request.exec_id, process.clone());
        spawn_local(async move {
            if reaper::wait(process.exit.clone()).await.is_ok() {
                process.ended();
            }
        });
        Ok(())
    }

    fn takes_execs(&self) -> Result<()> {
        let state = match (self.init.started(), self.init.exited().is_some(), self.paused.get()) {
            (false, ..) => "was not started yet",
            (_, true, _) => "has ended",
            (_, _, true) => "is paused",
            _ => return Ok(()),
        };
        Err(Error::precondition(format!("container {:?} {state}", self.id)))
    }

    /// Refuses an exec id in use, and a request that was done before: its process may have ended since.
    fn refuse_known(&self, exec_id: &str, ports: Ports) -> Result<()> {
        let execs = self.execs.borrow();
        let known = execs.get(exec_id);
        let text = if self.is_init(exec_id) || known.is_some_and(|process| process.exited().is_none()) {
            format!("container {:?} has a running process {exec_id:?}", self.id)
        } else if ports.any() && known.is_some_and(|process| process.ports == ports) {
            format!("container {:?} had this process {exec_id:?} before", self.id)
        } else {
            return Ok(());
        };
        Err(Error::new(Code::AlreadyExists, text))
    }

    /// Forgets an ended process of that exec id, and the oldest ended ones.
    fn make_room(&self, exec_id: &str) -> Result<()> {
        let mut execs = self.execs.borrow_mut();
        let mut order = self.order.borrow_mut();
        execs.remove(exec_id);
        let ended = execs.values().filter(|process| process.exited().is_some()).count();
        let mut surplus = (ended + 1).saturating_sub(ENDED_MAX);
        order.retain(|id| {
            let Some(process) = execs.get(id) else { return false };
            let forget = surplus > 0 && process.exited().is_some();
            if forget {
                surplus -= 1;
                execs.remove(id);
            }
            !forget
        });
        if execs.len() >= PROCESSES_MAX {
            let text = format!("container {:?} has {PROCESSES_MAX} processes already", self.id);
            return Err(Error::new(Code::ResourceExhausted, text));
        }
        Ok(())
    }

    fn is_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.id
    }

    /// The process of that exec id; none or the container's own id means the first.
    pub fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if self.is_init(exec_id) {
            return Ok(self.init.clone());
        }
        let missing = || Error::not_found(format!("container {:?} has no process {exec_id:?}", self.id));
        self.execs.borrow().get(exec_id).cloned().ok_or_else(missing)
    }

    /// Signals a process. SIGKILL to the first one kills the whole container.
    pub fn signal(&self, exec_id: &str, number: i32) -> Result<()> {
        if self.is_init(exec_id) && number == libc::SIGKILL {
            self.cgroup.kill()?;
            // One that has not left the agent's cgroup yet, or whose kill the freezer holds back.
            let _ = self.init.signal(number);
            return Ok(());
        }
        let process = self.process(exec_id)?;
        if process.exited().is_some() {
            return Err(Error::not_found("the process has already finished"));
        }
        process.signal(number)
    }

    /// Freezes or thaws all processes.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let _guard = self.change().await?;
        if self.init.exited().is_some() {
            return Err(Error::precondition(format!("container {:?} has ended", self.id)));
        }
        self.cgroup.freeze(frozen).await?;
        self.paused.set(frozen);
        Ok(())
    }

    /// Kills what still runs and removes everything. Goes on after a failed step and reports the first failure.
    /// May be called again after it was given up half-way.
    pub async fn remove(&self, agent: &Rc<Agent>) -> Result<()> {
        // What another request of this container waits for may be hanging: killed, it lets go of the lock.
        let _ = self.cgroup.kill();
        let _guard = self.change().await?;
        let mut steps = vec![self.cgroup.kill()];
        let _ = self.init.signal(libc::SIGKILL);
        steps.push(reaper::wait(self.init.exit.clone()).await.map(|_| ()));
        steps.push(self.cgroup.emptied().await);
        for watcher in self.watchers.take() {
            watcher.abort();
        }
        self.init.linger();
        for process in self.execs.take().into_values() {
            process.linger();
        }
        steps.push(agent.storages.release(&self.storages.take()).await);
        steps.push(self.cgroup.remove());
        self.removed.set(true);
        let failed = steps.into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |error| {
            Err(error).with_context(|| format!("remove container {:?}", self.id))
        })
    }

    /// Waits for other changes to end.
    async fn change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let guard = self.lock.lock().await;
        if self.removed.get() {
            return Err(Error::not_found(format!("container {:?} was removed", self.id)));
        }
        Ok(guard)
    }

    /// A descriptor of the pid namespace, to share it.
    pub fn share_pid_ns(&self) -> Result<OwnedFd> {
        Ok(self.pid_ns.try_clone()?)
    }
}

/// Refuses what the stage can't do, before anything is made.
fn check(spec: &Spec) -> Result<()> {
    if spec.process.is_none() {
        return Err(Error::invalid("the OCI spec has no process"));
    }
    let mapped = spec.linux.as_ref().is_some_and(|linux| !linux.uid_mappings.is_empty());
    if mapped {
        return Err(Error::new(
            Code::Unimplemented,
            "user namespaces are not supported in the guest: remove uidMappings",
        ));
    }
    Ok(())
}
