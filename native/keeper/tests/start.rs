//! `start`, `-info` and `-v`, as containerd calls them.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{json, Value};
use support::{wait_gone, World, ADDRESS, NAMESPACE};

/// A string or message field of protobuf, shorter than 16 KiB.
fn field(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let length = if value.len() < 128 {
        vec![value.len() as u8]
    } else {
        vec![value.len() as u8 | 0x80, (value.len() >> 7) as u8]
    };
    [vec![number << 3 | 2], length, value.to_vec()].concat()
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn prints_the_bare_address_for_1_6_and_leaves_it_in_the_bundle() {
    let world = World::new();
    let _snpd = world.snpd();
    let socket = world.started("pod");
    assert!(socket.starts_with(world.state().join("k")));
    let address = fs::read_to_string(world.path("bundles/pod/address")).unwrap();
    assert_eq!(address, format!("unix://{}", socket.display()));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(world.state().join("k")).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_drop_in_does_not_move_the_state_folder() {
    let world = World::new();
    let _snpd = world.snpd();
    fs::create_dir(world.path("config.toml.d")).unwrap();
    let elsewhere = format!("state_dir = {:?}", world.path("elsewhere"));
    fs::write(world.path("config.toml.d/10.toml"), elsewhere).unwrap();
    assert!(world.started("pod").starts_with(world.state().join("k")));
    assert!(!world.path("elsewhere").exists());
}

#[test]
fn prints_the_bare_address_for_1_7() {
    let world = World::new();
    let _snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    let output = world
        .command("pod", &bundle)
        .env("MAX_SHIM_VERSION", "2")
        .arg("start")
        .output()
        .unwrap();
    assert!(output.stdout.starts_with(b"unix:///"));
}

#[test]
fn prints_json_where_version_3_is_taken() {
    let world = World::new();
    let _snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    let output = world
        .command("pod", &bundle)
        .env("MAX_SHIM_VERSION", "3")
        .arg("start")
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&json!(3), &json!("ttrpc")));
    assert!(answer["address"].as_str().unwrap().starts_with("unix:///"));
}

#[test]
fn answers_bootstrap_params_with_a_bootstrap_result() {
    let world = World::new();
    let snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    let options = [
        field(1, "runtimeoptions.v1.Options"),
        field(2, field(2, world.path("config.toml").to_str().unwrap())),
    ]
    .concat();
    let params = [
        field(1, "pod"),
        field(2, NAMESPACE),
        field(5, "/run/t"),
        field(6, ADDRESS),
        field(8, field(1, options)),
    ]
    .concat();
    let mut command = world.command("pod", &bundle);
    command
        .env_remove("CONTAINERD_SHIM_SNP_CONFIG")
        .env_remove("TTRPC_ADDRESS")
        .env("MAX_SHIM_VERSION", "2")
        .arg("start");
    let output = with_input(command, &params);
    assert_eq!(output.stdout[..2], [0x08, 3]);
    assert!(output.stdout.ends_with(b"\x1a\x05ttrpc"));
    let (_, hello) = snpd.accept();
    assert_eq!(
        (&hello["ttrpcAddress"], &hello["configFile"]),
        (&json!("/run/t"), &json!(world.path("config.toml")))
    );
}

#[test]
fn takes_the_configuration_of_the_runtime_options() {
    let world = World::new();
    let _snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    let options = [
        field(1, "runtimeoptions.v1.Options"),
        field(2, field(2, world.path("config.toml").to_str().unwrap())),
    ]
    .concat();
    let mut command = world.command("pod", &bundle);
    command.env("CONTAINERD_SHIM_SNP_CONFIG", "/nowhere").arg("start");
    let output = with_input(command, &options);
    assert!(output
        .stdout
        .starts_with(format!("unix://{}", world.state().display()).as_bytes()));
}

#[test]
fn greets_snpd_with_the_pod_and_passes_nothing_on() {
    let world = World::new();
    let (_snpd, _link, hello, _containerd) = world.attached("pod");
    let config = world.path("config.toml");
    let wanted = json!({
        "version": 1, "resumed": false, "namespace": NAMESPACE, "podId": "pod", "address": ADDRESS, "configFile": config,
        "ttrpcAddress": "/run/containerd/containerd.sock.ttrpc", "publishBinary": "/nowhere/containerd",
        "bundle": world.path("bundles/pod"), "channels": [], "streams": [],
    });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&hello[name], value, "{name}");
    }
    let socket = format!(
        "{}/k/{}.sock",
        world.state().display(),
        hello["podKey"].as_str().unwrap()
    );
    assert_eq!(hello["socket"], socket);
    let process = format!("/proc/{}", hello["pid"]);
    let environment = fs::read_to_string(format!("{process}/environ")).unwrap();
    let names: Vec<_> = environment
        .split_terminator('\0')
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["PATH", "CONTAINERD_SHIM_SNP_CONFIG"]);
    assert_eq!(fs::read_link(format!("{process}/cwd")).unwrap(), Path::new("/"));
    for number in 0..3 {
        assert_eq!(
            fs::read_link(format!("{process}/fd/{number}")).unwrap(),
            Path::new("/dev/null")
        );
    }
    assert_eq!(fs::read_to_string(format!("{process}/comm")).unwrap(), "snp-keeper\n");
}

#[test]
fn refuses_a_second_start_by_name() {
    let world = World::new();
    let _snpd = world.snpd();
    world.started("pod");
    let text = failure(&world.start("pod"));
    assert!(text.contains("pod in namespace tests is already running"), "{text}");
}

