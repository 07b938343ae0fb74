//! Puts the parts together and runs them until the sandbox ends.

use crate::agent::Agent;
use crate::cgroup::Cgroups;
use crate::early::Early;
use crate::error::{Context, Result};
use crate::inotify::Inotify;
use crate::io::{Fd, Listener};
use crate::options::Options;
use crate::reaper::{block_signals, Reaper};
use crate::uevent::Uevents;
use crate::{confidential, forward, log, milestones, ttrpc};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{spawn_local, LocalSet};

/// The last answers get this long to leave before the machine ends.
const FAREWELL: Duration = Duration::from_millis(100);
/// Descriptors of the agent: a process has up to seven.
const DESCRIPTORS_MAX: u64 = 1 << 20;
/// Readers of the log at once.
const LOG_READERS_MAX: usize = 8;

/// Serves until DestroySandbox, or SIGTERM outside a VM. `early`: the agent's port, where it is open already.
pub fn run(options: Options, early: Option<Early>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    LocalSet::new().block_on(&runtime, serve(options, early))
}

async fn serve(options: Options, early: Option<Early>) -> Result<()> {
    log::set_level(options.log_level);
    let signals = block_signals()?;
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // Outside a VM the orphans of containers come here too, not to the host's first process.
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        let limit = libc::rlimit {
            rlim_cur: DESCRIPTORS_MAX,
            rlim_max: DESCRIPTORS_MAX,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    let inotify = Inotify::open()?;
    spawn_local(inotify.clone().run());
    let folder = if options.init {
        "pod".to_string()
    } else {
        format!("snp-agent-{}", std::process::id())
    };
    let cgroups = Cgroups::prepare(&options.cgroup_root, &folder, options.init, inotify)?;
    // Before anything is accepted: the first request finds the policy in force.
    let (guard, confidential) = confidential::prepare(&options).await;
    let agent = Agent::new(options.clone(), Rc::new(Reaper::default()), cgroups, guard);
    let stop = agent.clone();
    spawn_local(agent.reaper.clone().run(signals, move || stop.end.notify_one()));

    if options.init {
        // Messages before the first container are about other devices.
        let (uevents, agent) = (Uevents::open()?, agent.clone());
        spawn_local(async move {
            if let Err(error) = agent.storages.verity.report(uevents).await {
                crate::warn!("changed layers are not reported any more: {error}");
            }
        });
    }
    if let Some(confidential) = confidential {
        let agent = agent.clone();
        spawn_local(async move {
            if let Err(error) = confidential::evidence::serve(confidential, agent).await {
                crate::warn!("applications get no evidence: {error}");
            }
        });
    }
    let listener = match early.and_then(|early| early.take(&options.agent)) {
        Some(open) => Listener::take(open)?,
        None => Listener::bind(&options.agent)?,
    };
    spawn_local(agent.streams.clone().serve_tokens(Listener::bind(&options.streams)?));
    if let Some(address) = &options.passfd {
        spawn_local(agent.streams.clone().serve_peers(Listener::bind(address)?));
    }
    if let Some(address) = &options.forward {
        spawn_local(forward::serve(Listener::bind(address)?, agent.guard.clone()));
    }
    if let Some(address) = &options.log {
        spawn_local(serve_log(Listener::bind(address)?));
    }
    let served = agent.clone();
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => drop(spawn_local(ttrpc::serve(connection, served.clone()))),
                Err(error) => {
                    crate::warn!("accepting a connection failed: {error}");
                    tokio::time::sleep(FAREWELL).await;
                }
            }
        }
    });
    milestones::serving();
    crate::info!("serving on {}", options.agent);
    log::kernel_log(log::Level::Info, "serving");
    agent.end.notified().await;
    if !agent.ended() {
        agent.destroy_sandbox().await?;
    }
    tokio::time::sleep(FAREWELL).await;
    agent.cgroups.remove();
    Ok(())
}

async fn serve_log(listener: Listener) {
    let readers = Rc::new(());
    loop {
        let Ok((reader, _)) = listener.accept().await else {
            return;
        };
        if Rc::strong_count(&readers) > LOG_READERS_MAX {
            continue;
        }
        let token = readers.clone();
        spawn_local(async move {
            let _token = token;
            let _ = copy_log(&reader).await;
        });
    }
}

async fn copy_log(reader: &Fd) -> std::io::Result<()> {
    let mut position = 0;
    loop {
        let (bytes, end) = log::read(position).await;
        reader.write_all(&bytes).await?;
        position = end;
    }
}
