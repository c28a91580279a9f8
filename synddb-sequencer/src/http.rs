//! Frames over HTTP: one POST carries a Hello and frames, and is answered by frames in order.
//!
//! Where access is checked, it is before the body is read: who is not known sends none.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use synddb_core::wire::{Header, WireError};

use crate::{
    access::{Credentials, Denied, Identity, Right, Target},
    ingest::{Connection, Ingest, Reply},
    slots::Guest,
    status::Status,
    store::{StoreError, StreamInfo},
};

/// Content type of frames, in requests and in answers.
pub const CONTENT_TYPE_FRAMES: &str = "application/vnd.synddb.frames";

/// What somebody is told who speaks HTTP in the clear at an address with TLS.
pub(crate) const TLS_ONLY: &str = "HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: 47\r\n\r\n\
    only TLS is spoken at this address: use https\r\n";

type Answer = Response<Full<Bytes>>;

/// What requests of one connection have in common.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) ingest: Ingest,
    /// When the sequencer started.
    pub(crate) started: Instant,
    /// The key that the connection's client certificate proved.
    pub(crate) key: Option<[u8; 32]>,
    /// Why nobody is let in over the connection.
    pub(crate) refused: Option<Denied>,
    /// How long a request's body may take to arrive.
    pub(crate) body_timeout: Duration,
    pub(crate) guest: Arc<Guest>,
}

/// Answers one request.
pub(crate) async fn serve(
    session: Session,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if let Some(why) = &session.refused {
        return Ok(text(StatusCode::FORBIDDEN, &why.to_string()));
    }
    let Session { ingest, started, .. } = session.clone();
    Ok(match path.as_str() {
        "/v1/frames" if method == Method::POST => frames(session, request).await,
        "/v1/frames" => not_allowed("POST"),
        "/health" | "/ready" | "/status" if method != Method::GET => not_allowed("GET"),
        "/health" => text(StatusCode::OK, "ok"),
        "/ready" => {
            reading(move || ingest.store().streams(), |_| text(StatusCode::OK, "ready")).await
        }
        "/status" => {
            let caller = match identify(&session, &request).await {
                // There is no Hello that a nonce could be given out for.
                Ok((_, Some(caller))) if caller.needs_nonce() => {
                    return Ok(unauthorized(&Denied::because(
                        "this principal's tokens are good on a sender's connection only: let another \
                         one read",
                    )));
                }
                Ok((_, caller)) => caller,
                Err(denied) => return Ok(unauthorized(&denied)),
            };
            let may_read = move |info: &StreamInfo| {
                let stream = info.receiver.stream();
                let target = Target { stream, name: &info.name, owner: &info.owner };
                caller.as_ref().is_none_or(|caller| caller.may(Right::Read, &target).is_ok())
            };
            let status = move || {
                Ok(Status {
                    version: Some(env!("CARGO_PKG_VERSION").into()),
                    uptime_s: Some(started.elapsed().as_secs()),
                    ..Status::read_some(&**ingest.store(), may_read)?
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

/// What the request and its connection show, and who shows it where access is checked.
async fn identify(
    session: &Session,
    request: &Request<Incoming>,
) -> Result<(Credentials, Option<Identity>), Denied> {
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    let token = header.and_then(bearer).unwrap_or_default().to_vec();
    let credentials = Credentials { token, key: session.key };
    let ingest = session.ingest.clone();
    if ingest.access().is_none() {
        let identity = ingest.identify(&credentials)?;
        return Ok((credentials, identity));
    }
    // A check of tokens may block.
    let identified = tokio::task::spawn_blocking(move || {
        let identity = ingest.identify(&credentials)?;
        Ok((credentials, identity))
    });
    identified.await.unwrap_or_else(|_| Err(Denied::because("who this is could not be found out")))
}

/// The token of an `Authorization` header.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn unauthorized(denied: &Denied) -> Answer {
    let mut answer = text(StatusCode::UNAUTHORIZED, &denied.to_string());
    let scheme = hyper::header::HeaderValue::from_static("Bearer");
    answer.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    answer
}

async fn frames(session: Session, request: Request<Incoming>) -> Answer {
    let content_type = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
    if content_type != Some(CONTENT_TYPE_FRAMES.as_bytes()) {
        return text(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type of frames is application/vnd.synddb.frames",
        );
    }
    let credentials = match identify(&session, &request).await {
        Ok((credentials, _)) => credentials,
        Err(denied) => return unauthorized(&denied),
    };
    let Session { ingest, body_timeout, guest, .. } = session;
    let body = Limited::new(request.into_body(), max_body(&ingest)).collect();
    let body = match tokio::time::timeout(body_timeout, body).await {
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is over the limit");
        }
        Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let connection = Connection::with_credentials(ingest, credentials).of_request();
    match tokio::task::spawn_blocking(move || handle_all(connection, &guest, &body)).await {
        Ok(Ok(answers)) => typed(StatusCode::OK, CONTENT_TYPE_FRAMES, answers),
        Ok(Err(_)) => text(StatusCode::BAD_REQUEST, "the body does not begin with a synddb frame"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
    }
}

/// The answers up to the first frame that ends the connection; an error where the very first
/// bytes are no frame.
fn handle_all(
    mut connection: Connection,
    guest: &Guest,
    body: &[u8],
) -> Result<Vec<u8>, WireError> {
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
        let reply = connection.handle(frame);
        if connection.has_session() {
            guest.is_known();
        }
        match reply {
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

fn text(status: StatusCode, text: &str) -> Answer {
    typed(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
}

fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}
