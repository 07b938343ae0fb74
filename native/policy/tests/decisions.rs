//! What a policy decides, and what becomes of one that is wrong.

use serde_json::{json, Value};
use snp_policy::{CompileError, Decision, Limits, Policy};
use std::time::Duration;

fn compile(text: &str) -> Result<Policy, CompileError> {
    Policy::compile(&format!("package agent_policy\n{text}"), Limits::default())
}

fn decide(text: &str, name: &str, input: Value) -> Decision {
    compile(text).expect("a policy").decide(name, input)
}

#[test]
fn a_request_is_allowed_by_a_rule_that_is_true_and_by_nothing_else() {
    let text = "default A := false
A if input.path == \"/ok\"
B := 1
C := \"true\"
D := {\"allowed\": false}
E := {\"answer\": true}
F if input.missing.field
default G := true";
    for (name, path, allowed) in [
        ("A", "/ok", true),
        ("A", "/no", false),
        ("B", "/ok", false),
        ("C", "/ok", false),
        ("D", "/ok", false),
        ("E", "/ok", false),
        ("F", "/ok", false),
        ("G", "/ok", true),
        ("H", "/ok", false),
    ] {
        let decision = decide(text, name, json!({ "path": path }));
        assert_eq!(decision.allowed, allowed, "{name} {path}: {decision:?}");
    }
}

#[test]
fn a_request_without_a_rule_says_so() {
    let decision = decide("A := true", "B", json!({}));
    assert_eq!(
        decision.sentence("B"),
        "the pod's policy denies B: it has no rule for that"
    );
}

#[test]
fn a_name_that_is_no_plain_word_has_no_rule() {
    for name in ["A.b", "A\"]", "", "A B"] {
        assert!(
            !decide("A := true\ndefault B := true", name, json!({})).allowed,
            "{name:?}"
        );
    }
}

#[test]
fn patches_change_the_state_of_later_requests() {
    let text = "default Create := {\"allowed\": false}
Create := {\"allowed\": true, \"ops\": ops} if {
    count(object.get(data.pstate, \"names\", [])) < 2
    ops := array.concat(first, [{\"op\": \"add\", \"path\": \"/pstate/names/-\", \"value\": input.name}])
}
first := [{\"op\": \"add\", \"path\": \"/pstate/names\", \"value\": []}] if not data.pstate.names
first := [] if data.pstate.names
Known if input.name in data.pstate.names";
    let mut policy = compile(text).expect("a policy");
    assert!(!policy.decide("Known", json!({"name": "a"})).allowed);
    assert!(policy.decide("Create", json!({"name": "a"})).allowed);
    assert!(policy.decide("Create", json!({"name": "b"})).allowed);
    assert!(!policy.decide("Create", json!({"name": "c"})).allowed);
    assert!(policy.decide("Known", json!({"name": "a"})).allowed);
    assert!(!policy.decide("Known", json!({"name": "c"})).allowed);
}

#[test]
fn a_patch_that_does_not_apply_denies_and_changes_nothing() {
    let text = "A := {\"allowed\": true, \"ops\": [
    {\"op\": \"add\", \"path\": \"/pstate/a\", \"value\": 1},
    {\"op\": \"remove\", \"path\": \"/pstate/missing\"},
]}
B if not data.pstate.a";
    let mut policy = compile(text).expect("a policy");
    let decision = policy.decide("A", json!({}));
    assert!(!decision.allowed);
    assert!(
        decision
            .failure
            .as_ref()
            .is_some_and(|text| text.contains("a change of its state")),
        "{decision:?}"
    );
    assert!(policy.decide("B", json!({})).allowed);
}

#[test]
fn the_state_is_bounded() {
    let text = "A := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/a\", \"value\": input.a}]}";
    let decision = decide(text, "A", json!({"a": "x".repeat(5 << 20)}));
    assert!(!decision.allowed);
}

#[test]
fn reasons_come_with_a_denial_only() {
    let text = "A if count(A_reasons) == 0
A_reasons contains {\"path\": \"n\", \"expected\": 1, \"got\": input.n, \"rule\": \"n\", \"container\": \"web\"} if input.n != 1";
    let allowed = decide(text, "A", json!({"n": 1}));
    assert!(allowed.allowed && allowed.reasons.is_empty());
    let denied = decide(text, "A", json!({"n": 2}));
    assert_eq!(
        denied.reasons,
        [json!({"path": "n", "expected": 1, "got": 2, "rule": "n", "container": "web"})]
    );
    assert_eq!(denied.sentence("A"), "the pod's policy denies A: n: expected 1, got 2");
}

#[test]
fn an_error_of_a_policy_is_told_with_its_line() {
    let text = "A := 1 if input.a\nA := 2 if input.b\nB if input.a";
    let decision = decide(text, "A", json!({"a": true, "b": true}));
    assert!(!decision.allowed);
    let failure = decision.failure.expect("a failure");
    assert!(failure.starts_with("it failed in line 3"), "{failure}");
}

#[test]
fn regular_expressions_are_as_in_opa() {
    for (pattern, text) in [
        (r"^\w+=\d\.?\b$", "a=1"),
        ("(?i)^ABC$", "abc"),
        (r"^\p{L}$", "x"),
        (r"^[[:alpha:]]\s$", "x "),
    ] {
        let rule = format!("A if regex.match(`{pattern}`, input.text)");
        assert!(decide(&rule, "A", json!({ "text": text })).allowed, "{pattern}");
    }
}

#[test]
fn what_a_policy_prints_is_kept() {
    let decision = decide(
        "A if {\n print(\"n is\", input.n)\n input.n == 1\n}",
        "A",
        json!({"n": 3}),
    );
    assert_eq!(decision.prints.len(), 1);
    assert!(decision.prints[0].ends_with("n is 3"), "{:?}", decision.prints);
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let error = compile("A := true\nB if { input.a = = 1 }").err().expect("an error");
    assert_eq!((error.line, error.column), (Some(3), Some(18)), "{error}");
}

#[test]
fn what_only_the_analysis_finds_is_an_error_too() {
    let error = compile("A := true\nB if unknown == 1").err().expect("an error");
    assert_eq!(error.line, Some(3), "{error}");
}

#[test]
fn a_function_that_there_is_not_denies() {
    let decision = decide("A if no_such_function(1)", "A", json!({}));
    let failure = decision.failure.expect("a failure");
    assert!(
        failure.starts_with("it failed in line 2") && failure.contains("no_such_function"),
        "{failure}"
    );
}

#[test]
fn a_circle_of_rules_allows_nothing() {
    let allowed = compile("A if B\nB if A").map(|mut policy| policy.decide("A", json!({})).allowed);
    assert!(!allowed.unwrap_or(false));
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    for text in [
        "f(x) := f(x + 1)\nA if f(1)",
        "f(x) := 1 if x > 1\nf(x) := g(x) if {\n x < 1\n}\ng(x) := [y | y := data.agent_policy.f(x)]\nA if f(1)",
    ] {
        let error = compile(text).err().expect("an error");
        assert_eq!(
            (error.line, error.message.as_str()),
            (Some(2), "the function f calls itself")
        );
    }
    assert!(decide("f(x) := g(x)\ng(x) := x + 1\nA if f(1) == 2", "A", json!({})).allowed);
}

#[test]
fn another_package_is_refused() {
    let error = Policy::compile("package other\nA := true", Limits::default())
        .err()
        .expect("an error");
    assert!(error.message.contains("agent_policy"), "{error}");
}

#[test]
fn policies_of_rego_0_run() {
    let text = "import future.keywords.in\ndefault A = false\nA {\n some x in input.list\n x == 2\n}";
    assert!(decide(text, "A", json!({"list": [1, 2]})).allowed);
    assert!(!decide(text, "A", json!({"list": [1]})).allowed);
}

#[test]
fn an_endless_policy_is_ended() {
    let limits = Limits {
        evaluation: Duration::from_millis(50),
    };
    let text = "package agent_policy\nA if {\n some i in numbers.range(1, 3000)\n some j in numbers.range(1, 3000)\n i + j == 0\n}";
    let mut policy = Policy::compile(text, limits).expect("a policy");
    let decision = policy.decide("A", json!({}));
    assert!(!decision.allowed);
    assert_eq!(decision.failure.as_deref(), Some("it took too long"));
    assert!(!policy.decide("B", json!({})).allowed, "it goes on after that");
}

#[test]
fn a_policy_that_is_too_large_is_refused() {
    let text = format!("# {}\n", "x".repeat(1000)).repeat(5000);
    let error = compile(&text).err().expect("an error");
    assert!(error.message.contains("size"), "{error}");
}

#[test]
fn long_lines_as_images_make_them_are_taken() {
    let text = format!("A if input.env == \"{}\"", "x".repeat(40_000));
    assert!(decide(&text, "A", json!({"env": "x".repeat(40_000)})).allowed);
}
