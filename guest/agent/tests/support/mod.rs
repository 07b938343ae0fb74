//! What the tests on a host share: an agent on unix sockets, a client, a root file system of busybox.

#![allow(dead_code)]

pub mod stuck;

use prost::Message;
use snp_agent::proto::grpc::{
    Box as ConsoleBox, CreateContainerRequest, CreateSandboxRequest, Linux, LinuxCapabilities, LinuxNamespace, Mount,
    Process, Root, Spec,
};
use snp_agent::ttrpc::{frame, Request, Response, Status};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// No answer takes this long on a working agent.
pub const ANSWER_MAX: Duration = Duration::from_secs(60);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A running agent with its folder; both go when it is dropped.
pub struct Agent {
    child: Child,
    pub folder: PathBuf,
}

impl Agent {
    /// Starts an agent and waits until it serves.
    pub fn start() -> Self {
        Self::launch(|_| ())
    }

    /// As `start`, in a network namespace of its own.
    pub fn start_alone() -> Self {
        Self::launch(|command| unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        })
    }

    /// As `start_alone`, with further arguments, and a loopback that works.
    pub fn start_with(arguments: &[String]) -> Self {
        let agent = Self::launch(|command| {
            command.args(arguments);
            unsafe {
                command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        });
        agent.ip("link set lo up");
        agent
    }

    /// Runs `ip` in the agent's network namespace; gives its output.
    pub fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
        unsafe {
            command.pre_exec(move || {
                match libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn launch(prepare: impl FnOnce(&mut Command)) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("snp-agent-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let socket = |name: &str| format!("unix://{}", folder.join(name).display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_snp-agent"));
        command
            .args([
                "--listen",
                &socket("agent"),
                "--streams",
                &socket("streams"),
                "--forward",
                &socket("forward"),
                "--log-socket",
                &socket("log"),
            ])
            .arg("--run-dir")
            .arg(folder.join("run"))
            .arg("--cgroup-root")
            .arg(cgroup2())
            .stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.by_ref().map_while(Result::ok) {
                eprintln!("{line}");
            }
        });
        let agent = Self { child, folder };
        agent.wait_until_bound();
        agent
    }

    /// The agent says that it serves on its log, which it binds last: connect to that when the folder shows it.
    fn wait_until_bound(&self) {
        let deadline = std::time::Instant::now() + ANSWER_MAX;
        while UnixStream::connect(self.folder.join("log")).is_err() {
            assert!(std::time::Instant::now() < deadline, "the agent does not serve");
            std::thread::yield_now();
        }
    }

    /// Waits for the agent's end; whether it ended well.
    pub fn ended(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// One call on a connection of its own.
    pub fn try_call<R: Message + Default>(&self, method: &str, message: &impl Message) -> Result<R, Status> {
        let mut connection = self.connect();
        connection.send(1, method, message);
        let (_, response) = connection.answer();
        match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(R::decode(response.payload.as_slice()).unwrap()),
        }
    }

    /// A connection for several calls at once.
    pub fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.folder.join("agent")).unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        Connection(stream)
    }

    /// A call that must succeed.
    pub fn call<R: Message + Default>(&self, method: &str, message: &impl Message) -> R {
        self.try_call(method, message)
            .unwrap_or_else(|status| panic!("{method}: {}", status.message))
    }

    /// A call that must fail; gives code and text.
    pub fn refused(&self, method: &str, message: &impl Message) -> (i32, String) {
        let status = self.try_call::<()>(method, message).expect_err(method);
        (status.code, status.message)
    }

    /// A stream with a token.
    pub fn stream(&self, token: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.join("streams")).unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        stream.write_all(format!("{token}\n").as_bytes()).unwrap();
        stream
    }

    /// Makes the sandbox.
    pub fn sandbox(&self) {
        let request = CreateSandboxRequest {
            hostname: "pod-host".into(),
            dns: vec!["nameserver 192.0.2.1".into()],
            sandbox_id: "sandbox".into(),
            ..CreateSandboxRequest::default()
        };
        self.call::<()>("CreateSandbox", &request);
    }

    /// A request for a container that runs `args` in busybox.
    pub fn container(&self, id: &str, args: &[&str]) -> CreateContainerRequest {
        let root = self.folder.join("rootfs").join(id);
        busybox_root(&root);
        CreateContainerRequest {
            container_id: id.into(),
            exec_id: id.into(),
            oci: Some(spec(&root, args)),
            ..CreateContainerRequest::default()
        }
    }

    /// How many mounts of this process's namespace lie below the agent's folder.
    pub fn mounts_left(&self) -> usize {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.child.id())).unwrap();
        table
            .lines()
            .filter(|line| line.contains(&*self.folder.to_string_lossy()))
            .count()
    }

    /// The cgroup of a container.
    pub fn cgroup(&self, id: &str) -> PathBuf {
        self.cgroups().join(id)
    }

    fn cgroups(&self) -> PathBuf {
        cgroup2().join(format!("snp-agent-{}", self.child.id()))
    }

    /// Folders of containers in the agent's cgroup.
    pub fn cgroups_left(&self) -> usize {
        fs::read_dir(self.cgroups())
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .count()
    }

    /// Open descriptors of the agent, without sockets: connections of earlier calls may still be closing.
    pub fn descriptors(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets
            .filter(|target| !target.to_string_lossy().starts_with("socket:"))
            .count()
    }
}

