//! A whole sequencer in a thread of its own.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use synddb_core::wire::message::{Farewell, Limits};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};

use crate::{
    access::{Access, Credentials, Denied},
    http,
    ingest::{self, Connection, DEFAULT_LIMITS, Ingest},
    listen::{Accept, Bound, ListenAddress, StreamListener},
    rate::Rate,
    slots::{Slot, Slots},
    store::{SqliteStore, StoreError},
    stream::{self, End, StreamLimits},
    tls::{Accepted, Tls},
    versions,
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
    /// Who may do what. Default: everybody everything.
    pub access: Option<Access>,
    /// What the addresses with TLS show, and whom they let in. Where there is [`access`](Self::access)
    /// and everybody is let in, clients are asked for a certificate all the same: its key may be one
    /// that the rules know. Default: no TLS.
    #[cfg(feature = "tls")]
    pub tls: Option<synddb_tls::ServerTls>,
    /// How often the files of [`access`](Self::access) and [`tls`](Self::tls) are looked at for
    /// changes; 0 for never, and at [`Server::reload`] only. Default: 5 seconds.
    pub reload_interval: Duration,
    /// Listen where others than this machine come although nobody's access is checked, or tokens
    /// would travel in the clear.
    pub insecure: bool,
    /// Limits that senders are told.
    pub limits: Limits,
    /// Connections at a time for each address. Where there are more, those that have sent nothing
    /// yet make room. If there are none, further ones over HTTP wait; over a stream socket, which is
    /// held for as long as a sender lives, they are told so and closed.
    pub max_connections: usize,
    /// What one principal may send; without access control, what may come for one stream. `None` for
    /// no limit.
    pub rate: Option<Rate>,
    /// How long a TLS handshake may take. Default: 10 seconds.
    pub handshake_timeout: Duration,
    /// How long the head of a request over HTTP may take, and how long a connection may be quiet
    /// between two. Default: 30 seconds.
    pub head_timeout: Duration,
    /// How long the body of a request over HTTP may take. Default: 60 seconds.
    pub body_timeout: Duration,
    /// Limits in time of connections over stream sockets.
    pub streams: StreamLimits,
}

