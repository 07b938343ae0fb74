//! Which pod a bundle belongs to, and the names that follow from it (`docs/contracts.md`, "Names and places").

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Longest path of a Unix socket, in bytes (`sun_path` without its closing zero).
const MAX_SOCKET_PATH: usize = 107;

/// Whose bundle it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Member {
    /// The pod itself, or a container that is alone.
    Pod,
    /// A further container of the pod with this id.
    Container(String),
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads `config.json` of a bundle. One without is a pod that containerd makes by its Sandbox API: every container has a configuration.
///
/// # Errors
/// A text that names the file when it can't be read or is no JSON.
pub fn member(bundle: &Path) -> Result<Member, String> {
    let file = bundle.join("config.json");
    let text = match fs::read(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound && bundle.is_dir() => return Ok(Member::Pod),
        result => result.map_err(|error| format!("the bundle's {} can't be read: {error}", file.display()))?,
    };
    let spec: Spec = serde_json::from_slice(&text).map_err(|error| {
        format!(
            "the bundle's {} is not a container's configuration ({error}): delete the container and create it again",
            file.display()
        )
    })?;
    Ok(member_of(&spec.annotations.unwrap_or_default()))
}

fn member_of(annotations: &BTreeMap<String, String>) -> Member {
    for (kind, pod) in [
        ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
        ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ] {
        if annotations.get(kind).is_some_and(|kind| kind == "container") {
            if let Some(pod) = annotations.get(pod).filter(|pod| !pod.is_empty()) {
                return Member::Container(pod.clone());
            }
        }
    }
    Member::Pod
}

/// The pod's key: 32 hexadecimal digits that differ between pods, namespaces and containerds.
pub fn key(address: &str, namespace: &str, pod: &str) -> String {
    let hash = Sha256::new()
        .chain_update(address)
        .chain_update([0])
        .chain_update(namespace)
        .chain_update([0])
        .chain_update(pod)
        .finalize();
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The files below one state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places(PathBuf);

impl Places {
    /// Takes the state folder; nothing is looked at yet.
    pub fn new(state_dir: PathBuf) -> Places {
        Places(state_dir)
    }

    /// The state folder that a keeper's socket lies in; nothing when the address is not of that form.
    pub fn of_socket(address: &str) -> Option<Places> {
        let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
        let key = path.file_name()?.to_str()?.strip_suffix(".sock")?;
        let folder = path.parent()?;
        let good = key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()) && path.is_absolute();
        (good && folder.file_name()? == "k").then(|| folder.parent().map(|state| Places(state.to_owned())))?
    }

    pub fn state_dir(&self) -> &Path {
        &self.0
    }

    pub fn keepers(&self) -> PathBuf {
        self.0.join("k")
    }

    pub fn keeper_log(&self) -> PathBuf {
        self.0.join("keeper.log")
    }

    pub fn snpd_socket(&self) -> PathBuf {
        self.0.join("snpd.sock")
    }

    pub fn snpd_lock(&self) -> PathBuf {
        self.0.join("snpd.lock")
    }

    pub fn snpd_log(&self) -> PathBuf {
        self.0.join("snpd.log")
    }

    /// Where the pod's keeper listens.
    ///
    /// # Errors
    /// A text when the path is too long for a socket.
    pub fn keeper_socket(&self, key: &str) -> Result<PathBuf, String> {
        let path = self.keepers().join(format!("{key}.sock"));
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(format!(
                "{} is longer than a socket's path may be ({MAX_SOCKET_PATH} bytes): choose a shorter state_dir",
                path.display()
            ));
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, Random};

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn key_is_the_hash_of_the_three_names() {
        // printf '/run/containerd/containerd.sock\0k8s.io\0pod1' | sha256sum
        assert_eq!(key("/run/containerd/containerd.sock", "k8s.io", "pod1"), KEY_OF_POD1);
        assert_ne!(key("a", "b", "c"), key("a", "bc", ""));
    }

    const KEY_OF_POD1: &str = "d34d9773c483da3c5c82690a0ccc6c9b";

    #[test]
    fn finds_the_pod_of_a_container() {
        let kind = "io.kubernetes.cri.container-type";
        let pod = "io.kubernetes.cri.sandbox-id";
        assert_eq!(
            member_of(&annotations(&[(kind, "container"), (pod, "p")])),
            Member::Container("p".into())
        );
        assert_eq!(member_of(&annotations(&[(kind, "sandbox"), (pod, "p")])), Member::Pod);
        assert_eq!(member_of(&annotations(&[(kind, "container")])), Member::Pod);
        assert_eq!(member_of(&annotations(&[])), Member::Pod);
        let crio = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "q"),
        ];
        assert_eq!(member_of(&annotations(&crio)), Member::Container("q".into()));
    }

    #[test]
    fn reads_bundles_and_names_broken_ones() {
        let folder = Folder::new("bundle");
        let bundle = folder.path("");
        assert_eq!(member(&bundle), Ok(Member::Pod));
        assert!(member(&folder.path("gone")).unwrap_err().contains("config.json"));
        std::fs::create_dir(folder.path("config.json")).unwrap();
        assert!(member(&bundle).unwrap_err().contains("config.json"));
        std::fs::remove_dir(folder.path("config.json")).unwrap();
        std::fs::write(
            folder.path("config.json"),
            r#"{"ociVersion":"1.1.0","process":{"args":["x"]}}"#,
        )
        .unwrap();
        assert_eq!(member(&bundle), Ok(Member::Pod));
        std::fs::write(folder.path("config.json"), r#"{"annotations":null}"#).unwrap();
        assert_eq!(member(&bundle), Ok(Member::Pod));
        for broken in ["", "{", "7", "{\"annotations\":3}"] {
            std::fs::write(folder.path("config.json"), broken).unwrap();
            assert!(member(&bundle).unwrap_err().contains("config.json"), "{broken}");
        }
        let mut random = Random::new(1);
        for _ in 0..2000 {
            std::fs::write(folder.path("config.json"), random.bytes(64)).unwrap();
            let _ = member(&bundle);
        }
    }

    #[test]
    fn finds_the_state_folder_of_a_socket() {
        let places = Places::new("/run/s".into());
        let socket = places.keeper_socket(KEY_OF_POD1).unwrap();
        assert_eq!(Places::of_socket(&format!("unix://{}", socket.display())), Some(places));
        for other in [
            "",
            "unix:///run/containerd/s/abc",
            "/run/s/k/short.sock",
            "/run/s/j/00112233445566778899aabbccddeeff.sock",
        ] {
            assert_eq!(Places::of_socket(other), None, "{other}");
        }
    }

    #[test]
    fn checks_the_length_of_the_socket() {
        let long = Places::new(format!("/{}", "x".repeat(80)).into());
        assert!(long.keeper_socket(KEY_OF_POD1).is_err());
    }
}
