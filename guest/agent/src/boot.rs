//! The work of PID 1: the file systems that everything needs, the root that containers can leave, the end of the machine.

use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sys::reboot::{reboot, RebootMode};
use std::fs;
use std::os::fd::AsRawFd;

const NONE: Option<&str> = None;

/// source, target, type, data
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=755"),
    (
        "devpts",
        "/dev/pts",
        "devpts",
        "newinstance,ptmxmode=666,mode=620,gid=5",
    ),
    ("shm", "/dev/shm", "tmpfs", "mode=1777"),
    ("run", "/run", "tmpfs", "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
];

/// Mounts what is needed and gives up the initramfs as the root, in a form that containers can pivot from.
pub fn prepare() -> Result<()> {
    leave_first_root().context("leave the first root file system")?;
    for (source, target, kind, data) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        let mut flags = MsFlags::MS_NOSUID;
        if kind != "devtmpfs" && kind != "devpts" {
            flags |= MsFlags::MS_NODEV;
        }
        if target != "/run" {
            flags |= MsFlags::MS_NOEXEC;
        }
        match mount(Some(source), target, Some(kind), flags, Some(data)) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno).with_context(|| format!("mount {target}")),
        }
    }
    for (path, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/ptmx", "pts/ptmx")] {
        let _ = fs::remove_file(path);
        let _ = std::os::unix::fs::symlink(target, path);
    }
    // Memory that the host plugs in is used at once.
    let _ = fs::write("/sys/devices/system/memory/auto_online_blocks", "online");
    loopback_up().context("bring the loopback interface up")
}

/// The kernel's first root can't be pivoted away from. A bind mount of it, moved on top of it, can.
fn leave_first_root() -> Result<()> {
    const STEP: &str = "/.root";
    fs::create_dir_all(STEP)?;
    mount(Some("/"), STEP, NONE, MsFlags::MS_BIND, NONE)?;
    nix::unistd::chdir(STEP)?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    Ok(())
}

fn loopback_up() -> Result<()> {
    use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(Errno::last().into());
    }
    Ok(())
}

/// Opens /dev/null as the standard descriptors where the kernel found no console: later descriptors must not take their numbers.
/// Called before anything else; needs /dev.
pub fn standard_descriptors() {
    unsafe {
        if libc::fcntl(0, libc::F_GETFD) < 0 || libc::fcntl(2, libc::F_GETFD) < 0 {
            libc::mkdir(c"/dev".as_ptr(), 0o755);
            libc::mount(
                c"devtmpfs".as_ptr(),
                c"/dev".as_ptr(),
                c"devtmpfs".as_ptr(),
                0,
                std::ptr::null(),
            );
            while matches!(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR), 0..=1) {}
        }
    }
}

/// Writes everything out and ends the machine.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // A machine without a power switch: end by restarting, which a VMM told "no reboot" takes as the end.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        unsafe { libc::pause() };
    }
}
