//! `-info`: what containerd may ask of this runtime before it starts anything.

use crate::protobuf::Writer;

/// The runtime's name, as containerd's users write it.
pub const NAME: &str = "io.containerd.snp.v2";
/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// containerd's name for the JSON that `runc features` made customary.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The features: an OCI `Features` document. containerd reads `linux.namespaces` and `linux.mountExtensions.idmap` (both
/// must name what user namespaces of pods need, or they are not offered) and `mountOptions` (`rro`: recursive read-only).
fn features() -> String {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": [],
        "mountOptions": ["bind", "dev", "exec", "noatime", "nodev", "noexec", "nosuid", "private", "rbind", "ro", "rprivate", "rw", "suid"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
    .to_string()
}

/// `RuntimeInfo` {name, version {version}, features}.
pub fn message() -> Vec<u8> {
    let version = Writer::new().bytes(1, VERSION).done();
    let any = Writer::new().bytes(1, FEATURES_TYPE).bytes(2, features()).done();
    Writer::new().bytes(1, NAME).bytes(2, version).bytes(4, any).done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf;

    #[test]
    fn says_name_version_and_features() {
        let message = message();
        let fields = protobuf::fields(&message).unwrap();
        assert_eq!(protobuf::text(&fields, 1), Some(NAME));
        let version = protobuf::fields(protobuf::bytes(&fields, 2).unwrap()).unwrap();
        assert_eq!(protobuf::text(&version, 1), Some(VERSION));
        let any = protobuf::fields(protobuf::bytes(&fields, 4).unwrap()).unwrap();
        assert_eq!(protobuf::text(&any, 1), Some(FEATURES_TYPE));
        let features: serde_json::Value = serde_json::from_slice(protobuf::bytes(&any, 2).unwrap()).unwrap();
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], false);
    }
}
