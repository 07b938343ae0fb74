//! What a confidential guest does beyond an ordinary one: before its first request it takes the initdata from its disk, compares its digest with HOST_DATA of its own attestation
//! report, and puts the policy in it into force. Whether it is confidential the guest finds out by itself.

pub mod attester;
mod decider;
pub mod evidence;
pub mod guard;
mod http;
pub mod initdata;
pub mod requests;

use crate::error::{Context, Error, Result};
use crate::options::Options;
use attester::report::Report;
use attester::Attester;
use decider::Decider;
use guard::Guard;
use initdata::Initdata;
use std::rc::Rc;

/// A confidential guest whose policy is in force.
pub struct Confidential {
    pub attester: Attester,
    pub initdata: Initdata,
}

/// What lets requests pass, and what applications may ask about.
pub async fn prepare(options: &Options) -> (Rc<Guard>, Option<Rc<Confidential>>) {
    let Some(attester) = Attester::find(options) else {
        return (Rc::new(Guard::open()), None);
    };
    attester.announce();
    match enforce(&attester, options).await {
        Ok((policy, initdata)) => {
            crate::info!("the policy of the pod's initdata is in force");
            let confidential = Confidential { attester, initdata };
            (Rc::new(Guard::in_force(policy)), Some(Rc::new(confidential)))
        }
        Err(error) => {
            let reason = format!("this confidential guest does nothing for its host: {error}");
            crate::log::write(crate::log::Level::Error, &reason);
            (Rc::new(Guard::refuse(reason)), None)
        }
    }
}

async fn enforce(attester: &Attester, options: &Options) -> Result<(Decider, Initdata)> {
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
    let text = initdata.policy().ok_or_else(|| {
        Error::invalid("its initdata has no policy.rego: make one with `snpctl policy generate` and put it into the initdata's [data]")
    })?;
    let policy = Decider::start(text.into()).await;
    let policy = policy.context("the policy in its initdata can't be used")?;
    Ok((policy, initdata))
}
