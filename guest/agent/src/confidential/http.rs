//! As much of HTTP/1.1 (RFC 9112) as a service for small GET requests needs: a head with a bound, one answer, the end of the connection.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The longest head of a request.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub parameters: BTreeMap<String, Vec<u8>>,
}

/// Where the head ends, its empty line included.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Reads the first line; what follows it changes nothing here.
pub fn parse(head: &[u8]) -> Result<Asked> {
    let wrong = || Error::invalid("this is no request of HTTP/1.1");
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| wrong())?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong());
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(wrong());
    }
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parameters = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = String::from_utf8(decoded(name)?).map_err(|_| wrong())?;
        parameters.insert(name, decoded(value)?);
    }
    Ok(Asked {
        method: method.into(),
        path: path.into(),
        parameters,
    })
}

/// A value of a form (application/x-www-form-urlencoded).
fn decoded(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit(), digit());
                let value = high.zip(low).map(|(high, low)| (high * 16 + low) as u8);
                value.ok_or_else(|| Error::invalid("a percent sign without two hexadecimal digits"))?
            }
            other => other,
        });
    }
    Ok(bytes)
}

/// An answer, whole.
pub fn answer(status: u16, kind: &str, body: &[u8]) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        408 => "Request Timeout",
        _ => "Internal Server Error",
    };
    let mut bytes = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_path_and_parameters() {
        let asked = parse(b"GET /aa/evidence?runtime_data=a%2Fb+c%FF&x HTTP/1.1\r\nHost: y\r\n\r\n").unwrap();
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("GET", "/aa/evidence"));
        assert_eq!(asked.parameters["runtime_data"], b"a/b c\xff");
        assert_eq!(asked.parameters["x"], b"");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "GET",
            "GET /",
            "GET / HTTP/2",
            "GET x HTTP/1.1",
            "GET / HTTP/1.1 x",
            "GET /?a=%4 HTTP/1.1",
            "GET /?%zz=1 HTTP/1.1",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n\r\nrest"), Some(18));
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n"), None);
    }
}
