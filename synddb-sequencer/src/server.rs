//! A whole sequencer in a thread of its own.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use synddb_core::wire::message::Limits;
use tokio::sync::{Semaphore, watch};

use crate::{
    http,
    ingest::{DEFAULT_LIMITS, Ingest},
    store::{SqliteStore, StoreError},
};

/// How long requests may take to end once the server stops.
const GRACE: Duration = Duration::from_secs(10);

/// Settings of a [`Server`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 for any free one.
    pub listen: SocketAddr,
    /// The data directory.
    pub data: PathBuf,
    /// Listen beyond loopback although nobody's access is checked.
    pub insecure: bool,
    /// Limits that senders are told.
    pub limits: Limits,
    /// Connections at a time; further ones wait.
    pub max_connections: usize,
}

impl Config {
    /// Listens on `listen` and keeps the log in `data`; 256 connections, default limits.
    pub fn new(listen: SocketAddr, data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self { listen, data, insecure: false, limits: DEFAULT_LIMITS, max_connections: 256 }
    }
}

/// Why the sequencer could not start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// The address is reachable from elsewhere, and nobody's access would be checked.
    Insecure(SocketAddr),
    /// The address cannot be listened on.
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the operating system said.
        message: String,
    },
    /// The runtime or its thread could not start.
    Runtime(String),
    /// The log cannot be opened.
    Store(StoreError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insecure(addr) => write!(
                f,
                "{addr} is reachable from elsewhere and there is no access control; listen on a \
                 loopback address, or pass --insecure"
            ),
            Self::Listen { addr, message } => write!(f, "cannot listen on {addr}: {message}"),
            Self::Runtime(message) => write!(f, "cannot start: {message}"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// A running sequencer. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the log, listens, and serves in a thread with a runtime of its own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        if !config.listen.ip().is_loopback() && !config.insecure {
            return Err(StartError::Insecure(config.listen));
        }
        let store = SqliteStore::open(&config.data).map_err(StartError::Store)?;
        let failed = |error: std::io::Error| StartError::Listen {
            addr: config.listen,
            message: error.to_string(),
        };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        let ingest = Ingest::new(Arc::new(store), config.limits);
        let (stop, stopped) = watch::channel(false);
        let max_connections = config.max_connections;
        let thread = std::thread::Builder::new()
            .name("synddb-sequencer".into())
            .spawn(move || {
                runtime.block_on(serve(listener, ingest, max_connections, stopped));
                // Waits for what is being stored.
                drop(runtime);
            })
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        Ok(Self { addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new connections, ends the requests that run, and returns once the log is closed.
    pub fn shutdown(mut self) {
        self.stop_and_wait();
    }

    fn stop_and_wait(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_and_wait();
    }
}

async fn serve(
    listener: TcpListener,
    ingest: Ingest,
    max_connections: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    let started = Instant::now();
    let slots = Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file handles, mostly: others must end first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (ingest, mut stopped) = (ingest.clone(), stopped.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| http::serve(ingest.clone(), started, request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(30))
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let stop = async move { stopped.wait_for(|stopped| *stopped).await.map(|_| ()) };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = stop => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop(slot);
        });
    }
    // All slots are free once all connections have ended.
    let all = u32::try_from(max_connections.max(1)).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(GRACE, slots.acquire_many(all)).await;
}
