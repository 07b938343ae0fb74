//! Late binding (docs/adr/0012): a guest that was started before its pod was known has an initdata that everybody knows, and takes the pod's own once. From then on
//! every report covers that one's digest.
//!
//! HOST_DATA says then only that a policy was bound, not which. What says which is this agent, so nothing in the guest but this agent may be able to ask the processor
//! for a report: a policy is bound only when no container of it can become more than an ordinary one, whoever has made it.

use super::attester::REPORT_DATA_BYTES;
use super::initdata::Initdata;
use crate::error::{Context, Error, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha512};
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// The initdata of a guest that waits for its pod.
const BIND_ONLY: &str = include_str!("bind-only.toml");
/// What the hash begins with that is REPORT_DATA: no other use of SHA-512 begins so.
const DOMAIN: &[u8] = b"containerd-shim-snp late-bound report data 1\n";
/// SHA-256 of the rules that `snpctl policy` of the same sources puts into policies (build.rs).
const RULES: &str = env!("SNP_RULES_SHA256");
/// What is between them and their data.
const BEFORE_DATA: &str = "\n# --- What this policy is for\n\npolicy_data := ";
const REMEDY: &str = "start the pod in a guest of its own, without late binding";

/// What is bound, once it is.
#[derive(Default)]
pub struct Binding(OnceCell<Initdata>);

impl Binding {
    /// For a guest with the initdata that everybody knows.
    pub fn expected(initdata: &Initdata) -> bool {
        initdata.text == BIND_ONLY
    }

    /// What was bound.
    ///
    /// # Errors
    /// Nothing was.
    pub fn bound(&self) -> Result<&Initdata> {
        let missing = || Error::precondition("no policy is bound to this guest yet: there is nothing to attest");
        self.0.get().ok_or_else(missing)
    }

    /// Takes what is bound, for ever.
    pub fn set(&self, initdata: Initdata) -> Result<()> {
        self.0
            .set(initdata)
            .map_err(|_| Error::internal("a policy is bound already"))
    }

    /// REPORT_DATA of a report that was asked for with `given`: SHA-512 over the domain, `given` and the digest of what is bound.
    pub fn report_data(&self, given: &[u8; REPORT_DATA_BYTES]) -> Result<[u8; REPORT_DATA_BYTES]> {
        let hash = Sha512::new()
            .chain_update(DOMAIN)
            .chain_update(given)
            .chain_update(self.bound()?.digest);
        Ok(hash.finalize().into())
    }
}

/// The policy of an initdata that is to be bound.
///
/// # Errors
/// It has none, or one that must not be bound.
pub fn bindable(initdata: &Initdata) -> Result<&str> {
    let text = initdata
        .policy()
        .ok_or_else(|| Error::invalid("it has no policy.rego: make one with `snpctl policy generate`"))?;
    let foreign = || {
        Error::invalid(format!(
            "its policy does not have the fixed rules of this guest's release: make it with the same release's `snpctl policy generate`, or {REMEDY}"
        ))
    };
    let (rules, data) = text.split_once(BEFORE_DATA).ok_or_else(foreign)?;
    if super::attester::hexadecimal(&Sha256::digest(rules)) != RULES {
        return Err(foreign());
    }
    let data: Data = serde_json::from_str(data)
        .map_err(|error| Error::invalid(format!("its policy_data is not what snpctl writes: {error}")))?;
    for container in &data.containers {
        container
            .check()
            .with_context(|| format!("container {}", container.name))?;
    }
    Ok(text)
}

/// What of `policy_data` (shim/policy/policy-data.ts) could make a container more than an ordinary one. The rules hold everything else to what is ordinary: mounts,
/// storages, devices, namespaces.
#[derive(Deserialize)]
struct Data {
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    privileged: bool,
    process: Process,
    sysctls: BTreeMap<String, String>,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
    /// Block devices of the node: by which numbers the guest has them is the host's choice, and its own disks are among those that there are.
    devices: Vec<String>,
}

#[derive(Deserialize)]
struct Process {
    capabilities: Vec<String>,
}

/// What containerd gives containers that name none (`oci.defaultUnixCaps`). None of them leads out of a container: what devices there are is limited by its control
/// group, whoever makes nodes.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// Kernel parameters of a container's own namespaces. Others change the whole guest: `kernel.core_pattern` names a program that the kernel runs with all rights.
const SYSCTLS: [&str; 5] = ["net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem"];
/// What root could do the same with.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const MASKED: [&str; 2] = ["/proc/kcore", "/sys/firmware"];

