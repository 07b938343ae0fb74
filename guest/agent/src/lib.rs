//! The guest agent of containerd-shim-snp. See `README.md` for what it does and how it differs from kata-agent.

pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod container;
pub mod copyfile;
pub mod error;
pub mod forward;
pub mod guest;
pub mod inotify;
pub mod io;
pub mod log;
pub mod mountopts;
pub mod network;
pub mod options;
pub mod process;
pub mod proto;
pub mod reaper;
pub mod run;
pub mod service;
pub mod spawn;
pub mod stage;
pub mod storage;
pub mod streams;
pub mod ttrpc;
pub mod uevent;
pub mod volumes;
