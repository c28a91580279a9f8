//! Asks a sequencer for its status.

use std::{fmt, io, str::FromStr, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use synddb_sequencer::{ListenAddress, status::Status};
use tokio::net::TcpStream;

/// Longest answer that is read, in bytes: of some 200,000 streams.
const MAX_ANSWER: usize = 64 << 20;

/// Where a sequencer is: `http://HOST:PORT`, with a path before it where a proxy serves it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected http://HOST:PORT".to_owned();
        if let Ok(ListenAddress::Stream(_)) = text.parse() {
            return Err(
                "only frames go over a stream socket: ask the sequencer's http address, which \
                        --listen may name beside it, or read its log by --data"
                    .into(),
            );
        }
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: Uri = with_scheme.parse().map_err(|error| format!("{error}; {}", expected()))?;
        if uri.scheme_str() == Some("https") {
            return Err("TLS is not spoken yet; a tunnel to the sequencer's http can be".into());
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(expected)?;
        if uri.scheme_str() != Some("http") || uri.query().is_some() || uri.host() == Some("") {
            return Err(expected());
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: path.strip_suffix("/status").unwrap_or(path).to_owned(),
        })
    }
}

/// Why there is no status.
#[derive(Debug)]
pub(crate) enum FetchError {
    Runtime(io::Error),
    Refused(Address),
    Unreachable(Address, io::Error),
    Timeout(Address, Duration),
    NotHttp(Address, hyper::Error),
    CutShort(Address),
    /// A web page: of a proxy, mostly.
    Page(Address, StatusCode),
    /// A sequencer that says it is not well.
    NotReady(Address, String),
    NotASequencer(Address, StatusCode),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(error) => write!(f, "cannot use the network: {error}"),
            Self::Refused(address) => write!(
                f,
                "nothing listens on {}; is the sequencer running, and on that port?",
                address.authority
            ),
            Self::Unreachable(address, error) => write!(f, "{address} cannot be reached: {error}"),
            Self::Timeout(address, timeout) => {
                write!(f, "{address} gave no answer within {} s", timeout.as_secs())
            }
            Self::NotHttp(address, error) => {
                write!(f, "{address} answers, but not as HTTP: {error}")
            }
            Self::CutShort(address) => write!(f, "{address} did not answer to the end"),
            Self::Page(address, status) => write!(
                f,
                "{address} answers with a web page ({status}): this is a proxy in front of it or \
                 something else; ask the sequencer's own address"
            ),
            Self::NotReady(address, text) => {
                write!(f, "{address} is not ready: {text}; its log says more")
            }
            Self::NotASequencer(address, status) => write!(
                f,
                "{address} is not a synddb sequencer, or one of another version: it answers \
                 {status}, and not with a status that is known here"
            ),
        }
    }
}

/// `GET /status`, all of it within `timeout`.
pub(crate) fn fetch(address: &Address, timeout: Duration) -> Result<Status, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(FetchError::Runtime)?;
    let answer = runtime.block_on(async { tokio::time::timeout(timeout, ask(address)).await });
    // Not waiting for a name that is still being looked up.
    runtime.shutdown_background();
    answer.map_err(|_| FetchError::Timeout(address.clone(), timeout))?
}

async fn ask(address: &Address) -> Result<Status, FetchError> {
    let to = || address.clone();
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await;
    let stream = stream.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => FetchError::Refused(to()),
        _ => FetchError::Unreachable(to(), error),
    })?;
    let not_http = |error| FetchError::NotHttp(to(), error);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
    tokio::spawn(connection);
    let request = Request::get(format!("{}/status", address.path))
        .header(HOST, &address.authority)
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::NotASequencer(to(), StatusCode::BAD_REQUEST))?;
    let answer = sender.send_request(request).await.map_err(not_http)?;
    let status = answer.status();
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is = |wanted: &str| content_type.is_some_and(|found| found.starts_with(wanted));
    if is("text/html") {
        return Err(FetchError::Page(to(), status));
    }
    let is_text = is("text/plain");
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| FetchError::CutShort(to()))?.to_bytes();
    if status == StatusCode::SERVICE_UNAVAILABLE && is_text {
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(FetchError::NotReady(to(), text));
    }
    match serde_json::from_slice(&body) {
        Ok(read) if status.is_success() => Ok(read),
        _ => Err(FetchError::NotASequencer(to(), status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        for (text, host, port, path) in [
            ("http://127.0.0.1:8433", "127.0.0.1", 8433, ""),
            ("http://127.0.0.1:8433/", "127.0.0.1", 8433, ""),
            ("localhost:8433", "localhost", 8433, ""),
            ("http://host", "host", 80, ""),
            ("http://[::1]:8433", "::1", 8433, ""),
            ("http://host:1/synddb/status", "host", 1, "/synddb"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.path, path, "{text}");
        }
        for text in ["", "https://host", "ftp://host", "http://", "http://u:p@host", "a b", "x?y"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