impl Container {
    fn check(&self) -> Result<()> {
        let refuse = |what: String| {
            Err(Error::invalid(format!(
                "{what}: it could make reports of its own, so the policy can't be bound late; {REMEDY}"
            )))
        };
        if self.privileged {
            return refuse("it is privileged".into());
        }
        let foreign = |name: &&String| !CAPABILITIES.contains(&name.as_str());
        if let Some(name) = self.process.capabilities.iter().find(foreign) {
            return refuse(format!("it has {name}"));
        }
        let whole = |name: &&String| !SYSCTLS.iter().any(|prefix| name.starts_with(prefix));
        if let Some(name) = self.sysctls.keys().find(whole) {
            return refuse(format!("it sets {name}"));
        }
        if let Some(path) = self.devices.first() {
            return refuse(format!("it has the device {path}"));
        }
        let open = |path: &&str| !self.readonly_paths.iter().any(|one| one == path);
        if let Some(path) = READ_ONLY.iter().copied().find(open) {
            return refuse(format!("it can write to {path}"));
        }
        let seen = |path: &&str| !self.masked_paths.iter().any(|one| one == path);
        match MASKED.iter().copied().find(seen) {
            Some(path) => refuse(format!("it sees {path}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::initdata::parse;
    use super::*;
    use serde_json::{json, Value};

    const RULES_TEXT: &str = include_str!("../../../../shim/policy/rules.rego");

    fn initdata(policy: &str) -> Initdata {
        let policy = json!(policy);
        parse(format!(
            "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = {policy}\n"
        ))
        .unwrap()
    }

    fn container() -> Value {
        json!({
            "name": "web", "privileged": false, "process": {"capabilities": ["CAP_CHOWN"]}, "sysctls": {"net.ipv4.tcp_syncookies": "1"},
            "masked_paths": ["/proc/kcore", "/proc/keys", "/sys/firmware"], "readonly_paths": READ_ONLY, "devices": [],
        })
    }

    fn policy(containers: &[Value]) -> String {
        let data = json!({"pod": {}, "allow": {}, "containers": containers});
        format!("{RULES_TEXT}{BEFORE_DATA}{data}\n")
    }

    fn refusal(policy: &str) -> String {
        bindable(&initdata(policy)).unwrap_err().text
    }

    #[test]
    fn everybody_s_initdata_is_one_and_has_a_policy() {
        let known = parse(BIND_ONLY.into()).unwrap();
        assert!(Binding::expected(&known));
        assert!(!Binding::expected(&parse(format!("{BIND_ONLY}\n")).unwrap()));
        snp_policy::Policy::compile(known.policy().unwrap(), snp_policy::Limits::default()).unwrap();
        assert!(refusal(known.policy().unwrap()).contains("fixed rules"));
    }

    #[test]
    fn a_generated_policy_of_ordinary_containers_can_be_bound() {
        let text = policy(&[container(), container()]);
        assert_eq!(bindable(&initdata(&text)).unwrap(), text);
    }

    #[test]
    fn other_rules_and_other_data_are_refused() {
        let good = policy(&[container()]);
        for (text, expected) in [
            (
                "package agent_policy\nCreateContainerRequest := true".to_string(),
                "fixed rules",
            ),
            (good.replacen("rule", "role", 1), "fixed rules"),
            (
                good.replacen("package", "ExecProcessRequest := true\npackage", 1),
                "fixed rules",
            ),
            (format!("{good}\nExecProcessRequest := true"), "policy_data"),
            (
                good.replacen("policy_data := {", "policy_data := {\"containers\": [], ", 1),
                "duplicate field",
            ),
            (policy(&[json!({"name": "web"})]), "missing field"),
        ] {
            let told = refusal(&text);
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }

    #[test]
    fn a_container_that_could_make_reports_is_named() {
        for (field, value, expected) in [
            ("privileged", json!(true), "container web: it is privileged"),
            ("privileged", json!("no"), "policy_data"),
            (
                "process",
                json!({"capabilities": ["CAP_KILL", "CAP_SYS_ADMIN"]}),
                "it has CAP_SYS_ADMIN",
            ),
            ("process", json!({"capabilities": {"CAP_KILL": 1}}), "policy_data"),
            (
                "sysctls",
                json!({"kernel.core_pattern": "|/proc/%P/root/x"}),
                "it sets kernel.core_pattern",
            ),
            ("readonly_paths", json!(["/proc/bus"]), "it can write to /proc/fs"),
            ("masked_paths", json!([]), "it sees /proc/kcore"),
            ("devices", json!(["/dev/sdb"]), "it has the device /dev/sdb"),
        ] {
            let mut changed = container();
            changed[field] = value;
            let told = refusal(&policy(&[container(), changed]));
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }

    #[test]
    fn report_data_cover_question_and_policy() {
        let binding = Binding::default();
        assert!(binding.report_data(&[0; 64]).is_err());
        let first = initdata(&policy(&[container()]));
        let digest = first.digest;
        binding.set(first).unwrap();
        assert!(binding.set(initdata("")).is_err());
        let given = [7; 64];
        let expected = Sha512::digest([DOMAIN, given.as_slice(), digest.as_slice()].concat());
        assert_eq!(binding.report_data(&given).unwrap().as_slice(), expected.as_slice());
        assert_ne!(binding.report_data(&[8; 64]).unwrap().as_slice(), expected.as_slice());
    }
}
