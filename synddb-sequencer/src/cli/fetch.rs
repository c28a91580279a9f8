//! Asks a sequencer for its status.

use std::{fmt, io, str::FromStr, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use synddb_sequencer::{ListenAddress, status::Status};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::link::Link;

/// Longest answer that is read, in bytes: of some 200,000 streams.
const MAX_ANSWER: usize = 64 << 20;

/// Where a sequencer is: `http://HOST:PORT` or `https://HOST:PORT`, with a path before it where a proxy
/// serves it there, or a socket that HTTP is spoken over: `http+unix:/path`, `https+vsock://CID:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    has_tls: bool,
    /// Where it is no host's.
    socket: Option<Box<synddb_transport_vsock::Address>>,
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.has_tls { "https" } else { "http" };
        match &self.socket {
            Some(socket) => write!(f, "{scheme}+{socket}"),
            None => write!(f, "{scheme}://{}{}", self.authority, self.path),
        }
    }
}

impl Address {
    pub(crate) fn has_tls(&self) -> bool {
        self.has_tls
    }

    fn is_loopback(&self) -> bool {
        if let Some(socket) = &self.socket {
            return socket.is_local();
        }
        let address = self.host.parse::<std::net::IpAddr>();
        self.host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected http://HOST:PORT, https://HOST:PORT, http+unix:/path or the like".to_owned()
        };
        match text.parse() {
            Err(_) | Ok(ListenAddress::Http(_) | ListenAddress::Https(_)) => {}
            Ok(address @ (ListenAddress::HttpStream(_) | ListenAddress::HttpsStream(_))) => {
                let has_tls = address.has_tls();
                let (ListenAddress::HttpStream(socket) | ListenAddress::HttpsStream(socket)) =
                    address
                else {
                    return Err(expected());
                };
                return Ok(Self {
                    has_tls,
                    socket: Some(Box::new(socket)),
                    authority: "localhost".into(),
                    // A certificate for a socket is for no name, unless --tls-server-name gives one.
                    host: String::new(),
                    port: 0,
                    path: String::new(),
                });
            }
            Ok(ListenAddress::Stream(_) | ListenAddress::StreamTls(_)) => {
                return Err(
                    "only frames are spoken there, and the status is asked for by HTTP: ask an \
                     address that begins with http, which --listen may name beside it, or read the \
                     log by --data"
                        .into(),
                );
            }
        }
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: Uri = with_scheme.parse().map_err(|error| format!("{error}; {}", expected()))?;
        let has_tls = uri.scheme_str() == Some("https");
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(expected)?;
        if !(has_tls || uri.scheme_str() == Some("http"))
            || uri.query().is_some()
            || uri.host() == Some("")
        {
            return Err(expected());
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            has_tls,
            socket: None,
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if has_tls { 443 } else { 80 }),
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
    /// With what it says, where that is text.
    NotASequencer(Address, StatusCode, String),
    /// TLS failed; what is wrong.
    #[cfg(feature = "tls")]
    Tls(Address, io::Error),
    /// The token would travel in the clear.
    TokenInTheClear(Address),
    /// The token cannot be sent.
    BadToken,
    /// Who is asking may not know.
    Denied(Address, String),
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
            #[cfg(feature = "tls")]
            Self::Tls(address, error) => match synddb_sequencer::synddb_tls::failure_of(error) {
                Some(failure) => write!(f, "{address}: {failure}"),
                None => write!(f, "{address}: the TLS handshake failed: {error}"),
            },
            Self::TokenInTheClear(address) => {
                write!(f, "the token would travel in the clear to {address}: use https")
            }
            Self::BadToken => {
                f.write_str("--token-file: a token is made of visible ASCII characters")
            }
            Self::Denied(address, why) if why.is_empty() => {
                write!(f, "{address} grants no access")
            }
            Self::Denied(address, why) => write!(f, "{address} grants no access: {why}"),
            Self::NotASequencer(address, status, text) => {
                write!(
                    f,
                    "{address} is not a synddb sequencer, or one of another version: it answers \
                     {status}, and not with a status that is known here"
                )?;
                if text.is_empty() { Ok(()) } else { write!(f, "; it says: {text}") }
            }
        }
    }
}

