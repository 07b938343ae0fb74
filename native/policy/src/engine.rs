//! A compiled policy: rules of the package `agent_policy`, one for each kind of request, and the state that they may keep
//! (`data.pstate`), as in Kata's agent.

use crate::calls;
use crate::decision::Decision;
use crate::syntax::{short_message, CompileError, SOURCE};
use json_patch::Patch;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig};
use serde::Deserialize;
use serde_json::{json, Value};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

/// The longest policy, as long as what carries it in an initdata.
const POLICY_BYTES_MAX: usize = 4 << 20;
/// Environment variables of images are long.
const LINE_CHARACTERS_MAX: u32 = 64 << 10;
const LINES_MAX: usize = 200_000;
/// The longest request, as JSON, that the program takes: what fits into a frame of the agent's protocol.
pub const INPUT_BYTES_MAX: usize = 4 << 20;
/// Lines and reasons that a decision keeps.
const PRINTS_MAX: usize = 1000;
const REASONS_MAX: usize = 1000;
/// The state that a policy may gather, as JSON.
const STATE_BYTES_MAX: usize = 4 << 20;
/// Steps between two looks at the clock.
const STEPS_BETWEEN_CHECKS: u32 = 256;

/// How long one evaluation may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub evaluation: Duration,
}

impl Default for Limits {
    /// Ten times what a large policy takes in an emulated processor.
    fn default() -> Self {
        Self {
            evaluation: Duration::from_secs(5),
        }
    }
}

/// A policy in force.
pub struct Policy {
    engine: Engine,
    state: Value,
}

/// The object that a rule may give in place of a boolean: patches (RFC 6902) of `data`, where the policy's state is `/pstate`.
#[derive(Deserialize)]
struct Verdict {
    allowed: bool,
    #[serde(default)]
    ops: Option<Patch>,
}

impl Policy {
    /// Reads a policy's text. It is Rego version 1; a text that is none but one of version 0, as policies of older releases of Kata are, is taken as that.
    ///
    /// # Errors
    /// What is wrong with the text and where, by version 1.
    pub fn compile(text: &str, limits: Limits) -> Result<Self, CompileError> {
        let version_1 = Self::compile_as(text, limits, false);
        match version_1 {
            Err(error) => Self::compile_as(text, limits, true).map_err(|_| error),
            compiled => compiled,
        }
    }

    fn compile_as(text: &str, limits: Limits, version_0: bool) -> Result<Self, CompileError> {
        let mut engine = Engine::new();
        engine.set_rego_v0(version_0);
        engine.set_strict_builtin_errors(false);
        engine.set_gather_prints(true);
        if let (Some(max_col), Some(max_file_bytes), Some(max_lines)) = (
            NonZeroU32::new(LINE_CHARACTERS_MAX),
            NonZeroUsize::new(POLICY_BYTES_MAX),
            NonZeroUsize::new(LINES_MAX),
        ) {
            engine.set_policy_length_config(PolicyLengthConfig {
                max_col,
                max_file_bytes,
                max_lines,
            });
        }
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: limits.evaluation,
            check_interval: NonZeroU32::new(STEPS_BETWEEN_CHECKS).unwrap_or(NonZeroU32::MIN),
        });
        let added = engine.add_policy(SOURCE.into(), text.into());
        let package = added.map_err(|error| CompileError::from_message(&error.to_string()))?;
        if package != "data.agent_policy" {
            let package = package.trim_start_matches("data.");
            return Err(CompileError::whole(format!(
                "the policy's package is {package:?}: it has to be agent_policy"
            )));
        }
        if let Some((line, name)) = calls::circle(&mut engine) {
            return Err(CompileError {
                line: Some(line),
                ..CompileError::whole(format!("the function {name} calls itself"))
            });
        }
        let mut policy = Self {
            engine,
            state: json!({ "pstate": {} }),
        };
        policy.put_state().map_err(CompileError::whole)?;
        // The rules are analysed before the first query.
        let prepared = policy.engine.eval_query("true".into(), false);
        prepared.map_err(|error| CompileError::from_message(&error.to_string()))?;
        Ok(policy)
    }

    /// Whether the request `name` with the fields `input` is allowed. A denial has no effect on the policy's state.
    pub fn decide(&mut self, name: &str, input: Value) -> Decision {
        self.engine.set_input(regorus::Value::from(input));
        let mut decision = match self.evaluate(name) {
            Ok(None) => Decision::failed("it has no rule for that"),
            Ok(Some(value)) => self.judge(value),
            Err(failure) => Decision::failed(failure),
        };
        if !decision.allowed {
            if let Ok(Some(Value::Array(mut reasons))) = self.evaluate(&format!("{name}_reasons")) {
                reasons.truncate(REASONS_MAX);
                decision.reasons = reasons;
            }
        }
        decision.prints = self.engine.take_prints().unwrap_or_default();
        decision.prints.truncate(PRINTS_MAX);
        self.engine.set_input(regorus::Value::Undefined);
        decision
    }

    /// The value of a rule; none when there is no such rule, `null` when it is undefined.
    fn evaluate(&mut self, rule: &str) -> Result<Option<Value>, String> {
        let path = format!("data.agent_policy.{rule}");
        let plain = rule.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !plain || !self.engine.has_declared_rule_rooted_at(SOURCE, rule).unwrap_or(false) {
            return Ok(None);
        }
        let value = self.engine.eval_rule(path);
        let value = value.map_err(|error| self.told(&error.to_string()))?;
        if value == regorus::Value::Undefined {
            return Ok(Some(Value::Null));
        }
        serde_json::to_value(&value)
            .map(Some)
            .map_err(|error| format!("its answer is no JSON: {error}"))
    }

    /// A message of an evaluation that failed, with its place in the policy.
    fn told(&self, text: &str) -> String {
        if text.contains("time limit") {
            return "it took too long".into();
        }
        match CompileError::from_message(text) {
            CompileError {
                line: Some(line),
                message,
                ..
            } => format!("it failed in line {line}: {message}"),
            _ => format!("it failed: {}", short_message(text)),
        }
    }

    fn judge(&mut self, value: Value) -> Decision {
        let failure = match value {
            Value::Bool(true) => None,
            Value::Bool(false) | Value::Null => Some(String::new()),
            Value::Object(_) => match serde_json::from_value::<Verdict>(value) {
                Ok(verdict) if verdict.allowed => verdict.ops.and_then(|ops| self.apply(&ops).err()),
                Ok(_) => Some(String::new()),
                Err(error) => Some(format!("its answer is not as it must be: {error}")),
            },
            other => Some(format!("its answer is {other}, and neither a boolean nor an object")),
        };
        Decision {
            allowed: failure.is_none(),
            failure: failure.filter(|text| !text.is_empty()),
            ..Decision::failed("")
        }
    }

    /// Changes the policy's state, wholly or not at all.
    fn apply(&mut self, ops: &Patch) -> Result<(), String> {
        let mut state = self.state.clone();
        json_patch::patch(&mut state, ops).map_err(|error| format!("a change of its state does not apply: {error}"))?;
        if state.to_string().len() > STATE_BYTES_MAX {
            return Err(format!("its state is longer than {STATE_BYTES_MAX} bytes"));
        }
        let before = std::mem::replace(&mut self.state, state);
        self.put_state().inspect_err(|_| {
            self.state = before;
            let _ = self.put_state();
        })
    }

    fn put_state(&mut self) -> Result<(), String> {
        self.engine.clear_data();
        let added = self.engine.add_data(regorus::Value::from(self.state.clone()));
        added.map_err(|error| format!("its state can't be kept: {error}"))
    }
}
