//! What the agent is told at its start: by the kernel command line when it is PID 1, by arguments in a test on a host.

use crate::error::{Error, Result};
use crate::io::Address;
use crate::log::Level;
use std::path::PathBuf;

/// vsock port of the ttrpc services.
pub const AGENT_PORT: u32 = 1024;
/// vsock port of the log.
pub const LOG_PORT: u32 = 1025;
/// vsock port of the streams by token.
pub const STREAMS_PORT: u32 = 1028;
/// vsock port of connections to the guest's loopback.
pub const FORWARD_PORT: u32 = 1029;
/// vsock port of the host that is told when the agent's port is open.
pub const READY_PORT: u32 = 1030;
/// Kata's own folder, which hosts name in their requests.
pub const KATA_DIR: &str = "/run/kata-containers";

/// The agent's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub log_level: Level,
    pub agent: Address,
    pub log: Option<Address>,
    pub streams: Address,
    pub forward: Option<Address>,
    /// Kata's pass-through descriptors: streams told apart by the peer's port.
    pub passfd: Option<Address>,
    /// The folder that CreateSandbox empties and that CopyFile writes below.
    pub run_dir: PathBuf,
    /// The agent owns the machine: mounts, network, power.
    pub init: bool,
    /// Where cgroup2 is mounted.
    pub cgroup_root: PathBuf,
    /// A file in place of the disk with the initdata (for tests).
    pub initdata: Option<PathBuf>,
    /// Hexadecimal digits that stand for HOST_DATA and MEASUREMENT.
    #[cfg(feature = "sample")]
    pub sample_host_data: String,
    #[cfg(feature = "sample")]
    pub sample_measurement: String,
}

impl Options {
    /// The settings of PID 1. Unknown words and malformed values of the command line belong to others and are passed over.
    pub fn from_kernel(command_line: &str) -> Self {
        let mut options = Self {
            log_level: Level::Info,
            agent: Address::Vsock(AGENT_PORT),
            log: Some(Address::Vsock(LOG_PORT)),
            streams: Address::Vsock(STREAMS_PORT),
            forward: Some(Address::Vsock(FORWARD_PORT)),
            passfd: None,
            run_dir: KATA_DIR.into(),
            init: true,
            cgroup_root: "/sys/fs/cgroup".into(),
            initdata: None,
            #[cfg(feature = "sample")]
            sample_host_data: String::new(),
            #[cfg(feature = "sample")]
            sample_measurement: String::new(),
        };
        for word in command_line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let port = value.parse::<u32>().ok().filter(|port| *port > 0);
            match (key, port) {
                ("agent.log", _) => options.log_level = Level::parse(value).unwrap_or(options.log_level),
                ("agent.passfd_listener_port", Some(port)) => options.passfd = Some(Address::Vsock(port)),
                ("agent.log_vport", Some(port)) => options.log = Some(Address::Vsock(port)),
                #[cfg(feature = "sample")]
                ("snp.sample_host_data", _) => options.sample_host_data = value.into(),
                #[cfg(feature = "sample")]
                ("snp.sample_measurement", _) => options.sample_measurement = value.into(),
                _ => {}
            }
        }
        options
    }

    /// The settings of a test on a host: `--listen unix:///path --streams unix:///path --run-dir DIR` and optionally
    /// `--log-socket unix:///path`, `--forward unix:///path`, `--passfd unix:///path`, `--cgroup-root DIR`,
    /// `--initdata FILE`, `--log-level WORD`. An unknown argument is an error.
    pub fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = arguments;
        let (mut agent, mut streams, mut run_dir) = (None, None, None);
        let mut options = Self {
            init: false,
            ..Self::from_kernel("")
        };
        options.log = None;
        options.forward = None;
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| Error::invalid(format!("{name} needs a value")))?;
            match name.as_str() {
                "--listen" => agent = Some(address(&value)?),
                "--streams" => streams = Some(address(&value)?),
                "--run-dir" => run_dir = Some(PathBuf::from(value)),
                "--log-socket" => options.log = Some(address(&value)?),
                "--forward" => options.forward = Some(address(&value)?),
                "--passfd" => options.passfd = Some(address(&value)?),
                "--cgroup-root" => options.cgroup_root = value.into(),
                "--initdata" => options.initdata = Some(value.into()),
                #[cfg(feature = "sample")]
                "--sample-host-data" => options.sample_host_data = value,
                #[cfg(feature = "sample")]
                "--sample-measurement" => options.sample_measurement = value,
                "--log-level" => {
                    let level = Level::parse(&value);
                    options.log_level = level.ok_or_else(|| Error::invalid(format!("no log level {value:?}")))?;
                }
                _ => return Err(Error::invalid(format!("unknown argument {name:?}"))),
            }
        }
        let missing = |name: &str| Error::invalid(format!("{name} is needed when the agent is not PID 1"));
        options.agent = agent.ok_or_else(|| missing("--listen"))?;
        options.streams = streams.ok_or_else(|| missing("--streams"))?;
        options.run_dir = run_dir.ok_or_else(|| missing("--run-dir"))?;
        Ok(options)
    }
}

fn address(text: &str) -> Result<Address> {
    if let Some(path) = text.strip_prefix("unix://") {
        return Ok(Address::Unix(path.to_string()));
    }
    let port = text.strip_prefix("vsock://").and_then(|port| port.parse().ok());
    port.map(Address::Vsock)
        .ok_or_else(|| Error::invalid(format!("{text:?} is neither unix:///path nor vsock://PORT")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_command_line_sets_ports_and_level() {
        let options =
            Options::from_kernel("panic=-1 agent.log=debug agent.passfd_listener_port=1027 agent.log_vport=x quiet\n");
        assert_eq!(options.log_level, Level::Debug);
        assert_eq!(options.passfd, Some(Address::Vsock(1027)));
        assert_eq!(options.log, Some(Address::Vsock(LOG_PORT)));
        assert!(options.init);
    }

    #[test]
    fn arguments_name_every_socket() {
        let words = ["--listen", "unix:///a", "--streams", "unix:///b", "--run-dir", "/c"];
        let options = Options::from_arguments(words.iter().map(|word| word.to_string())).unwrap();
        assert_eq!(options.agent, Address::Unix("/a".into()));
        assert_eq!(options.run_dir, PathBuf::from("/c"));
        assert!(!options.init);
    }

    #[test]
    fn an_unknown_argument_is_named() {
        let error = Options::from_arguments(["--lisen", "x"].iter().map(|word| word.to_string())).unwrap_err();
        assert!(error.text.contains("--lisen"), "{error}");
    }
}
