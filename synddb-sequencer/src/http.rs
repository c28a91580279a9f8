//! Frames over HTTP: one POST carries a Hello and frames, and is answered by frames in order.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
};
use synddb_core::wire::{Header, WireError};

use crate::{
    ingest::{Connection, Ingest, Reply},
    status::Status,
    store::StoreError,
};

/// Content type of frames, in requests and in answers.
pub const CONTENT_TYPE_FRAMES: &str = "application/vnd.synddb.frames";

/// How long a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

type Answer = Response<Full<Bytes>>;

/// Answers one request of a sequencer that has run since `started`.
pub(crate) async fn serve(
    ingest: Ingest,
    started: Instant,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    Ok(match path.as_str() {
        "/v1/frames" if method == Method::POST => frames(ingest, request).await,
        "/v1/frames" => not_allowed("POST"),
        "/health" | "/ready" | "/status" if method != Method::GET => not_allowed("GET"),
        "/health" => text(StatusCode::OK, "ok"),
        "/ready" => {
            reading(move || ingest.store().streams(), |_| text(StatusCode::OK, "ready")).await
        }
        "/status" => {
            let status = move || {
                Ok(Status {
                    version: Some(env!("CARGO_PKG_VERSION").into()),
                    uptime_s: Some(started.elapsed().as_secs()),
                    ..Status::read(&**ingest.store())?
                })
            };
            reading(status, |status| match serde_json::to_vec(&status) {
                Ok(json) => typed(StatusCode::OK, "application/json", json),
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
            })
            .await
        }
        _ => text(StatusCode::NOT_FOUND, "not found; frames go to POST /v1/frames"),
    })
}

/// Answers with what is read from the log, where it can be read.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    answer: impl FnOnce(T) -> Answer,
) -> Answer {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(read)) => answer(read),
        Ok(Err(error)) => {
            tracing::error!(%error, "the log cannot be read");
            text(StatusCode::SERVICE_UNAVAILABLE, "the log cannot be read")
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
    }
}

/// Longest body in bytes: what may be on its way, one frame more, and the Hello.
fn max_body(ingest: &Ingest) -> usize {
    let limits = ingest.limits();
    usize::try_from(limits.credit).unwrap_or(usize::MAX / 2)
        + limits.max_frame as usize
        + (64 << 10)
}

async fn frames(ingest: Ingest, request: Request<Incoming>) -> Answer {
    let content_type = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
    if content_type != Some(CONTENT_TYPE_FRAMES.as_bytes()) {
        return text(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type of frames is application/vnd.synddb.frames",
        );
    }
    let body = Limited::new(request.into_body(), max_body(&ingest)).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body took over 60 seconds"),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is over the limit");
        }
        Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        Ok(Ok(body)) => body.to_bytes(),
    };
    match tokio::task::spawn_blocking(move || handle_all(ingest, &body)).await {
        Ok(Ok(answers)) => typed(StatusCode::OK, CONTENT_TYPE_FRAMES, answers),
        Ok(Err(_)) => text(StatusCode::BAD_REQUEST, "the body does not begin with a synddb frame"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
    }
}

/// The answers up to the first frame that ends the connection; an error where the very first
/// bytes are no frame.
fn handle_all(ingest: Ingest, body: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut connection = Connection::new(ingest);
    let mut answers = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let frame = match next_frame(rest) {
            Ok(frame) => frame,
            Err(error) if rest.len() == body.len() && !is_other_version(&error) => {
                return Err(error);
            }
            // With its version unknown, the frame's length is unknown too.
            Err(error) if is_other_version(&error) => rest,
            Err(_) => break,
        };
        rest = &rest[frame.len()..];
        match connection.handle(frame) {
            Reply::Frame(answer) => answers.extend_from_slice(&answer),
            Reply::Silence => {}
            Reply::Close(last) => {
                answers.extend_from_slice(&last.unwrap_or_default());
                break;
            }
        }
    }
    Ok(answers)
}

fn next_frame(rest: &[u8]) -> Result<&[u8], WireError> {
    let header = Header::read(rest, u32::MAX as usize)?;
    rest.get(..header.frame_len()).ok_or(WireError::Truncated)
}

fn is_other_version(error: &WireError) -> bool {
    matches!(error, WireError::Version { .. })
}

fn not_allowed(method: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(method));
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    typed(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
}

fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}
