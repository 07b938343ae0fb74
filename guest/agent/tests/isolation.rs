//! What a container may not do, and what it gets from the host. Needs root and a mounted cgroup2.

mod support;

use snp_agent::proto::grpc::*;
use support::Agent;

fn run(agent: &Agent, request: &CreateContainerRequest) -> (i32, String) {
    let id = request.container_id.clone();
    agent.call::<()>("CreateContainer", request);
    agent.call::<()>(
        "StartContainer",
        &StartContainerRequest {
            container_id: id.clone(),
        },
    );
    let read = ReadStreamRequest {
        container_id: id.clone(),
        exec_id: String::new(),
        len: 64 << 10,
    };
    let mut out = Vec::new();
    while let Ok(part) = agent.try_call::<ReadStreamResponse>("ReadStdout", &read) {
        out.extend(part.data);
    }
    let wait = WaitProcessRequest {
        container_id: id.clone(),
        exec_id: String::new(),
    };
    let status = agent.call::<WaitProcessResponse>("WaitProcess", &wait).status;
    agent.call::<()>(
        "RemoveContainer",
        &RemoveContainerRequest {
            container_id: id,
            timeout: 0,
        },
    );
    (status, String::from_utf8(out).unwrap())
}

fn linux(request: &mut CreateContainerRequest) -> &mut Linux {
    request.oci.as_mut().unwrap().linux.as_mut().unwrap()
}

#[test]
fn resource_limits_hold_and_unknown_ones_are_refused() {
    let agent = Agent::start();
    agent.sandbox();
    let limit = |name: &str, soft: u64, hard: u64| PosixRlimit {
        r#type: name.into(),
        hard,
        soft,
    };
    let mut request = agent.container("c1", &["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Sc"]);
    request.oci.as_mut().unwrap().process.as_mut().unwrap().rlimits =
        vec![limit("RLIMIT_NOFILE", 15, 17), limit("RLIMIT_CORE", 0, u64::MAX)];
    let (status, out) = run(&agent, &request);
    assert_eq!((status, out.as_str()), (0, "15\n17\n0\n"));
    request.container_id = "c2".into();
    request.oci.as_mut().unwrap().process.as_mut().unwrap().rlimits = vec![limit("RLIMIT_NONSENSE", 1, 1)];
    let (_, text) = agent.refused("CreateContainer", &request);
    assert!(text.contains("RLIMIT_NONSENSE"), "{text}");
}

#[test]
fn a_system_call_filter_is_in_force() {
    let agent = Agent::start();
    agent.sandbox();
    for no_new_privileges in [true, false] {
        let mut request = agent.container("c1", &["sh", "-c", "mkdir /tmp/x 2>&1; echo $?"]);
        request
            .oci
            .as_mut()
            .unwrap()
            .process
            .as_mut()
            .unwrap()
            .no_new_privileges = no_new_privileges;
        let refuse = LinuxSyscall {
            names: vec!["mkdir".into(), "mkdirat".into()],
            action: "SCMP_ACT_ERRNO".into(),
            args: Vec::new(),
            errno_ret: Some(linux_syscall::ErrnoRet::Errnoret(libc::ENOSPC as u32)),
        };
        linux(&mut request).seccomp = Some(LinuxSeccomp {
            default_action: "SCMP_ACT_ALLOW".into(),
            architectures: vec!["SCMP_ARCH_X86_64".into()],
            flags: Vec::new(),
            syscalls: vec![refuse],
        });
        let (_, out) = run(&agent, &request);
        assert_eq!(
            out,
            "mkdir: can't create directory '/tmp/x': No space left on device\n1\n"
        );
    }
}

#[test]
fn masked_and_read_only_paths_and_devices_hold() {
    let agent = Agent::start();
    agent.sandbox();
    let script = "wc -c < /proc/cmdline; echo 1 > /proc/sys/kernel/panic || echo readonly; \
        mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem || echo forbidden; head -c 4 /dev/zero | wc -c";
    let mut request = agent.container("c1", &["sh", "-c", script]);
    linux(&mut request).masked_paths.push("/proc/cmdline".into());
    let (_, out) = run(&agent, &request);
    assert_eq!(out, "0\nreadonly\nforbidden\n4\n");
}

#[test]
fn device_rules_decide_what_a_node_opens_and_a_capability_does_not() {
    let agent = Agent::start();
    agent.sandbox();
    // FUSE: anybody may open it, and it is no default device of containers.
    let script = "test -e /tmp/fuse || mknod /tmp/fuse c 10 229; true < /tmp/fuse && echo opened; echo x > /dev/null && echo null";
    let rule = |allow, kind: &str, major, minor, access: &str| LinuxDeviceCgroup {
        allow,
        r#type: kind.into(),
        major,
        minor,
        access: access.into(),
    };
    let deny = rule(false, "a", -1, -1, "rwm");
    for (rules, expected) in [
        (vec![], "null\n"),
        (vec![deny.clone()], "null\n"),
        (vec![deny.clone(), rule(true, "c", 10, -1, "r")], "opened\nnull\n"),
        (vec![rule(true, "a", 0, 0, "rwm")], "opened\nnull\n"),
        (
            vec![rule(true, "a", 0, 0, "rwm"), rule(false, "c", 10, 229, "r")],
            "null\n",
        ),
    ] {
        let mut request = agent.container("c1", &["sh", "-c", script]);
        let process = request.oci.as_mut().unwrap().process.as_mut().unwrap();
        let sets = process.capabilities.as_mut().unwrap();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push("CAP_SYS_ADMIN".into());
        }
        linux(&mut request).resources = Some(LinuxResources {
            devices: rules.clone(),
            ..LinuxResources::default()
        });
        assert_eq!(run(&agent, &request).1, expected, "{rules:?}");
    }
}

