//! A process that nothing but a kill can wake: it asks a FUSE file system whose server never answers.

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process asks the kernel sooner than this.
const STUCK_MAX: Duration = Duration::from_secs(60);

/// The process; it and its mount go when it is dropped.
pub struct Stuck {
    child: Child,
    mount: PathBuf,
    _server: File,
}

impl Stuck {
    /// Mounts the file system on `point` and has a process of `cgroup` wait for it.
    pub fn in_cgroup(point: &Path, cgroup: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(
            Some("test"),
            point,
            Some("fuse"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        )
        .unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec ls {}",
            cgroup.display(),
            point.display()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stuck = Self {
            child,
            mount: point.to_path_buf(),
            _server: server,
        };
        stuck.wait();
        stuck
    }

    /// The kernel shows the state that no signal but SIGKILL ends as D; a program that is still being read from the disk is
    /// in that state too, for a moment, so the function that waits has to be one of the file system's.
    fn wait(&self) {
        let deadline = Instant::now() + STUCK_MAX;
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap();
        while !(file("wchan").contains("fuse") && file("stat").contains("(ls) D ")) {
            assert!(
                Instant::now() < deadline,
                "the process does not wait: {} in {}",
                file("stat"),
                file("wchan")
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
    }
}
