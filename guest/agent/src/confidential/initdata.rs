//! The initdata of a confidential pod (Confidential Containers, initdata 0.1.0) from its disk (Kata Containers): `initdata`, the length as 64 bits little endian, and so many
//! bytes of gzip of TOML, which names the hash algorithm of its own digest.

use crate::error::{Context, Error, Result};
use crate::options::Options;
use flate2::bufread::GzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

const MAGIC: &[u8; 8] = b"initdata";
const GZIP_BYTES_MAX: u64 = 1 << 20;
const TOML_BYTES_MAX: u64 = 4 << 20;
const VERSION: &str = "0.1.0";
const POLICY: &str = "policy.rego";
const REMEDY: &str = "give the pod an initdata that `snpctl policy` has made";

/// The owner's word.
pub struct Initdata {
    /// The TOML as it is.
    pub text: String,
    /// As HOST_DATA has it: cut, or filled with zeros.
    pub digest: [u8; 32],
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Document {
    version: String,
    algorithm: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Reads the guest's initdata.
pub fn find(options: &Options) -> Result<Initdata> {
    let path = match &options.initdata {
        Some(path) => path.clone(),
        None => disk().ok_or_else(|| Error::invalid(format!("it has no initdata: {REMEDY}")))?,
    };
    let file = File::open(&path).context("open the disk with its initdata")?;
    read(file).with_context(|| format!("its initdata can't be used ({REMEDY})"))
}

/// The disk with the serial number `initdata`.
fn disk() -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let ours = disks.into_iter().find(|disk| {
        let serial = fs::read(disk.path().join("serial")).unwrap_or_default();
        serial.trim_ascii() == MAGIC
    })?;
    Some(PathBuf::from("/dev").join(ours.file_name()))
}

/// Reads the disk's bytes. Nothing of them is trusted: each length has a bound, also while unpacking.
fn read(mut disk: impl Read) -> Result<Initdata> {
    let mut head = [0u8; 16];
    disk.read_exact(&mut head)
        .map_err(|_| Error::invalid("the disk is shorter than its head"))?;
    let (magic, length) = head.split_at(8);
    if magic != MAGIC {
        return Err(Error::invalid("the disk does not begin with the word initdata"));
    }
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    if length > GZIP_BYTES_MAX {
        return Err(Error::invalid(format!(
            "it has {length} bytes of gzip, more than {GZIP_BYTES_MAX}"
        )));
    }
    let mut gzip = Vec::new();
    disk.take(length).read_to_end(&mut gzip).context("read the disk")?;
    if gzip.len() as u64 != length {
        return Err(Error::invalid(format!(
            "the disk ends after {} of {length} bytes of gzip",
            gzip.len()
        )));
    }
    parse(unpack(&gzip)?)
}

/// Reads an initdata as it is packed.
///
/// # Errors
/// What is wrong with it; it has the same bounds as one on a disk.
pub fn unpacked(gzip: &[u8]) -> Result<Initdata> {
    if gzip.len() as u64 > GZIP_BYTES_MAX {
        let text = format!("it has {} bytes of gzip, more than {GZIP_BYTES_MAX}", gzip.len());
        return Err(Error::invalid(text));
    }
    parse(unpack(gzip)?)
}

fn unpack(gzip: &[u8]) -> Result<String> {
    let mut decoder = GzDecoder::new(gzip);
    let mut bytes = Vec::new();
    let unpacked = decoder.by_ref().take(TOML_BYTES_MAX + 1).read_to_end(&mut bytes);
    unpacked.map_err(|error| Error::invalid(format!("its gzip is damaged or cut: {error}")))?;
    if bytes.len() as u64 > TOML_BYTES_MAX {
        return Err(Error::invalid(format!(
            "unpacked it is longer than {TOML_BYTES_MAX} bytes"
        )));
    }
    if !decoder.into_inner().is_empty() {
        return Err(Error::invalid("there are bytes behind its gzip"));
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("unpacked it is no UTF-8"))
}

/// Reads the TOML.
///
/// # Errors
/// What is wrong with it
pub fn parse(text: String) -> Result<Initdata> {
    let document: Document = toml::from_str(&text).map_err(|error| {
        Error::invalid(format!(
            "it is no TOML of an initdata: {}",
            error.message().replace('\n', " ")
        ))
    })?;
    if document.version != VERSION {
        return Err(Error::invalid(format!(
            "its version is {:?}, not {VERSION:?}",
            document.version
        )));
    }
    let full = match document.algorithm.as_str() {
        "sha256" => Sha256::digest(&text).to_vec(),
        "sha384" => Sha384::digest(&text).to_vec(),
        "sha512" => Sha512::digest(&text).to_vec(),
        other => {
            return Err(Error::invalid(format!(
                "its algorithm is {other:?}, and none of sha256, sha384, sha512"
            )))
        }
    };
    let mut digest = [0u8; 32];
    for (to, from) in digest.iter_mut().zip(full) {
        *to = from;
    }
    Ok(Initdata {
        text,
        digest,
        data: document.data,
    })
}

impl Initdata {
    /// The Rego text, if there is one.
    pub fn policy(&self) -> Option<&str> {
        self.data.get(POLICY).map(String::as_str)
    }
}

#[cfg(test)]
#[path = "initdata_tests.rs"]
mod tests;