/// `GET /status`, all of it within the link's time.
pub(crate) fn fetch(address: &Address, link: &Link) -> Result<Status, FetchError> {
    if !link.token.is_empty() && !address.has_tls && !address.is_loopback() {
        return Err(FetchError::TokenInTheClear(address.clone()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(FetchError::Runtime)?;
    let timeout = link.timeout;
    let answer =
        runtime.block_on(async { tokio::time::timeout(timeout, ask(address, link)).await });
    // Not waiting for a name that is still being looked up.
    runtime.shutdown_background();
    answer.map_err(|_| FetchError::Timeout(address.clone(), timeout))?
}

async fn ask(address: &Address, link: &Link) -> Result<Status, FetchError> {
    if let Some(socket) = &address.socket {
        return ask_at(dial(socket, address, link).await?, address, link).await;
    }
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await;
    let stream = stream.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => FetchError::Refused(address.clone()),
        _ => FetchError::Unreachable(address.clone(), error),
    })?;
    ask_at(stream, address, link).await
}

async fn dial(
    socket: &synddb_transport_vsock::Address,
    address: &Address,
    link: &Link,
) -> Result<UnixStream, FetchError> {
    use synddb_transport_vsock::{Dialer, Timeouts};
    let timeouts = Timeouts { connect: link.timeout, write: link.timeout };
    let dialer = Dialer::new(socket.clone(), timeouts);
    // It blocks, for as long as it may take.
    let dialed = tokio::task::spawn_blocking(move || dialer.connect()).await;
    let unreachable = |error: io::Error| FetchError::Unreachable(address.clone(), error);
    let stream = dialed
        .map_err(io::Error::other)
        .and_then(|dialed| dialed.map_err(io::Error::other))
        .map_err(unreachable)?;
    stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)).map_err(unreachable)
}

/// Over a stream of whatever kind.
async fn ask_at<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: &Address,
    link: &Link,
) -> Result<Status, FetchError> {
    #[cfg(feature = "tls")]
    if let Some(tls) = &link.tls {
        let failed = |error| FetchError::Tls(address.clone(), error);
        let misconfigured = |error: synddb_sequencer::synddb_tls::TlsError| {
            FetchError::Tls(address.clone(), io::Error::other(error))
        };
        let name = tls.name_for(&address.host).map_err(misconfigured)?;
        let config = tls.config().map_err(misconfigured)?;
        let stream =
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
        return ask_over(stream, address, link).await;
    }
    ask_over(stream, address, link).await
}

async fn ask_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: &Address,
    link: &Link,
) -> Result<Status, FetchError> {
    let to = || address.clone();
    let not_http = |error: hyper::Error| {
        // A client's certificate is refused after the handshake.
        #[cfg(feature = "tls")]
        if let Some(failure) = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref())
            .and_then(synddb_sequencer::synddb_tls::failure_of)
        {
            return FetchError::Tls(to(), failure.into());
        }
        FetchError::NotHttp(to(), error)
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
    tokio::spawn(connection);
    let mut request =
        Request::get(format!("{}/status", address.path)).header(HOST, &address.authority);
    if !link.token.is_empty() {
        let header = hyper::header::HeaderValue::try_from(format!("Bearer {}", link.token));
        let mut header = header.map_err(|_| FetchError::BadToken)?;
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::NotASequencer(to(), StatusCode::BAD_REQUEST, String::new()))?;
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
    let text = || String::from_utf8_lossy(if is_text { &body } else { b"" }).trim().to_owned();
    if status == StatusCode::SERVICE_UNAVAILABLE && is_text {
        return Err(FetchError::NotReady(to(), text()));
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(FetchError::Denied(to(), text()));
    }
    match serde_json::from_slice(&body) {
        Ok(read) if status.is_success() => Ok(read),
        _ => {
            let text = text().chars().take(200).collect();
            Err(FetchError::NotASequencer(to(), status, text))
        }
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
            ("https://host", "host", 443, ""),
            ("HTTPS://host:8433/x", "host", 8433, "/x"),
            ("http://[::1]:8433", "::1", 8433, ""),
            ("http://host:1/synddb/status", "host", 1, "/synddb"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.path, path, "{text}");
        }
        for (text, local) in [("http+unix:/run/s", true), ("https+vsock://3:8433", false)] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.is_loopback()), (text, local));
            assert_eq!(address.has_tls, text.starts_with("https"), "{text}");
        }
        for text in [
            "unix:/run/s",
            "vsock://3:8433",
            "",
            "ftp://host",
            "http://",
            "http://u:p@host",
            "a b",
            "x?y",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
