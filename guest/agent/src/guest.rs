//! The guest as a machine: what it is, its clock, its processors and memory, its volumes and numbers.

use crate::error::{Context, Error, Result};
use crate::features::FEATURES;
use crate::milestones;
use crate::mountopts::Parsed;
use crate::proto::grpc::{
    volume_usage::Unit, AgentDetails, GuestDetailsRequest, GuestDetailsResponse, NetworkStats, OnlineCpuMemRequest,
    ReseedRandomDevRequest, SetGuestDateTimeRequest, Storage, VolumeCondition, VolumeStatsRequest, VolumeStatsResponse,
    VolumeUsage,
};
use crate::service::AGENT_VERSION;
use crate::storage;
use crate::uevent::Uevents;
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sys::statvfs::statvfs;
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

const MEMORY_BLOCK_SIZE: &str = "/sys/devices/system/memory/block_size_bytes";
/// Processors that the host plugged in have come up within this time.
const ONLINE_MAX: Duration = Duration::from_secs(10);
/// Entropy that one request may bring.
const ENTROPY_BYTES_MAX: usize = 64 << 10;

/// What the agent can do.
pub fn details(request: &GuestDetailsRequest, init: bool) -> GuestDetailsResponse {
    let words = |list: &[&str]| list.iter().map(|word| word.to_string()).collect();
    let block = fs::read_to_string(MEMORY_BLOCK_SIZE)
        .ok()
        .filter(|_| request.mem_block_size);
    GuestDetailsResponse {
        mem_block_size_bytes: block
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(0),
        agent_details: Some(AgentDetails {
            version: AGENT_VERSION.into(),
            init_daemon: init,
            device_handlers: words(&storage::DEVICES),
            storage_handlers: words(&storage::DRIVERS),
            supports_seccomp: true,
            extra_features: words(FEATURES),
            boot_times: milestones::tell(),
        }),
        // Memory comes online by itself: no probe is wanted.
        support_mem_hotplug_probe: false,
    }
}

/// Sets the clock.
pub fn set_time(request: &SetGuestDateTimeRequest) -> Result<()> {
    let time = libc::timespec {
        tv_sec: request.sec,
        tv_nsec: request.usec.clamp(0, 999_999) * 1000,
    };
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) } < 0 {
        return Err(Errno::last()).context("set the clock");
    }
    Ok(())
}

/// Mixes the host's bytes into the random pool, without trusting them, and has the generator take a new seed.
pub fn reseed(request: &ReseedRandomDevRequest) -> Result<()> {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    if request.data.is_empty() || request.data.len() > ENTROPY_BYTES_MAX {
        return Err(Error::invalid(format!(
            "1 to {ENTROPY_BYTES_MAX} bytes of entropy are taken, not {}",
            request.data.len()
        )));
    }
    let mut device = OpenOptions::new()
        .write(true)
        .open("/dev/random")
        .context("open /dev/random")?;
    std::io::Write::write_all(&mut device, &request.data).context("write to /dev/random")?;
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) } < 0 {
        return Err(Errno::last()).context("reseed the random generator");
    }
    Ok(())
}

/// Brings processors (at most the number asked for; all for zero) and all memory online. A host that says so is answered when the
/// processors that it plugged in have come up, which the kernel may find a moment later.
pub async fn bring_online(request: &OnlineCpuMemRequest) -> Result<()> {
    let limit = if request.nb_cpus == 0 {
        usize::MAX
    } else {
        request.nb_cpus as usize
    };
    let folder = Path::new("/sys/devices/system/cpu");
    // Listening begins before the first look: nothing is missed in between.
    let uevents = Uevents::open()?;
    let mut done = online_below(folder, "cpu", limit);
    if request.wait && request.nb_cpus > 0 {
        let come = async {
            while done < limit {
                uevents.added("cpu").await?;
                done += online_below(folder, "cpu", limit - done);
            }
            Ok::<(), Error>(())
        };
        let waited = tokio::time::timeout(ONLINE_MAX, come).await;
        waited.unwrap_or_else(|_| {
            Err(Error::internal(format!(
                "{done} of {limit} processors could be brought online in {ONLINE_MAX:?}"
            )))
        })?;
    }
    if !request.cpu_only {
        online_below(Path::new("/sys/devices/system/memory"), "memory", usize::MAX);
    }
    Ok(())
}

/// Writes 1 to `<prefix><number>/online` where it says 0, at most `limit` times; gives how many took it.
fn online_below(folder: &Path, prefix: &str, limit: usize) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let numbered = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let offline = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(numbered))
        .map(|entry| entry.path().join("online"))
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.trim() == "0"));
    offline.filter(|path| fs::write(path, "1").is_ok()).take(limit).count()
}

