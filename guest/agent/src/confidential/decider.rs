//! A policy at work, on a thread of its own: a decision may take seconds, and meanwhile the agent answers Health, moves streams and collects processes.
//!
//! Questions are answered, and those who asked go on, in the order in which they came. At most `QUEUE_MAX` wait in the queue; more wait in their tasks, in that order too, and of those a
//! connection has a bounded number.

use crate::error::{Code, Error, Result};
use serde_json::Value;
use snp_policy::{Limits, Policy};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;

const QUEUE_MAX: usize = 64;
/// What the kernel gives a program's first thread: the interpreter calls itself for each level of a policy's expressions. Untouched pages cost nothing.
const STACK_BYTES: usize = 8 << 20;

/// What a policy is asked: the rule and its input. Made on the policy's thread, since that may take long as well.
pub type Question = Box<dyn FnOnce() -> Result<(&'static str, Value)> + Send>;

type Answer = oneshot::Sender<Result<()>>;

struct Asked {
    question: Question,
    answer: Answer,
}

/// A policy in force. Its thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Decider(mpsc::Sender<Asked>);

impl Decider {
    /// Compiles a policy and begins to decide by it.
    ///
    /// # Errors
    /// What is wrong with the text and where.
    pub async fn start(text: String) -> Result<Self> {
        let (queue, asked) = mpsc::channel(QUEUE_MAX);
        let (answers, mut decided) = mpsc::channel::<(Answer, Result<()>)>(QUEUE_MAX);
        let (compiled, outcome) = oneshot::channel();
        let work = move || match Policy::compile(&text, Limits::default()) {
            Ok(policy) => {
                if compiled.send(Ok(())).is_ok() {
                    decide_all(policy, asked, answers);
                }
            }
            Err(error) => drop(compiled.send(Err(error.to_string()))),
        };
        let thread = std::thread::Builder::new()
            .name("policy".into())
            .stack_size(STACK_BYTES);
        thread.spawn(work)?;
        // The thread itself would wake them while the loop is at work, and a later one might go on first.
        spawn_local(async move {
            while let Some((answer, decision)) = decided.recv().await {
                let _ = answer.send(decision);
            }
        });
        match outcome.await {
            Ok(Ok(())) => Ok(Self(queue)),
            Ok(Err(text)) => Err(Error::invalid(text)),
            Err(_) => Err(ended()),
        }
    }

    /// Whether the policy allows it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when not, with the reason, and what kept the question from being made.
    pub async fn ask(&self, question: Question) -> Result<()> {
        let (answer, told) = oneshot::channel();
        let sent = self.0.send(Asked { question, answer }).await;
        sent.map_err(|_| ended())?;
        told.await.map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::internal("the thread of the pod's policy has ended")
}

fn decide_all(mut policy: Policy, mut asked: mpsc::Receiver<Asked>, answers: mpsc::Sender<(Answer, Result<()>)>) {
    while let Some(Asked { question, answer }) = asked.blocking_recv() {
        // Nobody waits any more: nothing will be done, so nothing is to be kept in the policy's state either.
        if answer.is_closed() {
            continue;
        }
        let decided = question().and_then(|(name, input)| {
            let decision = policy.decide(name, input);
            for line in &decision.prints {
                crate::debug!("policy: {line}");
            }
            match decision.allowed {
                true => Ok(()),
                false => Err(Error::new(Code::PermissionDenied, decision.sentence(name))),
            }
        });
        let _ = answers.blocking_send((answer, decided));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::cell::RefCell;
    use std::rc::Rc;
    use tokio::task::{spawn_local, yield_now, LocalSet};

    fn run(test: impl std::future::Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    fn named(name: &'static str) -> Question {
        Box::new(move || Ok((name, json!({}))))
    }

    #[test]
    fn a_question_that_takes_long_holds_up_no_one_but_those_behind_it() {
        run(async {
            let decider = Decider::start("package agent_policy\nA := true".into()).await.unwrap();
            let (go, gate) = std::sync::mpsc::channel::<()>();
            let answers = Rc::new(RefCell::new(Vec::new()));
            let slow: Question = Box::new(move || {
                let _ = gate.recv();
                Ok(("A", json!({})))
            });
            let rest = (1..=3 * QUEUE_MAX).map(|number| (number, named("A")));
            let tasks: Vec<_> = std::iter::once((0, slow))
                .chain(rest)
                .map(|(number, question)| {
                    let (decider, answers) = (decider.clone(), answers.clone());
                    spawn_local(async move {
                        decider.ask(question).await.unwrap();
                        answers.borrow_mut().push(number);
                    })
                })
                .collect();
            for _ in 0..100 {
                // The loop goes on.
                yield_now().await;
            }
            assert!(answers.borrow().is_empty());
            go.send(()).unwrap();
            for task in tasks {
                task.await.unwrap();
            }
            assert!(answers.borrow().iter().copied().eq(0..=3 * QUEUE_MAX), "in their order");
        });
    }

    #[test]
    fn what_nobody_waits_for_changes_no_state() {
        let rules = "package agent_policy
A := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/seen\", \"value\": true}]}
B if not data.pstate.seen";
        run(async {
            let decider = Decider::start(rules.into()).await.unwrap();
            let (go, gate) = std::sync::mpsc::channel::<()>();
            let slow: Question = Box::new(move || {
                let _ = gate.recv();
                Ok(("B", json!({})))
            });
            let first = spawn_local({
                let decider = decider.clone();
                async move { decider.ask(slow).await }
            });
            let second = spawn_local({
                let decider = decider.clone();
                async move { decider.ask(named("A")).await }
            });
            yield_now().await;
            second.abort();
            let _ = second.await;
            go.send(()).unwrap();
            first.await.unwrap().unwrap();
            decider.ask(named("B")).await.unwrap();
            decider.ask(named("A")).await.unwrap();
            assert!(decider.ask(named("B")).await.is_err());
        });
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        run(async {
            let error = Decider::start("package agent_policy\nA := := 1".into())
                .await
                .err()
                .unwrap();
            assert!(error.text.starts_with("line 2"), "{error}");
        });
    }
}
