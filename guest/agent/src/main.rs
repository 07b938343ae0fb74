//! `snp-agent`: PID 1 of a pod's VM, or (for tests) a process on a host, or the stage of a container's process.
//!
//! The C entry point is used, because Rust's own ends the program when there is no console and no /dev yet.

#![no_main]

use snp_agent::early::Early;
use snp_agent::options::Options;
use snp_agent::{boot, error, log, milestones, run, stage};
use std::ffi::{c_char, c_int, CStr};

/// The C entry point.
///
/// # Safety
/// Called once, by the C runtime, with its own arguments.
#[no_mangle]
pub unsafe extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let words: Vec<String> = (0..count.max(0) as usize)
        .map(|at| CStr::from_ptr(*words.add(at)).to_string_lossy().into_owned())
        .collect();
    if words.get(1).is_some_and(|word| word == "stage") {
        stage::main(&words[2..]);
    }
    if std::process::id() == 1 {
        be_init();
    }
    match Options::from_arguments(words.into_iter().skip(1)).and_then(|options| run::run(options, None)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("snp-agent: {error}");
            1
        }
    }
}

fn be_init() -> ! {
    milestones::started();
    boot::standard_descriptors();
    std::panic::set_hook(Box::new(|panic| {
        log::kernel_log(log::Level::Critical, &format!("fatal: {panic}"));
        boot::power_off();
    }));
    if let Err(error) = init() {
        log::kernel_log(log::Level::Critical, &format!("fatal: {error}"));
    }
    boot::power_off()
}

fn init() -> error::Result<()> {
    use error::Context;
    let early = Early::listen();
    boot::prepare()?;
    let command_line = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    run::run(Options::from_kernel(&command_line), early)
}
