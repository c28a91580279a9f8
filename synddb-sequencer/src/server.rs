//! A whole sequencer in a thread of its own.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use synddb_core::wire::message::Limits;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::{
    http,
    ingest::{DEFAULT_LIMITS, Ingest},
    listen::{Bound, ListenAddress, StreamListener},
    store::{SqliteStore, StoreError},
    stream::{self, End, StreamLimits},
};

/// How long requests may take to end once the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How many peers are told at a time that there are too many connections; others are just closed.
const TURNED_AWAY: usize = 64;

/// Settings of a [`Server`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, at one address or more.
    pub listen: Vec<ListenAddress>,
    /// The data directory.
    pub data: PathBuf,
    /// Listen where others than this machine come although nobody's access is checked.
    pub insecure: bool,
    /// Limits that senders are told.
    pub limits: Limits,
    /// Connections at a time for each address. Further ones over HTTP wait; over a stream socket,
    /// which is held for as long as a sender lives, they are told so and closed.
    pub max_connections: usize,
    /// Limits in time of connections over stream sockets.
    pub streams: StreamLimits,
}

impl Config {
    /// Listens on `listen` and keeps the log in `data`; 256 connections, default limits.
    pub fn new(listen: ListenAddress, data: impl Into<PathBuf>) -> Self {
        Self {
            listen: vec![listen],
            data: data.into(),
            insecure: false,
            limits: DEFAULT_LIMITS,
            max_connections: 256,
            streams: StreamLimits::default(),
        }
    }
}