/// A connection to the agent.
pub struct Connection(UnixStream);

impl Connection {
    /// Sends a call; `stream` is odd and names it.
    pub fn send(&mut self, stream: u32, method: &str, message: &impl Message) {
        let service = match method {
            "Check" | "Version" => "grpc.Health",
            "BindPolicy" => "snp.v1.Binding",
            _ => "grpc.AgentService",
        };
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload: message.encode_to_vec(),
            timeout_nano: 0,
        };
        self.0.write_all(&frame(stream, 1, &request.encode_to_vec())).unwrap();
    }

    /// The call that is answered next, which must have succeeded.
    pub fn answered(&mut self) -> u32 {
        let (stream, response) = self.answer();
        if let Some(status) = response.status {
            panic!("call {stream}: {}", status.message);
        }
        stream
    }

    /// The call that is answered next, well or not.
    pub fn next(&mut self) -> u32 {
        self.answer().0
    }

    /// The call that is answered next, which must have failed, and its code.
    pub fn refused(&mut self) -> (u32, i32) {
        let (stream, response) = self.answer();
        (stream, response.status.expect("a failure").code)
    }

    fn answer(&mut self) -> (u32, Response) {
        let mut header = [0u8; 10];
        self.0.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0u8; word(0) as usize];
        self.0.read_exact(&mut payload).unwrap();
        (word(4), Response::decode(payload.as_slice()).unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Where this host has cgroup2.
fn cgroup2() -> PathBuf {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("cgroup2 is mounted");
    line.split(' ').nth(1).unwrap().into()
}

fn busybox_root(root: &Path) {
    for name in ["bin", "dev", "proc", "sys", "etc", "tmp", "root"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    // Copied by another process: a program that a child of another test's thread still holds open for writing can't run.
    let copy = Command::new("cp").arg("/bin/busybox").arg(root.join("bin")).status();
    assert!(copy.unwrap().success());
    for name in [
        "sh", "cat", "echo", "sleep", "head", "dd", "tty", "stty", "hostname", "id", "pwd", "mount", "ls", "kill",
        "mkdir", "mknod", "tr", "cut", "true", "yes", "head", "env", "touch", "md5sum", "wc",
    ] {
        let _ = symlink("busybox", root.join("bin").join(name));
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\naudio:x:29:web\n").unwrap();
}

/// A process as containerd describes one.
pub fn process(args: &[&str]) -> Process {
    let capabilities: Vec<String> = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"]
        .map(String::from)
        .to_vec();
    Process {
        args: args.iter().map(|word| word.to_string()).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        capabilities: Some(LinuxCapabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
            ..LinuxCapabilities::default()
        }),
        no_new_privileges: true,
        ..Process::default()
    }
}

/// A process with a terminal of 80 by 24.
pub fn terminal(args: &[&str]) -> Process {
    Process {
        terminal: true,
        console_size: Some(ConsoleBox { height: 24, width: 80 }),
        ..process(args)
    }
}

fn spec(root: &Path, args: &[&str]) -> Spec {
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.into(),
        source: kind.into(),
        r#type: kind.into(),
        options: options.iter().map(|option| option.to_string()).collect(),
    };
    let namespace = |kind: &str| LinuxNamespace {
        r#type: kind.into(),
        path: String::new(),
    };
    Spec {
        version: "1.1.0".into(),
        process: Some(process(args)),
        root: Some(Root {
            path: root.to_string_lossy().into_owned(),
            readonly: false,
        }),
        mounts: vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
        ],
        linux: Some(Linux {
            namespaces: vec![namespace("mount"), namespace("ipc"), namespace("uts")],
            masked_paths: vec!["/proc/kcore".into(), "/sys/firmware".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..Linux::default()
        }),
        ..Spec::default()
    }
}