#[test]
fn replaces_a_socket_that_nobody_serves() {
    let world = World::new();
    let (_snpd, _link, hello, _containerd) = world.attached("pod");
    let pid = hello["pid"].as_i64().unwrap() as i32;
    support::kill(pid, libc::SIGKILL);
    wait_gone(pid);
    let socket = world.started("pod");
    assert_eq!(hello["socket"], socket.to_str().unwrap());
    drop(support::connect(&socket));
}

#[test]
fn gives_a_container_the_address_of_its_pod() {
    let world = World::new();
    let _snpd = world.snpd();
    let socket = world.started("pod");
    let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"});
    let bundle = world.bundle("container", annotations);
    let output = world.command("container", &bundle).arg("start").output().unwrap();
    assert_eq!(output.stdout, format!("unix://{}", socket.display()).into_bytes());
    assert_eq!(fs::read(bundle.join("address")).unwrap(), output.stdout);
}

#[test]
fn names_the_pod_that_a_container_can_not_join() {
    let world = World::new();
    let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "gone"});
    let bundle = world.bundle("container", annotations);
    let text = failure(&world.command("container", &bundle).arg("start").output().unwrap());
    assert!(text.contains("container can't join pod gone"), "{text}");
}

#[test]
fn serves_a_sandbox_whose_bundle_has_no_configuration() {
    let world = World::new();
    let _snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    fs::remove_file(bundle.join("config.json")).unwrap();
    let start = || world.command("pod", &bundle).arg("start").output().unwrap();
    let output = start();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(fs::read(bundle.join("address")).unwrap(), output.stdout);
    assert!(failure(&start()).contains("already running"));
}

#[test]
fn names_what_is_wrong_before_anything_is_started() {
    let world = World::new();
    let bundle = world.bundle("pod", json!({}));
    fs::write(bundle.join("config.json"), "{ broken").unwrap();
    let text = failure(&world.command("pod", &bundle).arg("start").output().unwrap());
    assert!(
        text.contains("config.json") && text.contains("create it again"),
        "{text}"
    );
    fs::write(world.path("config.toml"), format!("state_dir = '/{}'", "x".repeat(60))).unwrap();
    let text = failure(&world.start("other"));
    assert!(text.contains("state_dir") && text.contains("config.toml"), "{text}");
    let text = failure(
        &Command::new(world.program())
            .args(["-id", "x", "explode"])
            .stdin(Stdio::null())
            .output()
            .unwrap(),
    );
    assert!(text.contains("unknown command explode"), "{text}");
    assert_eq!(world.processes(), Vec::<i32>::new());
}

#[test]
fn does_not_keep_containerd_waiting_for_the_end_of_output() {
    let world = World::new();
    let _snpd = world.snpd();
    let bundle = world.bundle("pod", json!({}));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = world
        .command("pod", &bundle)
        .arg("start")
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("unix://"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn tells_version_and_information() {
    let world = World::new();
    let version = Command::new(world.program()).arg("-v").output().unwrap();
    assert_eq!(
        version.stdout,
        format!("io.containerd.snp.v2 {}\n", env!("CARGO_PKG_VERSION")).into_bytes()
    );
    let mut command = Command::new(world.program());
    command.arg("-info");
    let info = with_input(command, b"options");
    assert!(info.status.success() && info.stderr.is_empty());
    assert!(info.stdout.starts_with(&field(1, "io.containerd.snp.v2")));
}

/// The stand-in for snpd that the next test's script executes: this test program again, with the listening socket as descriptor 3.
#[test]
fn stand_in() {
    let Ok(folder) = std::env::var("STAND_IN") else {
        return;
    };
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: the keeper hands over the listening socket under this number.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(3) });
    let mut log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(Path::new(&folder).join("greeted"))
        .unwrap();
    let mut open = Vec::new();
    for _ in 0..10 {
        let (link, hello) = support::Snpd {
            listener: listener.try_clone().unwrap(),
        }
        .accept();
        writeln!(log, "{}", hello["podId"]).unwrap();
        open.push(link);
    }
    writeln!(log, "all").unwrap();
    assert_eq!(open[0].read(), None);
}

#[test]
fn ten_starts_at_once_start_one_snpd() {
    let world = World::new();
    let script = format!(
        "echo \"$@\" >> {folder}/launches\nenv >> {folder}/environment\nSTAND_IN={folder} exec {program} stand_in --exact --nocapture {folder}",
        folder = world.folder.display(),
        program = std::env::current_exe().unwrap().display(),
    );
    world.install_snpd(&script);
    let children: Vec<_> = (0..10)
        .map(|number| {
            let id = format!("pod{number}");
            let bundle = world.bundle(&id, json!({}));
            world
                .command(&id, &bundle)
                .arg("start")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty() && output.stdout.starts_with(b"unix://"));
    }
    let greeted = support::wait_for_text(&world.path("greeted"), "all");
    assert_eq!(greeted.lines().count(), 11, "{greeted}");
    let launches = fs::read_to_string(world.path("launches")).unwrap();
    assert_eq!(launches, format!("--state-dir {}\n", world.state().display()));
    let environment = fs::read_to_string(world.path("environment")).unwrap();
    assert!(
        environment.contains("LISTEN_FDS=1\n") && !environment.contains("SECRET"),
        "{environment}"
    );
}
