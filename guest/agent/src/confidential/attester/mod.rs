//! Who vouches for the guest.

pub mod report;
#[cfg(feature = "sample")]
pub mod sample;
#[cfg(not(feature = "sample"))]
mod snp;

use crate::error::Result;
use crate::options::Options;

/// What REPORT_DATA holds.
pub const REPORT_DATA_BYTES: usize = 64;

/// A report as it came.
pub struct Attested {
    pub bytes: Vec<u8>,
    /// The table of certificates that the host may give with it (GHCB specification, section 4.1.8.1).
    pub certificates: Option<Vec<u8>>,
}

#[cfg(not(feature = "sample"))]
use snp::Snp as Source;

#[cfg(feature = "sample")]
use sample::Sample as Source;

/// The source of attestation reports.
pub struct Attester(Source);

impl Attester {
    /// The guest's own, when it is confidential: the processor's word, by way of the kernel, never the host's.
    pub fn find(options: &Options) -> Option<Self> {
        Source::find(options).map(Self)
    }

    /// Says in the guest's log what the guest is.
    pub fn announce(&self) {
        self.0.announce();
    }

    /// How answers name it.
    pub fn platform(&self) -> &'static str {
        Source::PLATFORM
    }

    /// A report with this REPORT_DATA.
    pub fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
        self.0.report(report_data)
    }
}

/// Two small digits for each byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
