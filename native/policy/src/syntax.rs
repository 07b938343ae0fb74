//! What is wrong with a policy's text, and where.

use serde::Serialize;
use std::fmt;

/// How regorus names the text in its messages.
pub(crate) const SOURCE: &str = "policy.rego";

/// A policy that can't be used. Lines and columns count from 1; there are none when the whole text is at fault (too large, say).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompileError {
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

impl CompileError {
    pub(crate) fn whole(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: None,
            column: None,
        }
    }

    /// From regorus' message, which draws the line: `--> FILE:LINE:COLUMN`, the text, and at last `error: MESSAGE`.
    pub(crate) fn from_message(text: &str) -> Self {
        let place = text.lines().find_map(|line| {
            let (line, column) = line.trim_start().strip_prefix("--> ")?.rsplit_once(':')?;
            let line = line.rsplit_once(':')?.1;
            Some((line.parse().ok()?, column.trim().parse().ok()?))
        });
        Self {
            message: short_message(text),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
        }
    }
}

/// The one sentence of a message of regorus.
pub(crate) fn short_message(text: &str) -> String {
    let after = text.lines().find_map(|line| line.strip_prefix("error: "));
    after.unwrap_or(text).trim().to_string()
}

impl fmt::Display for CompileError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(to, "line {line}, column {column}: ")?;
        }
        to.write_str(&self.message)
    }
}

impl std::error::Error for CompileError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_taken_from_a_drawn_message() {
        let text = "\n--> policy.rego:3:17\n  |\n3 | x := {\n  |      ^\nerror: unexpected end";
        let error = CompileError::from_message(text);
        assert_eq!((error.line, error.column), (Some(3), Some(17)));
        assert_eq!(error.to_string(), "line 3, column 17: unexpected end");
    }

    #[test]
    fn a_message_without_a_place_stays() {
        let error = CompileError::from_message("policy.rego exceeds maximum allowed line count 2");
        assert_eq!(error.line, None);
        assert_eq!(error.to_string(), "policy.rego exceeds maximum allowed line count 2");
    }
}
