//! Runs a command in a control group, timed: `start OUTPUT PROCS... -- PROGRAM ARGUMENTS...`. It enters the group by each file `cgroup.procs` itself, so that
//! little but the command is charged to it. Prints the microseconds from before the fork to the command's end and its exit status; its output goes to a file.

use std::env;
use std::fs::{self, File};
use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

fn run(arguments: &[String]) -> io::Result<()> {
    let split = arguments.iter().position(|argument| argument == "--");
    let (places, command) = arguments.split_at(split.unwrap_or(arguments.len()));
    let ([output, groups @ ..], [_, program, rest @ ..]) = (places, command) else {
        return Err(io::Error::other("usage: start OUTPUT PROCS... -- PROGRAM ARGUMENTS..."));
    };
    let output = File::create(output)?;
    let errors = output.try_clone()?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(output).stderr(errors);
    for group in groups {
        fs::write(group, "0")?;
    }
    let began = Instant::now();
    let status = command.status()?;
    println!("{} {}", began.elapsed().as_micros(), status.code().unwrap_or(-1));
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("start: {error}");
            ExitCode::FAILURE
        }
    }
}
