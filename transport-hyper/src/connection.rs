//! Opens connections, and sends one request after the other over each.

use std::{fmt, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use synddb_core::transport::TransportErrorKind;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    Version,
    error::Failed,
    target::{Place, Target},
    watched::{Ending, Watched},
};

/// Longest head of a response in bytes.
const MAX_HEAD: u32 = 64 << 10;

type Body = Full<Bytes>;

/// How a request ended that was not answered.
pub(crate) enum NotAnswered {
    /// Nothing of it was sent, as the connection had ended before.
    Unsent(Failed),
    /// It may have been sent.
    Failed(Failed),
}

/// A connection that requests go over.
pub(crate) struct Connection {
    sender: Sender,
    ending: Ending,
    /// Nothing was answered over it yet.
    is_new: bool,
    /// Moves the bytes; ends with this.
    task: JoinHandle<hyper::Result<()>>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.is_http2() { "HTTP/2" } else { "HTTP/1.1" };
        f.debug_tuple("Connection").field(&name).finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects to `target` within `timeout`.
    pub(crate) async fn open(
        target: &Target,
        tls: &Tls,
        version: Version,
        timeout: Duration,
    ) -> Result<Self, Failed> {
        let opening = async {
            let is_http2 = version == Version::Http2;
            match &target.place {
                Place::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await;
                    let stream = stream.map_err(|error| Failed::connecting(&error))?;
                    // A request is written in one go, and waits for its response.
                    let _ = stream.set_nodelay(true);
                    if target.has_tls {
                        return with_tls(stream, target, tls, version).await;
                    }
                    Self::over(stream, is_http2).await
                }
                #[cfg(feature = "vsock")]
                Place::Socket(address) => {
                    let stream = dial(address, timeout).await?;
                    if target.has_tls {
                        return with_tls(stream, target, tls, version).await;
                    }
                    Self::over(stream, is_http2).await
                }
            }
        };
        match tokio::time::timeout(timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => {
                let text = format!("no connection within {} s", timeout.as_secs_f32());
                Err(Failed::new(TransportErrorKind::TimedOut, text))
            }
        }
    }

    async fn over<S>(stream: S, is_http2: bool) -> Result<Self, Failed>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ending = Ending::default();
        let stream = TokioIo::new(Watched::new(stream, ending.clone()));
        let failed = |error: hyper::Error| Failed::talking(&error, ending.end(), is_http2);
        let (sender, task) = if is_http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(MAX_HEAD)
                .handshake(stream)
                .await
                .map_err(failed)?;
            (Sender::Http2(sender), tokio::spawn(connection))
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(MAX_HEAD as usize)
                .handshake(stream)
                .await
                .map_err(failed)?;
            (Sender::Http1(sender), tokio::spawn(connection))
        };
        Ok(Self { sender, ending, is_new: true, task })
    }

    /// Whether requests have to name the whole address.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Waits until a request can be sent: not at all, or until the connection turns out to have
    /// ended. Whether it can.
    pub(crate) async fn is_usable(&mut self) -> bool {
        catch_up().await;
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok() && !sender.is_closed(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, NotAnswered> {
        let sent = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        match sent {
            Ok(response) => {
                self.is_new = false;
                Ok(response)
            }
            Err(error) => {
                let is_unsent = error.message().is_some();
                let failed = self.failed(error.into_error()).await;
                Err(if is_unsent {
                    NotAnswered::Unsent(failed)
                } else {
                    NotAnswered::Failed(failed)
                })
            }
        }
    }

    /// What an error of hyper's means over this connection, which is of no use any more.
    pub(crate) async fn failed(&mut self, error: hyper::Error) -> Failed {
        let is_new_http2 = self.is_new && self.is_http2();
        // Who waited for a response is only told that there is none; the connection knows why.
        if (error.is_canceled() || error.is_closed())
            && let Ok(Err(cause)) = (&mut self.task).await
        {
            return Failed::talking(&cause, self.ending.end(), is_new_http2);
        }
        Failed::talking(&error, self.ending.end(), is_new_http2)
    }
}

/// Has the runtime see what came in the meantime, which is the end of the connection mostly: a task
/// that yields is gone on with after the runtime has looked at its sockets.
async fn catch_up() {
    let yielding = async {
        // Once for the runtime to see it, and once for the connection.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
    };
    // It fails where the runtime is being shut down, and so does what follows.
    let _ = tokio::spawn(yielding).await;
}

/// The TLS of addresses that are with it.
#[cfg(feature = "tls")]
pub(crate) type Tls = Option<synddb_tls::Connector>;
/// There is no TLS.
#[cfg(not(feature = "tls"))]
pub(crate) type Tls = ();

/// A connected socket of whatever family.
#[cfg(feature = "vsock")]
async fn dial(
    address: &synddb_transport_vsock::Address,
    timeout: Duration,
) -> Result<tokio::net::UnixStream, Failed> {
    use synddb_core::transport::TransportError;
    use synddb_transport_vsock::{Dialer, Timeouts};
    let dialer = Dialer::new(address.clone(), Timeouts { connect: timeout, write: timeout });
    // It blocks, for as long as it may take.
    let stream = blocking(move || dialer.connect()).await?;
    let stream = stream.map_err(|error| Failed::new(error.kind(), error.to_string()))?;
    let nonblocking = |stream: std::os::unix::net::UnixStream| {
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    };
    nonblocking(stream).map_err(|error| Failed::connecting(&error))
}

#[cfg(not(feature = "tls"))]
async fn with_tls<S>(_: S, _: &Target, _: &Tls, _: Version) -> Result<Connection, Failed> {
    // Such a target is refused when it is made.
    Err(Failed::new(TransportErrorKind::Misconfigured, "this build has no TLS"))
}

/// Does the handshake over `stream`, has the server attested, and speaks what was agreed upon.
#[cfg(feature = "tls")]
async fn with_tls<S>(
    stream: S,
    target: &Target,
    tls: &Tls,
    version: Version,
) -> Result<Connection, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    use std::io;
    use synddb_core::transport::TransportError;

    use synddb_tls::{Failure, Peer, failure_of};
    use tokio::io::AsyncWriteExt;

    let failed = |failure: Failure| Failed::new(failure.kind(), failure.to_string());
    let Some(connector) = tls else {
        return Err(failed(Failure::Misconfigured("there are no settings".into())));
    };
    let (settings, host) = (connector.clone(), target.host().to_owned());
    // It reads files.
    let ready = blocking(move || Ok((settings.name_for(&host)?, settings.config()?))).await?;
    let (name, config) = ready
        .map_err(|error: synddb_tls::TlsError| failed(Failure::Misconfigured(error.to_string())))?;
    let offered: &[&[u8]] = match version {
        Version::Negotiated => &[HTTP2, b"http/1.1"],
        Version::Http1 => &[b"http/1.1"],
        Version::Http2 => &[HTTP2],
    };
    let mut stream = tokio_rustls::TlsConnector::from(config)
        .with_alpn(offered.iter().map(|name| name.to_vec()).collect())
        .connect(name, stream)
        .await
        .map_err(|error| match (failure_of(&error), error.kind()) {
            (Some(failure), _) => failed(failure),
            (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                failed(Failure::HungUp)
            }
            (None, _) => Failed::connecting(&error),
        })?;
    let session = stream.get_ref().1;
    let is_http2 = session.alpn_protocol() == Some(HTTP2);
    let peer = Peer::of(session);
    let peer = peer.ok_or_else(|| failed(Failure::Other("there is nothing to attest".into())))?;
    let attesting = connector.clone();
    // It may block.
    if let Err(failure) = blocking(move || attesting.attest(&peer)).await? {
        let _ = stream.shutdown().await;
        return Err(failed(failure));
    }
    if version == Version::Http2 && !is_http2 {
        let _ = stream.shutdown().await;
        return Err(Failed::new(
            TransportErrorKind::NotASequencer,
            "it does not offer HTTP/2, which was asked for",
        ));
    }
    Connection::over(stream, is_http2).await
}

/// HTTP/2 in ALPN.
#[cfg(feature = "tls")]
const HTTP2: &[u8] = b"h2";

/// Does what blocks beside the runtime's own threads.
#[cfg(any(feature = "tls", feature = "vsock"))]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        Failed::new(TransportErrorKind::Other, "connecting panicked, or the runtime was shut down")
    })
}
