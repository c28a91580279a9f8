//! What the link needs of the world outside: a way for frames, and somebody who waits for it.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use synddb_core::transport::{Transport, TransportError, TransportErrorKind};

use crate::{
    shared::Shared,
    token::{TokenProvider, TokenRequest},
};

/// How a transport's error concerns the link.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) kind: TransportErrorKind,
    pub(crate) retry_after: Option<Duration>,
    /// For people.
    pub(crate) text: String,
}

impl<E: TransportError> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { kind: error.kind(), retry_after: error.retry_after(), text: error.to_string() }
    }
}

/// A transport, and the ways of waiting that go with it.
pub(crate) trait Carrier: Send {
    /// See [`Transport::connect`].
    fn connect(&mut self) -> impl Future<Output = Result<(), Failed>> + Send;

    /// See [`Transport::close`].
    fn close(&mut self);

    /// See [`Transport::send`].
    fn send(&mut self, frame: &[u8]) -> impl Future<Output = Result<(), Failed>> + Send;

    /// See [`Transport::recv`].
    fn recv(
        &mut self,
        reply: &mut [u8],
        timeout: Duration,
    ) -> impl Future<Output = Result<Option<usize>, Failed>> + Send;

    /// See [`Transport::max_in_flight`].
    fn max_in_flight(&self) -> usize;

    /// Asks for a token, which may take its time.
    fn token(
        &mut self,
        provider: &TokenProvider,
        request: TokenRequest,
    ) -> impl Future<Output = Result<String, String>> + Send;

    /// Sleeps until the link is asked for something, or for `wait`.
    fn sleep(
        &mut self,
        shared: &Shared,
        flushes_seen: u64,
        wait: Option<Duration>,
    ) -> impl Future<Output = ()> + Send;
}

/// A transport that blocks the thread it is used on, as everything here does.
pub(crate) struct Blocking<T>(pub(crate) T);

impl<T: Transport + Send> Carrier for Blocking<T> {
    async fn connect(&mut self) -> Result<(), Failed> {
        Ok(self.0.connect()?)
    }

    fn close(&mut self) {
        self.0.close();
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), Failed> {
        Ok(self.0.send(frame)?)
    }

    async fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Failed> {
        Ok(self.0.recv(reply, timeout)?)
    }

    fn max_in_flight(&self) -> usize {
        self.0.max_in_flight()
    }

    async fn token(
        &mut self,
        provider: &TokenProvider,
        request: TokenRequest,
    ) -> Result<String, String> {
        provider.token(&request)
    }

    async fn sleep(&mut self, shared: &Shared, flushes_seen: u64, wait: Option<Duration>) {
        shared.sleep_link(flushes_seen, wait);
    }
}

/// Ends a future that blocks wherever another one would wait.
pub(crate) fn finish(future: impl Future<Output = ()>) {
    let outcome = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(outcome, Poll::Ready(()), "what blocks does not wait");
}

/// hyper, in the tokio runtime that the link's future runs in.
#[cfg(feature = "hyper")]
pub(crate) struct InRuntime(
    pub(crate) synddb_core::http::AsyncHttpFrames<synddb_transport_hyper::HyperClient>,
);

#[cfg(feature = "hyper")]
impl Carrier for InRuntime {
    async fn connect(&mut self) -> Result<(), Failed> {
        // Nothing is opened before there is something to post.
        self.0.close();
        Ok(())
    }

    fn close(&mut self) {
        self.0.close();
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), Failed> {
        Ok(self.0.send(frame)?)
    }

    async fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Failed> {
        if self.0.is_idle() {
            if !timeout.is_zero() {
                tokio::time::sleep(timeout).await;
            }
            return Ok(None);
        }
        Ok(self.0.recv(reply).await?)
    }

    fn max_in_flight(&self) -> usize {
        self.0.max_in_flight()
    }

    async fn token(
        &mut self,
        provider: &TokenProvider,
        request: TokenRequest,
    ) -> Result<String, String> {
        let provider = provider.clone();
        // It may read a file, or ask somebody over a socket.
        let asked = tokio::task::spawn_blocking(move || provider.token(&request)).await;
        asked.unwrap_or_else(|_| Err("the token provider panicked, or the runtime stops".into()))
    }

    async fn sleep(&mut self, shared: &Shared, flushes_seen: u64, wait: Option<Duration>) {
        let asked = std::future::poll_fn(|context| shared.poll_link(flushes_seen, context.waker()));
        match wait {
            // Whichever comes first.
            Some(wait) => drop(tokio::time::timeout(wait, asked).await),
            None => asked.await,
        }
    }
}
