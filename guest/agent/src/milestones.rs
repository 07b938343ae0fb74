//! How far the guest had come when, for a host that wants to know where the time of a start went.

use crate::proto::grpc::BootTimes;
use std::sync::atomic::{AtomicU64, Ordering};

/// Microseconds; 0 while it has not come so far.
static INIT: AtomicU64 = AtomicU64::new(0);
static SERVING: AtomicU64 = AtomicU64::new(0);

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // It fails for no reason but a wrong clock or pointer; then nothing is told.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    (time.tv_sec * 1_000_000 + time.tv_nsec / 1_000).unsigned_abs()
}

/// The kernel has started the agent.
pub fn started() {
    INIT.store(now(), Ordering::Relaxed);
}

/// The agent takes calls.
pub fn serving() {
    SERVING.store(now(), Ordering::Relaxed);
}

/// What there is to tell; nothing for an agent that is not its machine's first process.
pub fn tell() -> Option<BootTimes> {
    let times = BootTimes {
        init_micros: INIT.load(Ordering::Relaxed),
        serving_micros: SERVING.load(Ordering::Relaxed),
        now_micros: now(),
    };
    (times.init_micros > 0).then_some(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_in_their_order() {
        assert_eq!(tell(), None);
        started();
        serving();
        let times = tell().unwrap();
        assert!(times.init_micros <= times.serving_micros && times.serving_micros <= times.now_micros);
    }
}
