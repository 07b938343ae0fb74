//! The program: one document in, one out.

use serde_json::{json, Value};
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_snp-policy"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("snp-policy starts");
    // It may refuse its input before it has read all of it.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output().expect("snp-policy ends")
}

fn answer(order: &Value) -> Value {
    let output = run(&[], &order.to_string());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn decisions_come_in_the_order_of_the_requests() {
    let policy = "package agent_policy\nA if input.x == 1\nA_reasons contains {\"path\": \"x\", \"expected\": 1, \"got\": input.x} if input.x != 1";
    let requests =
        json!([{"name": "A", "input": {"x": 1}}, {"name": "A", "input": {"x": 2}}, {"name": "B", "input": {}}]);
    assert_eq!(
        answer(&json!({ "policy": policy, "requests": requests })),
        json!({"decisions": [
            {"allowed": true, "reasons": [], "prints": []},
            {"allowed": false, "reasons": [{"path": "x", "expected": 1, "got": 2}], "prints": []},
            {"allowed": false, "reasons": [], "prints": [], "failure": "it has no rule for that"},
        ]})
    );
}

#[test]
fn a_policy_that_does_not_compile_is_an_answer() {
    let answer = answer(&json!({"policy": "package agent_policy\n\nA := := 1", "requests": []}));
    assert_eq!(answer["error"]["line"], 3);
    assert_eq!(answer["error"]["column"], 6);
    assert!(answer["error"]["message"].is_string());
}

#[test]
fn a_wrong_input_is_named() {
    for (input, expected) in [
        ("{}", "policy"),
        ("not json", "standard input"),
        (r#"{"policy":"package agent_policy","requests":[],"extra":1}"#, "extra"),
        (
            r#"{"policy":"package agent_policy","requests":[{"name":"A"}]}"#,
            "input",
        ),
    ] {
        let output = run(&[], input);
        assert_eq!(output.status.code(), Some(2), "{input}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expected), "{input}: {text}");
    }
    assert_eq!(run(&["--help"], "").status.code(), Some(2));
}

#[test]
fn a_request_beyond_the_limit_is_refused() {
    let order =
        json!({"policy": "package agent_policy", "requests": [{"name": "A", "input": {"x": "x".repeat(5 << 20)}}]});
    let output = run(&[], &order.to_string());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("longer than"));
}

#[test]
fn a_policy_that_takes_all_memory_ends_the_program_alone() {
    let policy = "package agent_policy\nA if count(numbers.range(1, 200000000)) > 0";
    let order = json!({"policy": policy, "requests": [{"name": "A", "input": {}}]});
    let output = run(&[], &order.to_string());
    let denied =
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|answer| answer["decisions"][0]["allowed"] == false);
    assert!(denied || !output.status.success(), "{:?}", output.status);
}
