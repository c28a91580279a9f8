//! TLS in front of a connection, whatever it came over.

use std::{fmt, io, time::Duration};

use synddb_tls::{Acceptor, Failure, Peer, failure_of};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, rustls::server::Acceptor as ClientHello, server::TlsStream};

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

/// Does the handshake within `timeout`, and has the peer attested. Whoever does not speak TLS is
/// told `in_the_clear`.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &Acceptor,
    stream: S,
    timeout: Duration,
    in_the_clear: &[u8],
) -> Result<(TlsStream<S>, Peer), NotAccepted> {
    let handshake = tokio::time::timeout(timeout, handshake(acceptor, stream, in_the_clear));
    let stream = handshake.await.map_err(|_| NotAccepted::Slow)??;
    let peer = Peer::of(stream.get_ref().1).ok_or(NotAccepted::Slow)?;
    let (attesting, asked) = (acceptor.clone(), peer.clone());
    // It may block.
    let attested = tokio::task::spawn_blocking(move || attesting.attest(&asked)).await;
    let attested = attested.unwrap_or_else(|_| {
        Err(Failure::Misconfigured("the check of attestations panicked".into()))
    });
    match attested {
        Ok(()) => Ok((stream, peer)),
        Err(failure) => {
            let _ = tokio::time::timeout(LAST_WORDS, refuse(stream)).await;
            Err(NotAccepted::Failed(failure))
        }
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &Acceptor,
    stream: S,
    in_the_clear: &[u8],
) -> Result<TlsStream<S>, NotAccepted> {
    let hello = LazyConfigAcceptor::new(ClientHello::default(), stream);
    tokio::pin!(hello);
    let begun = match hello.as_mut().await {
        Ok(begun) => begun,
        Err(error) => {
            let why = why(error);
            if let (NotAccepted::Failed(Failure::NotTls), Some(stream)) = (&why, hello.take_io()) {
                last_words(stream, in_the_clear).await;
            }
            return Err(why);
        }
    };
    match begun.into_stream(acceptor.config()).into_fallible().await {
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

/// Says "access denied" the way TLS does, as far as the library lets one: by ending in order before
/// anything is answered.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: TlsStream<S>) {
    let _ = stream.shutdown().await;
    let (stream, _) = stream.into_inner();
    last_words(stream, b"").await;
}
