//! `delete`, as containerd calls it.

mod support;

use std::fs;
use std::process::{Output, Stdio};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};
use support::{accept, kill, kind, wait_gone, Link, Snpd, World, ADDRESS, NAMESPACE};

/// `delete` in the background; the environment names no configuration, so only the bundle tells the state folder.
fn delete(world: &World, id: &str) -> JoinHandle<Output> {
    let bundle = world.path("bundles").join(id);
    let mut command = world.command(id, &bundle);
    command
        .arg("-bundle")
        .arg(&bundle)
        .arg("delete")
        .env_remove("CONTAINERD_SHIM_SNP_CONFIG");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::spawn(move || child.wait_with_output().unwrap())
}

fn control(snpd: &Snpd) -> (Link, Value) {
    let link = Link {
        stream: accept(&snpd.listener),
    };
    let (kind, channel, payload) = link.next();
    assert_eq!((kind, channel), (kind::CONTROL, 1));
    (link, serde_json::from_slice(&payload).unwrap())
}

/// Reads a varint field's number and value off the front.
fn number(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = message[0];
        *message = &message[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// exit_status and exited_at.seconds of a DeleteResponse whose pid is zero.
fn killed(output: &Output) -> (u64, u64) {
    let mut message = &output.stdout[..];
    assert_eq!(number(&mut message), 2 << 3);
    let status = number(&mut message);
    assert_eq!(number(&mut message), 3 << 3 | 2);
    number(&mut message);
    assert_eq!(number(&mut message), 1 << 3);
    (status, number(&mut message))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn prints_what_snpd_says() {
    let world = World::new();
    let snpd = world.snpd();
    world.started("pod");
    let (_keeper, _) = snpd.accept();
    let deleting = delete(&world, "pod");
    let (link, request) = control(&snpd);
    let bundle = world.path("bundles/pod");
    assert_eq!(
        request,
        json!({"op": "delete", "address": ADDRESS, "namespace": NAMESPACE, "id": "pod", "bundle": bundle})
    );
    link.send_json(
        kind::CONTROL,
        1,
        &json!({"pid": 300, "exitStatus": 42, "exitedAtSeconds": 5, "exitedAtNanos": 6}),
    );
    let output = deleting.join().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(output.stdout, [8, 0xac, 2, 16, 42, 26, 4, 8, 5, 16, 6]);
}

#[test]
fn asks_again_when_snpd_goes_meanwhile() {
    let world = World::new();
    let snpd = world.snpd();
    world.started("pod");
    let (_keeper, _) = snpd.accept();
    let deleting = delete(&world, "pod");
    drop(control(&snpd));
    let (link, _) = control(&snpd);
    link.send_json(
        kind::CONTROL,
        1,
        &json!({"pid": 0, "exitStatus": 137, "exitedAtSeconds": 0, "exitedAtNanos": 0}),
    );
    let (status, seconds) = killed(&deleting.join().unwrap());
    assert!(status == 137 && seconds.abs_diff(now()) < 60);
}

#[test]
fn passes_a_failure_on_as_a_warning() {
    let world = World::new();
    let snpd = world.snpd();
    world.started("pod");
    let (_keeper, _) = snpd.accept();
    let deleting = delete(&world, "pod");
    let (link, _) = control(&snpd);
    link.send_json(kind::CONTROL, 1, &json!({"error": "the tap is busy"}));
    let output = deleting.join().unwrap();
    assert_eq!((output.status.code(), killed(&output).0), (Some(0), 137));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "pod: the tap is busy\n");
}

#[test]
fn answers_without_snpd_and_removes_a_dead_keepers_socket() {
    let world = World::new();
    let (snpd, link, hello, _containerd) = world.attached("pod");
    let pid = i32::try_from(hello["pid"].as_i64().unwrap()).unwrap();
    kill(pid, libc::SIGKILL);
    wait_gone(pid);
    drop((snpd, link));
    world.install_snpd("echo x >> \"$2/attempts\"");
    let output = delete(&world, "pod").join().unwrap();
    let (status, seconds) = killed(&output);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(status == 137 && seconds.abs_diff(now()) < 60);
    assert!(!fs::exists(hello["socket"].as_str().unwrap()).unwrap());
    assert!(
        fs::read_to_string(world.state().join("attempts"))
            .unwrap()
            .lines()
            .count()
            > 1
    );
}

#[test]
fn needs_id_and_namespace() {
    let world = World::new();
    let output = std::process::Command::new(world.program())
        .args(["-id", "x", "delete"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("-namespace"));
}
