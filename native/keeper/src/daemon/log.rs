//! The keepers' common log: rare problems only.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const MAX_LOG_BYTES: u64 = 256 << 10;

/// Appends lines to a file, which starts anew when it is full.
pub struct Log {
    path: PathBuf,
    name: String,
}

impl Log {
    /// `name` stands on every line.
    pub fn new(path: PathBuf, name: String) -> Log {
        Log { path, name }
    }

    /// Writes one line. A log that can't be written is no reason to stop.
    pub fn line(&self, text: &str) {
        let Ok(mut file) = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
        else {
            return;
        };
        if file.metadata().is_ok_and(|data| data.len() > MAX_LOG_BYTES) {
            let _ = file.set_len(0);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let _ =
            file.write_all(format!("{}.{:03} {} {text}\n", now.as_secs(), now.subsec_millis(), self.name).as_bytes());
    }
}
