//! The answer to one request, and how it is told.

use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// Reasons that a sentence names; more are counted.
const REASONS_TOLD_MAX: usize = 4;
/// Characters of a value in a sentence.
const VALUE_TOLD_MAX: usize = 200;

/// What the policy says of one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    pub allowed: bool,
    /// The value of `<Name>_reasons`, when the request is denied and the policy defines it.
    pub reasons: Vec<Value>,
    /// What the policy printed.
    pub prints: Vec<String>,
    /// Why there is no answer of the policy's: it failed, took too long, or has no such rule. The request is denied then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A reason, read from a policy's own form.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason<'a> {
    pub path: &'a str,
    pub expected: Option<&'a Value>,
    pub got: Option<&'a Value>,
}

impl<'a> Reason<'a> {
    /// An object with a `path`, or nothing.
    pub fn read(value: &'a Value) -> Option<Self> {
        Some(Self {
            path: value.get("path")?.as_str()?,
            expected: value.get("expected"),
            got: value.get("got"),
        })
    }
}

impl Decision {
    pub(crate) fn failed(failure: impl Into<String>) -> Self {
        Self {
            allowed: false,
            reasons: Vec::new(),
            prints: Vec::new(),
            failure: Some(failure.into()),
        }
    }

    /// One sentence for a denied request of that name.
    pub fn sentence(&self, name: &str) -> String {
        let mut text = format!("the pod's policy denies {name}");
        let mut told = self.reasons.iter().filter_map(Reason::read).peekable();
        if told.peek().is_none() {
            if let Some(failure) = &self.failure {
                let _ = write!(text, ": {failure}");
            }
            return text;
        }
        for (number, reason) in told.by_ref().take(REASONS_TOLD_MAX).enumerate() {
            text.push_str(if number == 0 { ": " } else { "; " });
            text.push_str(&shortened(reason.path));
            let expected = reason.expected.map(|value| format!("expected {}", shown(value)));
            let got = reason.got.map(|value| format!("got {}", shown(value)));
            let parts: Vec<String> = expected.into_iter().chain(got).collect();
            if !parts.is_empty() {
                let _ = write!(text, ": {}", parts.join(", "));
            }
        }
        match told.count() {
            0 => {}
            more => {
                let _ = write!(text, "; and {more} more");
            }
        }
        text
    }
}

/// A value as JSON, on one line and not longer than a line.
fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(VALUE_TOLD_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn denied(reasons: Vec<Value>, failure: Option<&str>) -> Decision {
        Decision {
            reasons,
            ..Decision::failed(failure.unwrap_or_default())
        }
    }

    #[test]
    fn a_sentence_names_path_expected_and_got() {
        let reason = json!({"path": "OCI.Process.Args[1]", "expected": "a", "got": "b", "rule": "args"});
        assert_eq!(
            denied(vec![reason], None).sentence("CreateContainerRequest"),
            "the pod's policy denies CreateContainerRequest: OCI.Process.Args[1]: expected \"a\", got \"b\""
        );
    }

    #[test]
    fn a_sentence_is_bounded() {
        let reasons = (0..9)
            .map(|n| json!({"path": format!("p{n}"), "got": "x".repeat(9000)}))
            .collect();
        let text = denied(reasons, None).sentence("ExecProcessRequest");
        assert!(text.ends_with("; and 5 more"), "{text}");
        assert!(text.len() < 1200, "{}", text.len());
    }

    #[test]
    fn without_reasons_the_failure_is_told() {
        let text = denied(vec![json!("no object")], Some("it took too long")).sentence("CopyFileRequest");
        assert_eq!(text, "the pod's policy denies CopyFileRequest: it took too long");
    }
}
