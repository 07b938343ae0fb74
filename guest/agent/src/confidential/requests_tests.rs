use super::*;
use crate::proto::extensions::{Change, Link};
use crate::proto::types::{Interface, IpAddress};

fn seen(service: &str, method: &str, message: &impl Message) -> (&'static str, Value) {
    let request = Request {
        service: service.into(),
        method: method.into(),
        payload: message.encode_to_vec(),
        ..Request::default()
    };
    input(&request).unwrap().unwrap()
}

/// Methods of a service, from the generated descriptors' source: nothing that the agent serves may be unknown here.
fn methods(proto: &str, service: &str) -> Vec<String> {
    let start = proto.find(&format!("service {service} {{")).unwrap();
    let body = &proto[start..start + proto[start..].find("\n}").unwrap()];
    body.lines()
        .filter_map(|line| Some(line.trim().strip_prefix("rpc ")?.split_once('(')?.0.to_string()))
        .collect()
}

#[test]
fn every_method_has_a_rule() {
    let agent = include_str!("../../../../proto/agent/agent.proto");
    let own = include_str!("../../../../proto/agent/extensions.proto");
    for (proto, service, full) in [
        (agent, "AgentService", AGENT),
        (own, "Files", FILES),
        (own, "Damage", DAMAGE),
    ] {
        let methods = methods(proto, service);
        assert!(!methods.is_empty());
        for method in methods {
            let known = REQUESTS
                .iter()
                .any(|(service, name, ..)| *service == full && *name == method);
            assert!(known, "{full}.{method}");
        }
    }
}

#[test]
fn a_container_is_seen_as_kata_s_agent_sees_it() {
    let request = CreateContainerRequest {
        container_id: "web".into(),
        storages: vec![Storage {
            driver: "blk".into(),
            options: vec!["ro".into()],
            ..Storage::default()
        }],
        oci: Some(Spec {
            version: "1.1.0".into(),
            process: Some(Process {
                args: vec!["/app".into()],
                oom_score_adj: -998,
                user: Some(User {
                    uid: 1000,
                    additional_gids: vec![10],
                    ..User::default()
                }),
                ..Process::default()
            }),
            mounts: vec![Mount {
                destination: "/proc".into(),
                r#type: "proc".into(),
                ..Mount::default()
            }],
            ..Spec::default()
        }),
        ..CreateContainerRequest::default()
    };
    let (rule, value) = seen(AGENT, "CreateContainer", &request);
    assert_eq!(rule, "CreateContainerRequest");
    assert_eq!(value["container_id"], "web");
    assert_eq!(value["string_user"], Value::Null);
    assert_eq!(value["devices"], json!([]));
    assert_eq!(
        value["storages"],
        json!([{"driver": "blk", "driver_options": [], "source": "", "fstype": "", "options": ["ro"], "mount_point": "", "fs_group": null, "shared": false}])
    );
    assert_eq!(
        value["OCI"]["Process"],
        json!({
            "Terminal": false, "ConsoleSize": null, "Args": ["/app"], "Env": [], "Cwd": "", "Capabilities": null, "Rlimits": [],
            "User": {"UID": 1000, "GID": 0, "AdditionalGids": [10], "Username": ""},
            "NoNewPrivileges": false, "ApparmorProfile": "", "OOMScoreAdj": -998, "SelinuxLabel": ""
        })
    );
    assert_eq!(
        value["OCI"]["Mounts"],
        json!([{"destination": "/proc", "source": "", "type_": "proc", "options": []}])
    );
    assert_eq!(value["OCI"]["Linux"], Value::Null);
    assert_eq!(value["OCI"]["Annotations"], json!({}));
}

