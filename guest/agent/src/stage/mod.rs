//! The stage: the program between the clone and the container's own. It builds the container around itself, reports `ready`,
//! waits for the go-ahead and becomes the container's program. Runs single-threaded, in its own process.

mod devices;
mod identity;
mod mounts;
mod program;
mod root;
mod seccomp;
mod terminal;

use crate::error::{Context, Error, Result};
use crate::proto::grpc::{Process, Spec};
use crate::proto::stage::{Plan, Report};
use nix::sched::{setns, unshare, CloneFlags};
use nix::unistd;
use prost::Message;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Runs the stage with the descriptors named by `arguments` (control socket, plan); never returns.
pub fn main(arguments: &[String]) -> ! {
    let number = |at: usize| arguments.get(at).and_then(|word| word.parse::<RawFd>().ok());
    let (Some(control), Some(plan)) = (number(0), number(1)) else {
        std::process::exit(126)
    };
    let control = Control(unsafe { OwnedFd::from_raw_fd(control) });
    let Err(error) = run(&control, plan);
    control.send(
        &Report {
            error: error.text,
            ready: false,
        },
        None,
    );
    std::process::exit(126)
}

/// The stage's end of the socket to the agent.
struct Control(OwnedFd);

impl Control {
    /// Sends one report, with a descriptor when there is one. A vanished agent is noticed by `wait`.
    fn send(&self, report: &Report, fd: Option<BorrowedFd>) {
        use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
        let bytes = report.encode_to_vec();
        let fds: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let with = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [std::io::IoSlice::new(&bytes)];
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &parts, with, MsgFlags::MSG_NOSIGNAL, None);
    }

    /// Waits for the go-ahead; the agent's end ends the stage too.
    fn wait(&self) -> Result<()> {
        let mut byte = [0u8];
        match unistd::read(&self.0, &mut byte) {
            Ok(1) => Ok(()),
            _ => Err(Error::internal("the container was removed before it was started")),
        }
    }
}

fn run(control: &Control, plan: RawFd) -> Result<std::convert::Infallible> {
    let plan = read_plan(plan)?;
    reset_signals();
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
    }
    unistd::setsid().context("start a session")?;
    if plan.holder {
        hold(control);
    }
    unsafe { libc::umask(0o022) };
    let process = plan
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("the request has no process"))?;
    identity::set_oom_score(process)?;
    let spec = plan.spec.clone().unwrap_or_default();
    if plan.init {
        build(&plan, &spec)?;
    } else {
        join(plan.init_pidfd)?;
    }
    let user = identity::resolve(process, plan.string_user.as_ref())?;
    let master = stdio(&plan, process, user.uid)?;
    let filter = match &plan.seccomp {
        Some(profile) => seccomp::Filter::compile(profile)?,
        None => None,
    };
    let environment = program::environment(process, &user);
    if plan.init {
        program::make_cwd(process)?;
        finish_root(&spec)?;
    }
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which the process may lose with its capabilities.
    let early = !process.no_new_privileges;
    if let (true, Some(filter)) = (early, &filter) {
        filter.load()?;
    }
    program::enter_cwd(process, false)?;
    identity::assume(process, &user)?;
    program::enter_cwd(process, true)?;
    let program = program::find(process, &environment)?;
    control.send(
        &Report {
            error: String::new(),
            ready: true,
        },
        master.as_ref().map(std::os::fd::AsFd::as_fd),
    );
    drop(master);
    control.wait()?;
    if let (false, Some(filter)) = (early, &filter) {
        filter.load()?;
    }
    Err(program.become_it(process, &environment))
}

fn read_plan(fd: RawFd) -> Result<Plan> {
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).context("read the plan")?;
    file.read_to_end(&mut bytes).context("read the plan")?;
    Plan::decode(bytes.as_slice()).map_err(|error| Error::internal(format!("read the plan: {error}")))
}

/// The agent blocks and ignores signals that a container's program must find as a shell would leave them.
fn reset_signals() {
    unsafe {
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Reports `ready` and then only reaps: with SIGCHLD ignored the kernel does it.
fn hold(control: &Control) -> ! {
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let ready = Report {
        ready: true,
        error: String::new(),
    };
    control.send(&ready, None);
    loop {
        unistd::pause();
    }
}

/// An init's namespaces and root file system, up to the point where its own paths are the container's.
fn build(plan: &Plan, spec: &Spec) -> Result<()> {
    let linux = spec.linux.clone().unwrap_or_default();
    for (fd, flag, name) in [
        (plan.ipc_ns, CloneFlags::CLONE_NEWIPC, "ipc"),
        (plan.uts_ns, CloneFlags::CLONE_NEWUTS, "uts"),
    ] {
        if fd >= 0 {
            setns(unsafe { BorrowedFd::borrow_raw(fd) }, flag).with_context(|| format!("join the {name} namespace"))?;
        } else if linux.namespaces.iter().any(|namespace| namespace.r#type == name) {
            unshare(flag).with_context(|| format!("make an {name} namespace"))?;
            if flag == CloneFlags::CLONE_NEWUTS && !spec.hostname.is_empty() {
                unistd::sethostname(&spec.hostname).context("set the host name")?;
            }
        }
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).context("make mount and cgroup namespaces")?;
    for (name, value) in &linux.sysctl {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value).with_context(|| format!("set the sysctl {name}={value}"))?;
    }
    let root = root::Root::prepare(spec)?;
    mounts::mount_all(&root, spec, &plan.resolv_conf)?;
    devices::make(&root, spec)?;
    root.enter()
}

/// What must come last in a root file system, because it takes abilities away.
fn finish_root(spec: &Spec) -> Result<()> {
    let linux = spec.linux.clone().unwrap_or_default();
    if spec.root.as_ref().is_some_and(|root| root.readonly) {
        mounts::remount_readonly("/").context("make the root file system read-only")?;
    }
    for path in &linux.readonly_paths {
        mounts::make_readonly(path).with_context(|| format!("make {path} read-only"))?;
    }
    for path in &linux.masked_paths {
        mounts::mask(path).with_context(|| format!("mask {path}"))?;
    }
    Ok(())
}

/// Joins all namespaces of a container's first process except its pid namespace, which the clone joined.
fn join(pidfd: RawFd) -> Result<()> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    setns(unsafe { BorrowedFd::borrow_raw(pidfd) }, flags).context("join the container's namespaces")
}

/// Puts the standard descriptors in place; gives the terminal's master when there is a terminal.
fn stdio(plan: &Plan, process: &Process, uid: u32) -> Result<Option<OwnedFd>> {
    if process.terminal {
        return terminal::open(process, plan.init, uid).map(Some);
    }
    for (fd, at) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
        if fd >= 0 {
            if unsafe { libc::dup2(fd, at) } < 0 {
                return Err(nix::errno::Errno::last()).context("set up standard input and output");
            }
            // Programs that log to /dev/stdout open the pipe anew, as the user.
            unsafe { libc::fchown(at, uid, u32::MAX) };
            continue;
        }
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .context("open /dev/null")?;
        unsafe { libc::dup2(null.as_raw_fd(), at) };
    }
    Ok(None)
}

pub use terminal::resize;
