//! Which containerd calls, and in which form it wants its answer.
//!
//! containerd says nowhere which versions of the shim protocol it takes: 1.7 to 2.2 all set `MAX_SHIM_VERSION=2`, 1.7
//! refuses an answer of version 3, and 2.0 takes it. What tells them apart is the Go module that the program was built
//! from.

use std::path::Path;

use crate::go_program;
use crate::protobuf::{self, Value, Writer};

/// containerd's Go module since 2.0.
const MODULE_OF_V2: &str = "github.com/containerd/containerd/v2";

/// The form of `start`'s answer.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Dialect {
    /// The address and nothing else: containerd 1.6 and 1.7.
    Address,
    /// One line of JSON, version 3: containerd 2.0 to 2.2.
    Json,
    /// A `BootstrapResult` message, version 3: containerd 2.3 and later.
    Bootstrap,
}

/// What containerd wrote to the standard input of `start`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// It was a `BootstrapParams` message.
    pub bootstrap: bool,
    pub id: String,
    pub namespace: String,
    pub address: String,
    pub ttrpc_address: String,
    /// `ConfigPath` of the runtime options; empty when there was none.
    pub config_path: String,
}

/// Reads the standard input of `start`: a `BootstrapParams` (recognised by its id and namespace being those of the
/// flags, or by its shape when there are no flags), an `Any` with runtime options, or nothing. Bytes that are neither count as nothing.
pub fn read_input(input: &[u8], id: &str, namespace: &str) -> Input {
    let Some(fields) = protobuf::fields(input) else {
        return Input::default();
    };
    let text = |field| protobuf::text(&fields, field).unwrap_or_default().to_owned();
    let flagless = id.is_empty() && !text(1).is_empty() && !text(6).is_empty();
    if !flagless && (id.is_empty() || text(1) != id || text(2) != namespace) {
        return Input {
            config_path: config_path(input).unwrap_or_default(),
            ..Input::default()
        };
    }
    let extensions = fields.iter().filter_map(|(field, value)| match value {
        Value::Bytes(extension) if *field == 8 => Some(*extension),
        _ => None,
    });
    let config_path = extensions
        .filter_map(|extension| protobuf::bytes(&protobuf::fields(extension)?, 1))
        .find_map(config_path)
        .unwrap_or_default();
    Input {
        bootstrap: true,
        id: text(1),
        namespace: text(2),
        address: text(6),
        ttrpc_address: text(5),
        config_path,
    }
}

/// `config_path` of an `Any` with `runtimeoptions.v1.Options`. The type's name is written in several ways by containerd's versions.
fn config_path(any: &[u8]) -> Option<String> {
    let any = protobuf::fields(any)?;
    let name = protobuf::text(&any, 1)?;
    if !(name.contains("runtimeoptions") && name.ends_with("Options")) {
        return None;
    }
    let options = protobuf::fields(protobuf::bytes(&any, 2)?)?;
    protobuf::text(&options, 2)
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
}

/// Chooses the form of the answer.
/// `max_version` is `MAX_SHIM_VERSION` of the environment, `program` containerd's own file.
pub fn dialect(bootstrap: bool, max_version: Option<&str>, program: &Path) -> Dialect {
    if bootstrap {
        return Dialect::Bootstrap;
    }
    match max_version.map(|version| version.parse::<u32>().unwrap_or(2)) {
        None => Dialect::Address,
        Some(3..) => Dialect::Json,
        Some(_) if go_program::is_built_from(program, MODULE_OF_V2) => Dialect::Json,
        Some(_) => Dialect::Address,
    }
}

/// The bytes that `start` prints for the socket's path.
pub fn answer(dialect: Dialect, socket: &Path) -> Vec<u8> {
    let address = format!("unix://{}", socket.display());
    match dialect {
        Dialect::Address => address.into_bytes(),
        Dialect::Json => serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"})
            .to_string()
            .into_bytes(),
        Dialect::Bootstrap => Writer::new().number(1, 3).bytes(2, address).bytes(3, "ttrpc").done(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn options(type_url: &str) -> Vec<u8> {
        let options = Writer::new().bytes(1, "x").bytes(2, "/etc/snp.toml").done();
        Writer::new().bytes(1, type_url).bytes(2, options).done()
    }

    #[test]
    fn reads_runtime_options_of_every_spelling() {
        for name in [
            "runtimeoptions.v1.Options",
            "types.containerd.io/runtimeoptions.v1.Options",
        ] {
            let input = read_input(&options(name), "id", "ns");
            assert_eq!((input.bootstrap, input.config_path.as_str()), (false, "/etc/snp.toml"));
        }
        assert_eq!(
            read_input(&options("containerd.runc.v1.Options"), "id", "ns"),
            Input::default()
        );
        assert_eq!(read_input(b"", "id", "ns"), Input::default());
    }

    #[test]
    fn recognises_bootstrap_params() {
        let extension = Writer::new().bytes(1, options("runtimeoptions.v1.Options")).done();
        let message = Writer::new()
            .bytes(1, "id")
            .bytes(2, "ns")
            .number(3, 4)
            .bytes(5, "/t")
            .bytes(6, "/g")
            .bytes(8, extension)
            .done();
        let input = read_input(&message, "id", "ns");
        assert!(input.bootstrap);
        assert_eq!(
            (
                input.config_path.as_str(),
                input.ttrpc_address.as_str(),
                input.address.as_str()
            ),
            ("/etc/snp.toml", "/t", "/g")
        );
        assert!(!read_input(&message, "other", "ns").bootstrap);
        assert_eq!(read_input(&message, "", "").id, "id");
    }

    #[test]
    fn chooses_the_dialect() {
        let nowhere = Path::new("/nowhere");
        assert_eq!(dialect(true, Some("2"), nowhere), Dialect::Bootstrap);
        assert_eq!(dialect(false, None, nowhere), Dialect::Address);
        assert_eq!(dialect(false, Some("2"), nowhere), Dialect::Address);
        assert_eq!(dialect(false, Some("3"), nowhere), Dialect::Json);
    }

    #[test]
    fn survives_random_input() {
        let mut random = Random::new(11);
        for _ in 0..100_000 {
            read_input(&random.bytes(64), "id", "ns");
        }
    }

    #[test]
    fn words_each_answer() {
        let socket = Path::new("/run/x.sock");
        assert_eq!(answer(Dialect::Address, socket), b"unix:///run/x.sock");
        let json: serde_json::Value = serde_json::from_slice(&answer(Dialect::Json, socket)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"version": 3, "address": "unix:///run/x.sock", "protocol": "ttrpc"})
        );
        let message = answer(Dialect::Bootstrap, socket);
        let fields = protobuf::fields(&message).unwrap();
        assert_eq!(
            (fields[0], protobuf::text(&fields, 2)),
            ((1, Value::Number(3)), Some("unix:///run/x.sock"))
        );
        assert_eq!(protobuf::text(&fields, 3), Some("ttrpc"));
    }
}
