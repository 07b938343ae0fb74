//! A guest whose attestation is a sample: initdata, the policy in force, evidence. Needs root and cgroup2.

mod support;

use flate2::write::GzEncoder;
use flate2::Compression;
use sha2::{Digest, Sha256, Sha512};
use snp_agent::proto::extensions::BindPolicyRequest;
use snp_agent::proto::grpc::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use support::{process, terminal, Agent};

const PERMISSION_DENIED: i32 = 7;
/// What every workload needs.
const BASIC: &str = "package agent_policy
CreateSandboxRequest := true
CreateContainerRequest if input.OCI.Process.Args[0] == \"/bin/busybox\"
CreateContainerRequest if input.OCI.Process.Args[0] == \"sh\"
StartContainerRequest := true
WaitProcessRequest := true
SetPolicyRequest := true
DestroySandboxRequest := true
ExecProcessRequest if count(ExecProcessRequest_reasons) == 0
ExecProcessRequest_reasons contains {\"path\": \"process.Args[0]\", \"expected\": \"none\", \"got\": input.process.Args[0]} if input.process.Args[0] != \"tty\"
";
const LOGS: &str = "ReadStreamRequest := true\n";

/// A disk with an initdata, gone when it is dropped.
struct Disk {
    path: PathBuf,
    toml: String,
}

impl Disk {
    fn new(policy: &str) -> Self {
        let policy = policy.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let text = format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"{policy}\"\n");
        Self::of(text)
    }

    fn of(toml: String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("snp-initdata-{}-{number}", std::process::id()));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(toml.as_bytes()).unwrap();
        let gzip = encoder.finish().unwrap();
        let mut bytes = b"initdata".to_vec();
        bytes.extend((gzip.len() as u64).to_le_bytes());
        bytes.extend(gzip);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        fs::write(&path, bytes).unwrap();
        Self { path, toml }
    }

    /// As BindPolicy takes it.
    fn bind(&self) -> BindPolicyRequest {
        let bytes = fs::read(&self.path).unwrap();
        let length = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
        BindPolicyRequest {
            initdata: bytes[16..16 + length].to_vec(),
        }
    }

    fn cut(&self, length: u64) -> &Self {
        fs::OpenOptions::new()
            .write(true)
            .open(&self.path)
            .unwrap()
            .set_len(length)
            .unwrap();
        self
    }

    fn host_data(&self) -> String {
        Sha256::digest(&self.toml)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn agent(&self) -> Agent {
        self.agent_with(&self.host_data())
    }

    fn agent_with(&self, host_data: &str) -> Agent {
        let path = self.path.to_string_lossy().into_owned();
        let arguments = [
            "--initdata",
            path.as_str(),
            "--sample-host-data",
            host_data,
            "--sample-measurement",
            &"ab".repeat(48),
        ];
        Agent::start_with(&arguments.map(String::from))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs a container to its end, with its output as a stream; gives status and output.
fn run(agent: &Agent, id: &str, token: u32, args: &[&str]) -> (i32, String) {
    let mut stream = agent.stream(token);
    let mut request = agent.container(id, args);
    request.stdout_port = token;
    agent.call::<()>("CreateContainer", &request);
    (start(agent, id), all(&mut stream))
}

fn start(agent: &Agent, id: &str) -> i32 {
    let start = StartContainerRequest {
        container_id: id.into(),
    };
    agent.call::<()>("StartContainer", &start);
    let wait = WaitProcessRequest {
        container_id: id.into(),
        exec_id: String::new(),
    };
    agent.call::<WaitProcessResponse>("WaitProcess", &wait).status
}

fn all(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn exec(id: &str, process: Process) -> ExecProcessRequest {
    ExecProcessRequest {
        container_id: id.into(),
        exec_id: "exec".into(),
        process: Some(process),
        ..ExecProcessRequest::default()
    }
}

#[test]
fn a_policy_that_matches_is_in_force_and_evidence_comes_to_containers() {
    let disk = Disk::new(&format!("{BASIC}{LOGS}"));
    let agent = disk.agent();
    agent.sandbox();
    let get = |path: &str| format!("/bin/busybox wget -qO- 'http://127.0.0.1:8006{path}'; echo; ");
    let script = ["/aa/evidence?runtime_data=nonce", "/initdata", "/layers"]
        .map(get)
        .concat();
    let (status, output) = run(&agent, "web", 1, &["sh", "-c", &script]);
    assert_eq!(status, 0, "{output}");
    let (evidence, rest) = output.split_once('\n').unwrap();
    let evidence: serde_json::Value = serde_json::from_str(evidence).unwrap();
    assert_eq!(evidence["platform"], "sample-INSECURE");
    let report = &evidence["attestation_report"];
    let mut nonce = [0u8; 64];
    nonce[..5].copy_from_slice(b"nonce");
    assert_eq!(report["report_data"], serde_json::json!(nonce.to_vec()));
    assert_eq!(
        report["host_data"],
        serde_json::json!(Sha256::digest(&disk.toml).to_vec())
    );
    assert_eq!(report["measurement"], serde_json::json!(vec![0xab; 48]));
    assert!(rest.starts_with(&disk.toml), "{rest}");
    assert!(
        rest.contains(r#"{"containers":[{"container":"web","layers":[]}],"platform":"sample-INSECURE"}"#),
        "{rest}"
    );
}

#[test]
fn a_denial_names_what_was_expected_and_a_policy_stays() {
    let disk = Disk::new(BASIC);
    let agent = disk.agent();
    agent.sandbox();
    let (code, text) = agent.refused("CreateContainer", &agent.container("other", &["cat"]));
    assert_eq!(
        (code, text.as_str()),
        (PERMISSION_DENIED, "the pod's policy denies CreateContainerRequest")
    );
    let (code, text) = agent.refused("ExecProcess", &exec("web", process(&["sh"])));
    assert_eq!(code, PERMISSION_DENIED);
    assert_eq!(
        text,
        "the pod's policy denies ExecProcessRequest: process.Args[0]: expected \"none\", got \"sh\""
    );
    let policy = SetPolicyRequest {
        policy: "package agent_policy\nExecProcessRequest := true".into(),
    };
    let (code, text) = agent.refused("SetPolicy", &policy);
    assert_eq!(code, PERMISSION_DENIED);
    assert!(text.contains("stays as it is"), "{text}");
    let (code, text) = agent.refused("CopyFile", &CopyFileRequest::default());
    assert_eq!(code, PERMISSION_DENIED);
    assert!(text.ends_with("it has no rule for that"), "{text}");
}

#[test]
fn output_that_the_host_may_not_read_is_dropped_and_blocks_nobody() {
    let disk = Disk::new(BASIC);
    let agent = disk.agent();
    agent.sandbox();
    let much = "/bin/busybox dd if=/dev/zero bs=1M count=4; /bin/busybox dd if=/dev/zero bs=1M count=1 >&2; exit 7";
    assert_eq!(run(&agent, "streams", 1, &["sh", "-c", much]), (7, String::new()));
    agent.call::<()>("CreateContainer", &agent.container("requests", &["sh", "-c", much]));
    assert_eq!(start(&agent, "requests"), 7);
    let read = ReadStreamRequest {
        container_id: "requests".into(),
        exec_id: "requests".into(),
        len: 10,
    };
    assert_eq!(agent.refused("ReadStdout", &read).0, PERMISSION_DENIED);

    let (mut stdin, mut stdout) = (agent.stream(2), agent.stream(3));
    let mut request = agent.container("terminal", &[]);
    request.oci.as_mut().unwrap().process = Some(terminal(&["sh", "-c", much]));
    (request.stdin_port, request.stdout_port) = (2, 3);
    agent.call::<()>("CreateContainer", &request);
    assert_eq!((all(&mut stdin), all(&mut stdout)), (String::new(), String::new()));
    assert_eq!(start(&agent, "terminal"), 7);
}

#[test]
fn ports_are_forwarded_as_the_policy_says() {
    let disk = Disk::new(&format!("{BASIC}ForwardPortRequest if input.port == 8006\n"));
    let agent = disk.agent();
    for (port, request, expected) in [
        (8006, "8006\nGET /initdata HTTP/1.1\r\n\r\n", "OK\nHTTP/1.1 200 OK\r\n"),
        (8007, "8007\n", ""),
    ] {
        let mut stream = UnixStream::connect(agent.folder.join("forward")).unwrap();
        stream.set_read_timeout(Some(support::ANSWER_MAX)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(expected) && answer.is_empty() == expected.is_empty(),
            "{port}: {answer}"
        );
    }
}

#[test]
fn nonsense_to_the_evidence_service_is_answered_or_cut_off() {
    let disk = Disk::new(&format!("{BASIC}ForwardPortRequest := true\n"));
    let agent = disk.agent();
    for (request, expected) in [
        (
            "POST /report?runtime_data=x HTTP/1.1\r\n\r\n".to_string(),
            "HTTP/1.1 405 ",
        ),
        ("GET /report HTTP/1.1\r\n\r\n".into(), "HTTP/1.1 400 "),
        ("GET /cdh/resource/a HTTP/1.1\r\n\r\n".into(), "HTTP/1.1 404 "),
        ("\r\n\r\n".into(), "HTTP/1.1 400 "),
        (format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), "HTTP/1.1 400 "),
    ] {
        let mut stream = UnixStream::connect(agent.folder.join("forward")).unwrap();
        stream.set_read_timeout(Some(support::ANSWER_MAX)).unwrap();
        stream.write_all(format!("8006\n{request}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with(&format!("OK\n{expected}")),
            "{request:.40}: {answer}"
        );
    }
}

#[test]
fn a_guest_without_a_policy_that_it_can_trust_does_nothing() {
    let whole = Disk::new(BASIC);
    let cut = Disk::new(BASIC);
    cut.cut(100);
    let endless = Disk::of(format!("# {}\n", "x".repeat(8 << 20)));
    let syntax = Disk::new("package agent_policy\nCreateSandboxRequest := := true");
    let without = Disk::of("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"\"\n".into());
    let empty = Disk::new("");
    for (disk, host_data, expected) in [
        (
            &whole,
            "00".repeat(32),
            "is not the one that its attestation report names (HOST_DATA 0000",
        ),
        (&whole, "01".into(), "snp.sample_host_data"),
        (&cut, cut.host_data(), "ends after"),
        (&endless, endless.host_data(), "longer than 4194304"),
        (&syntax, syntax.host_data(), "can't be used: line 2, column 25"),
        (&without, without.host_data(), "no policy.rego"),
        (&empty, empty.host_data(), "can't be used"),
    ] {
        let mut agent = disk.agent_with(&host_data);
        agent.call::<HealthCheckResponse>("Check", &CheckRequest::default());
        agent.call::<GuestDetailsResponse>("GetGuestDetails", &GuestDetailsRequest::default());
        let (code, text) = agent.refused("CreateSandbox", &CreateSandboxRequest::default());
        assert_eq!(code, PERMISSION_DENIED);
        assert!(
            text.starts_with("this confidential guest does nothing for its host: "),
            "{text}"
        );
        assert!(text.contains(expected), "{text}");
        assert_eq!(
            agent.refused("CreateContainer", &agent.container("web", &["sh"])).0,
            PERMISSION_DENIED
        );
        assert_eq!(
            agent.refused("SetPolicy", &SetPolicyRequest::default()).0,
            PERMISSION_DENIED
        );
        agent.call::<()>("DestroySandbox", &DestroySandboxRequest::default());
        assert!(agent.ended());
    }
}

#[test]
fn a_guest_without_initdata_says_so() {
    let arguments = ["--sample-host-data".to_string(), "00".repeat(32)];
    let agent = Agent::start_with(&arguments);
    let (code, text) = agent.refused("CreateSandbox", &CreateSandboxRequest::default());
    assert_eq!(code, PERMISSION_DENIED);
    assert!(text.contains("it has no initdata: give the pod"), "{text}");
}

#[test]
fn a_policy_that_takes_its_time_does_not_hold_up_health() {
    let slow = "StatsContainerRequest if count([1 | some i in numbers.range(1, 300); some j in numbers.range(1, 300); i == j * 1000]) > 0\n";
    let disk = Disk::new(&format!("{BASIC}{slow}"));
    let agent = disk.agent();
    let mut connection = agent.connect();
    connection.send(1, "StatsContainer", &StatsContainerRequest::default());
    connection.send(3, "CreateSandbox", &CreateSandboxRequest::default());
    connection.send(5, "Check", &CheckRequest::default());
    let order = [connection.next(), connection.next(), connection.next()];
    assert_eq!(order, [5, 1, 3], "Health at once, the others in their order");
}

const BIND_ONLY: &str = include_str!("../src/confidential/bind-only.toml");
const RULES: &str = include_str!("../../../shim/policy/rules.rego");

/// A policy as snpctl makes it, for one container.
fn generated(privileged: bool) -> String {
    let container = serde_json::json!({
        "name": "web", "layers": [], "root_readonly": false, "mounts": [], "devices": [], "privileged": privileged, "sysctls": {}, "seccomp": "any",
        "process": {"terminal": false, "args": ["sh"], "env": {}, "env_patterns": [], "cwd": "/", "capabilities": [], "no_new_privileges": false,
            "user": {"uid": 0, "gid": 0, "groups": [], "optional_groups": []}},
        "masked_paths": ["/proc/kcore", "/sys/firmware"],
        "readonly_paths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    let data = serde_json::json!({
        "pod": {"hostname": "pod", "share_pid": false, "copies": false},
        "allow": {"exec": [], "logs": false, "stdin": false, "ports": [8006], "termination_message": false},
        "containers": [container],
    });
    format!("{RULES}\n# --- What this policy is for\n\npolicy_data := {data}\n")
}

/// What the guest's loopback answers, by way of the host.
fn get(agent: &Agent, path: &str) -> String {
    let mut stream = UnixStream::connect(agent.folder.join("forward")).unwrap();
    stream.set_read_timeout(Some(support::ANSWER_MAX)).unwrap();
    stream
        .write_all(format!("8006\nGET {path} HTTP/1.1\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_guest_that_waits_takes_one_policy_once_and_attests_it() {
    let disk = Disk::of(BIND_ONLY.into());
    let agent = disk.agent();
    let sandbox = CreateSandboxRequest {
        hostname: "pod".into(),
        ..CreateSandboxRequest::default()
    };
    let (good, privileged) = (Disk::new(&generated(false)), Disk::new(&generated(true)));
    let waiting = || {
        agent.call::<HealthCheckResponse>("Check", &CheckRequest::default());
        let details = agent.call::<GuestDetailsResponse>("GetGuestDetails", &GuestDetailsRequest::default());
        let features = details.agent_details.unwrap().extra_features;
        assert!(features.iter().any(|feature| feature == "snp.late-binding.v1"));
        let (code, text) = agent.refused("CreateSandbox", &sandbox);
        assert_eq!(code, PERMISSION_DENIED);
        assert!(text.contains("waits for its pod's policy"), "{text}");
        let container = agent.container("web", &["sh"]);
        assert_eq!(agent.refused("CreateContainer", &container).0, PERMISSION_DENIED);
        assert_eq!(
            agent.refused("SetPolicy", &SetPolicyRequest::default()).0,
            PERMISSION_DENIED
        );
        assert_eq!(
            agent.refused("CopyFile", &CopyFileRequest::default()).0,
            PERMISSION_DENIED
        );
        assert_eq!(get(&agent, "/initdata"), "");
    };
    waiting();
    for (wrong, expected) in [
        (BindPolicyRequest::default(), "gzip"),
        (
            BindPolicyRequest {
                initdata: vec![0; (1 << 20) + 1],
            },
            "more than 1048576",
        ),
        (Disk::new(BASIC).bind(), "fixed rules"),
        (disk.bind(), "fixed rules"),
        (privileged.bind(), "container web: it is privileged"),
    ] {
        let (_, text) = agent.refused("BindPolicy", &wrong);
        assert!(
            text.starts_with("the policy can't be bound: ") && text.contains(expected),
            "{text}"
        );
        waiting();
    }
    agent.call::<()>("BindPolicy", &good.bind());

    agent.call::<()>("CreateSandbox", &sandbox);
    let (code, text) = agent.refused("CreateContainer", &agent.container("web", &["cat"]));
    assert_eq!(code, PERMISSION_DENIED);
    assert!(
        text.starts_with("the pod's policy denies CreateContainerRequest: "),
        "{text}"
    );
    for again in [good.bind(), Disk::new(&generated(false).replace("8006", "8007")).bind()] {
        let (code, text) = agent.refused("BindPolicy", &again);
        assert_eq!(code, PERMISSION_DENIED);
        assert!(text.starts_with("the pod's policy denies BindPolicyRequest"), "{text}");
    }
    assert_eq!(
        agent.refused("SetPolicy", &SetPolicyRequest::default()).0,
        PERMISSION_DENIED
    );

    let answer = get(&agent, "/aa/evidence?runtime_data=nonce");
    let evidence: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let mut given = [0u8; 64];
    given[..5].copy_from_slice(b"nonce");
    let covered = [
        b"containerd-shim-snp late-bound report data 1\n".as_slice(),
        &given,
        &Sha256::digest(&good.toml),
    ]
    .concat();
    let report = &evidence["attestation_report"];
    assert_eq!(
        report["report_data"],
        serde_json::json!(Sha512::digest(covered).to_vec())
    );
    assert_eq!(
        report["host_data"],
        serde_json::json!(Sha256::digest(BIND_ONLY).to_vec())
    );
    assert_eq!(evidence["late_bound"]["initdata_digest"], good.host_data());
    assert!(get(&agent, "/initdata").ends_with(&good.toml));
}

#[test]
fn only_a_guest_that_waits_takes_a_policy() {
    let disk = Disk::new(&format!("{BASIC}BindPolicyRequest := true\n"));
    let agent = disk.agent();
    let (code, text) = agent.refused("BindPolicy", &Disk::new(&generated(false)).bind());
    assert_eq!(code, PERMISSION_DENIED);
    assert!(text.contains("does not wait for a policy"), "{text}");
    let without = Agent::start_with(&["--sample-host-data".to_string(), "00".repeat(32)]);
    let (code, text) = without.refused("BindPolicy", &Disk::new(&generated(false)).bind());
    assert_eq!(code, PERMISSION_DENIED);
    assert!(text.contains("it has no initdata"), "{text}");
}
