//! A process of a container: its standard streams, its terminal, its end.

use crate::confidential::guard::Allowed;
use crate::error::{Context, Error, Result};
use crate::io::{pipe, Fd};
use crate::proto::stage::Plan;
use crate::reaper::{self, Exit, Reaper};
use crate::spawn::{self, Stage};
use crate::stage;
use crate::streams::{pump_input, pump_output, Streams};
use nix::errno::Errno;
use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use tokio::task::{spawn_local, AbortHandle};

/// A pipe of this size lets a program write ahead of the host. The kernel takes memory only for what is in it.
const PIPE_BYTES: i32 = 256 << 10;
/// One answer to ReadStdout or ReadStderr.
const READ_BYTES_MAX: usize = 1 << 20;
/// Output that a removed container's host has not taken is dropped after this long.
const LINGER: std::time::Duration = std::time::Duration::from_secs(30);

/// The numbers of the streams that a request names; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub stdin: u32,
    pub stdout: u32,
    pub stderr: u32,
}

impl Ports {
    /// Whether the host uses streams for this process.
    pub fn any(self) -> bool {
        self.stdin != 0 || self.stdout != 0 || self.stderr != 0
    }

    /// Waits, with a bound, for the streams that are named. Nothing may be held meanwhile that others need: a host may name what never comes.
    /// Streams that the host may not have are closed: it would wait for them.
    pub async fn claim(self, streams: &Streams, allowed: Allowed) -> Result<HostStreams> {
        let claim = |number: u32| async move {
            match number {
                0 => Ok(None),
                number => streams.claim(number).await.map(Some),
            }
        };
        let (stdin, stdout, stderr) = tokio::try_join!(claim(self.stdin), claim(self.stdout), claim(self.stderr))?;
        Ok(HostStreams {
            ports: self,
            allowed,
            stdin: stdin.filter(|_| allowed.input),
            stdout: stdout.filter(|_| allowed.output),
            stderr: stderr.filter(|_| allowed.output),
        })
    }
}

/// The host's ends of a process's standard streams.
pub struct HostStreams {
    ports: Ports,
    allowed: Allowed,
    stdin: Option<Fd>,
    stdout: Option<Fd>,
    stderr: Option<Fd>,
}

/// A process, from its creation until its container forgets it.
pub struct Process {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub exit: Exit,
    /// The streams that it was made with: a host never uses a number twice.
    pub ports: Ports,
    /// Present until the process was started.
    stage: RefCell<Option<Stage>>,
    stdin: RefCell<Option<Rc<Fd>>>,
    stdout: RefCell<Option<Rc<Fd>>>,
    stderr: RefCell<Option<Rc<Fd>>>,
    master: RefCell<Option<Rc<Fd>>>,
    /// The host reads the terminal by a stream, not by requests.
    master_piped: bool,
    pumps: Vec<AbortHandle>,
}

/// One standard stream: what the agent keeps, what the process gets, and the host's stream.
#[derive(Default)]
struct Line {
    own: Option<Rc<Fd>>,
    theirs: Option<OwnedFd>,
    host: Option<Fd>,
}

impl Line {
    /// `unheard`: without a stream of the host's the process gets /dev/null.
    fn open(host: Option<Fd>, unheard: bool, tty: bool, input: bool) -> Result<Self> {
        if tty || (host.is_none() && unheard) {
            return Ok(Self {
                host,
                ..Self::default()
            });
        }
        let (reading, writing) = pipe()?;
        let _ = nix::fcntl::fcntl(&writing, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let (own, theirs) = if input { (writing, reading) } else { (reading, writing) };
        Ok(Self {
            own: Some(Rc::new(Fd::new(own)?)),
            theirs: Some(theirs),
            host,
        })
    }

    fn number(&self) -> RawFd {
        self.theirs.as_ref().map_or(-1, |fd| fd.as_raw_fd())
    }
}

/// Where a process is born, see `spawn::Clone`.
pub struct Birth<'a> {
    pub flags: u64,
    pub cgroup: BorrowedFd<'a>,
    pub pid_ns: Option<BorrowedFd<'a>>,
    pub inherited: Vec<RawFd>,
}

impl Process {
    /// Creates a process up to the point before its program starts.
    pub async fn create(reaper: &Reaper, mut plan: Plan, birth: Birth<'_>, host: HostStreams) -> Result<Self> {
        let tty = plan.process.as_ref().is_some_and(|process| process.terminal);
        // A host that uses streams and names none wants none; one that may have none gets none by requests either.
        let (used, allowed) = (host.ports.any(), host.allowed);
        let mut stdin = Line::open(host.stdin, used || !allowed.input, tty, true)?;
        let mut stdout = Line::open(host.stdout, used || !allowed.output, tty, false)?;
        let mut stderr = Line::open(host.stderr, used || !allowed.output, tty, false)?;
        (plan.stdin, plan.stdout, plan.stderr) = (stdin.number(), stdout.number(), stderr.number());
        let mut inherited = birth.inherited.clone();
        inherited.extend([plan.stdin, plan.stdout, plan.stderr].iter().filter(|fd| **fd >= 0));
        let how = spawn::Clone {
            flags: birth.flags,
            cgroup: Some(birth.cgroup),
            pid_ns: birth.pid_ns,
            inherited: &inherited,
        };
        let stage = spawn::spawn(&plan, &how)?;
        let exit = reaper.watch(stage.pid);
        for line in [&mut stdin, &mut stdout, &mut stderr] {
            line.theirs = None;
        }
        let pidfd = stage.pidfd.try_clone()?;
        let master = match stage.ready().await {
            Ok(master) => master.map(|fd| Fd::new(fd).map(Rc::new)).transpose()?,
            Err(error) => {
                let _ = signal(&pidfd, libc::SIGKILL);
                reaper::wait(exit).await?;
                return Err(error);
            }
        };
        let (pumps, master_piped) = connect(&master, [&mut stdin, &mut stdout, &mut stderr], allowed);
        Ok(Self {
            pid: stage.pid,
            pidfd,
            exit,
            ports: host.ports,
            stage: RefCell::new(Some(stage)),
            stdin: RefCell::new(stdin.own),
            stdout: RefCell::new(stdout.own),
            stderr: RefCell::new(stderr.own),
            master: RefCell::new(master),
            master_piped,
            pumps,
        })
    }

