//! `snp-policy`: one JSON document on standard input (a policy and requests), one on standard output (what the policy says of each, or what
//! is wrong with it). `docs/contracts.md` has both. Policies are strangers: the program bounds its own memory and time.

use serde::Deserialize;
use serde_json::{json, Value};
use snp_policy::{Limits, Policy, INPUT_BYTES_MAX};
use std::io::{Read, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: snp-policy < REQUESTS
Standard input: {\"policy\":\"<Rego>\",\"requests\":[{\"name\":\"CreateContainerRequest\",\"input\":{...}}]}
Standard output: {\"decisions\":[{\"allowed\":true|false,\"reasons\":[...],\"prints\":[...]}]}, or {\"error\":{\"message\":\"...\",\"line\":N,\"column\":N}} for a policy that can't be used.
Exit status: 0 with an answer, whatever it is; 2 for a wrong call or input.";
/// The whole input.
const ORDER_BYTES_MAX: u64 = 64 << 20;
const REQUESTS_MAX: usize = 4096;
/// Of the program; a policy that wants more ends it.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
const PROCESSOR_SECONDS_MAX: u64 = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    policy: String,
    #[serde(default)]
    requests: Vec<Asked>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    name: String,
    input: Value,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => answer(),
        ["--version"] => Ok(format!("snp-policy {}", env!("CARGO_PKG_VERSION"))),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(line) => {
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            let _ = writeln!(std::io::stderr(), "snp-policy: {text}");
            ExitCode::from(2)
        }
    }
}

fn answer() -> Result<String, String> {
    bound(libc::RLIMIT_AS, MEMORY_BYTES_MAX);
    bound(libc::RLIMIT_CPU, PROCESSOR_SECONDS_MAX);
    bound(libc::RLIMIT_CORE, 0);
    let mut text = String::new();
    let read = std::io::stdin().take(ORDER_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| format!("reading standard input: {error}"))?;
    if text.len() as u64 > ORDER_BYTES_MAX {
        return Err(format!("standard input is longer than {ORDER_BYTES_MAX} bytes"));
    }
    let order: Order = serde_json::from_str(&text).map_err(|error| format!("standard input: {error}"))?;
    drop(text);
    if order.requests.len() > REQUESTS_MAX {
        return Err(format!("more than {REQUESTS_MAX} requests"));
    }
    let mut policy = match Policy::compile(&order.policy, Limits::default()) {
        Ok(policy) => policy,
        Err(error) => return Ok(json!({ "error": error }).to_string()),
    };
    let mut decisions = Vec::new();
    for Asked { name, input } in order.requests {
        if input.to_string().len() > INPUT_BYTES_MAX {
            return Err(format!("a request {name} is longer than {INPUT_BYTES_MAX} bytes"));
        }
        decisions.push(policy.decide(&name, input));
    }
    Ok(json!({ "decisions": decisions }).to_string())
}

/// Lowers a limit of this process; the one it has may be lower already.
fn bound(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    unsafe { libc::setrlimit(resource, &raw const limit) };
}