/// Applies new options (sizes) to mounted memory file systems.
pub fn remount(storages: &[Storage]) -> Result<()> {
    for storage in storages {
        if storage.driver != "ephemeral" {
            return Err(Error::invalid(format!(
                "only ephemeral storages can be updated, not {:?}",
                storage.driver
            )));
        }
        let options: Vec<_> = storage
            .options
            .iter()
            .filter(|word| !word.starts_with("fsgid="))
            .cloned()
            .collect();
        let parsed = Parsed::from_options(&options)?;
        let flags = MsFlags::MS_REMOUNT | parsed.flags;
        let none = None::<&str>;
        mount(
            none,
            storage.mount_point.as_str(),
            none,
            flags,
            Some(parsed.data.as_str()),
        )
        .with_context(|| format!("remount {}", storage.mount_point))?;
    }
    Ok(())
}

/// Bytes and inodes of the file system at a path.
pub fn volume_stats(request: &VolumeStatsRequest) -> Result<VolumeStatsResponse> {
    let path = &request.volume_guest_path;
    let stat = statvfs(path.as_str()).with_context(|| format!("look at the volume {path:?}"))?;
    let block = stat.fragment_size();
    let bytes = VolumeUsage {
        available: stat.blocks_available() * block,
        total: stat.blocks() * block,
        used: (stat.blocks() - stat.blocks_free()) * block,
        unit: Unit::Bytes as i32,
    };
    let inodes = VolumeUsage {
        available: stat.files_free(),
        total: stat.files(),
        used: stat.files() - stat.files_free(),
        unit: Unit::Inodes as i32,
    };
    let volume_condition = Some(VolumeCondition {
        abnormal: false,
        message: "OK".into(),
    });
    Ok(VolumeStatsResponse {
        usage: vec![bytes, inodes],
        volume_condition,
    })
}

/// The counters of all interfaces but loopback.
pub fn network_stats() -> Vec<NetworkStats> {
    parse_network(&fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

/// The lines of /proc/net/dev: name, eight numbers received, eight sent (bytes, packets, errors, dropped, ...).
fn parse_network(text: &str) -> Vec<NetworkStats> {
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let n: Vec<u64> = numbers
            .split_ascii_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        if n.len() < 16 || name.trim() == "lo" {
            return None;
        }
        Some(NetworkStats {
            name: name.trim().into(),
            rx_bytes: n[0],
            rx_packets: n[1],
            rx_errors: n[2],
            rx_dropped: n[3],
            tx_bytes: n[8],
            tx_packets: n[9],
            tx_errors: n[10],
            tx_dropped: n[11],
        })
    };
    text.lines().filter_map(parse).collect()
}

/// The guest's numbers in the text format of Prometheus.
pub fn metrics() -> String {
    let mut out = String::from("# TYPE kata_guest_meminfo gauge\n");
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    for (name, rest) in meminfo.lines().filter_map(|line| line.split_once(':')) {
        let Some(kib) = rest
            .split_ascii_whitespace()
            .next()
            .and_then(|word| word.parse::<u64>().ok())
        else {
            continue;
        };
        let item = name.to_ascii_lowercase().replace(['(', ')'], "_");
        out.push_str(&format!("kata_guest_meminfo{{item=\"{item}\"}} {}\n", kib << 10));
    }
    out.push_str("# TYPE kata_guest_load gauge\n");
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    for (item, value) in ["load1", "load5", "load15"].iter().zip(load.split_ascii_whitespace()) {
        out.push_str(&format!("kata_guest_load{{item=\"{item}\"}} {value}\n"));
    }
    out.push_str("# TYPE kata_guest_netdev_stat gauge\n");
    for net in network_stats() {
        for (item, value) in [("recv_bytes", net.rx_bytes), ("xmit_bytes", net.tx_bytes)] {
            out.push_str(&format!(
                "kata_guest_netdev_stat{{interface=\"{}\",item=\"{item}\"}} {value}\n",
                net.name
            ));
        }
    }
    out
}

/// A text for whoever looks for a fault: the agent's log or the kernel's memory numbers.
pub fn diagnostics(kind: &str) -> Result<String> {
    match kind {
        "" | "agent" | "log" => Ok(crate::log::snapshot()),
        "meminfo" => fs::read_to_string("/proc/meminfo").context("read /proc/meminfo"),
        "mounts" => fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo"),
        other => Err(Error::invalid(format!(
            "there is no diagnostic {other:?} (agent, meminfo, mounts)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_are_read() {
        let text = "Inter-| Receive\n face |bytes\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let stats = parse_network(text);
        assert_eq!(stats.len(), 1);
        assert_eq!(
            (stats[0].name.as_str(), stats[0].rx_dropped, stats[0].tx_bytes),
            ("eth0", 4, 5)
        );
    }

    #[test]
    fn volume_stats_count_bytes_and_inodes() {
        let stats = volume_stats(&VolumeStatsRequest {
            volume_guest_path: "/".into(),
        })
        .unwrap();
        assert_eq!(stats.usage.len(), 2);
        assert!(stats.usage[0].total >= stats.usage[0].used);
        assert!(volume_stats(&VolumeStatsRequest {
            volume_guest_path: "/no/such".into()
        })
        .is_err());
    }
}