    /// Starts the program. An error means that it did not start; the process is gone then.
    pub async fn start(&self) -> Result<()> {
        let stage = self.stage.borrow_mut().take();
        let stage = stage.ok_or_else(|| Error::precondition("the process was started before"))?;
        let started = stage.go().await;
        if started.is_err() {
            let _ = self.signal(libc::SIGKILL);
            reaper::wait(self.exit.clone()).await?;
        }
        started
    }

    /// Whether `start` was called.
    pub fn started(&self) -> bool {
        self.stage.borrow().is_none()
    }

    /// The exit code, once there is one.
    pub fn exited(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Sends a signal to this one process.
    pub fn signal(&self, number: i32) -> Result<()> {
        signal(&self.pidfd, number)
    }

    /// Writes to the standard input or the terminal; no data means its end.
    pub async fn write(&self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            self.close_stdin();
            return Ok(());
        }
        let to = self.stdin.borrow().clone().or_else(|| self.master.borrow().clone());
        let to = to.ok_or_else(|| Error::precondition("the process's standard input is closed"))?;
        to.write_all(data).await.context("write to the standard input")
    }

    /// Closes the standard input. A terminal's stays: its end is a character that the user types.
    pub fn close_stdin(&self) {
        self.stdin.borrow_mut().take();
    }

    /// Reads some output; at its end an error, which is how this protocol says it.
    pub async fn read(&self, stderr: bool, length: u32) -> Result<Vec<u8>> {
        let line = if stderr { &self.stderr } else { &self.stdout };
        let mut from = line.borrow().clone();
        if !stderr && from.is_none() && !self.master_piped {
            from = self.master.borrow().clone();
        }
        let end = || Error::invalid("read meet eof");
        let from = from.ok_or_else(end)?;
        let mut buffer = vec![0u8; (length as usize).clamp(1, READ_BYTES_MAX)];
        let length = from.read(&mut buffer).await.context("read output")?;
        if length == 0 {
            line.borrow_mut().take();
            return Err(end());
        }
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Sets the terminal's size in characters.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let master = self.master.borrow();
        let master = master
            .as_ref()
            .ok_or_else(|| Error::precondition("the process has no terminal"))?;
        stage::resize(master.as_fd(), rows, columns)
    }

    /// Lets go of what an ended process no longer needs; output that requests have not read stays.
    pub fn ended(&self) {
        self.stdin.take();
        if self.master_piped {
            self.master.take();
        }
    }

    /// The container is gone: what the host has not taken soon is dropped.
    pub fn linger(&self) {
        let pumps = self.pumps.clone();
        spawn_local(async move {
            tokio::time::sleep(LINGER).await;
            for pump in pumps {
                pump.abort();
            }
        });
    }
}

/// Joins the host's streams with the process's; gives the tasks, and whether one of them reads the terminal.
fn connect(master: &Option<Rc<Fd>>, lines: [&mut Line; 3], allowed: Allowed) -> (Vec<AbortHandle>, bool) {
    let [stdin, stdout, stderr] = lines;
    let mut pumps = Vec::new();
    if let Some(host) = stdin.host.take() {
        if let Some(to) = stdin.own.take().or_else(|| master.clone()) {
            pumps.push(spawn_local(pump_input(host, to)).abort_handle());
        }
    }
    let Some(master) = master else {
        for line in [stdout, stderr] {
            let Some(host) = line.host.take() else { continue };
            if let Some(from) = line.own.take() {
                pumps.push(spawn_local(pump_output(from, Some(host))).abort_handle());
            }
        }
        return (pumps, false);
    };
    let host = stdout.host.take();
    if host.is_none() && allowed.output {
        return (pumps, false);
    }
    let (master, input) = (master.clone(), pumps.first().cloned());
    let output = spawn_local(async move {
        pump_output(master, host).await;
        // Nobody is left to type for.
        if let Some(input) = input {
            input.abort();
        }
    });
    pumps.push(output.abort_handle());
    (pumps, true)
}

/// Sends a signal by descriptor, which never hits another process.
pub fn signal(pidfd: &OwnedFd, number: i32) -> Result<()> {
    let code = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, 0, 0) };
    if code == 0 {
        return Ok(());
    }
    match Errno::last() {
        Errno::ESRCH => Err(Error::not_found("the process has already finished")),
        Errno::EINVAL => Err(Error::invalid(format!("there is no signal {number}"))),
        errno => Err(errno).with_context(|| format!("send signal {number}")),
    }
}
