//! The keeper of one pod: containerd's connections on one side, snpd on the other, the containers' stdio between FIFOs
//! and the VM. One thread and one epoll instance; it knows frames by their headers and has no logic of pods.

mod buffer;
mod connections;
mod keeper;
mod local;
mod log;
mod requests;
mod stream;
mod streams;
mod uplink;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::flags::Flags;
use crate::pod::{self, Places};
use crate::sys;
use keeper::Keeper;
use log::Log;

/// The descriptor on which `start` hands over the listening socket.
const LISTENER_DESCRIPTOR: i32 = 3;

/// What HELLO says of the pod; it never changes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: u32,
    pub pod_key: String,
    pub namespace: String,
    pub pod_id: String,
    pub address: String,
    pub ttrpc_address: String,
    pub publish_binary: String,
    pub config_file: Option<String>,
    pub socket: String,
    pub bundle: String,
}

/// Runs the keeper until snpd ends it (END) or a SIGTERM does.
///
/// # Errors
/// When it was not started by `start`, or the kernel refuses the little it needs.
pub fn run(flags: &Flags) -> Result<(), String> {
    sys::return_memory_early();
    sys::set_name(c"snp-keeper");
    let places = Places::new(flags.state_dir.clone().into());
    let identity = Identity {
        pid: std::process::id(),
        pod_key: pod::key(&flags.address, &flags.namespace, &flags.id),
        namespace: flags.namespace.clone(),
        pod_id: flags.id.clone(),
        address: flags.address.clone(),
        ttrpc_address: flags.ttrpc_address.clone(),
        publish_binary: flags.publish_binary.clone(),
        config_file: Some(flags.config.clone()).filter(|file| !file.is_empty()),
        socket: flags.socket.clone(),
        bundle: flags.bundle.clone(),
    };
    let log = Log::new(places.keeper_log(), format!("{}/{}", flags.namespace, flags.id));
    let listener = sys::inherit(LISTENER_DESCRIPTOR).map(UnixListener::from);
    let listener = listener.map_err(|error| format!("keep is run by start only (descriptor 3: {error})"))?;
    let outcome = listener
        .set_nonblocking(true)
        .and_then(|()| Keeper::new(identity, places, listener, &log, Instant::now())?.run());
    // Whatever ended it, nobody can be served at this socket any more.
    remove_socket(Path::new(&flags.socket));
    outcome.map_err(|error| {
        log.line(&format!("the keeper ends: {error}"));
        error.to_string()
    })
}

/// Unlinks the pod's socket, unless another keeper has put its own there.
fn remove_socket(socket: &Path) {
    let Some(folder) = socket.parent().and_then(|folder| std::fs::File::open(folder).ok()) else {
        return;
    };
    if sys::lock(folder.as_fd(), true).is_ok() && sys::connect_unix(socket).is_err() {
        let _ = std::fs::remove_file(socket);
    }
}