/// Why the sequencer could not start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// There is no address to listen on.
    NoAddress,
    /// The address is reachable from elsewhere, and nobody's access would be checked.
    Insecure(ListenAddress),
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: ListenAddress,
        /// What the operating system said, and what to do.
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
            Self::NoAddress => f.write_str("there is no address to listen on"),
            Self::Insecure(address) => write!(
                f,
                "{address} is reachable from elsewhere and there is no access control; listen on a \
                 loopback address or a Unix socket, or pass --insecure"
            ),
            Self::Listen { address, message } => {
                write!(f, "cannot listen on {address}: {message}")
            }
            Self::Runtime(message) => write!(f, "cannot start: {message}"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// A running sequencer. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<ListenAddress>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the log, listens, and serves in a thread with a runtime of its own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        let Config { listen, data, insecure, limits, max_connections, streams } = config;
        if listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        if let Some(open) = listen.iter().find(|address| !address.is_local() && !insecure) {
            return Err(StartError::Insecure(open.clone()));
        }
        let store = SqliteStore::open(&data).map_err(StartError::Store)?;
        let (mut bound, mut addresses) = (Vec::new(), Vec::new());
        for address in listen {
            let failed = |message| StartError::Listen { address: address.clone(), message };
            let listener = Bound::new(&address).map_err(failed)?;
            addresses.push(listener.address().map_err(|error| failed(error.to_string()))?);
            bound.push(listener);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        let ingest = Ingest::new(Arc::new(store), limits);
        let (stop, stopped) = watch::channel(false);
        let started = Instant::now();
        let max_connections = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let doors = bound.into_iter().zip(addresses.clone()).map(|(listener, address)| Door {
            address,
            slots: Slots::new(max_connections),
            ingest: ingest.clone(),
            streams,
            started,
            stopped: stopped.clone(),
            listener: Some(listener),
        });
        let doors: Vec<_> = doors.collect();
        // The doors have theirs.
        drop(ingest);
        let thread = std::thread::Builder::new()
            .name("synddb-sequencer".into())
            .spawn(move || {
                runtime.block_on(async {
                    let doors: JoinSet<()> = doors.into_iter().map(Door::serve).collect();
                    doors.join_all().await
                });
                // Waits for what is being stored.
                drop(runtime);
            })
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        Ok(Self { addresses, stop, thread: Some(thread) })
    }

    /// Where it listens, in the order of [`Config::listen`], with the ports that were free.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The first address that it listens on for HTTP.
    ///
    /// # Panics
    /// Where it does not; see [`addresses`](Self::addresses).
    pub fn addr(&self) -> SocketAddr {
        let http = |address: &ListenAddress| match address {
            ListenAddress::Http(address) => Some(*address),
            ListenAddress::Stream(_) => None,
        };
        self.addresses.iter().find_map(http).expect("it was started with an HTTP address")
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

/// One address, and what comes in there.
struct Door {
    address: ListenAddress,
    listener: Option<Bound>,
    slots: Slots,
    ingest: Ingest,
    streams: StreamLimits,
    started: Instant,
    stopped: watch::Receiver<bool>,
}

impl Door {
    /// Serves until told to stop, and until all connections have ended or the time for that is over.
    async fn serve(mut self) {
        let mut stopped = self.stopped.clone();
        let Some(bound) = self.listener.take() else { return };
        let accepting = async {
            match bound {
                Bound::Http(listener) => {
                    self.serve_http(tokio::net::TcpListener::from_std(listener)?).await
                }
                Bound::Stream(listener) => {
                    self.serve_streams(&StreamListener::new(listener)?).await
                }
            }
        };
        let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
        let ended: Option<std::io::Result<Never>> = tokio::select! {
            ended = accepting => Some(ended),
            () = stop => None,
        };
        if let Some(Err(error)) = ended {
            tracing::error!(address = %self.address, %error, "cannot listen");
        }
        self.slots.all_free().await;
    }

    async fn serve_http(&self, listener: tokio::net::TcpListener) -> std::io::Result<Never> {
        loop {
            let slot = self.slots.wait().await;
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.http(stream, slot))),
                Err(error) => self.not_accepted(&error).await,
            }
        }
    }

    async fn serve_streams(&self, listener: &StreamListener) -> std::io::Result<Never> {
        let turned_away = Slots::new(TURNED_AWAY);
        loop {
            match listener.accept().await {
                Ok(stream) => match self.slots.take() {
                    Some(slot) => drop(tokio::spawn(self.stream(stream, slot))),
                    None => {
                        tracing::warn!(
                            address = %self.address, limit = self.slots.limit,
                            "a connection over the limit was turned away"
                        );
                        if let Some(slot) = turned_away.take() {
                            let limits = self.streams;
                            tokio::spawn(async move {
                                stream::turn_away(stream, limits).await;
                                drop(slot);
                            });
                        }
                    }
                },
                Err(error) => self.not_accepted(&error).await,
            }
        }
    }

    async fn not_accepted(&self, error: &std::io::Error) {
        // Out of file handles, mostly: others must end first.
        tracing::warn!(address = %self.address, %error, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// One connection for HTTP.
    fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (ingest, started, mut stopped) =
            (self.ingest.clone(), self.started, self.stopped.clone());
        async move {
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
        }
    }

    /// One connection that frames come over back to back.
    fn stream<S: AsyncRead + AsyncWrite + Send + 'static>(
        &self,
        stream: S,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (ingest, limits, stopped) = (self.ingest.clone(), self.streams, self.stopped.clone());
        let address = self.address.clone();
        async move {
            match stream::serve(stream, ingest, limits, stopped).await {
                End::Done | End::Stopped => {}
                end @ (End::Idle | End::CutShort | End::Failed(_)) => {
                    tracing::debug!(%address, %end, "a connection ended");
                }
                end @ (End::Late | End::Garbled) => {
                    tracing::warn!(%address, %end, "a connection was given up");
                }
            }
            drop(slot);
        }
    }
}

/// There is no value of it.
enum Never {}

/// How many connections there may be.
struct Slots {
    slots: Arc<Semaphore>,
    limit: usize,
}

impl Slots {
    fn new(limit: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(limit)), limit }
    }

    async fn wait(&self) -> OwnedSemaphorePermit {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        slot.expect("the semaphore is never closed")
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits until all connections have ended, but not for ever.
    async fn all_free(&self) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(GRACE, self.slots.acquire_many(all)).await;
    }
}
