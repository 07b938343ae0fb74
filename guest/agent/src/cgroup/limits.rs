//! OCI resources, written for version 1, to the files of version 2. Pure.

use super::cpuset;
use super::files::parse;
use crate::error::{Error, Result};
use crate::proto::grpc::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// What is in force. Version 2 keeps in one file what a request may change in parts. None where the kernel has no such file.
#[derive(Default)]
pub struct Present {
    pub cpu_max: Option<String>,
    pub memory_max: Option<String>,
    /// The processors and memory nodes that the container may have at most.
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

/// What a request comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The files to write and their values, in order.
    pub files: Vec<(String, String)>,
    /// What version 2, or this guest, has no place for.
    pub passed_over: Vec<String>,
}

impl Change {
    fn write(&mut self, file: impl Into<String>, value: impl Into<String>) {
        self.files.push((file.into(), value.into()));
    }

    fn pass_over(&mut self, set: bool, what: &str) {
        if set {
            self.passed_over.push(what.into());
        }
    }
}

/// Works out a change. What is zero or absent in the request is not touched; files given by their names come last and so win.
///
/// # Errors
/// For values that contradict each other and for names that are not those of a controller's file.
pub fn change(resources: &LinuxResources, present: &Present) -> Result<Change> {
    let mut out = Change::default();
    if let Some(memory) = &resources.memory {
        memory_files(memory, present, &mut out)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_files(cpu, present, &mut out)?;
    }
    if let Some(pids) = resources.pids.as_ref().filter(|pids| pids.limit != 0) {
        out.write("pids.max", limit(pids.limit));
    }
    for page in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.max", page.pagesize);
        check_name(&file)?;
        out.write(file, page.limit.to_string());
    }
    if let Some(io) = &resources.block_io {
        io_files(io, &mut out);
    }
    out.pass_over(resources.network.is_some(), "network classes and priorities");
    for (file, value) in &resources.unified {
        check_name(file)?;
        out.write(file, value);
    }
    Ok(out)
}

/// Whether a container may not run when the kernel lacks the file. A kernel without swap or huge pages keeps their limits anyway (hosts
/// send a limit of zero for each size of page), and a weight is a wish.
pub fn must_hold(file: &str) -> bool {
    !(file.starts_with("memory.swap.") || file.starts_with("hugetlb.") || file == "io.weight")
}

/// A controller's file: "controller.name". Those of "cgroup." steer the group itself, which is the agent's business.
fn check_name(file: &str) -> Result<()> {
    let plain = |part: &str| {
        let mut characters = part.chars();
        !part.is_empty() && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
    };
    let named = file.contains('.') && file.split('.').all(plain) && !file.starts_with("cgroup.");
    if !named {
        return Err(Error::invalid(format!(
            "{file:?} is not the name of a cgroup controller's file, such as \"memory.high\""
        )));
    }
    Ok(())
}

fn limit(value: i64) -> String {
    if value < 0 {
        return "max".into();
    }
    value.to_string()
}

fn memory_files(memory: &LinuxMemory, present: &Present, out: &mut Change) -> Result<()> {
    // `swap` counts memory and swap together; version 2 counts swap alone.
    if memory.swap != 0 {
        let in_force = present.memory_max.as_deref().and_then(|text| parse(text.trim()));
        let most = match memory.limit {
            0 => in_force.and_then(|bytes| i64::try_from(bytes).ok()),
            bytes => Some(bytes).filter(|bytes| *bytes > 0),
        };
        out.write("memory.swap.max", limit(swap_alone(memory.swap, most)?));
    }
    if memory.limit != 0 {
        out.write("memory.max", limit(memory.limit));
    }
    if memory.reservation != 0 {
        out.write("memory.low", limit(memory.reservation));
    }
    out.pass_over(memory.kernel != 0 || memory.kernel_tcp != 0, "limits of kernel memory");
    out.pass_over(memory.swappiness != 0, "swappiness");
    out.pass_over(memory.disable_oom_killer, "disabling the OOM killer");
    Ok(())
}

/// The part of "memory and swap" that is swap; `most` is the limit of memory, if there is one.
fn swap_alone(together: i64, most: Option<i64>) -> Result<i64> {
    match most {
        _ if together < 0 => Ok(-1),
        Some(memory) if together >= memory => Ok(together - memory),
        Some(memory) => Err(Error::invalid(format!(
            "the limit of memory and swap together, {together}, is below that of memory alone, {memory}"
        ))),
        None => Err(Error::invalid(format!(
            "the limit of memory and swap together, {together}, needs a limit of memory"
        ))),
    }
}

fn cpu_files(cpu: &LinuxCpu, present: &Present, out: &mut Change) -> Result<()> {
    if cpu.shares != 0 {
        out.write("cpu.weight", weight(cpu.shares).to_string());
    }
    if cpu.quota != 0 || cpu.period != 0 {
        out.write("cpu.max", cpu_max(cpu, present.cpu_max.as_deref()));
    }
    let lists = [
        ("cpuset.cpus", &cpu.cpus, &present.cpus),
        ("cpuset.mems", &cpu.mems, &present.mems),
    ];
    for (file, list, most) in lists.into_iter().filter(|(_, list, _)| !list.is_empty()) {
        let missing = match most {
            Some(most) => cpuset::missing(list, most.trim())?,
            None => cpuset::missing(list, list)?,
        };
        match (most, missing) {
            // A list that was made for the host's processors says nothing about the guest's.
            (Some(most), true) => out
                .passed_over
                .push(format!("{file} {list:?} (the guest has {})", most.trim())),
            _ => out.write(file, list),
        }
    }
    out.pass_over(
        cpu.realtime_runtime != 0 || cpu.realtime_period != 0,
        "limits of realtime scheduling",
    );
    Ok(())
}

/// Quota and period; the half that the request does not name stays as it is.
fn cpu_max(cpu: &LinuxCpu, present: Option<&str>) -> String {
    let mut halves = present.unwrap_or_default().split_ascii_whitespace();
    let (quota, period) = (halves.next().unwrap_or("max"), halves.next().unwrap_or("100000"));
    let quota = if cpu.quota == 0 { quota.into() } else { limit(cpu.quota) };
    let period = if cpu.period == 0 {
        period.into()
    } else {
        cpu.period.to_string()
    };
    format!("{quota} {period}")
}

/// Shares (2..262144, ordinary 1024) on the scale of weights (1..10000, ordinary 100), linear as runtimes agree.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn io_files(io: &LinuxBlockIo, out: &mut Change) {
    if io.weight != 0 {
        let weight = 1 + (u64::from(io.weight).clamp(10, 1000) - 10) * 9999 / 990;
        out.write("io.weight", format!("default {weight}"));
    }
    let throttles = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            out.write(
                "io.max",
                format!("{}:{} {key}={}", device.major, device.minor, device.rate),
            );
        }
    }
    out.pass_over(
        io.leaf_weight != 0 || !io.weight_device.is_empty(),
        "io weights of leaves and single devices",
    );
}

#[cfg(test)]
mod tests;