#[test]
fn an_interface_is_seen_as_kata_s_agent_sees_it() {
    let request = UpdateInterfaceRequest {
        interface: Some(Interface {
            name: "eth0".into(),
            ip_addresses: vec![IpAddress {
                address: "10.0.0.2".into(),
                mask: "24".into(),
                family: 0,
            }],
            mtu: 1500,
            hw_addr: "02:00:00:00:00:01".into(),
            ..Interface::default()
        }),
    };
    let expected = json!({"interface": {
        "device": "", "name": "eth0", "IPAddresses": [{"family": 0, "address": "10.0.0.2", "mask": "24"}],
        "mtu": 1500, "hwAddr": "02:00:00:00:00:01", "devicePath": "", "type_": "", "raw_flags": 0
    }});
    assert_eq!(
        seen(AGENT, "UpdateInterface", &request),
        ("UpdateInterfaceRequest", expected)
    );
}

#[test]
fn contents_of_files_and_streams_are_left_out() {
    let request = CopyFileRequest {
        path: "/a".into(),
        data: vec![1; 9],
        file_size: 9,
        ..CopyFileRequest::default()
    };
    let (_, value) = seen(AGENT, "CopyFile", &request);
    assert_eq!((&value["data"], &value["file_size"]), (&json!([]), &json!(9)));
    let request = WriteStreamRequest {
        container_id: "a".into(),
        exec_id: "b".into(),
        data: vec![1],
    };
    let expected = json!({"container_id": "a", "exec_id": "b", "data": []});
    assert_eq!(seen(AGENT, "WriteStdin", &request), ("WriteStreamRequest", expected));
}

#[test]
fn bytes_are_numbers_and_both_outputs_have_one_rule() {
    let request = ReseedRandomDevRequest { data: vec![1, 255] };
    assert_eq!(seen(AGENT, "ReseedRandomDev", &request).1, json!({"data": [1, 255]}));
    for method in ["ReadStdout", "ReadStderr"] {
        let (rule, value) = seen(AGENT, method, &ReadStreamRequest::default());
        assert_eq!(rule, "ReadStreamRequest");
        assert_eq!(value, json!({"container_id": "", "exec_id": "", "len": 0}));
    }
}

#[test]
fn changes_of_volumes_say_what_they_are() {
    let request = ChangeRequest {
        volume: "/run/kata-containers/volumes/x".into(),
        changes: vec![Change {
            path: b"..data".to_vec(),
            what: Some(What::Link(Link {
                target: b"..1".to_vec(),
                ..Link::default()
            })),
        }],
    };
    let expected = json!({
        "volume": "/run/kata-containers/volumes/x",
        "changes": [{"path": "..data", "what": "link", "target": "..1"}]
    });
    assert_eq!(seen(FILES, "Change", &request), ("ChangeRequest", expected));
}

#[test]
fn a_malformed_message_is_named_and_an_unknown_method_has_no_rule() {
    let mut request = Request {
        service: AGENT.into(),
        method: "ExecProcess".into(),
        payload: vec![0xff],
        ..Request::default()
    };
    assert!(input(&request)
        .unwrap_err()
        .text
        .starts_with("ExecProcess has a malformed message"));
    request.service = FILES.into();
    assert!(input(&request).unwrap().is_none());
}

#[test]
fn a_choice_is_seen_as_kata_s_agent_sees_it() {
    let call = LinuxSyscall {
        names: vec!["mount".into()],
        errno_ret: Some(linux_syscall::ErrnoRet::Errnoret(1)),
        ..LinuxSyscall::default()
    };
    let expected = json!({"Names": ["mount"], "Action": "", "Args": [], "ErrnoRet": {"errnoret": 1}});
    assert_eq!(described(&call).unwrap(), expected);
    assert_eq!(described(&LinuxSyscall::default()).unwrap()["ErrnoRet"], Value::Null);
}

/// The host explains denials by its own view of the same requests: the file has both sides' (`test/agent/request-json.test.ts`).
#[test]
fn the_host_sees_requests_as_the_guest_does() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../../../proto/agent/policy-inputs.json")).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = |name: &str| case[name].as_str().unwrap().to_string();
        let digits = text("payload");
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let request = Request {
            service: text("service"),
            method: text("method"),
            payload: (0..digits.len()).step_by(2).map(byte).collect(),
            ..Request::default()
        };
        let (rule, value) = input(&request).unwrap().unwrap();
        assert_eq!(
            (rule, &value),
            (text("rule").as_str(), &case["input"]),
            "{}",
            request.method
        );
    }
}
