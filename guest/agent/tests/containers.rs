//! Containers on this host, through the agent's own protocol. Needs root and a mounted cgroup2.

mod support;

use snp_agent::proto::grpc::*;
use support::{process, stuck::Stuck, Agent};

fn id(container: &str) -> StartContainerRequest {
    StartContainerRequest {
        container_id: container.into(),
    }
}

fn wait(agent: &Agent, container: &str, exec: &str) -> i32 {
    let request = WaitProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
    };
    agent.call::<WaitProcessResponse>("WaitProcess", &request).status
}

fn kill(agent: &Agent, container: &str, exec: &str, signal: i32) {
    let request = SignalProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        signal: signal as u32,
    };
    agent.call::<()>("SignalProcess", &request);
}

fn remove(agent: &Agent, container: &str) {
    agent.call::<()>(
        "RemoveContainer",
        &RemoveContainerRequest {
            container_id: container.into(),
            timeout: 0,
        },
    );
}

/// All output, until the error that says its end.
fn read(agent: &Agent, container: &str, exec: &str, stderr: bool) -> Vec<u8> {
    let method = if stderr { "ReadStderr" } else { "ReadStdout" };
    let request = ReadStreamRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        len: 32 << 10,
    };
    let mut out = Vec::new();
    loop {
        match agent.try_call::<ReadStreamResponse>(method, &request) {
            Ok(part) => out.extend(part.data),
            Err(status) => {
                assert_eq!(status.message, "read meet eof");
                return out;
            }
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_container_runs_and_its_exit_code_and_output_come_back() {
    let agent = Agent::start();
    let health: HealthCheckResponse = agent.call("Check", &CheckRequest::default());
    assert_eq!(health.status, 1);
    agent.sandbox();
    let script = "echo out; echo err >&2; hostname; cat /etc/resolv.conf; exit 42";
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sh", "-c", script]));
    agent.call::<()>("StartContainer", &id("c1"));
    assert_eq!(
        text(read(&agent, "c1", "", false)),
        "out\npod-host\nnameserver 192.0.2.1\n"
    );
    assert_eq!(text(read(&agent, "c1", "c1", true)), "err\n");
    assert_eq!(wait(&agent, "c1", ""), 42);
    assert_eq!(wait(&agent, "c1", "c1"), 42);
    remove(&agent, "c1");
    assert_eq!(
        agent
            .refused(
                "WaitProcess",
                &WaitProcessRequest {
                    container_id: "c1".into(),
                    exec_id: String::new()
                }
            )
            .0,
        5
    );
    assert_eq!((agent.mounts_left(), agent.cgroups_left()), (0, 0));
}

#[test]
fn what_can_not_run_is_named_and_leaves_nothing() {
    let agent = Agent::start();
    agent.sandbox();
    let before = agent.descriptors();
    let (_, error) = agent.refused("CreateContainer", &agent.container("c1", &["foo"]));
    assert_eq!(error, "exec: \"foo\": executable file not found in $PATH");
    let (_, error) = agent.refused("CreateContainer", &agent.container("c1", &["/bin/foo"]));
    assert_eq!(error, "exec: \"/bin/foo\": stat /bin/foo: no such file or directory");
    let (_, error) = agent.refused("CreateContainer", &agent.container("c1", &["/etc/passwd"]));
    assert_eq!(error, "exec: \"/etc/passwd\": permission denied");
    let mut request = agent.container("c1", &["true"]);
    request.oci.as_mut().unwrap().process.as_mut().unwrap().cwd = "/etc/passwd".into();
    let (_, error) = agent.refused("CreateContainer", &request);
    assert_eq!(error, "chdir to cwd (\"/etc/passwd\"): not a directory");
    assert_eq!(
        (agent.mounts_left(), agent.cgroups_left(), agent.descriptors()),
        (0, 0, before)
    );
}

#[test]
fn a_program_for_another_machine_is_an_exec_format_error() {
    let agent = Agent::start();
    agent.sandbox();
    let request = agent.container("c1", &["/bin/foreign"]);
    let root = &request.oci.as_ref().unwrap().root.as_ref().unwrap().path;
    let path = std::path::Path::new(root).join("bin/foreign");
    // An ELF header of a 64-bit program for machine number 183 (aarch64).
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 183, 0];
    header.resize(4096, 0);
    std::fs::write(&path, header).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    agent.call::<()>("CreateContainer", &request);
    let (_, error) = agent.refused("StartContainer", &id("c1"));
    assert_eq!(error, "exec /bin/foreign: exec format error");
    remove(&agent, "c1");
    assert_eq!((agent.mounts_left(), agent.cgroups_left()), (0, 0));
}

#[test]
fn execs_have_their_own_exit_output_and_errors() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    agent.call::<()>("StartContainer", &id("c1"));
    let exec = |exec_id: &str, args: &[&str]| ExecProcessRequest {
        container_id: "c1".into(),
        exec_id: exec_id.into(),
        process: Some(process(args)),
        ..ExecProcessRequest::default()
    };
    agent.call::<()>("ExecProcess", &exec("e1", &["sh", "-c", "echo $HOME; id -u; exit 7"]));
    assert_eq!(text(read(&agent, "c1", "e1", false)), "/root\n0\n");
    assert_eq!(wait(&agent, "c1", "e1"), 7);
    let (_, error) = agent.refused("ExecProcess", &exec("e2", &["nope"]));
    assert_eq!(error, "exec: \"nope\": executable file not found in $PATH");
    let mut lost = exec("e2", &["true"]);
    lost.process.as_mut().unwrap().cwd = "/nowhere".into();
    let (_, error) = agent.refused("ExecProcess", &lost);
    assert_eq!(error, "chdir to cwd (\"/nowhere\"): no such file or directory");
    agent.call::<()>("ExecProcess", &exec("e3", &["sleep", "1000"]));
    assert_eq!(agent.refused("ExecProcess", &exec("e3", &["true"])).0, 6);
    kill(&agent, "c1", "e3", libc::SIGTERM);
    assert_eq!(wait(&agent, "c1", "e3"), 128 + libc::SIGTERM);
    agent.call::<()>("ExecProcess", &exec("e4", &["sleep", "1000"]));
    kill(&agent, "c1", "", libc::SIGKILL);
    assert_eq!((wait(&agent, "c1", ""), wait(&agent, "c1", "e4")), (137, 137));
    remove(&agent, "c1");
}