#[test]
fn wrong_limits_are_refused_and_change_nothing() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["sleep", "1000"]);
    let wrong = |file: &str| LinuxResources {
        unified: [(file.into(), "1".into())].into(),
        ..LinuxResources::default()
    };
    linux(&mut request).resources = Some(wrong("../escape"));
    let (code, text) = agent.refused("CreateContainer", &request);
    assert!(code == 3 && text.contains("../escape"), "{text}");
    assert_eq!(agent.cgroups_left(), 0);
    linux(&mut request).resources = None;
    agent.call::<()>("CreateContainer", &request);
    let update = |resources| UpdateContainerRequest {
        container_id: "c1".into(),
        resources: Some(resources),
    };
    let (code, text) = agent.refused("UpdateContainer", &update(wrong("cgroup.freeze")));
    assert!(code == 3 && text.contains("cgroup.freeze"), "{text}");
    let frozen = std::fs::read_to_string(agent.cgroup("c1").join("cgroup.freeze"));
    assert_eq!(frozen.unwrap(), "0\n");
    let rules = vec![LinuxDeviceCgroup::default()];
    agent.call::<()>(
        "UpdateContainer",
        &update(LinuxResources {
            devices: rules,
            ..LinuxResources::default()
        }),
    );
}

#[test]
fn a_read_only_root_is_read_only() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container(
        "c1",
        &["sh", "-c", "touch /x && echo written; touch /run/x && echo run"],
    );
    request.oci.as_mut().unwrap().root.as_mut().unwrap().readonly = true;
    assert_eq!(run(&agent, &request).1, "run\n");
}

#[test]
fn links_in_an_image_do_not_lead_out() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["cat", "/data/deep/file"]);
    let spec = request.oci.as_mut().unwrap();
    let root = std::path::PathBuf::from(&spec.root.as_ref().unwrap().path);
    let outside = agent.folder.join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("data")).unwrap();
    let source = agent.folder.join("file");
    std::fs::write(&source, "bound\n").unwrap();
    spec.mounts.push(Mount {
        destination: "/data/deep/file".into(),
        source: source.to_string_lossy().into_owned(),
        r#type: "bind".into(),
        options: vec!["rbind".into(), "ro".into()],
    });
    assert_eq!(run(&agent, &request), (0, "bound\n".into()));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn an_image_does_not_lead_proc_and_sys_elsewhere() {
    let agent = Agent::start();
    agent.sandbox();
    for name in ["proc", "sys"] {
        let request = agent.container(name, &["true"]);
        let root = std::path::PathBuf::from(&request.oci.as_ref().unwrap().root.as_ref().unwrap().path);
        std::fs::remove_dir(root.join(name)).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", root.join(name)).unwrap();
        let (_, text) = agent.refused("CreateContainer", &request);
        assert!(text.contains("symbolic link of the image"), "{text}");
    }
}

#[test]
fn a_copied_file_and_a_pod_s_volume_are_bound_and_the_volume_outlives_a_container() {
    let agent = Agent::start();
    agent.sandbox();
    let shared = agent.folder.join("run/shared/containers");
    let copy = CopyFileRequest {
        path: shared.join("hosts").to_string_lossy().into_owned(),
        file_size: 6,
        file_mode: 0o100644,
        dir_mode: 0o755,
        data: b"hosts\n".to_vec(),
        ..CopyFileRequest::default()
    };
    agent.call::<()>("CopyFile", &copy);
    let volume = agent
        .folder
        .join("run/sandbox/ephemeral/v")
        .to_string_lossy()
        .into_owned();
    let make = |id: &str, script: &str| {
        let mut request = agent.container(id, &["sh", "-c", script]);
        request.storages.push(Storage {
            driver: "ephemeral".into(),
            source: "tmpfs".into(),
            fstype: "tmpfs".into(),
            options: vec!["fsgid=34".into(), "size=1m".into()],
            mount_point: volume.clone(),
            ..Storage::default()
        });
        let bind = |source: &str, destination: &str| Mount {
            destination: destination.into(),
            source: source.into(),
            r#type: "bind".into(),
            options: vec!["rbind".into()],
        };
        let mounts = &mut request.oci.as_mut().unwrap().mounts;
        mounts.extend([bind(&volume, "/cache"), bind(&copy.path, "/etc/hosts")]);
        request
    };
    let (_, out) = run(
        &agent,
        &make(
            "c1",
            "cat /etc/hosts; ls -ldn /cache | tr -s ' ' | cut -d' ' -f1,4; echo kept > /cache/x",
        ),
    );
    assert_eq!(out, "hosts\ndrwxrwsrwt 34\n");
    let (_, out) = run(&agent, &make("c2", "cat /cache/x"));
    assert_eq!(out, "kept\n");
    assert_eq!(agent.mounts_left(), 1);
}

#[test]
fn a_storage_that_fails_leaves_nothing() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container("c1", &["true"]);
    let point = agent.folder.join("run/c1/rootfs");
    request.storages.push(Storage {
        driver: "blk".into(),
        source: "/dev/null".into(),
        fstype: "ext4".into(),
        mount_point: point.to_string_lossy().into_owned(),
        ..Storage::default()
    });
    let (_, text) = agent.refused("CreateContainer", &request);
    assert!(
        text.contains("/dev/null") && text.contains("block device required"),
        "{text}"
    );
    assert_eq!((agent.mounts_left(), agent.cgroups_left()), (0, 0));
}
