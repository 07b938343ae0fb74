//! Generates the protocol's Rust types from `proto/agent` and links libseccomp statically.

use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

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
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    describe_requests(&mut config, &files);
    config.compile_fds(files)?;
    println!("cargo:rerun-if-changed={}", shared.join("agent").display());
    println!("cargo:rerun-if-changed={}", own.display());
    println!("cargo:rerun-if-env-changed=LIBSECCOMP_LIB_PATH");
    hash_rules(&here.join("../../shim/policy/rules.rego"))?;

    let folder = env::var("LIBSECCOMP_LIB_PATH").unwrap_or_else(|_| {
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
        format!("/usr/lib/{arch}-linux-gnu")
    });
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static=seccomp");
    Ok(())
}

/// Tells the sources which rules a policy that is bound late must have.
fn hash_rules(rules: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", rules.display());
    let digits = Sha256::digest(fs::read(rules)?)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    println!("cargo:rustc-env=SNP_RULES_SHA256={digits}");
    Ok(())
}

/// Packages whose messages a policy sees as JSON.
const SEEN: [&str; 2] = ["grpc", "types"];
/// Messages of the package `snp.v1` that it sees.
const SEEN_EXTENSIONS: [&str; 5] = [
    "BindPolicyRequest",
    "ReadFileRequest",
    "ListRequest",
    "NextDamageRequest",
    "ContainerDamageRequest",
];

/// Lets requests be written as JSON with the names that Kata's agent has for fields: those of the `.proto` files, with a line behind words of Rust.
fn describe_requests(config: &mut prost_build::Config, files: &prost_types::FileDescriptorSet) {
    for file in &files.file {
        let package = file.package();
        for message in &file.message_type {
            let extension = package == "snp.v1" && SEEN_EXTENSIONS.contains(&message.name());
            if !SEEN.contains(&package) && !extension {
                continue;
            }
            describe(config, &format!(".{package}.{}", message.name()), message);
        }
    }
}

fn describe(config: &mut prost_build::Config, path: &str, message: &prost_types::DescriptorProto) {
    config.message_attribute(path, "#[derive(serde::Serialize)]");
    let one_of = |field: &prost_types::FieldDescriptorProto| {
        let index = field.oneof_index.filter(|_| !field.proto3_optional())?;
        Some(message.oneof_decl[index as usize].name())
    };
    for field in &message.field {
        let name = if field.name() == "type" { "type_" } else { field.name() };
        let holder = one_of(field).map_or(path.to_string(), |one| format!("{path}.{one}"));
        config.field_attribute(format!("{holder}.{}", field.name()), renamed(name));
    }
    let choices: BTreeSet<&str> = message.field.iter().filter_map(one_of).collect();
    for one in choices {
        config.enum_attribute(format!("{path}.{one}"), "#[derive(serde::Serialize)]");
        // Without the first dot a path is only itself, not all below it.
        config.field_attribute(format!("{path}.{one}").trim_start_matches('.'), renamed(one));
    }
    // The entries of maps are messages only in the descriptors.
    let is_map =
        |message: &prost_types::DescriptorProto| message.options.as_ref().is_some_and(|options| options.map_entry());
    for inner in message.nested_type.iter().filter(|inner| !is_map(inner)) {
        describe(config, &format!("{path}.{}", inner.name()), inner);
    }
}

fn renamed(name: &str) -> String {
    format!("#[serde(rename = \"{name}\")]")
}