#[test]
fn a_running_container_is_removed_with_its_daemons() {
    let agent = Agent::start();
    agent.sandbox();
    let script = "(sleep 1000 &) ; sleep 1000";
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sh", "-c", script]));
    agent.call::<()>("StartContainer", &id("c1"));
    remove(&agent, "c1");
    assert_eq!((agent.mounts_left(), agent.cgroups_left()), (0, 0));
    assert_eq!(
        agent
            .refused(
                "RemoveContainer",
                &RemoveContainerRequest {
                    container_id: "c1".into(),
                    timeout: 0
                }
            )
            .0,
        5
    );
}

#[test]
fn a_paused_container_stands_still() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>(
        "CreateContainer",
        &agent.container("c1", &["sh", "-c", "read line; exit 3"]),
    );
    agent.call::<()>("StartContainer", &id("c1"));
    agent.call::<()>(
        "PauseContainer",
        &PauseContainerRequest {
            container_id: "c1".into(),
        },
    );
    agent.call::<()>(
        "WriteStdin",
        &WriteStreamRequest {
            container_id: "c1".into(),
            exec_id: String::new(),
            data: b"x\n".to_vec(),
        },
    );
    agent.call::<()>(
        "ResumeContainer",
        &ResumeContainerRequest {
            container_id: "c1".into(),
        },
    );
    assert_eq!(wait(&agent, "c1", ""), 3);
    remove(&agent, "c1");
}

#[test]
fn a_freeze_that_fails_leaves_the_container_running() {
    let agent = Agent::start();
    agent.sandbox();
    agent.call::<()>("CreateContainer", &agent.container("c1", &["sleep", "1000"]));
    agent.call::<()>("StartContainer", &id("c1"));
    let stuck = Stuck::in_cgroup(&agent.folder.join("hung"), &agent.cgroup("c1"));
    let pause = PauseContainerRequest {
        container_id: "c1".into(),
    };
    let (_, error) = agent.refused("PauseContainer", &pause);
    assert!(error.contains("frozen 1"), "{error}");
    let file = |name: &str| std::fs::read_to_string(agent.cgroup("c1").join(name)).unwrap();
    assert_eq!(file("cgroup.freeze"), "0\n");
    drop(stuck);
    agent.call::<()>("PauseContainer", &pause);
    assert_eq!(file("cgroup.freeze"), "1\n");
    remove(&agent, "c1");
}

