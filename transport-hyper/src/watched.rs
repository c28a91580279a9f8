//! Remembers how a stream ended: what hyper says of it leaves out why.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a stream ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// The other side closed it.
    Closed,
    /// TLS gave it up.
    #[cfg(feature = "tls")]
    Tls(synddb_tls::Failure),
    /// Reading or writing failed.
    Failed(io::ErrorKind, String),
}

impl End {
    fn of(error: &io::Error) -> Self {
        #[cfg(feature = "tls")]
        if let Some(failure) = synddb_tls::failure_of(error) {
            return Self::Tls(failure);
        }
        Self::Failed(error.kind(), error.to_string())
    }
}

/// Where the end of a stream is kept, once there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending(Arc<Mutex<Option<End>>>);

impl Ending {
    pub(crate) fn end(&self) -> Option<End> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first one counts, but for what the other side has said by TLS: it may be read after a
    /// write has failed.
    fn keep(&self, end: End) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(feature = "tls")]
        let says_more = matches!(end, End::Tls(_));
        #[cfg(not(feature = "tls"))]
        let says_more = false;
        if kept.is_none() || says_more {
            *kept = Some(end);
        }
    }
}

/// A stream whose end is remembered.
pub(crate) struct Watched<S> {
    stream: S,
    ending: Ending,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, ending: Ending) -> Self {
        Self { stream, ending }
    }

    fn watch<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.ending.keep(End::of(error));
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) && room > 0 && buffer.filled().len() == before {
            self.ending.keep(End::Closed);
        }
        self.watch(polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