impl Config {
    /// Listens on `listen` and keeps the log in `data`; 256 connections, default limits.
    pub fn new(listen: ListenAddress, data: impl Into<PathBuf>) -> Self {
        Self {
            listen: vec![listen],
            data: data.into(),
            access: None,
            #[cfg(feature = "tls")]
            tls: None,
            reload_interval: Duration::from_secs(5),
            insecure: false,
            limits: DEFAULT_LIMITS,
            max_connections: 256,
            rate: Some(Rate::default()),
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
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
    /// The address is reachable from elsewhere, and nobody's access would be checked, or what proves
    /// it would travel in the clear.
    Insecure(ListenAddress),
    /// The address is with TLS, and there are no settings for it, or no TLS in this build.
    NoTls(ListenAddress),
    /// There are settings for TLS, or keys of client certificates in the access rules, and no
    /// address with TLS.
    NoTlsAddress,
    /// The access rules have this principal's tokens hold a nonce, and nothing here understands
    /// tokens: see [`Access::with_token_check`].
    ChallengedInVain(String),
    /// The settings for TLS cannot be honoured.
    #[cfg(feature = "tls")]
    Tls(synddb_tls::TlsError),
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
                "{address} is reachable from elsewhere and there is no access control with TLS; \
                 listen with TLS and give --access or --tls-client-ca or --tls-client-pin, listen on \
                 a loopback address or a Unix socket, or pass --insecure"
            ),
            Self::NoTls(address) if cfg!(feature = "tls") => write!(
                f,
                "{address} is with TLS: give its certificate and key, --tls-cert and --tls-key; \
                 `synddb keygen` makes a pair"
            ),
            Self::NoTls(address) => {
                write!(f, "{address} is with TLS, which this program was built without")
            }
            Self::NoTlsAddress => f.write_str(
                "there are settings for TLS, or keys of client certificates in the access rules, \
                 and no address with TLS: listen on https:// or vsock+tls:// or the like",
            ),
            Self::ChallengedInVain(principal) => write!(
                f,
                "the access rules challenge {principal}, and nothing here understands signed tokens, \
                 so that nobody could be let in as {principal}: give what they are signed by, or \
                 leave out `challenge`"
            ),
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.fmt(f),
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
    reload: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the log, listens, and serves in a thread with a runtime of its own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        if config.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        let tls = Tls::new(&config)?;
        let is_safe = |address: &ListenAddress| {
            address.is_local()
                || (address.has_tls() && (config.access.is_some() || tls.is_strict()))
        };
        if let Some(open) = config.listen.iter().find(|address| !is_safe(address))
            && !config.insecure
        {
            return Err(StartError::Insecure(open.clone()));
        }
        if let Some(principal) = config.access.as_ref().and_then(Access::challenged_in_vain) {
            return Err(StartError::ChallengedInVain(principal));
        }
        let Config { listen, data, access, limits, max_connections, streams, .. } = config;
        let store = SqliteStore::open(&data).map_err(StartError::Store)?;
        let (mut bound, mut addresses) = (Vec::new(), Vec::new());
        for address in listen {
            let failed = |message| StartError::Listen { address: address.clone(), message };
            let listener = Bound::new(&address).map_err(failed)?;
            let listening = listener.address(&address);
            addresses.push(listening.map_err(|error| failed(error.to_string()))?);
            bound.push(listener);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        let mut ingest = Ingest::new(Arc::new(store), limits);
        if let Some(access) = &access {
            ingest = ingest.with_access(access.clone());
        }
        if let Some(rate) = config.rate {
            ingest = ingest.with_rate(rate);
        }
        let reload = Arc::new(Notify::new());
        let reloader = Reloader {
            access,
            tls: tls.clone(),
            interval: config.reload_interval,
            asked: Arc::clone(&reload),
            complaint: None,
        };
        let (stop, stopped) = watch::channel(false);
        let started = Instant::now();
        let max_connections = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let doors = bound.into_iter().zip(addresses.clone()).map(|(listener, address)| Door {
            tls: address.has_tls().then(|| tls.clone()),
            address,
            handshake_timeout: config.handshake_timeout,
            head_timeout: config.head_timeout,
            body_timeout: config.body_timeout,
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
                    let reloading = tokio::spawn(reloader.run());
                    doors.join_all().await;
                    reloading.abort();
                });
                // Waits for what is being stored.
                drop(runtime);
            })
            .map_err(|error| StartError::Runtime(error.to_string()))?;
        Ok(Self { addresses, stop, reload, thread: Some(thread) })
    }

    /// Where it listens, in the order of [`Config::listen`], with the ports that were free.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The first address that it listens on for HTTP over TCP.
    ///
    /// # Panics
    /// Where it does not; see [`addresses`](Self::addresses).
    pub fn addr(&self) -> SocketAddr {
        let http = |address: &ListenAddress| match address {
            ListenAddress::Http(address) | ListenAddress::Https(address) => Some(*address),
            _ => None,
        };
        self.addresses.iter().find_map(http).expect("it was started with an HTTP address")
    }

    /// Reads the files of certificates and access rules again, now. Connections that are open go on:
    /// with the certificate that they began with, and by the new rules. Files that cannot be used
    /// change nothing; the log says what is wrong with them.
    pub fn reload(&self) {
        self.reload.notify_one();
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
    tls: Option<Tls>,
    handshake_timeout: Duration,
    head_timeout: Duration,
    body_timeout: Duration,
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
                Bound::Tcp(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    self.serve_http(&listener).await
                }
                Bound::Stream(listener) => {
                    let listener = StreamListener::new(listener)?;
                    if self.address.is_http() {
                        self.serve_http(&listener).await
                    } else {
                        self.serve_streams(&listener).await
                    }
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
        self.slots.all_free(GRACE).await;
    }

    async fn serve_http(&self, listener: &impl Accept) -> std::io::Result<Never> {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    let slot = match self.slots.enter().await {
                        Some(slot) => slot,
                        None => self.slots.wait().await,
                    };
                    drop(tokio::spawn(self.http(stream, slot)));
                }
                Err(error) => self.not_accepted(&error).await,
            }
        }
    }

    async fn serve_streams(&self, listener: &StreamListener) -> std::io::Result<Never> {
        let turned_away = Slots::new(TURNED_AWAY);
        loop {
            match listener.accept().await {
                Ok(stream) => match self.slots.enter().await {
                    Some(slot) => drop(tokio::spawn(self.stream(stream, slot))),
                    None => {
                        tracing::warn!(
                            address = %self.address, limit = self.slots.limit(),
                            "a connection over the limit was turned away"
                        );
                        // Told only in the clear: a handshake costs more than to come back.
                        if self.tls.is_none()
                            && let Some(slot) = turned_away.take()
                        {
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
        slot: Slot,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (address, tls, handshake_timeout) =
            (self.address.clone(), self.tls.clone(), self.handshake_timeout);
        let (head_timeout, stopped) = (self.head_timeout, self.stopped.clone());
        let session = http::Session {
            ingest: self.ingest.clone(),
            started: self.started,
            key: None,
            refused: None,
            body_timeout: self.body_timeout,
            guest: Arc::clone(&slot.guest),
        };
        async move {
            // All of it, and not just the part that is used below: its place is taken until the end.
            let slot = slot;
            let serving = async {
                let Some(tls) = tls else {
                    return versions::serve(&address, stream, session, head_timeout, stopped).await;
                };
                let in_the_clear = http::TLS_ONLY.as_bytes();
                match tls.accept(stream, handshake_timeout, in_the_clear, versions::ALPN).await {
                    Ok(Accepted { stream, key, refused }) => {
                        let refused = refused.map(|why| told(&address, &why));
                        let session = http::Session { key, refused, ..session };
                        versions::serve(&address, stream, session, head_timeout, stopped).await;
                    }
                    Err(why) => tracing::warn!(%address, %why, "a connection was refused"),
                }
            };
            tokio::select! {
                () = serving => {}
                () = slot.guest.must_leave() => tracing::debug!("a silent connection was ended"),
            }
        }
    }

    /// One connection that frames come over back to back.
    fn stream<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        slot: Slot,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (address, tls, handshake_timeout) =
            (self.address.clone(), self.tls.clone(), self.handshake_timeout);
        let (ingest, limits, stopped) = (self.ingest.clone(), self.streams, self.stopped.clone());
        async move {
            let Some(tls) = tls else {
                let connection = Connection::new(ingest);
                return serve_stream(&address, stream, connection, slot, limits, stopped).await;
            };
            let bye = ingest::farewell(Farewell::TlsOnly);
            let accepted = tokio::select! {
                accepted = tls.accept(stream, handshake_timeout, &bye, &[]) => accepted,
                () = slot.guest.must_leave() => return,
            };
            match accepted {
                Ok(Accepted { stream, key, refused }) => {
                    let credentials = Credentials { key, ..Credentials::default() };
                    let refused = refused.map(|why| told(&address, &why));
                    let connection =
                        Connection::with_credentials(ingest, credentials).refusing(refused);
                    serve_stream(&address, stream, connection, slot, limits, stopped).await;
                }
                Err(why) => tracing::warn!(%address, %why, "a connection was refused"),
            }
        }
    }
}

/// Says here why somebody is refused, and what it is told.
fn told(address: &ListenAddress, why: &impl fmt::Display) -> Denied {
    tracing::warn!(%address, %why, "a connection was refused");
    Denied::because(&why.to_string())
}

async fn serve_stream<S: AsyncRead + AsyncWrite>(
    address: &ListenAddress,
    stream: S,
    connection: Connection,
    slot: Slot,
    limits: StreamLimits,
    stopped: watch::Receiver<bool>,
) {
    match stream::serve(stream, connection, &slot.guest, limits, stopped).await {
        End::Done | End::Stopped => {}
        end @ (End::Idle | End::CutShort | End::Displaced | End::Failed(_)) => {
            tracing::debug!(%address, %end, "a connection ended");
        }
        end @ (End::Late | End::NotOurs(_) | End::Garbled) => {
            tracing::warn!(%address, %end, "a connection was given up");
        }
    }
}

/// Looks at the files again, at intervals and when asked to.
struct Reloader {
    access: Option<Access>,
    tls: Tls,
    interval: Duration,
    asked: Arc<Notify>,
    /// What is wrong with the files, and was told already.
    complaint: Option<String>,
}

impl Reloader {
    async fn run(mut self) {
        loop {
            let interval = async {
                if self.interval.is_zero() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(self.interval).await;
            };
            let asked = tokio::select! {
                () = interval => false,
                () = self.asked.notified() => true,
            };
            // Files may be on a slow disk.
            let Ok(again) = tokio::task::spawn_blocking(move || {
                self.look(asked);
                self
            })
            .await
            else {
                return;
            };
            self = again;
        }
    }

    fn look(&mut self, asked: bool) {
        let access = self.access.as_ref().map(Access::reload);
        let access = access.unwrap_or(Ok(false)).map_err(|error| error.to_string());
        let outcomes = [("access rules", access), ("certificates", self.tls.reload())];
        let mut complaints = Vec::new();
        for (what, outcome) in outcomes {
            match outcome {
                Ok(true) => tracing::info!("{what} read again"),
                Ok(false) => {}
                Err(problem) => complaints.push(problem),
            }
        }
        let complaint = (!complaints.is_empty()).then(|| complaints.join("; "));
        if let Some(problem) = &complaint
            && (asked || self.complaint != complaint)
        {
            tracing::error!("what was read before stays: {problem}");
        }
        self.complaint = complaint;
    }
}

/// There is no value of it.
enum Never {}
