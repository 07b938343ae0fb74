//! A ttrpc server: frames, requests, answers. Wire facts: `u32` BE length, `u32` BE stream id, `u8` type (1 request, 2 response),
//! `u8` flags, then a protobuf `Request` or `Response`.

use crate::error::{Code, Error, Result};
use crate::io::Fd;
use prost::Message;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The longest payload of one frame, as ttrpc's own implementations have it.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// A frame that claims more is not skipped: the connection is closed.
const SKIP_BYTES_MAX: usize = 64 << 20;
/// Requests of one connection that may run at once: one that waits for each process that there may be, and others.
const REQUESTS_MAX: usize = 8192;
/// Answers that may wait for a slow reader.
const ANSWERS_MAX: usize = 64;

const HEADER_BYTES: usize = 10;
const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;

/// ttrpc's request envelope.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// google.rpc.Status.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// ttrpc's response envelope.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// What a frame's first ten bytes say.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    pub stream: u32,
    pub kind: u8,
}

impl Header {
    /// Reads the ten bytes.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            length: word(0) as usize,
            stream: word(4),
            kind: bytes[8],
        }
    }
}

/// A frame: header and payload.
pub fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(stream.to_be_bytes());
    out.extend([kind, 0]);
    out.extend(payload);
    out
}

/// The frame that answers request `stream`.
pub fn answer(stream: u32, result: Result<Vec<u8>>) -> Vec<u8> {
    let result = result.and_then(|payload| {
        if payload.len() + 64 > PAYLOAD_BYTES_MAX {
            let text = format!("the answer has {} bytes, more than a frame holds", payload.len());
            return Err(Error::new(Code::ResourceExhausted, text));
        }
        Ok(payload)
    });
    let response = match result {
        Ok(payload) => Response { status: None, payload },
        Err(error) => Response {
            status: Some(Status {
                code: error.code as i32,
                message: error.text,
            }),
            payload: Vec::new(),
        },
    };
    frame(stream, TYPE_RESPONSE, &response.encode_to_vec())
}

/// Runs one request.
pub trait Handler {
    /// Answers `method` of `service`; the result is the encoded answer.
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

    /// Whether the request only waits: it is dropped when its caller went away. Others run to their end.
    fn only_waits(&self, method: &str) -> bool;
}

/// Serves one connection until its peer closes it or breaks the protocol.
pub async fn serve<H: Handler + 'static>(connection: Fd, handler: Rc<H>) {
    let connection = Rc::new(connection);
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(ANSWERS_MAX);
    let (gone, watch_gone) = watch::channel(false);
    let gone = Rc::new(gone);
    let writer = {
        let (connection, gone) = (connection.clone(), gone.clone());
        tokio::task::spawn_local(async move {
            while let Some(frame) = queue.recv().await {
                if connection.write_all(&frame).await.is_err() {
                    gone.send_replace(true);
                    break;
                }
            }
        })
    };
    let running = Rc::new(Cell::new(0));
    while let Some((stream, request)) = next(&connection, &answers).await {
        if running.get() >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} requests of this connection are unanswered");
            let _ = answers
                .send(answer(stream, Err(Error::new(Code::ResourceExhausted, text))))
                .await;
            continue;
        }
        running.set(running.get() + 1);
        let (handler, answers, watch_gone, running) =
            (handler.clone(), answers.clone(), watch_gone.clone(), running.clone());
        tokio::task::spawn_local(async move {
            run(stream, request, handler, answers, watch_gone).await;
            running.set(running.get() - 1);
        });
    }
    gone.send_replace(true);
    drop(answers);
    let _ = writer.await;
}

async fn run<H: Handler>(
    stream: u32,
    request: Request,
    handler: Rc<H>,
    answers: mpsc::Sender<Vec<u8>>,
    mut gone: watch::Receiver<bool>,
) {
    let only_waits = handler.only_waits(&request.method);
    let deadline = match request.timeout_nano {
        nanos if nanos > 0 => Duration::from_nanos(nanos as u64),
        _ => Duration::from_secs(u32::MAX.into()),
    };
    let method = request.method.clone();
    let mut work = handler.call(request);
    tokio::select! {
        result = &mut work => {
            let _ = answers.send(answer(stream, result)).await;
            return;
        }
        _ = tokio::time::sleep(deadline) => {
            let text = format!("{method} did not finish within the {deadline:?} that the caller gave it");
            let _ = answers.send(answer(stream, Err(Error::new(Code::DeadlineExceeded, text)))).await;
        }
        _ = gone.wait_for(|gone| *gone) => {}
    }
    drop(answers);
    if !only_waits {
        let _ = work.await;
    }
}

/// The next well-formed request, or None at the connection's end. Malformed ones are answered here.
async fn next(connection: &Fd, answers: &mpsc::Sender<Vec<u8>>) -> Option<(u32, Request)> {
    loop {
        let mut bytes = [0u8; HEADER_BYTES];
        connection.read_exact(&mut bytes).await.ok()?;
        let header = Header::parse(&bytes);
        if header.length > PAYLOAD_BYTES_MAX {
            skip(connection, header.length).await?;
            let text = format!("the request has {} bytes, more than {PAYLOAD_BYTES_MAX}", header.length);
            answers
                .send(answer(header.stream, Err(Error::new(Code::ResourceExhausted, text))))
                .await
                .ok()?;
            continue;
        }
        let mut payload = vec![0u8; header.length];
        connection.read_exact(&mut payload).await.ok()?;
        if header.kind != TYPE_REQUEST {
            continue;
        }
        match Request::decode(payload.as_slice()) {
            Ok(request) => return Some((header.stream, request)),
            Err(error) => {
                let error = Error::invalid(format!("not a ttrpc request: {error}"));
                answers.send(answer(header.stream, Err(error))).await.ok()?;
            }
        }
    }
}

async fn skip(connection: &Fd, mut length: usize) -> Option<()> {
    if length > SKIP_BYTES_MAX {
        return None;
    }
    let mut buffer = vec![0u8; 64 << 10];
    while length > 0 {
        let part = length.min(buffer.len());
        connection.read_exact(&mut buffer[..part]).await.ok()?;
        length -= part;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_s_header_reads_back() {
        let bytes = frame(7, TYPE_REQUEST, b"abc");
        let header: &[u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
        assert_eq!(
            Header::parse(header),
            Header {
                length: 3,
                stream: 7,
                kind: TYPE_REQUEST
            }
        );
        assert_eq!(&bytes[HEADER_BYTES..], b"abc");
    }

    #[test]
    fn an_error_travels_as_a_status() {
        let bytes = answer(1, Err(Error::not_found("no such container \"x\"")));
        let response = Response::decode(&bytes[HEADER_BYTES..]).unwrap();
        let status = response.status.unwrap();
        assert_eq!((status.code, status.message.as_str()), (5, "no such container \"x\""));
    }

    #[test]
    fn an_answer_that_no_frame_holds_becomes_an_error() {
        let bytes = answer(1, Ok(vec![0; PAYLOAD_BYTES_MAX]));
        let response = Response::decode(&bytes[HEADER_BYTES..]).unwrap();
        assert_eq!(response.status.unwrap().code, Code::ResourceExhausted as i32);
    }
}
