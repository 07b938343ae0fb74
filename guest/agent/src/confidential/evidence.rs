//! Evidence for applications, on the guest's loopback: paths and parameters as Confidential Containers' `api-server-rest` has them, and three of our own.

use super::attester::report::Report;
use super::attester::{hexadecimal, REPORT_DATA_BYTES};
use super::http::{self, Asked};
use super::Confidential;
use crate::agent::Agent;
use crate::error::{Code, Context, Error, Result};
use crate::streams::after_failed_accept;
use data_encoding::{BASE64, BASE64URL, BASE64URL_NOPAD};
use serde_json::json;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// Where Confidential Containers' service listens.
pub const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8006);
/// Connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 32;
/// A request comes, and its answer is taken, within this time.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered: type and body.
type Body = (&'static str, Vec<u8>);

/// Serves for ever.
///
/// # Errors
/// The port is taken.
pub async fn serve(confidential: Rc<Confidential>, agent: Rc<Agent>) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(ADDRESS)).await;
    let listener = listener.context("listen for applications that ask for evidence")?;
    let places = Rc::new(());
    loop {
        match listener.accept().await {
            Ok(_) if Rc::strong_count(&places) > CONNECTIONS_MAX => {
                crate::warn!("a request for evidence was closed: {CONNECTIONS_MAX} others are open");
            }
            Ok((connection, _)) => {
                let (place, confidential, agent) = (places.clone(), confidential.clone(), agent.clone());
                spawn_local(async move {
                    let _place = place;
                    let _ = timeout(EXCHANGE_MAX, exchange(connection, &confidential, &agent)).await;
                });
            }
            Err(error) => after_failed_accept(&error.into()).await,
        }
    }
}

async fn exchange(mut connection: TcpStream, confidential: &Confidential, agent: &Agent) -> std::io::Result<()> {
    let mut head = Vec::new();
    let asked = loop {
        if let Some(end) = http::head_end(&head) {
            break http::parse(&head[..end]);
        }
        if head.len() >= http::HEAD_BYTES_MAX {
            break Err(Error::invalid(format!(
                "the request's head is longer than {} bytes",
                http::HEAD_BYTES_MAX
            )));
        }
        let mut part = [0u8; 1024];
        match connection.read(&mut part).await? {
            0 => return Ok(()),
            length => head.extend(&part[..length]),
        }
    };
    let (status, (kind, body)) = match asked.and_then(|asked| answer(&asked, confidential, agent)) {
        Ok(body) => (200, body),
        Err(error) => {
            let status = match error.code {
                Code::InvalidArgument => 400,
                Code::NotFound => 404,
                Code::Unimplemented => 405,
                Code::FailedPrecondition => 409,
                _ => 500,
            };
            (status, (TEXT, format!("{error}\n").into_bytes()))
        }
    };
    connection.write_all(&http::answer(status, kind, &body)).await?;
    connection.shutdown().await
}

fn answer(asked: &Asked, confidential: &Confidential, agent: &Agent) -> Result<Body> {
    if asked.method != "GET" {
        return Err(Error::new(Code::Unimplemented, "there are GET requests only"));
    }
    let attester = &confidential.attester;
    match asked.path.as_str() {
        "/aa/evidence" => {
            let attested = confidential.report(&report_data(asked)?)?;
            let report = Report::parse(&attested.bytes)?;
            let mut evidence = json!({
                "platform": attester.platform(),
                "attestation_report": report.describe(),
                "cert_chain": null,
                "report": BASE64.encode(&attested.bytes),
                "certificates": attested.certificates.map(|table| BASE64.encode(&table)),
            });
            if confidential.is_late() {
                let digest = hexadecimal(&confidential.initdata()?.digest);
                evidence["late_bound"] = json!({ "initdata_digest": digest });
            }
            Ok((JSON, evidence.to_string().into_bytes()))
        }
        "/report" => Ok((BYTES, confidential.report(&report_data(asked)?)?.bytes)),
        "/initdata" => Ok((TEXT, confidential.initdata()?.text.clone().into_bytes())),
        "/layers" => {
            let containers: Vec<_> = agent
                .layers()
                .into_iter()
                .map(|(id, layers)| json!({ "container": id, "layers": layers }))
                .collect();
            let layers = json!({ "platform": attester.platform(), "containers": containers });
            Ok((JSON, layers.to_string().into_bytes()))
        }
        other => Err(Error::not_found(format!(
            "there is nothing at {other}; there are /aa/evidence?runtime_data=, /report?runtime_data=, /initdata and /layers"
        ))),
    }
}

/// REPORT_DATA as Confidential Containers' attestation agent makes it: the bytes of `runtime_data` (URL-safe base64 of them with `encoding=base64`), filled with zeros.
fn report_data(asked: &Asked) -> Result<[u8; REPORT_DATA_BYTES]> {
    let given = asked.parameters.get("runtime_data");
    let given =
        given.ok_or_else(|| Error::invalid("the parameter runtime_data is missing: up to 64 bytes for the report"))?;
    let data = match asked.parameters.get("encoding").map(Vec::as_slice) {
        None => given.clone(),
        Some(b"base64") => BASE64URL_NOPAD
            .decode(given)
            .or_else(|_| BASE64URL.decode(given))
            .map_err(|error| Error::invalid(format!("runtime_data is no URL-safe base64: {error}")))?,
        Some(_) => return Err(Error::invalid("the parameter encoding is base64, or missing")),
    };
    let mut report_data = [0; REPORT_DATA_BYTES];
    let room = report_data.get_mut(..data.len());
    let room = room.ok_or_else(|| {
        let text = format!(
            "runtime_data has {} bytes, and REPORT_DATA {REPORT_DATA_BYTES}: give the hash of it",
            data.len()
        );
        Error::invalid(text)
    })?;
    room.copy_from_slice(&data);
    Ok(report_data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(query: &str) -> Result<[u8; 64]> {
        report_data(&http::parse(format!("GET /report?{query} HTTP/1.1\r\n\r\n").as_bytes()).unwrap())
    }

    #[test]
    fn report_data_are_the_bytes_filled_with_zeros() {
        let mut expected = [0; 64];
        expected[..3].copy_from_slice(b"abc");
        assert_eq!(data("runtime_data=abc").unwrap(), expected);
        assert_eq!(data("runtime_data=YWJj&encoding=base64").unwrap(), expected);
        assert_eq!(data(&format!("runtime_data={}", "x".repeat(64))).unwrap(), [b'x'; 64]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for query in [
            "",
            "other=1",
            &format!("runtime_data={}", "x".repeat(65)),
            "runtime_data=%2B%2F&encoding=base64",
            "runtime_data=a&encoding=hex",
        ] {
            assert!(data(query).is_err(), "{query}");
        }
    }
}
