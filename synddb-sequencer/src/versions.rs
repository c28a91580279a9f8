//! A connection that HTTP comes over, of whichever version: the first bytes tell.

use std::{io, time::Duration};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::watch,
    time::timeout,
};

use crate::{ListenAddress, http, unread::Unread};

/// The versions that clients may ask for over TLS, the preferred one first.
pub(crate) const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// What HTTP/2 begins with, whether it was agreed upon or not.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest head of a request in bytes, token included.
const MAX_HEAD: u32 = 64 << 10;
/// Requests at a time over one connection of HTTP/2: each may hold a body of the largest size.
const MAX_REQUESTS: u32 = 8;
/// How long a peer whose connection is ended for its silence has to take note.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves requests until the peer goes, is quiet for `head_timeout`, or the sequencer stops.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    address: &ListenAddress,
    stream: S,
    session: http::Session,
    head_timeout: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let version = tokio::select! {
        version = timeout(head_timeout, tell_version(stream)) => version,
        // There is no request to be ended.
        _ = stopped.wait_for(|stopped| *stopped) => return,
    };
    let ended = match version {
        Err(_) => return tracing::debug!(%address, "a silent connection was ended"),
        Ok(Err(error)) => return tracing::debug!(%error, "a connection ended"),
        Ok(Ok((true, stream))) => serve_http2(stream, session, head_timeout, stopped).await,
        Ok(Ok((false, stream))) => serve_http1(stream, session, head_timeout, stopped).await,
    };
    match ended {
        Ok(()) => {}
        Err(error) if error.is_parse() => tracing::warn!(
            %address, %error,
            "what came is not HTTP; is it TLS, at an address without it?"
        ),
        Err(error) => tracing::debug!(%error, "a connection ended"),
    }
}

/// Whether a stream begins as HTTP/2 does, and all of the stream.
async fn tell_version<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(bool, Unread<S>)> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() && read[..len] == PREFACE[..len] {
        match stream.read(&mut read[len..]).await? {
            0 => break,
            count => len += count,
        }
    }
    Ok((read[..len] == PREFACE[..], Unread::new(&read[..len], stream)))
}

async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    session: http::Session,
    head_timeout: Duration,
    mut stopped: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let service = service_fn(move |request| http::serve(session.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD as usize)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = async move { stopped.wait_for(|stopped| *stopped).await.map(|_| ()) };
    tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    session: http::Session,
    head_timeout: Duration,
    mut stopped: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let under_way = UnderWay::default();
    let quiet = under_way.quiet_for(head_timeout);
    let service = service_fn(move |request| {
        let (session, one) = (session.clone(), under_way.begin());
        async move {
            let answer = http::serve(session, request).await;
            drop(one);
            answer
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_REQUESTS)
        .max_header_list_size(MAX_HEAD)
        // For peers that are gone in the middle of a request.
        .keep_alive_interval(head_timeout)
        .keep_alive_timeout(head_timeout)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = async move { stopped.wait_for(|stopped| *stopped).await.map(|_| ()) };
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = quiet => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
        }
        _ = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Counts the requests of a connection that are not answered.
#[derive(Clone)]
struct UnderWay(watch::Sender<usize>);

impl Default for UnderWay {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl UnderWay {
    /// One more, until what is returned is dropped.
    fn begin(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(self.0.clone())
    }

    /// Returns once there was none for as long as this.
    fn quiet_for(&self, limit: Duration) -> impl Future<Output = ()> + use<> {
        let mut count = self.0.subscribe();
        async move {
            loop {
                let is_quiet = *count.borrow_and_update() == 0;
                match is_quiet {
                    true => match timeout(limit, count.changed()).await {
                        Ok(Ok(())) => {}
                        Err(_) | Ok(Err(_)) => return,
                    },
                    false if count.changed().await.is_err() => return,
                    false => {}
                }
            }
        }
    }
}

struct One(watch::Sender<usize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> (bool, Vec<u8>) {
        let (is_http2, mut stream) = tell_version(bytes).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        (is_http2, all)
    }

    #[tokio::test]
    async fn the_version_is_told_and_nothing_is_lost() {
        let longer = [&PREFACE[..], b"and frames"].concat();
        for (bytes, is_http2) in [
            (&b""[..], false),
            (b"P", false),
            (b"POST /v1/frames HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n and more", false),
            (&PREFACE[..23], false),
            (PREFACE, true),
            (&longer, true),
        ] {
            assert_eq!(told(bytes).await, (is_http2, bytes.to_vec()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_is_counted_from_the_last_answer() {
        let under_way = UnderWay::default();
        let second = Duration::from_secs(1);
        let mut quiet = std::pin::pin!(under_way.quiet_for(10 * second));
        assert!(timeout(9 * second, &mut quiet).await.is_err());
        let one = under_way.begin();
        assert!(timeout(60 * second, &mut quiet).await.is_err(), "a request takes its time");
        drop(one);
        assert!(timeout(9 * second, &mut quiet).await.is_err());
        assert!(timeout(2 * second, &mut quiet).await.is_ok());
    }
}