#[test]
fn users_by_name_get_their_groups_and_lose_their_power() {
    let agent = Agent::start();
    agent.sandbox();
    let mut request = agent.container(
        "c1",
        &[
            "sh",
            "-c",
            "id -u; id -g; id -G; echo $HOME; touch /bin/x || echo denied",
        ],
    );
    request.string_user = Some(StringUser {
        uid: "web".into(),
        gid: String::new(),
        additional_gids: vec!["audio".into()],
    });
    agent.call::<()>("CreateContainer", &request);
    agent.call::<()>("StartContainer", &id("c1"));
    assert_eq!(text(read(&agent, "c1", "", false)), "33\n34\n34 29\n/srv\ndenied\n");
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
}

#[test]
fn containers_share_a_pid_namespace_when_the_pod_does() {
    let agent = Agent::start();
    agent.sandbox();
    let mut first = agent.container("pause", &["sleep", "1000"]);
    first.sandbox_pidns = true;
    agent.call::<()>("CreateContainer", &first);
    agent.call::<()>("StartContainer", &id("pause"));
    let mut second = agent.container("c1", &["sh", "-c", "cat /proc/1/cmdline; echo; test $$ -gt 1"]);
    second.sandbox_pidns = true;
    agent.call::<()>("CreateContainer", &second);
    agent.call::<()>("StartContainer", &id("c1"));
    assert_eq!(text(read(&agent, "c1", "", false)), "sleep\u{0}1000\u{0}\n");
    assert_eq!(wait(&agent, "c1", ""), 0);
    remove(&agent, "c1");
    remove(&agent, "pause");
}

#[test]
fn a_shared_pid_namespace_without_a_sandbox_container_outlives_the_first_one() {
    const KIND: &str = "io.katacontainers.pkg.oci.container_type";
    let agent = Agent::start();
    agent.sandbox();
    let create = |name: &str, args: &[&str]| {
        let mut request = agent.container(name, args);
        request.sandbox_pidns = true;
        let spec = request.oci.as_mut().unwrap();
        spec.annotations.insert(KIND.into(), "pod_container".into());
        agent.call::<()>("CreateContainer", &request);
        agent.call::<()>("StartContainer", &id(name));
    };
    create("c1", &["sleep", "1000"]);
    create("c2", &["sleep", "2000"]);
    remove(&agent, "c1");
    create("c3", &["sh", "-c", "cat /proc/[0-9]*/cmdline"]);
    let seen = text(read(&agent, "c3", "", false));
    assert!(!seen.contains("1000") && seen.contains("2000"), "{seen:?}");
    assert!(seen.starts_with("snp-agent"), "{seen:?}");
    remove(&agent, "c2");
    remove(&agent, "c3");
}

#[test]
fn a_policy_of_the_host_is_in_force_and_decides_on_the_next_one() {
    let agent = Agent::start();
    let set = |text: &str| SetPolicyRequest {
        policy: format!("package agent_policy\n{text}"),
    };
    let (code, text) = agent.refused("SetPolicy", &set("A := := 1"));
    assert_eq!(
        (code, text.starts_with("the policy can't be used: line 2, column 6")),
        (3, true),
        "{text}"
    );
    agent.sandbox();
    agent.call::<()>("SetPolicy", &set("SetPolicyRequest := true"));
    assert_eq!(agent.refused("CreateContainer", &agent.container("c1", &["true"])).0, 7);
    agent.call::<()>("SetPolicy", &set("CreateContainerRequest := true"));
    agent.call::<()>("CreateContainer", &agent.container("c1", &["true"]));
    assert_eq!(agent.refused("SetPolicy", &set("")).0, 7);
}

#[test]
fn what_the_agent_does_not_do_says_so() {
    let agent = Agent::start();
    assert_eq!(agent.refused("Dance", &CheckRequest::default()).0, 12);
    let mut request = agent.container("c1", &["true"]);
    request.storages.push(Storage {
        driver: "floppy".into(),
        mount_point: "/mnt/x".into(),
        ..Storage::default()
    });
    let (code, text) = agent.refused("CreateContainer", &request);
    assert!(code == 12 && text.contains("floppy"), "{text}");
    let details: GuestDetailsResponse = agent.call("GetGuestDetails", &GuestDetailsRequest::default());
    let features = details.agent_details.unwrap().extra_features;
    assert_eq!(
        features,
        [
            "snp.streams.v1",
            "snp.limits.v1",
            "snp.files.v1",
            "snp.pidns.v1",
            "snp.forward.v1",
            "snp.volumes.v1",
            "snp.mounts.v1",
            "snp.pci.v1",
            "snp.hugepages.v1",
            "snp.verity.v1",
            "snp.scratch.v1",
            "snp.damage.v1",
            "snp.late-binding.v1"
        ]
    );
}
