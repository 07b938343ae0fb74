//! Lets requests pass, or not.

use super::decider::{Decider, Question};
use super::late::{bindable, Binding};
use super::{initdata, requests};
use crate::error::{Code, Context, Error, Result};
use crate::ttrpc::Request;
use serde_json::{json, Value};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// What a guest that refuses its host's requests answers all the same: what it is, and its end.
const ALWAYS: [&str; 2] = ["GetGuestDetails", "DestroySandbox"];
const FIXED: &str = "the pod's policy came with its initdata and stays as it is";
const WAITING: &str = "this guest waits for its pod's policy (BindPolicy), and does nothing before";

enum State {
    /// An ordinary guest without a policy.
    Open,
    Refused(String),
    /// Nothing but the guest's details, its end and a policy passes.
    Waiting(Rc<Binding>),
    /// A policy is being looked at; nothing else passes.
    Binding,
    InForce {
        policy: Decider,
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

/// Who is to be asked.
enum Judge {
    Nobody,
    Policy(Decider),
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

    /// Nothing passes until a policy is bound.
    pub fn waiting(binding: Rc<Binding>) -> Self {
        Self(RefCell::new(State::Waiting(binding)))
    }

    /// What the policy allows passes; no request changes the policy.
    pub fn in_force(policy: Decider) -> Self {
        Self(RefCell::new(State::InForce { policy, fixed: true }))
    }

    /// Whether a request may be done. Health is asked before anything else and is told to everybody.
    pub async fn admit(&self, request: &Arc<Request>) -> Result<()> {
        if request.service == requests::HEALTH {
            return Ok(());
        }
        let always = request.service == requests::AGENT && ALWAYS.contains(&request.method.as_str());
        let binds = request.service == requests::BINDING;
        match &*self.0.borrow() {
            State::Refused(_) | State::Waiting(_) | State::Binding if always => return Ok(()),
            State::Waiting(_) if binds => return Ok(()),
            _ => {}
        }
        let request = request.clone();
        self.ask(|| {
            Box::new(move || {
                let known = requests::input(&request)?;
                known.ok_or_else(|| {
                    let method = format!("{}.{}", request.service, request.method);
                    denied(format!("no policy can allow {method}: this agent does not know it"))
                })
            })
        })
        .await
    }

    /// Whether the host may do what the rule `name` is about.
    pub async fn allows(&self, name: &'static str, input: impl FnOnce() -> Value + Send + 'static) -> Result<()> {
        self.ask(|| Box::new(move || Ok((name, input())))).await
    }

    async fn ask(&self, question: impl FnOnce() -> Question) -> Result<()> {
        match self.judge()? {
            Judge::Nobody => Ok(()),
            Judge::Policy(policy) => policy.ask(question()).await,
        }
    }

    fn judge(&self) -> Result<Judge> {
        match &*self.0.borrow() {
            State::Open => Ok(Judge::Nobody),
            State::Refused(reason) => Err(denied(reason.as_str())),
            State::Waiting(_) | State::Binding => Err(denied(WAITING)),
            State::InForce { policy, .. } => Ok(Judge::Policy(policy.clone())),
        }
    }

    /// The streams of a process that is being made: the same rules as for requests that read and write.
    pub async fn streams(&self, container: &str, exec: &str) -> Allowed {
        Allowed {
            input: self
                .stream("WriteStreamRequest", container, exec, ("data", json!([])))
                .await,
            output: self
                .stream("ReadStreamRequest", container, exec, ("len", json!(0)))
                .await,
        }
    }

    async fn stream(&self, name: &'static str, container: &str, exec: &str, rest: (&'static str, Value)) -> bool {
        let input = json!({ "container_id": container, "exec_id": exec, rest.0: rest.1 });
        let allowed = self.allows(name, move || input).await;
        if let Err(error) = &allowed {
            crate::info!("container {container:?}: {error}");
        }
        allowed.is_ok()
    }

    /// SetPolicy, once `admit` let it pass: a policy from the host, for guests that are not confidential.
    pub async fn set_policy(&self, text: String) -> Result<()> {
        if matches!(*self.0.borrow(), State::InForce { fixed: true, .. }) {
            return Err(denied(FIXED));
        }
        let policy = Decider::start(text).await.context("the policy can't be used")?;
        *self.0.borrow_mut() = State::InForce { policy, fixed: false };
        Ok(())
    }

    /// BindPolicy, once `admit` let it pass: the pod's initdata, for a guest that waits for it. One that can't be bound leaves the guest waiting.
    ///
    /// # Errors
    /// A policy is in force, or being bound; the initdata can't be bound, and why.
    pub async fn bind(&self, gzip: &[u8]) -> Result<()> {
        let binding = match self.0.replace(State::Binding) {
            State::Waiting(binding) => binding,
            other => {
                self.0.replace(other);
                return Err(denied(
                    "this guest does not wait for a policy: what it has stays as it is",
                ));
            }
        };
        let (state, outcome) = match look_at(gzip).await {
            Ok((policy, initdata)) => match binding.set(initdata) {
                Ok(()) => (State::InForce { policy, fixed: true }, Ok(())),
                Err(error) => (State::Refused(error.to_string()), Err(error)),
            },
            Err(error) => (State::Waiting(binding), Err(error)),
        };
        self.0.replace(state);
        outcome.context("the policy can't be bound")
    }
}

async fn look_at(gzip: &[u8]) -> Result<(Decider, initdata::Initdata)> {
    let initdata = initdata::unpacked(gzip)?;
    let policy = Decider::start(bindable(&initdata)?.into()).await?;
    Ok((policy, initdata))
}

fn denied(text: impl Into<String>) -> Error {
    Error::new(Code::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    fn request(method: &str) -> Arc<Request> {
        Arc::new(Request {
            service: requests::AGENT.into(),
            method: method.into(),
            ..Request::default()
        })
    }

    async fn guard(rules: &str) -> Guard {
        let text = format!("package agent_policy\n{rules}");
        Guard::in_force(Decider::start(text).await.unwrap())
    }

    #[test]
    fn an_ordinary_guest_lets_everything_pass() {
        run(async {
            let guard = Guard::open();
            assert!(guard.admit(&request("ExecProcess")).await.is_ok());
            let allowed = guard.allows("Anything", || unreachable!("it is not made"));
            assert!(allowed.await.is_ok());
        });
    }

    #[test]
    fn a_guest_without_initdata_tells_why_and_can_be_ended() {
        run(async {
            let guard = Guard::refuse("no initdata".into());
            for method in ALWAYS {
                assert!(guard.admit(&request(method)).await.is_ok(), "{method}");
            }
            for method in ["CreateContainer", "SetPolicy", "GetOOMEvent", "Unknown"] {
                let error = guard.admit(&request(method)).await.unwrap_err();
                assert_eq!(
                    (error.code, error.text.as_str()),
                    (Code::PermissionDenied, "no initdata")
                );
            }
        });
    }

    #[test]
    fn what_the_agent_does_not_know_is_denied() {
        run(async {
            let error = guard("").await.admit(&request("NewMethod")).await.unwrap_err();
            assert_eq!(error.code, Code::PermissionDenied);
        });
    }

    #[test]
    fn streams_have_the_rules_of_requests() {
        run(async {
            let guard = guard("ReadStreamRequest if input.container_id == \"web\"").await;
            let allowed = guard.streams("web", "web").await;
            assert_eq!((allowed.input, allowed.output), (false, true));
        });
    }

    #[test]
    fn a_policy_from_the_initdata_stays() {
        run(async {
            let guard = guard("SetPolicyRequest := true").await;
            assert!(guard.admit(&request("SetPolicy")).await.is_ok());
            let error = guard.set_policy("package agent_policy".into()).await.unwrap_err();
            assert_eq!(error, denied(FIXED));
        });
    }

    #[test]
    fn a_policy_from_the_host_decides_on_the_next_one() {
        run(async {
            let guard = Guard::open();
            let set = |text: &str| guard.set_policy(text.into());
            set("package agent_policy\nSetPolicyRequest := true").await.unwrap();
            assert!(guard.admit(&request("ExecProcess")).await.is_err());
            assert!(guard.admit(&request("SetPolicy")).await.is_ok());
            set("package agent_policy").await.unwrap();
            assert!(guard.admit(&request("SetPolicy")).await.is_err());
        });
    }
}
