//! The attestation report of SEV-SNP (SEV Secure Nested Paging Firmware ABI Specification, 56860, section 7.3, table "ATTESTATION_REPORT").

use crate::error::{Error, Result};
use serde_json::{json, Value};

/// A report with its signature.
pub const REPORT_BYTES: usize = 1184;
/// What is signed.
pub const SIGNED_BYTES: usize = 0x2a0;
/// One number of the signature, little endian.
pub const SIGNATURE_PART_BYTES: usize = 72;

pub const POLICY: usize = 0x08;
pub const FAMILY_ID: usize = 0x10;
pub const SIGNATURE_ALGORITHM: usize = 0x34;
pub const REPORT_DATA: usize = 0x50;
pub const MEASUREMENT: usize = 0x90;
pub const HOST_DATA: usize = 0xc0;
pub const REPORT_ID: usize = 0x140;
pub const REPORT_ID_MA: usize = 0x160;
pub const CHIP_ID: usize = 0x1a0;

/// Family of Turin, whose TCB versions have their parts in other places.
const FAMILY_TURIN: u8 = 0x1a;

/// A report, read.
pub struct Report<'a>(&'a [u8]);

impl<'a> Report<'a> {
    /// A report is as long as it has to be; its fields may be anything.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() != REPORT_BYTES {
            return Err(Error::internal(format!(
                "an attestation report has {REPORT_BYTES} bytes, not {}",
                bytes.len()
            )));
        }
        Ok(Self(bytes))
    }

    /// What the host gave at the launch.
    pub fn host_data(&self) -> [u8; 32] {
        let mut data = [0; 32];
        data.copy_from_slice(&self.0[HOST_DATA..HOST_DATA + 32]);
        data
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    fn bytes(&self, at: usize, length: usize) -> Value {
        json!(&self.0[at..at + length])
    }

    /// A TCB version: its layout depends on the processor, which reports name from version 3 on.
    fn tcb(&self, at: usize) -> Value {
        let part = |offset: usize| self.0[at + offset];
        if self.word(0) >= 3 && self.0[0x188] >= FAMILY_TURIN {
            return json!({"fmc": part(0), "bootloader": part(1), "tee": part(2), "snp": part(3), "microcode": part(7)});
        }
        json!({"fmc": null, "bootloader": part(0), "tee": part(1), "snp": part(6), "microcode": part(7)})
    }

    fn version(&self, at: usize) -> Value {
        json!({"build": self.0[at], "minor": self.0[at + 1], "major": self.0[at + 2]})
    }

    /// As the Rust library `sev` writes it, which is how verifiers of Confidential Containers expect it.
    pub fn describe(&self) -> Value {
        let from = |version: u32, value: Value| if self.word(0) >= version { value } else { Value::Null };
        json!({
            "version": self.word(0),
            "guest_svn": self.word(0x04),
            "policy": self.long(POLICY),
            "family_id": self.bytes(FAMILY_ID, 16),
            "image_id": self.bytes(0x20, 16),
            "vmpl": self.word(0x30),
            "sig_algo": self.word(SIGNATURE_ALGORITHM),
            "current_tcb": self.tcb(0x38),
            "plat_info": self.long(0x40),
            "key_info": self.word(0x48),
            "report_data": self.bytes(REPORT_DATA, 64),
            "measurement": self.bytes(MEASUREMENT, 48),
            "host_data": self.bytes(HOST_DATA, 32),
            "id_key_digest": self.bytes(0xe0, 48),
            "author_key_digest": self.bytes(0x110, 48),
            "report_id": self.bytes(REPORT_ID, 32),
            "report_id_ma": self.bytes(REPORT_ID_MA, 32),
            "reported_tcb": self.tcb(0x180),
            "cpuid_fam_id": from(3, json!(self.0[0x188])),
            "cpuid_mod_id": from(3, json!(self.0[0x189])),
            "cpuid_step": from(3, json!(self.0[0x18a])),
            "chip_id": self.bytes(CHIP_ID, 64),
            "committed_tcb": self.tcb(0x1e0),
            "current": self.version(0x1e8),
            "committed": self.version(0x1ec),
            "launch_tcb": self.tcb(0x1f0),
            "launch_mit_vector": from(5, json!(self.long(0x1f8))),
            "current_mit_vector": from(5, json!(self.long(0x200))),
            "signature": {
                "r": self.bytes(SIGNED_BYTES, SIGNATURE_PART_BYTES),
                "s": self.bytes(SIGNED_BYTES + SIGNATURE_PART_BYTES, SIGNATURE_PART_BYTES),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(version: u32, family: u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..REPORT_BYTES).map(|at| at as u8).collect();
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[0x188] = family;
        bytes
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes = numbered(2, 0);
        let report = Report::parse(&bytes).unwrap();
        assert_eq!(report.host_data()[0], 0xc0);
        let value = report.describe();
        assert_eq!(value["policy"], 0x0f0e_0d0c_0b0a_0908_u64);
        assert_eq!(value["chip_id"][0], 0xa0);
        assert_eq!(
            value["current_tcb"],
            json!({"fmc": null, "bootloader": 0x38, "tee": 0x39, "snp": 0x3e, "microcode": 0x3f})
        );
        assert_eq!(value["cpuid_fam_id"], Value::Null);
        assert_eq!(value["committed"], json!({"build": 0xec, "minor": 0xed, "major": 0xee}));
        assert_eq!(value["signature"]["s"][0], 0xe8);
    }

    #[test]
    fn later_versions_have_more() {
        let bytes = numbered(5, FAMILY_TURIN);
        let value = Report::parse(&bytes).unwrap().describe();
        assert_eq!(
            value["current_tcb"],
            json!({"fmc": 0x38, "bootloader": 0x39, "tee": 0x3a, "snp": 0x3b, "microcode": 0x3f})
        );
        assert_eq!(value["cpuid_fam_id"], 0x1a);
        assert_eq!(value["current_mit_vector"], 0x0706_0504_0302_0100_u64);
    }

    #[test]
    fn a_cut_report_is_refused() {
        assert!(Report::parse(&[0; REPORT_BYTES - 1]).is_err());
    }
}
