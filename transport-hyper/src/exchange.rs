//! The client for a thread that blocks.

use std::{fmt, thread, time::Duration};

use synddb_core::http::{HttpExchange, HttpGet, HttpRequest, HttpResponse};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::{HyperClient, HyperError};

/// A [`HyperClient`] for a thread that blocks, such as the one that drives a
/// [`Sender`](synddb_core::sender::Sender).
pub struct HyperExchange {
    client: HyperClient,
    handle: Handle,
    /// Where it was given none.
    own: Option<Runtime>,
}

impl fmt::Debug for HyperExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HyperExchange").field(&self.client).finish()
    }
}

impl HyperExchange {
    /// With a runtime of its own: one thread more, which also answers what the server asks over
    /// HTTP/2 between two requests.
    ///
    /// # Errors
    /// [`Runtime`](HyperError::Runtime): the operating system gives no thread.
    pub fn new(client: HyperClient) -> Result<Self, HyperError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("synddb_http")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| HyperError::Runtime(error.to_string()))?;
        Ok(Self { client, handle: runtime.handle().clone(), own: Some(runtime) })
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
        Ok(Self { client, handle, own: None })
    }
}

impl Drop for HyperExchange {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
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
        self.handle.block_on(self.client.post(request, response, limit))
    }

    fn idle(&mut self, timeout: Duration) {
        thread::sleep(timeout);
    }
}

impl HttpGet for HyperExchange {
    /// # Panics
    /// Inside an asynchronous task, which must not block: use [`HyperClient`] there.
    fn get(
        &mut self,
        path: &str,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, HyperError> {
        self.handle.block_on(self.client.get(path, response, limit))
    }
}
