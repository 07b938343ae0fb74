//! OCI resources, written for version 1, to the files of version 2. Pure.

use crate::proto::grpc::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The files to write and their values, in order. What is zero or absent in the request is not touched.
pub fn files(resources: &LinuxResources) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_files(memory, &mut out);
    }
    if let Some(cpu) = &resources.cpu {
        cpu_files(cpu, &mut out);
    }
    if let Some(pids) = resources.pids.as_ref().filter(|pids| pids.limit != 0) {
        out.push(("pids.max".into(), limit(pids.limit)));
    }
    for page in &resources.hugepage_limits {
        out.push((format!("hugetlb.{}.max", page.pagesize), page.limit.to_string()));
    }
    if let Some(io) = &resources.block_io {
        io_files(io, &mut out);
    }
    out
}

/// Whether a container may not run when the kernel lacks the file. A kernel without swap or huge pages keeps their limits anyway (hosts
/// send a limit of zero for each size of page), and a weight is a wish.
pub fn must_hold(file: &str) -> bool {
    !(file.starts_with("memory.swap.") || file.starts_with("hugetlb.") || file == "io.weight")
}

fn limit(value: i64) -> String {
    if value < 0 {
        return "max".into();
    }
    value.to_string()
}

fn memory_files(memory: &LinuxMemory, out: &mut Vec<(String, String)>) {
    // `swap` counts memory and swap together; version 2 counts swap alone.
    if memory.swap != 0 {
        let alone = if memory.swap < 0 || memory.limit < 0 {
            -1
        } else {
            (memory.swap - memory.limit).max(0)
        };
        out.push(("memory.swap.max".into(), limit(alone)));
    }
    if memory.limit != 0 {
        out.push(("memory.max".into(), limit(memory.limit)));
    }
    if memory.reservation != 0 {
        out.push(("memory.low".into(), limit(memory.reservation)));
    }
}

fn cpu_files(cpu: &LinuxCpu, out: &mut Vec<(String, String)>) {
    if cpu.shares != 0 {
        out.push(("cpu.weight".into(), weight(cpu.shares).to_string()));
    }
    if cpu.quota != 0 || cpu.period != 0 {
        let quota = if cpu.quota <= 0 {
            "max".into()
        } else {
            cpu.quota.to_string()
        };
        let period = if cpu.period == 0 { 100_000 } else { cpu.period };
        out.push(("cpu.max".into(), format!("{quota} {period}")));
    }
    for (file, list) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !list.is_empty() {
            out.push((file.into(), list.clone()));
        }
    }
}

/// Shares (2..262144, ordinary 1024) on the scale of weights (1..10000, ordinary 100), linear as runtimes agree.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn io_files(io: &LinuxBlockIo, out: &mut Vec<(String, String)>) {
    if io.weight != 0 {
        let weight = 1 + (u64::from(io.weight).clamp(10, 1000) - 10) * 9999 / 990;
        out.push(("io.weight".into(), format!("default {weight}")));
    }
    let throttles = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            out.push((
                "io.max".into(),
                format!("{}:{} {key}={}", device.major, device.minor, device.rate),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::grpc::LinuxPids;

    #[test]
    fn limits_of_version_1_become_files_of_version_2() {
        let resources = LinuxResources {
            memory: Some(LinuxMemory {
                limit: 1 << 20,
                swap: 3 << 20,
                ..LinuxMemory::default()
            }),
            cpu: Some(LinuxCpu {
                shares: 1024,
                quota: 50_000,
                period: 100_000,
                ..LinuxCpu::default()
            }),
            pids: Some(LinuxPids { limit: -1 }),
            ..LinuxResources::default()
        };
        let expected = [
            ("memory.swap.max", "2097152"),
            ("memory.max", "1048576"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "max"),
        ];
        let got = files(&resources);
        let got: Vec<(&str, &str)> = got
            .iter()
            .map(|(file, value)| (file.as_str(), value.as_str()))
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn an_empty_request_touches_nothing() {
        let resources = LinuxResources {
            memory: Some(LinuxMemory::default()),
            cpu: Some(LinuxCpu::default()),
            ..LinuxResources::default()
        };
        assert_eq!(files(&resources), []);
    }
}
