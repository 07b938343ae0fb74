//! Functions that call themselves. Rego forbids them; the interpreter does not notice and would use up its stack.

use regorus::unstable::{Rule, RuleHead};
use regorus::Engine;
use std::collections::{BTreeMap, BTreeSet};

const PACKAGE: &str = "data.agent_policy.";

/// The line and name of a function that, directly or through others, calls itself.
pub(crate) fn circle(engine: &mut Engine) -> Option<(u32, String)> {
    let mut functions: BTreeMap<String, (u32, BTreeSet<String>)> = BTreeMap::new();
    for module in engine.get_modules() {
        for rule in &module.policy {
            let Rule::Spec {
                span,
                head: RuleHead::Func { refr, .. },
                ..
            } = rule.as_ref()
            else {
                continue;
            };
            let name = refr.span().text();
            let known = functions.entry(plain(name).to_string());
            let (_, calls) = known.or_insert((span.line, BTreeSet::new()));
            let body = span.text().trim_start().strip_prefix(name);
            calls.extend(called(body.unwrap_or(span.text())));
        }
    }
    let found = functions.keys().find(|name| reaches(&functions, name));
    found.map(|name| (functions[name].0, name.clone()))
}

/// Whether `from` calls itself in the end.
fn reaches(functions: &BTreeMap<String, (u32, BTreeSet<String>)>, from: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(name) = next.pop() {
        for called in functions.get(name).iter().flat_map(|(_, calls)| calls) {
            if called == from {
                return true;
            }
            if seen.insert(called) {
                next.push(called);
            }
        }
    }
    false
}

fn plain(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap_or(name)
}

/// Names with an opening parenthesis behind them, outside of strings and comments.
fn called(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '`' => rest[1..].find('`').map_or(rest.len(), |at| at + 2),
            '"' => string_length(rest),
            c if c.is_alphanumeric() || c == '_' => {
                let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
                let word = word.unwrap_or(rest.len());
                if rest[word..].trim_start_matches([' ', '\t']).starts_with('(') {
                    names.push(plain(&rest[..word]).to_string());
                }
                word
            }
            c => c.len_utf8(),
        };
        rest = &rest[length..];
    }
    names
}

/// How long the string is that begins with this quote.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_outside_of_strings_and_comments() {
        let text = "a(x) \"b(\\\" c(\" `d(` # e(\n f.g(1); data.agent_policy.h (2); i [j(k)]";
        assert_eq!(called(text), ["a", "f.g", "h", "j"]);
    }
}
