//! Starts the stage: a child that becomes a container's process. The child runs this same binary (`snp-agent stage`), so that everything
//! between the clone and the container's program happens in an ordinary single-threaded program.

use crate::error::{Context, Error, Result};
use crate::io::Fd;
use crate::proto::stage::{Plan, Report};
use nix::errno::Errno;
use nix::sys::memfd::{memfd_create, MFdFlags};
use prost::Message;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;

/// <linux/sched.h>; wider than libc's type for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// A stage has this long to get ready: everything in it is local.
const READY_MAX: Duration = Duration::from_secs(30);
/// A report is one short text.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// Where and with what a stage is cloned.
pub struct Clone<'a> {
    /// Additional flags of clone3 (namespaces).
    pub flags: u64,
    /// The cgroup's folder, which the child is born into.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A pid namespace to be born into.
    pub pid_ns: Option<BorrowedFd<'a>>,
    /// Descriptors that the plan names; they keep their numbers in the child.
    pub inherited: &'a [RawFd],
}

/// A stage that was started.
pub struct Stage {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub control: Fd,
}

/// Clones a child, hands it the plan, and returns at once. The caller must enter the pid at the reaper before its next `await`.
pub fn spawn(plan: &Plan, how: &Clone) -> Result<Stage> {
    let (own, theirs) = socket_pair()?;
    let plan_fd = memory_file(&plan.encode_to_vec())?;
    let program = std::fs::File::open("/proc/self/exe").context("open the agent's own program")?;
    let arguments = [
        CString::from(c"snp-agent"),
        CString::from(c"stage"),
        number(theirs.as_raw_fd()),
        number(plan_fd.as_raw_fd()),
    ];
    let argv: Vec<*const libc::c_char> = arguments
        .iter()
        .map(|word| word.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let mut kept = how.inherited.to_vec();
    kept.extend([theirs.as_raw_fd(), plan_fd.as_raw_fd()]);
    let child = Child {
        program: program.as_raw_fd(),
        argv: &argv,
        kept: &kept,
    };
    let (pid, pidfd) = match how.pid_ns {
        // A namespace for children is a thread's property: a thread of its own takes it to its grave.
        Some(pid_ns) => std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                nix::sched::setns(pid_ns, nix::sched::CloneFlags::CLONE_NEWPID).context("join the pid namespace")?;
                child.clone(how)
            });
            work.join()
                .unwrap_or_else(|_| Err(Error::internal("the cloning thread failed")))
        })?,
        None => child.clone(how)?,
    };
    Ok(Stage {
        pid,
        pidfd,
        control: Fd::new(own)?,
    })
}

impl Stage {
    /// Waits until the stage is ready to become the program; gives its terminal's master when the plan asked for one.
    pub async fn ready(&self) -> Result<Option<OwnedFd>> {
        let wait = self.report();
        match tokio::time::timeout(READY_MAX, wait).await {
            Err(_) => Err(Error::internal(format!(
                "the process was not ready after {READY_MAX:?}"
            ))),
            Ok(Err(error)) => Err(error),
            Ok(Ok((Some(report), master))) if report.ready => Ok(master),
            Ok(Ok((Some(report), _))) => Err(Error::internal(report.error)),
            Ok(Ok((None, _))) => Err(Error::internal(
                "the process died while it was set up (is the memory limit too small?)",
            )),
        }
    }

    /// Lets the stage become the program; an error is the stage's own text (for example "exec format error").
    pub async fn go(self) -> Result<()> {
        self.control.write_all(&[1]).await.context("start the process")?;
        match tokio::time::timeout(READY_MAX, self.report()).await {
            Err(_) => Err(Error::internal(format!(
                "the program did not start within {READY_MAX:?}"
            ))),
            Ok(Err(error)) => Err(error),
            Ok(Ok((None, _))) => Ok(()),
            Ok(Ok((Some(report), _))) => Err(Error::internal(report.error)),
        }
    }

    /// One report (with a descriptor, perhaps), or None when the stage closed its end.
    async fn report(&self) -> Result<(Option<Report>, Option<OwnedFd>)> {
        let mut buffer = vec![0u8; REPORT_BYTES_MAX];
        let (length, master) = self
            .control
            .when(Interest::READABLE, |fd| receive(fd, &mut buffer))
            .await
            .context("hear from the process")?;
        if length == 0 {
            return Ok((None, None));
        }
        let report = Report::decode(&buffer[..length]).map_err(|error| Error::internal(error.to_string()))?;
        Ok((Some(report), master))
    }
}

/// One datagram and the descriptor that came with it.
fn receive(fd: BorrowedFd, buffer: &mut [u8]) -> std::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [0u64; 4];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&space) as _;
    let length = unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &mut message,
            libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT,
        )
    };
    if length < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    let sent = !header.is_null()
        && unsafe { (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS };
    let master = sent.then(|| unsafe {
        let raw = std::ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>());
        OwnedFd::from_raw_fd(raw)
    });
    Ok((length as usize, master))
}

/// What the child needs; made before the clone, since the child may not allocate.
struct Child<'a> {
    program: RawFd,
    argv: &'a [*const libc::c_char],
    kept: &'a [RawFd],
}

// The raw pointers point into data that outlives the scoped thread.
unsafe impl Sync for Child<'_> {}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl Child<'_> {
    fn clone(&self, how: &Clone) -> Result<(i32, OwnedFd)> {
        let mut pidfd: RawFd = -1;
        let mut arguments = CloneArgs {
            flags: how.flags | libc::CLONE_PIDFD as u64,
            pidfd: &raw mut pidfd as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        if let Some(cgroup) = how.cgroup {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = cgroup.as_raw_fd() as u64;
        }
        let size = std::mem::size_of::<CloneArgs>();
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
        match pid {
            0 => unsafe { self.become_stage() },
            pid if pid > 0 => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
            _ => Err(Errno::last()).context("clone a process"),
        }
    }

    /// Runs in the child: system calls only, no allocation, no return.
    unsafe fn become_stage(&self) -> ! {
        for fd in self.kept {
            libc::fcntl(*fd, libc::F_SETFD, 0);
        }
        let environment = [std::ptr::null::<libc::c_char>()];
        libc::syscall(
            libc::SYS_execveat,
            self.program,
            c"".as_ptr(),
            self.argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(127)
    }
}

fn number(value: RawFd) -> CString {
    CString::new(value.to_string()).unwrap_or_default()
}

fn memory_file(content: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(c"plan", MFdFlags::MFD_CLOEXEC).context("make a memory file")?);
    file.write_all(content).context("write the plan")?;
    Ok(file)
}

fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).context("make a socket pair")
}
