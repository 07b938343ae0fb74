//! `containerd-shim-snp-v2`: the binary that containerd runs for `io.containerd.snp.v2`, and the keeper of a pod.

mod config;
mod containerd;
mod daemon;
mod delete;
mod detached;
mod flags;
mod go_program;
mod info;
mod link;
mod pod;
mod protobuf;
mod snpd;
mod start;
mod sys;
#[cfg(test)]
mod testing;

use std::io::Write;
use std::process::ExitCode;

use flags::Flags;

const USAGE: &str =
    "usage: containerd-shim-snp-v2 -namespace NAMESPACE -id ID [-address SOCKET] [-bundle FOLDER] start|delete
       containerd-shim-snp-v2 -info | -v
containerd runs this program; users run containers with --runtime io.containerd.snp.v2
";

fn main() -> ExitCode {
    // containerd takes standard output and error of `start` together as the address: whatever goes wrong goes to standard output.
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stdout(), "containerd-shim-snp-v2 has a defect: {panic}");
    }));
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned());
    match Flags::parse(arguments).and_then(|flags| run(&flags)) {
        Ok(output) => print(&output, ExitCode::SUCCESS),
        Err(error) => print(
            format!("containerd-shim-snp-v2: {error}\n").as_bytes(),
            ExitCode::FAILURE,
        ),
    }
}

/// Does what the flags say; the result is what goes to standard output.
fn run(flags: &Flags) -> Result<Vec<u8>, String> {
    if flags.version {
        return Ok(format!("{} {}\n", info::NAME, info::VERSION).into_bytes());
    }
    if flags.info {
        // The options change nothing here, but whoever writes them should not find a closed pipe.
        start::read_stdin();
        return Ok(info::message());
    }
    match flags.command.as_str() {
        "start" => start::run(flags),
        "delete" => {
            let outcome = delete::run(flags)?;
            if let Some(warning) = outcome.warning {
                let _ = writeln!(std::io::stderr(), "{}: {warning}", flags.id);
            }
            Ok(outcome.response)
        }
        "keep" => daemon::run(flags).map(|()| Vec::new()),
        _ if flags.help => Ok(USAGE.as_bytes().to_vec()),
        "" => Err(format!("no command\n{USAGE}")),
        other => Err(format!("unknown command {other}\n{USAGE}")),
    }
}

fn print(output: &[u8], code: ExitCode) -> ExitCode {
    let mut stdout = std::io::stdout();
    match stdout.write_all(output).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
