//! Generates the protocol's Rust types from `proto/agent` and links libseccomp statically.

use std::path::PathBuf;
use std::{env, error::Error};

/// Protocol files, relative to the include folders.
const PROTOS: [&str; 4] = [
    "agent/agent.proto",
    "agent/health.proto",
    "agent/extensions.proto",
    "stage.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let shared = here.join("../../proto");
    let own = here.join("proto");
    let files = protox::compile(PROTOS, [&shared, &own])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(files)?;
    println!("cargo:rerun-if-changed={}", shared.join("agent").display());
    println!("cargo:rerun-if-changed={}", own.display());
    println!("cargo:rerun-if-env-changed=LIBSECCOMP_LIB_PATH");

    let folder = env::var("LIBSECCOMP_LIB_PATH").unwrap_or_else(|_| {
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
        format!("/usr/lib/{arch}-linux-gnu")
    });
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static=seccomp");
    Ok(())
}
