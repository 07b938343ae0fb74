//! `--event-monitor`: what happens to the VM, as JSON objects one after another.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

/// Where events go.
pub struct EventMonitor(Mutex<File>);

impl EventMonitor {
    /// Events go into an open file.
    pub fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// Tells of one event of a device. A reader that is gone misses it.
    pub fn tell(&self, source: &str, event: &str, id: &str) {
        let head = r#"{"timestamp":{"secs":0,"nanos":0}"#;
        let line =
            format!("{head},\"source\":\"{source}\",\"event\":\"{event}\",\"properties\":{{\"id\":\"{id}\"}}}}\n\n");
        if let Ok(mut file) = self.0.lock() {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
