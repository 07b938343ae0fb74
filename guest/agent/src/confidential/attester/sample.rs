//! INSECURE: reports in the format of SEV-SNP that prove nothing, for trials without hardware. Whoever starts the guest says what they say, and the key that signs
//! them is published.

use super::report::{
    CHIP_ID, FAMILY_ID, HOST_DATA, MEASUREMENT, POLICY, REPORT_BYTES, REPORT_DATA, REPORT_ID, REPORT_ID_MA,
    SIGNATURE_ALGORITHM, SIGNATURE_PART_BYTES, SIGNED_BYTES,
};
use super::{Attested, REPORT_DATA_BYTES};
use crate::error::{Context, Error, Result};
use crate::log::{kernel_log, write, Level};
use crate::options::Options;
use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey};
use p384::pkcs8::DecodePrivateKey;
use std::io::Read;

/// The published key.
const KEY: &str = include_str!("../../../keys/sample-insecure.pem");
/// In FAMILY_ID and at the beginning of CHIP_ID.
const MARK: &[u8] = b"sample-INSECURE";
const WARNING: &str =
    "INSECURE: this guest's attestation is a sample; it proves nothing, and its host can read all of it";
const VERSION: u8 = 2;
/// Multi-threading is allowed (bit 16); bit 17 is always one.
const GUEST_POLICY: u64 = 0x30000;
const ECDSA_P384_SHA384: u8 = 1;

/// The processor's stand-in.
pub struct Sample {
    host_data: Option<[u8; 32]>,
    measurement: [u8; 48],
    report_id: [u8; 32],
}

impl Sample {
    pub const PLATFORM: &'static str = "sample-INSECURE";

    /// A guest of this kind always behaves as confidential.
    pub fn find(options: &Options) -> Option<Self> {
        let mut report_id = [0; 32];
        let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut report_id));
        if let Err(error) = random {
            crate::warn!("reports have no id of their own: {error}");
        }
        Some(Self {
            host_data: digits(&options.sample_host_data),
            measurement: digits(&options.sample_measurement).unwrap_or([0; 48]),
            report_id,
        })
    }

    pub fn announce(&self) {
        write(Level::Warn, WARNING);
        kernel_log(Level::Critical, WARNING);
    }

    pub fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
        let host_data = self.host_data.ok_or_else(|| {
            Error::invalid("the kernel parameter snp.sample_host_data has to be 64 hexadecimal digits")
        })?;
        let mut bytes = vec![0u8; REPORT_BYTES];
        bytes[0] = VERSION;
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(POLICY, &GUEST_POLICY.to_le_bytes());
        put(FAMILY_ID, MARK);
        put(SIGNATURE_ALGORITHM, &[ECDSA_P384_SHA384]);
        put(REPORT_DATA, report_data);
        put(MEASUREMENT, &self.measurement);
        put(HOST_DATA, &host_data);
        put(REPORT_ID, &self.report_id);
        put(REPORT_ID_MA, &[0xff; 32]);
        put(CHIP_ID, MARK);
        let signature: Signature = key()?.sign(&bytes[..SIGNED_BYTES]);
        let (r, s) = signature.split_bytes();
        for (at, number) in [(SIGNED_BYTES, r), (SIGNED_BYTES + SIGNATURE_PART_BYTES, s)] {
            for (to, from) in bytes[at..].iter_mut().zip(number.iter().rev()) {
                *to = *from;
            }
        }
        Ok(Attested {
            bytes,
            certificates: None,
        })
    }
}

fn key() -> Result<SigningKey> {
    SigningKey::from_pkcs8_pem(KEY)
        .map_err(|error| Error::internal(error.to_string()))
        .context("read the published key")
}

/// Bytes from hexadecimal digits, when there are as many as there must be.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p384::ecdsa::signature::Verifier;

    fn sample(host_data: &str) -> Sample {
        Sample::find(&Options {
            sample_host_data: host_data.into(),
            sample_measurement: "ab".repeat(48),
            ..Options::from_kernel("")
        })
        .unwrap()
    }

    #[test]
    fn a_report_is_signed_with_the_published_key_and_says_insecure() {
        let bytes = sample(&"01".repeat(32)).report(&[7; 64]).unwrap().bytes;
        assert_eq!(bytes[HOST_DATA..HOST_DATA + 32], [1; 32]);
        assert_eq!(bytes[MEASUREMENT..MEASUREMENT + 48], [0xab; 48]);
        assert_eq!(bytes[REPORT_DATA..REPORT_DATA + 64], [7; 64]);
        assert_eq!(&bytes[CHIP_ID..CHIP_ID + 15], b"sample-INSECURE");
        let part = |at: usize| {
            let mut part = bytes[at..at + 48].to_vec();
            part.reverse();
            part
        };
        let parts = [part(SIGNED_BYTES), part(SIGNED_BYTES + SIGNATURE_PART_BYTES)].concat();
        let signature = Signature::from_slice(&parts).unwrap();
        let public = *key().unwrap().verifying_key();
        assert!(public.verify(&bytes[..SIGNED_BYTES], &signature).is_ok());
        assert!(public.verify(&bytes[1..SIGNED_BYTES], &signature).is_err());
    }

    #[test]
    fn a_launch_without_host_data_is_none() {
        for text in ["", "01", &"0g".repeat(32), &"01".repeat(33)] {
            assert!(sample(text).report(&[0; 64]).is_err(), "{text}");
        }
    }
}
