//! What a confidential guest does beyond an ordinary one: before its first request it takes the initdata from its disk, compares its digest with HOST_DATA of its own attestation
//! report, and puts the policy in it into force. Whether it is confidential the guest finds out by itself.

pub mod attester;
mod decider;
pub mod evidence;
pub mod guard;
mod http;
pub mod initdata;
mod late;
pub mod requests;

use crate::error::{Context, Error, Result};
use crate::options::Options;
use attester::report::Report;
use attester::{Attested, Attester, REPORT_DATA_BYTES};
use decider::Decider;
use guard::Guard;
use initdata::Initdata;
use late::Binding;
use std::rc::Rc;

/// A confidential guest whose policy is in force, or comes.
pub struct Confidential {
    pub attester: Attester,
    source: Source,
}

/// Where the pod's policy comes from.
enum Source {
    /// From the initdata that HOST_DATA names.
    Launch(Initdata),
    /// From one that is bound later; HOST_DATA names the one that everybody knows.
    Late(Rc<Binding>),
}

impl Confidential {
    /// The pod's initdata.
    ///
    /// # Errors
    /// None is bound yet.
    pub fn initdata(&self) -> Result<&Initdata> {
        match &self.source {
            Source::Launch(initdata) => Ok(initdata),
            Source::Late(binding) => binding.bound(),
        }
    }

    /// Whether HOST_DATA does not name the pod's initdata, and REPORT_DATA covers it.
    pub fn is_late(&self) -> bool {
        matches!(self.source, Source::Late(_))
    }

    /// A report for whoever asks with `given` (docs/contracts.md).
    ///
    /// # Errors
    /// None can be had, or no policy is bound yet.
    pub fn report(&self, given: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
        match &self.source {
            Source::Launch(_) => self.attester.report(given),
            Source::Late(binding) => self.attester.report(&binding.report_data(given)?),
        }
    }
}

/// What lets requests pass, and what applications may ask about.
pub async fn prepare(options: &Options) -> (Rc<Guard>, Option<Rc<Confidential>>) {
    let Some(attester) = Attester::find(options) else {
        return (Rc::new(Guard::open()), None);
    };
    attester.announce();
    match enforce(&attester, options).await {
        Ok(Found::Policy(policy, initdata)) => {
            crate::info!("the policy of the pod's initdata is in force");
            let source = Source::Launch(initdata);
            let confidential = Confidential { attester, source };
            (Rc::new(Guard::in_force(policy)), Some(Rc::new(confidential)))
        }
        Ok(Found::Waiting) => {
            crate::info!("waiting for the pod's policy");
            let binding = Rc::<Binding>::default();
            let source = Source::Late(binding.clone());
            let confidential = Confidential { attester, source };
            (Rc::new(Guard::waiting(binding)), Some(Rc::new(confidential)))
        }
        Err(error) => {
            let reason = format!("this confidential guest does nothing for its host: {error}");
            crate::log::write(crate::log::Level::Error, &reason);
            (Rc::new(Guard::refuse(reason)), None)
        }
    }
}

/// What the initdata that HOST_DATA names says.
enum Found {
    Policy(Decider, Initdata),
    /// The policy is bound later.
    Waiting,
}

async fn enforce(attester: &Attester, options: &Options) -> Result<Found> {
    let report = attester
        .report(&[0; 64])
        .context("its attestation report can't be had")?;
    let host_data = Report::parse(&report.bytes)?.host_data();
    let initdata = initdata::find(options)?;
    if initdata.digest != host_data {
        return Err(Error::invalid(format!(
            "its initdata (digest {}) is not the one that its attestation report names (HOST_DATA {}): start the pod anew with the initdata that it was measured with",
            attester::hexadecimal(&initdata.digest),
            attester::hexadecimal(&host_data)
        )));
    }
    if Binding::expected(&initdata) {
        return Ok(Found::Waiting);
    }
    let text = initdata.policy().ok_or_else(|| {
        Error::invalid("its initdata has no policy.rego: make one with `snpctl policy generate` and put it into the initdata's [data]")
    })?;
    let policy = Decider::start(text.into()).await;
    let policy = policy.context("the policy in its initdata can't be used")?;
    Ok(Found::Policy(policy, initdata))
}
