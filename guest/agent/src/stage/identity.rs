//! Who the process is: user, groups, capabilities, limits.

use crate::error::{Context, Error, Result};
use crate::proto::grpc::{LinuxCapabilities, Process, StringUser};
use nix::errno::Errno;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Descriptors of a process whose spec says nothing: what service managers give.
const DESCRIPTORS_SOFT: u64 = 1024;
const DESCRIPTORS_HARD: u64 = 524_288;

/// A resolved user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The home folder in the container's /etc/passwd, or "/".
    pub home: String,
}

/// Finds the process's user in the container's own files: numbers of the OCI spec, or the names of `names` where a host sent some.
pub fn resolve(process: &Process, names: Option<&StringUser>) -> Result<User> {
    let given = process.user.clone().unwrap_or_default();
    let mut user = User {
        uid: given.uid,
        gid: given.gid,
        groups: given.additional_gids,
        home: "/".into(),
    };
    if let Some(names) = names {
        if !names.uid.is_empty() {
            let entry = find("/etc/passwd", &names.uid, 7);
            user.uid = id(&names.uid, entry.as_ref()).with_context(|| format!("find the user {:?}", names.uid))?;
            if let Some(gid) = entry.and_then(|entry| entry[3].parse().ok()) {
                user.gid = gid;
            }
        }
        if !names.gid.is_empty() {
            user.gid = group(&names.gid)?;
        }
        for name in &names.additional_gids {
            user.groups.push(group(name)?);
        }
    }
    if let Some(entry) = find("/etc/passwd", &user.uid.to_string(), 7) {
        user.home = entry[5].clone();
    }
    Ok(user)
}

fn group(name: &str) -> Result<u32> {
    id(name, find("/etc/group", name, 3).as_ref()).with_context(|| format!("find the group {name:?}"))
}

fn id(name: &str, entry: Option<&Vec<String>>) -> Result<u32> {
    let number = entry
        .and_then(|entry| entry[2].parse().ok())
        .or_else(|| name.parse().ok());
    number.ok_or_else(|| Error::invalid("the container has no such entry"))
}

/// The line of a passwd-like file whose name or number is `key`, in its fields (at least `fields`).
fn find(path: &str, key: &str, fields: usize) -> Option<Vec<String>> {
    let lines = BufReader::new(File::open(path).ok()?).lines();
    find_in(lines.map_while(std::result::Result::ok), key, fields)
}

fn find_in(lines: impl Iterator<Item = String>, key: &str, fields: usize) -> Option<Vec<String>> {
    lines
        .map(|line| line.split(':').map(str::to_string).collect::<Vec<_>>())
        .find(|entry| entry.len() >= fields && (entry[0] == key || entry[2] == key))
}

/// Sets how willingly the kernel kills the process when memory runs out.
pub fn set_oom_score(process: &Process) -> Result<()> {
    std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string())
        .with_context(|| format!("set the oom score adjustment {}", process.oom_score_adj))
}

/// Becomes the user with the process's limits, groups and capabilities, for ever.
pub fn assume(process: &Process, user: &User) -> Result<()> {
    default_limits();
    for limit in &process.rlimits {
        set_limit(&limit.r#type, limit.soft, limit.hard)?;
    }
    let none = LinuxCapabilities::default();
    let capabilities = process.capabilities.as_ref().unwrap_or(&none);
    drop_bounding(mask(&capabilities.bounding)?);
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) }, || "keep capabilities")?;
    unsafe {
        check(libc::setgroups(user.groups.len(), user.groups.as_ptr()), || {
            "set the groups"
        })?;
        check(libc::setresgid(user.gid, user.gid, user.gid), || "set the group")?;
        check(libc::setresuid(user.uid, user.uid, user.uid), || "set the user")?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0), || "drop capabilities")?;
    }
    set_capabilities(capabilities)?;
    if process.no_new_privileges {
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, || {
            "set no_new_privs"
        })?;
    }
    Ok(())
}

fn check(code: libc::c_int, what: impl FnOnce() -> &'static str) -> Result<()> {
    if code < 0 {
        return Err(Errno::last()).with_context(what);
    }
    Ok(())
}

/// The agent's own limit on descriptors is not a container's.
fn default_limits() {
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_max = limit.rlim_max.min(DESCRIPTORS_HARD);
            limit.rlim_cur = limit.rlim_max.min(DESCRIPTORS_SOFT);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

fn set_limit(name: &str, soft: u64, hard: u64) -> Result<()> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let short = name.strip_prefix("RLIMIT_").unwrap_or(name);
    let number = NAMES.iter().position(|known| *known == short);
    let number = number.ok_or_else(|| Error::invalid(format!("there is no resource limit {name:?}")))?;
    let value = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    if unsafe { libc::setrlimit(number as _, &value) } < 0 {
        return Err(Errno::last()).with_context(|| format!("set {name} to {soft}:{hard}"));
    }
    Ok(())
}

/// Capability names in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit set of capability names ("CAP_KILL"); an unknown name is an error.
fn mask(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |mask, name| {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let number = CAPABILITIES.iter().position(|known| *known == short);
        let number = number.ok_or_else(|| Error::invalid(format!("there is no capability {name:?}")))?;
        Ok(mask | 1 << number)
    })
}

fn drop_bounding(kept: u64) {
    for number in (0..64).filter(|number| kept & (1 << number) == 0) {
        // The first number that this kernel does not know ends the list.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } < 0 {
            return;
        }
    }
}

fn set_capabilities(wanted: &LinuxCapabilities) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let (effective, permitted, inheritable) = (
        mask(&wanted.effective)?,
        mask(&wanted.permitted)?,
        mask(&wanted.inheritable)?,
    );
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(0), half(32)];
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(Errno::last()).context("set the capabilities");
    }
    let ambient = mask(&wanted.ambient)?;
    for number in (0..CAPABILITIES.len()).filter(|number| ambient & (1 << number) != 0) {
        let code = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        if code < 0 {
            return Err(Errno::last())
                .with_context(|| format!("raise the ambient capability {}", CAPABILITIES[number]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names_become_bits() {
        assert_eq!(mask(&["CAP_CHOWN".into(), "CAP_KILL".into()]).unwrap(), 1 | 1 << 5);
        assert!(mask(&["CAP_FLY".into()]).unwrap_err().text.contains("CAP_FLY"));
    }

    #[test]
    fn passwd_entries_are_found_by_name_and_number() {
        let lines = || {
            ["root:x:0:0:r:/root:/bin/sh", "broken", "www:x:33:34:w:/srv:/bin/sh"]
                .map(String::from)
                .into_iter()
        };
        assert_eq!(find_in(lines(), "www", 7).unwrap()[5], "/srv");
        assert_eq!(find_in(lines(), "0", 7).unwrap()[0], "root");
        assert_eq!(find_in(lines(), "nobody", 7), None);
    }
}
