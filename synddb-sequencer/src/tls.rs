//! TLS in front of a connection, whatever it came over.

use std::{fmt, io, sync::Arc, time::Duration};

use crate::{Config, StartError, unread::Unread};

use synddb_tls::{Acceptor, Clients, Failure, Peer, failure_of};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What TLS begins with: a record of a handshake.
const HANDSHAKE: u8 = 22;
/// How long a peer that was refused has to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a connection was given up before anything of it was served.
#[derive(Debug)]
pub(crate) enum NotAccepted {
    /// The handshake was not done in time.
    Slow,
    /// The peer ended it.
    Ended(io::Error),
    /// What is wrong with the peer, or what the peer finds wrong with this side.
    Failed(Failure),
}

impl fmt::Display for NotAccepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow => f.write_str("the TLS handshake took too long"),
            Self::Ended(error) => write!(f, "the TLS handshake ended: {error}"),
            Self::Failed(Failure::NotTls) => {
                f.write_str("a client that does not speak TLS came to a TLS address")
            }
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

/// A connection whose handshake is done.
pub(crate) struct Accepted<S> {
    pub(crate) stream: TlsStream<Unread<S>>,
    /// The key that the client has proved to have.
    pub(crate) key: Option<[u8; 32]>,
    /// Why its attestation was refused: it is told so where it can understand it.
    pub(crate) refused: Option<Failure>,
}

/// TLS of all addresses that have it, or of none.
#[derive(Clone)]
pub(crate) struct Tls(Option<Acceptor>);

impl Tls {
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        let with_tls = config.listen.iter().find(|address| address.has_tls());
        let knows_keys = config.access.as_ref().is_some_and(|access| access.knows_keys());
        match (&config.tls, with_tls) {
            (None, Some(address)) => Err(StartError::NoTls(address.clone())),
            (None, None) if knows_keys => Err(StartError::NoTlsAddress),
            (Some(_), None) => Err(StartError::NoTlsAddress),
            (None, None) => Ok(Self(None)),
            (Some(settings), Some(_)) => {
                let mut settings = settings.clone();
                if config.access.is_some() && settings.clients == Clients::Anyone {
                    settings.clients = Clients::AnyKey;
                }
                settings.acceptor().map(|acceptor| Self(Some(acceptor))).map_err(StartError::Tls)
            }
        }
    }

    /// Whether it lets in nobody but those it knows.
    pub(crate) fn is_strict(&self) -> bool {
        self.0.as_ref().is_some_and(Acceptor::is_strict)
    }

    /// Whether there is something else in the files than before.
    pub(crate) fn reload(&self) -> Result<bool, String> {
        let reloaded = self.0.as_ref().map(Acceptor::reload);
        reloaded.unwrap_or(Ok(false)).map_err(|error| error.to_string())
    }

    /// The connection with TLS. Clients that ask for
    /// a protocol get the first of `protocols` that they know; where there are none, nobody is asked.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        timeout: Duration,
        in_the_clear: &[u8],
        protocols: &[&[u8]],
    ) -> Result<Accepted<S>, NotAccepted> {
        let acceptor = self.0.as_ref().ok_or(NotAccepted::Slow)?;
        accept(acceptor, stream, timeout, in_the_clear, protocols).await
    }
}

/// Does the handshake within `timeout`, and has the peer attested. Whoever does not speak TLS is
/// told `in_the_clear`.
async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &Acceptor,
    stream: S,
    timeout: Duration,
    in_the_clear: &[u8],
    protocols: &[&[u8]],
) -> Result<Accepted<S>, NotAccepted> {
    let handshake = handshake(acceptor, stream, in_the_clear, protocols);
    let handshake = tokio::time::timeout(timeout, handshake);
    let stream = handshake.await.map_err(|_| NotAccepted::Slow)??;
    let peer = Peer::of(stream.get_ref().1).ok_or(NotAccepted::Slow)?;
    let (attesting, asked) = (acceptor.clone(), peer.clone());
    // It may block.
    let attested = tokio::task::spawn_blocking(move || attesting.attest(&asked)).await;
    let attested = attested.unwrap_or_else(|_| {
        Err(Failure::Misconfigured("the check of attestations panicked".into()))
    });
    Ok(Accepted { stream, key: peer.pin().map(|pin| pin.0), refused: attested.err() })
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &Acceptor,
    mut stream: S,
    in_the_clear: &[u8],
    protocols: &[&[u8]],
) -> Result<TlsStream<Unread<S>>, NotAccepted> {
    let first = stream.read_u8().await.map_err(NotAccepted::Ended)?;
    if first != HANDSHAKE {
        // Before the library answers with an alert, which only TLS understands.
        last_words(stream, in_the_clear).await;
        return Err(NotAccepted::Failed(Failure::NotTls));
    }
    let stream = Unread::new(&[first], stream);
    let mut config = acceptor.config();
    if !protocols.is_empty() {
        let names = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::make_mut(&mut config).alpn_protocols = names;
    }
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, stream)) => {
            // The alert is sent already.
            last_words(stream, b"").await;
            Err(why(error))
        }
    }
}

fn why(error: io::Error) -> NotAccepted {
    match failure_of(&error) {
        Some(failure) => NotAccepted::Failed(failure),
        None => NotAccepted::Ended(error),
    }
}

/// Closes so that the peer hears why: to drop a socket with bytes unread would take back what was
/// sent last.
async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, words: &[u8]) {
    let close = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(1 << 20), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LAST_WORDS, close).await;
}
