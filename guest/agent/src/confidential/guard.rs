//! Lets requests pass, or not.

use super::requests;
use crate::error::{Code, Error, Result};
use crate::ttrpc::Request;
use serde_json::{json, Value};
use snp_policy::{Limits, Policy};
use std::cell::RefCell;

/// What a guest that refuses its host's requests answers all the same: what it is, and its end.
const ALWAYS: [&str; 2] = ["GetGuestDetails", "DestroySandbox"];
const FIXED: &str = "the pod's policy came with its initdata and stays as it is";

enum State {
    /// An ordinary guest without a policy.
    Open,
    Refused(String),
    InForce {
        policy: Box<Policy>,
        /// It came with the initdata.
        fixed: bool,
    },
}

/// The one place that all requests and streams of the host come by.
pub struct Guard(RefCell<State>);

/// Which of a process's streams the host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    pub input: bool,
    pub output: bool,
}

impl Guard {
    /// Everything passes.
    pub fn open() -> Self {
        Self(RefCell::new(State::Open))
    }

    /// Nothing but the guest's details and its end passes, for that reason.
    pub fn refuse(reason: String) -> Self {
        Self(RefCell::new(State::Refused(reason)))
    }

    /// What the policy allows passes; no request changes the policy.
    pub fn in_force(policy: Policy) -> Self {
        let policy = Box::new(policy);
        Self(RefCell::new(State::InForce { policy, fixed: true }))
    }

    /// Whether a request may be done. Health is asked before anything else and is told to everybody.
    pub fn admit(&self, request: &Request) -> Result<()> {
        if matches!(*self.0.borrow(), State::Open) || request.service == requests::HEALTH {
            return Ok(());
        }
        if let State::Refused(reason) = &*self.0.borrow() {
            let always = request.service == requests::AGENT && ALWAYS.contains(&request.method.as_str());
            return if always { Ok(()) } else { Err(denied(reason)) };
        }
        let Some((name, input)) = requests::input(request)? else {
            let method = format!("{}.{}", request.service, request.method);
            return Err(denied(format!(
                "no policy can allow {method}: this agent does not know it"
            )));
        };
        self.allows(name, || input)
    }

    /// Whether the host may do what the rule `name` is about.
    pub fn allows(&self, name: &str, input: impl FnOnce() -> Value) -> Result<()> {
        match &mut *self.0.borrow_mut() {
            State::Open => Ok(()),
            State::Refused(reason) => Err(denied(reason.as_str())),
            State::InForce { policy, .. } => {
                let decision = policy.decide(name, input());
                for line in &decision.prints {
                    crate::debug!("policy: {line}");
                }
                if decision.allowed {
                    return Ok(());
                }
                Err(denied(decision.sentence(name)))
            }
        }
    }

    /// The streams of a process that is being made: the same rules as for requests that read and write.
    pub fn streams(&self, container: &str, exec: &str) -> Allowed {
        let may = |name: &str, rest: (&str, Value)| {
            let input = || json!({ "container_id": container, "exec_id": exec, rest.0: rest.1 });
            let allowed = self.allows(name, input);
            if let Err(error) = &allowed {
                crate::info!("container {container:?}: {error}");
            }
            allowed.is_ok()
        };
        Allowed {
            input: may("WriteStreamRequest", ("data", json!([]))),
            output: may("ReadStreamRequest", ("len", json!(0))),
        }
    }

    /// SetPolicy, once `admit` let it pass: a policy from the host, for guests that are not confidential.
    pub fn set_policy(&self, text: &str) -> Result<()> {
        if matches!(*self.0.borrow(), State::InForce { fixed: true, .. }) {
            return Err(denied(FIXED));
        }
        let policy = Policy::compile(text, Limits::default());
        let policy = policy.map_err(|error| Error::invalid(format!("the policy can't be used: {error}")))?;
        let policy = Box::new(policy);
        *self.0.borrow_mut() = State::InForce { policy, fixed: false };
        Ok(())
    }
}

fn denied(text: impl Into<String>) -> Error {
    Error::new(Code::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> Request {
        Request {
            service: requests::AGENT.into(),
            method: method.into(),
            ..Request::default()
        }
    }

    fn guard(rules: &str) -> Guard {
        let text = format!("package agent_policy\n{rules}");
        Guard::in_force(Policy::compile(&text, Limits::default()).unwrap())
    }

    #[test]
    fn an_ordinary_guest_lets_everything_pass() {
        let guard = Guard::open();
        assert!(guard.admit(&request("ExecProcess")).is_ok());
        assert!(guard.allows("Anything", || unreachable!("it is not made")).is_ok());
    }

    #[test]
    fn a_guest_without_initdata_tells_why_and_can_be_ended() {
        let guard = Guard::refuse("no initdata".into());
        for method in ALWAYS {
            assert!(guard.admit(&request(method)).is_ok(), "{method}");
        }
        for method in ["CreateContainer", "SetPolicy", "GetOOMEvent", "Unknown"] {
            let error = guard.admit(&request(method)).unwrap_err();
            assert_eq!(
                (error.code, error.text.as_str()),
                (Code::PermissionDenied, "no initdata")
            );
        }
    }

    #[test]
    fn what_the_agent_does_not_know_is_denied() {
        let error = guard("").admit(&request("NewMethod")).unwrap_err();
        assert_eq!(error.code, Code::PermissionDenied);
    }

    #[test]
    fn streams_have_the_rules_of_requests() {
        let allowed = guard("ReadStreamRequest if input.container_id == \"web\"").streams("web", "web");
        assert_eq!((allowed.input, allowed.output), (false, true));
    }

    #[test]
    fn a_policy_from_the_initdata_stays() {
        let guard = guard("SetPolicyRequest := true");
        assert!(guard.admit(&request("SetPolicy")).is_ok());
        let error = guard.set_policy("package agent_policy").unwrap_err();
        assert_eq!(error, denied(FIXED));
    }

    #[test]
    fn a_policy_from_the_host_decides_on_the_next_one() {
        let guard = Guard::open();
        guard
            .set_policy("package agent_policy\nSetPolicyRequest := true")
            .unwrap();
        assert!(guard.admit(&request("ExecProcess")).is_err());
        assert!(guard.admit(&request("SetPolicy")).is_ok());
        guard.set_policy("package agent_policy").unwrap();
        assert!(guard.admit(&request("SetPolicy")).is_err());
    }
}
