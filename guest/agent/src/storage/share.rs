//! Folders of the host by virtio-fs: waiting for a device that was just plugged in.

use crate::error::{Code, Error, Result};
use crate::uevent::Uevents;
use std::fs;
use std::time::Duration;

/// A device that the host plugged in is there within this time.
const APPEAR_MAX: Duration = Duration::from_secs(10);
/// One folder for each file system, with its tag (Linux 6.9 and later: ABI/testing/sysfs-fs-virtiofs).
const FOLDER: &str = "/sys/fs/virtiofs";

/// Waits until a file system of that tag is there. On kernels that tell no tags it is taken to be there.
pub async fn find(tag: &str) -> Result<()> {
    // Listening begins before the first look: nothing is missed in between.
    let uevents = Uevents::open()?;
    if fs::metadata(FOLDER).is_err() || is_there(tag) {
        return Ok(());
    }
    let wait = async {
        while !is_there(tag) {
            uevents.added("virtiofs").await?;
        }
        Ok(())
    };
    let late = || {
        Error::new(
            Code::DeadlineExceeded,
            format!("the shared file system {tag:?} did not appear in {APPEAR_MAX:?}"),
        )
    };
    tokio::time::timeout(APPEAR_MAX, wait)
        .await
        .unwrap_or_else(|_| Err(late()))
}

fn is_there(tag: &str) -> bool {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| fs::read_to_string(entry.path().join("tag")).is_ok_and(|text| text.trim_end() == tag))
}
