use super::*;
use crate::proto::grpc::{LinuxHugepageLimit, LinuxPids};

fn cpu(quota: i64, period: u64) -> LinuxResources {
    LinuxResources {
        cpu: Some(LinuxCpu {
            quota,
            period,
            ..LinuxCpu::default()
        }),
        ..LinuxResources::default()
    }
}

fn memory(limit: i64, swap: i64) -> LinuxResources {
    LinuxResources {
        memory: Some(LinuxMemory {
            limit,
            swap,
            ..LinuxMemory::default()
        }),
        ..LinuxResources::default()
    }
}

fn unified(file: &str, value: &str) -> LinuxResources {
    LinuxResources {
        unified: [(file.into(), value.into())].into(),
        ..LinuxResources::default()
    }
}

/// The files as text, one `file=value` each.
fn files(resources: &LinuxResources, present: &Present) -> Vec<String> {
    let files = change(resources, present).unwrap().files;
    files
        .into_iter()
        .map(|(file, value)| format!("{file}={value}"))
        .collect()
}

fn present() -> Present {
    Present {
        cpu_max: Some("50000 200000\n".into()),
        memory_max: Some("50000000\n".into()),
        cpus: Some("0-1\n".into()),
        mems: Some("0\n".into()),
    }
}

#[test]
fn limits_of_version_1_become_files_of_version_2() {
    let resources = LinuxResources {
        memory: memory(1 << 20, 3 << 20).memory,
        cpu: Some(LinuxCpu {
            shares: 1024,
            quota: 50_000,
            period: 100_000,
            ..LinuxCpu::default()
        }),
        pids: Some(LinuxPids { limit: -1 }),
        unified: unified("memory.high", "1000000").unified,
        ..LinuxResources::default()
    };
    let expected = [
        "memory.swap.max=2097152",
        "memory.max=1048576",
        "cpu.weight=39",
        "cpu.max=50000 100000",
        "pids.max=max",
        "memory.high=1000000",
    ];
    assert_eq!(files(&resources, &Present::default()), expected);
}

#[test]
fn an_empty_request_touches_nothing() {
    let resources = LinuxResources {
        memory: Some(LinuxMemory::default()),
        cpu: Some(LinuxCpu::default()),
        ..LinuxResources::default()
    };
    assert_eq!(change(&resources, &present()), Ok(Change::default()));
}

#[test]
fn half_of_the_processor_limit_leaves_the_other_half() {
    assert_eq!(files(&cpu(0, 100_000), &present()), ["cpu.max=50000 100000"]);
    assert_eq!(files(&cpu(20_000, 0), &present()), ["cpu.max=20000 200000"]);
    assert_eq!(files(&cpu(-1, 0), &present()), ["cpu.max=max 200000"]);
    assert_eq!(files(&cpu(0, 200_000), &Present::default()), ["cpu.max=max 200000"]);
    assert_eq!(files(&cpu(20_000, 0), &Present::default()), ["cpu.max=20000 100000"]);
}

#[test]
fn swap_is_what_memory_leaves_of_the_sum() {
    assert_eq!(files(&memory(0, 70_000_000), &present()), ["memory.swap.max=20000000"]);
    assert_eq!(files(&memory(0, -1), &present()), ["memory.swap.max=max"]);
    assert_eq!(
        files(&memory(60_000_000, 70_000_000), &present()),
        ["memory.swap.max=10000000", "memory.max=60000000"]
    );
    let unlimited = Present {
        memory_max: Some("max\n".into()),
        ..Present::default()
    };
    for (resources, present) in [
        (memory(0, 40_000_000), present()),
        (memory(-1, 40_000_000), present()),
        (memory(0, 40_000_000), unlimited),
    ] {
        let error = change(&resources, &present).unwrap_err();
        assert!(error.text.contains("memory and swap together, 40000000"), "{error}");
    }
}

#[test]
fn processors_that_the_guest_lacks_are_passed_over() {
    let list = |cpus: &str, mems: &str| LinuxResources {
        cpu: Some(LinuxCpu {
            cpus: cpus.into(),
            mems: mems.into(),
            ..LinuxCpu::default()
        }),
        ..LinuxResources::default()
    };
    assert_eq!(
        files(&list("0-1", "0"), &present()),
        ["cpuset.cpus=0-1", "cpuset.mems=0"]
    );
    let change_of = |cpus: &str| change(&list(cpus, ""), &present());
    let expected = Change {
        files: Vec::new(),
        passed_over: vec!["cpuset.cpus \"1-7\" (the guest has 0-1)".into()],
    };
    assert_eq!(change_of("1-7"), Ok(expected));
    assert!(change_of("many").unwrap_err().text.contains("many"));
}

#[test]
fn what_version_2_does_not_have_is_named() {
    let resources = LinuxResources {
        memory: Some(LinuxMemory {
            swappiness: 60,
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            realtime_runtime: 1,
            ..LinuxCpu::default()
        }),
        ..LinuxResources::default()
    };
    let passed_over = change(&resources, &present()).unwrap().passed_over;
    assert_eq!(passed_over, ["swappiness", "limits of realtime scheduling"]);
}

#[test]
fn only_files_of_controllers_can_be_named() {
    for name in [
        "cgroup.freeze",
        "../memory.max",
        "memory/max",
        "memory",
        "",
        ".",
        "memory..max",
        "a.b/../c",
    ] {
        let error = change(&unified(name, "1"), &present()).unwrap_err();
        assert!(error.text.contains("cgroup controller"), "{name}: {error}");
    }
    let page = |size: &str| LinuxResources {
        hugepage_limits: vec![LinuxHugepageLimit {
            pagesize: size.into(),
            limit: 0,
        }],
        ..LinuxResources::default()
    };
    assert_eq!(files(&page("2MB"), &present()), ["hugetlb.2MB.max=0"]);
    assert!(change(&page("/../../memory"), &present()).is_err());
}
