//! Which containerd calls, and in which form it wants its answer.
//!
//! containerd says nowhere which versions of the shim protocol it takes: 1.7 to 2.2 all set `MAX_SHIM_VERSION=2`, 1.7
//! refuses an answer of version 3, and 2.0 takes it. What tells them apart is the Go module that the program was built
//! from; every Go program carries that name in its section `.go.buildinfo`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::protobuf::{self, Value, Writer};

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
    let text = |field| {
        protobuf::text(&fields, field)
            .unwrap_or_default()
            .to_owned()
    };
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
        Some(_) if built_from_v2(program) => Dialect::Json,
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
        Dialect::Bootstrap => Writer::new()
            .number(1, 3)
            .bytes(2, address)
            .bytes(3, "ttrpc")
            .done(),
    }
}

/// Whether the program contains containerd's module of major version 2. False when that can't be read.
fn built_from_v2(program: &Path) -> bool {
    let module = b"github.com/containerd/containerd/v2";
    File::open(program)
        .ok()
        .and_then(|file| go_modules(&file))
        .is_some_and(|text| text.windows(module.len()).any(|part| part == module))
}

/// The module text of a Go program: section `.go.buildinfo` of a 64-bit little-endian ELF file, in the form of Go 1.18
/// and later (a 32-byte header whose byte 15 has bit 1 set, then two strings, each after its length as a varint).
fn go_modules(file: &File) -> Option<Vec<u8>> {
    let header = read_at(file, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64::from_le_bytes(header[40..48].try_into().ok()?);
    let (entry, count, names) = (
        u16_at(&header, 58)?,
        u16_at(&header, 60)?,
        u16_at(&header, 62)?,
    );
    if entry != 64 || names >= count || count > 512 {
        return None;
    }
    let sections = read_at(file, table, 64 * usize::from(count))?;
    let section = |index: u16| sections.get(64 * usize::from(index)..64 * (usize::from(index) + 1));
    let place = |entry: &[u8]| -> Option<(u64, usize)> {
        let offset = u64::from_le_bytes(entry[24..32].try_into().ok()?);
        let size = u64::from_le_bytes(entry[32..40].try_into().ok()?);
        Some((offset, usize::try_from(size.min(1 << 20)).ok()?))
    };
    let (offset, size) = place(section(names)?)?;
    let names = read_at(file, offset, size)?;
    let wanted = b".go.buildinfo\0";
    let found = (0..count).filter_map(section).find(|entry| {
        let name = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        names
            .get(name..)
            .is_some_and(|name| name.starts_with(wanted))
    })?;
    let (offset, size) = place(found)?;
    let info = read_at(file, offset, size)?;
    if !info.starts_with(b"\xff Go buildinf:") || info.get(15)? & 2 == 0 {
        return None;
    }
    let (_, rest) = go_string(info.get(32..)?)?;
    go_string(rest).map(|(modules, _)| modules.to_vec())
}

fn go_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = bytes
        .iter()
        .take(4)
        .take_while(|byte| **byte & 0x80 != 0)
        .count();
    let length = bytes
        .iter()
        .take(digits + 1)
        .rev()
        .fold(0usize, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
    bytes.get(digits + 1..)?.split_at_checked(length)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, Random};

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
            assert_eq!(
                (input.bootstrap, input.config_path.as_str()),
                (false, "/etc/snp.toml")
            );
        }
        assert_eq!(
            read_input(&options("containerd.runc.v1.Options"), "id", "ns"),
            Input::default()
        );
        assert_eq!(read_input(b"", "id", "ns"), Input::default());
    }

    #[test]
    fn recognises_bootstrap_params() {
        let extension = Writer::new()
            .bytes(1, options("runtimeoptions.v1.Options"))
            .done();
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

    /// An ELF file with nothing but a `.go.buildinfo` section.
    pub fn go_program(modules: &str) -> Vec<u8> {
        let names = b"\0.go.buildinfo\0.shstrtab\0";
        let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
        info.resize(32, 0);
        info.extend_from_slice(b"\x08go1.27.1");
        info.extend_from_slice(&[
            modules.len() as u8 & 0x7f | 0x80,
            (modules.len() >> 7) as u8,
        ]);
        info.extend_from_slice(modules.as_bytes());
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        let table = 64 + info.len() + names.len();
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        let sections = [
            (0u32, 0, 0),
            (1, 64, info.len()),
            (15, 64 + info.len(), names.len()),
        ];
        file.extend_from_slice(&info);
        file.extend_from_slice(names);
        for (name, offset, size) in sections {
            let mut section = [0u8; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&section);
        }
        file
    }

    #[test]
    fn tells_containerd_2_from_1_7_by_its_module() {
        let folder = Folder::new("containerd");
        for (modules, wanted) in [
            (
                "path\tgithub.com/containerd/containerd/v2/cmd/containerd\n",
                Dialect::Json,
            ),
            (
                "path\tgithub.com/containerd/containerd/cmd/containerd\n",
                Dialect::Address,
            ),
        ] {
            let program = folder.path("containerd");
            std::fs::write(&program, go_program(modules)).unwrap();
            assert_eq!(dialect(false, Some("2"), &program), wanted);
        }
    }

    #[test]
    fn survives_programs_that_are_broken() {
        let folder = Folder::new("broken");
        let program = folder.path("containerd");
        let whole = go_program("path\tgithub.com/containerd/containerd/v2/cmd/containerd\n");
        let mut random = Random::new(3);
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                let place = random.below(bytes.len());
                bytes[place] = random.below(256) as u8;
            }
            bytes.truncate(random.below(bytes.len() + 1));
            std::fs::write(&program, &bytes).unwrap();
            dialect(false, Some("2"), &program);
        }
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
        let json: serde_json::Value =
            serde_json::from_slice(&answer(Dialect::Json, socket)).unwrap();
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
