//! The agent's log: a bounded memory of lines, copied to whoever connects to the log port, warnings to the kernel's log too.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// How important a line is; the smaller the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Critical,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Reads the value of `agent.log` on the kernel command line; None for an unknown word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "critical" => Self::Critical,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        ["CRIT", "ERRO", "WARN", "INFO", "DEBG", "TRCE"][self as usize]
    }
}

/// Bytes of log kept for a reader that comes late.
const KEPT_BYTES: usize = 64 << 10;
/// The kernel takes lines of about a thousand bytes.
const KERNEL_LINE_CHARS_MAX: usize = 900;
/// A longer message is cut.
const LINE_BYTES_MAX: usize = 4 << 10;

struct Ring {
    bytes: VecDeque<u8>,
    /// Count of bytes ever written: the position after the last kept one.
    end: u64,
}

struct Log {
    ring: Mutex<Ring>,
    more: Notify,
    level: AtomicU8,
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| Log {
        ring: Mutex::new(Ring {
            bytes: VecDeque::new(),
            end: 0,
        }),
        more: Notify::new(),
        level: AtomicU8::new(Level::Info as u8),
    })
}

/// Sets the least important level that is kept.
pub fn set_level(level: Level) {
    log().level.store(level as u8, Ordering::Relaxed);
}

/// Appends one line, in the form that Kata's shims parse (one JSON object per line).
pub fn write(level: Level, text: &str) {
    let log = log();
    if level as u8 > log.level.load(Ordering::Relaxed) {
        return;
    }
    let line = line(level, text, SystemTime::now());
    if level <= Level::Warn {
        kernel_log(level, text);
    }
    let mut ring = log.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    ring.end += line.len() as u64;
    ring.bytes.extend(line.as_bytes());
    let surplus = ring.bytes.len().saturating_sub(KEPT_BYTES);
    ring.bytes.drain(..surplus);
    drop(ring);
    log.more.notify_waiters();
}

/// The kept bytes from position `from` on (or from the oldest kept one) and the position after them; waits until there are some.
pub async fn read(from: u64) -> (Vec<u8>, u64) {
    loop {
        let more = log().more.notified();
        tokio::pin!(more);
        more.as_mut().enable();
        {
            let ring = log().ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if ring.end > from {
                let oldest = ring.end - ring.bytes.len() as u64;
                let skip = from.saturating_sub(oldest) as usize;
                return (ring.bytes.iter().skip(skip).copied().collect(), ring.end);
            }
        }
        more.await;
    }
}

/// Everything that is kept now.
pub fn snapshot() -> String {
    let ring = log().ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let bytes: Vec<u8> = ring.bytes.iter().copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes to the kernel's log, which reaches the VM's console; to standard error on an ordinary host.
pub fn kernel_log(level: Level, text: &str) {
    if std::process::id() != 1 {
        if level <= Level::Warn {
            eprintln!("snp-agent: {text}");
        }
        return;
    }
    // The numbers of syslog(2): 2 critical, 3 error, 4 warning, 6 information.
    let priority = [2, 3, 4, 6, 7, 7][level as usize];
    if let Ok(mut file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let cut: String = text.chars().take(KERNEL_LINE_CHARS_MAX).collect();
        let _ = file.write_all(format!("<{priority}>snp-agent: {cut}\n").as_bytes());
    }
}

fn line(level: Level, text: &str, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = match text.char_indices().nth(LINE_BYTES_MAX) {
        Some((cut, _)) => &text[..cut],
        None => text,
    };
    format!(
        "{{\"msg\":\"{}\",\"level\":\"{}\",\"ts\":\"{}.{:06}\",\"name\":\"snp-agent\",\"pid\":\"{}\",\"source\":\"agent\"}}\n",
        escape(text),
        level.name(),
        since.as_secs(),
        since.subsec_micros(),
        std::process::id(),
    )
}

/// The inside of a JSON string.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// Logs at level info; arguments as for `format!`.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, &format!($($arg)*)) };
}

/// Logs at level warn; arguments as for `format!`.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, &format!($($arg)*)) };
}

/// Logs at level debug; arguments as for `format!`.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, &format!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object() {
        let text = line(Level::Warn, "a \"b\"\n\\", UNIX_EPOCH);
        assert!(
            text.starts_with("{\"msg\":\"a \\\"b\\\"\\u000a\\\\\",\"level\":\"WARN\",\"ts\":\"0.000000\""),
            "{text}"
        );
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn levels_are_read_from_words() {
        assert_eq!(Level::parse("DEBUG"), Some(Level::Debug));
        assert_eq!(Level::parse("loud"), None);
    }
}
