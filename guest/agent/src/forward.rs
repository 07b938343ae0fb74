//! Connections from the host to ports of the guest's loopback: what a port-forward and a probe of localhost reach.

use crate::confidential::guard::Guard;
use crate::error::{Context, Error, Result};
use crate::io::{Fd, Listener};
use crate::streams::{after_failed_accept, read_token};
use serde_json::json;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 256;
/// The host says its port, and the guest's program takes the connection, within this time.
const BEGIN_MAX: Duration = Duration::from_secs(10);
/// One step of moving bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// The answer when the connection stands. Where there is none, the stream is closed without it.
const ANSWER: &[u8] = b"OK\n";

/// Accepts connections for ever: the host sends the port in decimal and a newline, and gets `OK` and a newline before the program's bytes.
pub async fn serve(listener: Listener, guard: Rc<Guard>) {
    let places = Rc::new(());
    loop {
        match listener.accept().await {
            Ok(_) if Rc::strong_count(&places) > CONNECTIONS_MAX => {
                crate::warn!("a connection to a port was closed: {CONNECTIONS_MAX} others are open");
            }
            Ok((host, _)) => {
                let (place, guard) = (places.clone(), guard.clone());
                tokio::task::spawn_local(async move {
                    let _place = place;
                    if let Err(error) = forward(&host, &guard).await {
                        crate::debug!("a connection to a port ended: {error}");
                    }
                });
            }
            Err(error) => after_failed_accept(&error).await,
        }
    }
}

async fn forward(host: &Fd, guard: &Guard) -> Result<()> {
    let begin = async {
        let port = read_token(host).await.and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or_else(|| Error::invalid("the host named no port"))?;
        let allowed = guard.allows("ForwardPortRequest", move || json!({ "port": port }));
        allowed.await?;
        connect(port).await.with_context(|| format!("connect to port {port}"))
    };
    let late = || Error::internal(format!("nobody took the connection within {BEGIN_MAX:?}"));
    let target = timeout(BEGIN_MAX, begin).await.unwrap_or_else(|_| Err(late()))?;
    host.write_all(ANSWER).await?;
    let inward = async {
        let moved = copy(host, &target).await;
        if moved.is_ok() {
            unsafe { libc::shutdown(target.as_fd().as_raw_fd(), libc::SHUT_WR) };
            // The program may still have much to say.
            std::future::pending::<()>().await;
        }
        moved
    };
    // VMMs don't tell their side of a half-close: with the program's last byte the whole connection ends.
    tokio::select! {
        moved = copy(&target, host) => moved,
        moved = inward => moved,
    }
}

/// A program that listens on one of the families only is found by the other's refusal.
async fn connect(port: u16) -> Result<Fd> {
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => stream,
        Err(error) => match TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
            Ok(stream) => stream,
            Err(_) => return Err(error.into()),
        },
    };
    stream.set_nodelay(true)?;
    Fd::new(OwnedFd::from(stream.into_std()?))
}

/// Moves bytes until the end of `from`.
async fn copy(from: &Fd, to: &Fd) -> Result<()> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}
