//! The client for a thread that blocks.

use std::{fmt, time::Duration};

use synddb_core::http::{HttpExchange, HttpRequest, HttpResponse};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::{HyperClient, HyperError};

/// A [`HyperClient`] for a thread that blocks, such as one that drives a
/// [`Sender`](synddb_core::sender::Sender).
pub struct HyperExchange {
    client: HyperClient,
    runtime: Where,
}

enum Where {
    /// On the thread that posts.
    Here(Option<Runtime>),
    Elsewhere(Handle),
}

impl fmt::Debug for HyperExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HyperExchange").field(&self.client).finish()
    }
}

impl HyperExchange {
    /// With a runtime of its own, on the thread that posts: without another one to hand over to, and
    /// nothing moves between two requests. What a server asks then over HTTP/2 is answered with the
    /// next one; a connection that it gives up meanwhile is opened anew.
    ///
    /// # Errors
    /// [`Runtime`](HyperError::Runtime): the operating system gives no means to wait.
    pub fn new(client: HyperClient) -> Result<Self, HyperError> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| HyperError::Runtime(error.to_string()))?;
        Ok(Self { client, runtime: Where::Here(Some(runtime)) })
    }

    /// In a runtime that is there, with its I/O and time enabled.
    ///
    /// # Errors
    /// [`CurrentThreadRuntime`](HyperError::CurrentThreadRuntime): where its one thread waits for
    /// what is sent here, nothing would move any more.
    pub fn on(client: HyperClient, handle: Handle) -> Result<Self, HyperError> {
        if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Err(HyperError::CurrentThreadRuntime);
        }
        Ok(Self { client, runtime: Where::Elsewhere(handle) })
    }

    fn wait_for<F: Future>(runtime: &Where, future: F) -> Option<F::Output> {
        match runtime {
            Where::Here(runtime) => Some(runtime.as_ref()?.block_on(future)),
            Where::Elsewhere(handle) => Some(handle.block_on(future)),
        }
    }
}

impl Drop for HyperExchange {
    fn drop(&mut self) {
        if let Where::Here(runtime) = &mut self.runtime
            && let Some(runtime) = runtime.take()
        {
            // Not waiting for a name that is still being looked up.
            runtime.shutdown_background();
        }
    }
}

impl HttpExchange for HyperExchange {
    type Error = HyperError;

    /// # Panics
    /// Inside an asynchronous task, which must not block: use [`HyperClient`] there.
    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, HyperError> {
        let Self { client, runtime } = self;
        Self::wait_for(runtime, client.post(request, response, limit))
            .expect("the runtime goes with this")
    }

    fn idle(&mut self, timeout: Duration) {
        if !timeout.is_zero() {
            // What the server asks meanwhile is answered.
            Self::wait_for(&self.runtime, async { tokio::time::sleep(timeout).await });
        }
    }
}
