//! Usage, from cgroup2's files to the protocol's message. Files of absent controllers leave zeros.

use super::files::{keyed, number, pairs, parse, read};
use crate::proto::grpc::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats,
    ThrottlingData,
};
use std::collections::BTreeMap;
use std::path::Path;

const NANOS_PER_MICRO: u64 = 1000;

/// All that the cgroup's files say.
pub fn read_all(path: &Path) -> CgroupStats {
    let text = |file: &str| read(&path.join(file)).unwrap_or_default();
    CgroupStats {
        cpu_stats: Some(cpu(&text("cpu.stat"))),
        memory_stats: Some(memory(path, &text("memory.stat"), &text("memory.events"))),
        pids_stats: Some(PidsStats {
            current: number(&path.join("pids.current")).unwrap_or(0),
            limit: number(&path.join("pids.max")).unwrap_or(0),
        }),
        blkio_stats: Some(io(&text("io.stat"))),
        hugetlb_stats: hugetlb(path),
    }
}

fn cpu(text: &str) -> CpuStats {
    let value = |key| keyed(text, key).unwrap_or(0);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: value("usage_usec") * NANOS_PER_MICRO,
            percpu_usage: Vec::new(),
            usage_in_kernelmode: value("system_usec") * NANOS_PER_MICRO,
            usage_in_usermode: value("user_usec") * NANOS_PER_MICRO,
        }),
        throttling_data: Some(ThrottlingData {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: value("throttled_usec") * NANOS_PER_MICRO,
        }),
    }
}

fn memory(path: &Path, stat: &str, events: &str) -> MemoryStats {
    let file = |name: &str| number(&path.join(name)).unwrap_or(0);
    let usage = MemoryData {
        usage: file("memory.current"),
        max_usage: file("memory.peak"),
        failcnt: keyed(events, "max").unwrap_or(0),
        limit: file("memory.max"),
    };
    let swap = MemoryData {
        usage: file("memory.swap.current"),
        max_usage: file("memory.swap.peak"),
        failcnt: 0,
        limit: file("memory.swap.max"),
    };
    MemoryStats {
        cache: keyed(stat, "file").unwrap_or(0),
        usage: Some(usage),
        swap_usage: Some(swap),
        kernel_usage: Some(MemoryData {
            usage: keyed(stat, "kernel").unwrap_or(0),
            ..MemoryData::default()
        }),
        use_hierarchy: true,
        stats: pairs(stat)
            .map(|(name, value)| (name.to_string(), value))
            .chain(pairs(events).map(|(name, value)| (format!("memory.events.{name}"), value)))
            .collect(),
    }
}

/// Lines "MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N dbytes=N dios=N".
fn io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|word| word.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut stats.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                "dios" => (&mut stats.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlkioStatsEntry {
                major,
                minor,
                op: op.into(),
                value: parse(value).unwrap_or(0),
            });
        }
    }
    stats
}

fn hugetlb(path: &Path) -> BTreeMap<String, HugetlbStats> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return BTreeMap::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let sizes = names.filter_map(|name| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_string())
    });
    sizes
        .map(|size| {
            let file = |name: &str| path.join(format!("hugetlb.{size}.{name}"));
            let stats = HugetlbStats {
                usage: number(&file("current")).unwrap_or(0),
                max_usage: 0,
                failcnt: read(&file("events"))
                    .ok()
                    .and_then(|text| keyed(&text, "max"))
                    .unwrap_or(0),
            };
            (size, stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_nanoseconds() {
        let stats = cpu("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 7\nthrottled_usec 9\n");
        let usage = stats.cpu_usage.unwrap();
        assert_eq!(
            (usage.total_usage, usage.usage_in_usermode, usage.usage_in_kernelmode),
            (5000, 3000, 2000)
        );
        assert_eq!(stats.throttling_data.unwrap().throttled_time, 9000);
    }

    #[test]
    fn io_lines_become_entries() {
        let stats = io("254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n");
        let read = &stats.io_service_bytes_recursive[0];
        assert_eq!(
            (read.major, read.minor, read.op.as_str(), read.value),
            (254, 0, "Read", 4096)
        );
        assert_eq!(stats.io_serviced_recursive.len(), 3);
    }
}
