//! The engine for policies of pods: Rego in the package `agent_policy`, as Kata's agent evaluates it. The guest agent decides with it; the
//! host explains with it, from the same text and the same request.

mod calls;
mod decision;
mod engine;
mod syntax;

pub use decision::{Decision, Reason};
pub use engine::{Limits, Policy, INPUT_BYTES_MAX};
pub use syntax::CompileError;
