//! The application's handle.

use std::{
    borrow::Borrow,
    cell::RefCell,
    future::{Future, poll_fn},
    mem::ManuallyDrop,
    path::Path,
    sync::Arc,
    task::Poll,
    thread::{self, JoinHandle},
    time::{Duration, Instant as Clock},
};

use rusqlite::{Connection, Transaction};
use synddb_core::{
    Nonce, StreamId,
    batcher::BatchConfig,
    sender::SenderConfig,
    transport::Transport,
    wire::message::{Compression, ResyncReason},
};

use crate::{
    Config, Error, NotStored,
    capture::{
        Capture, CaptureOptions, CommitSink, Fingerprint, FlushMode, Present, current_fingerprint,
        database_path,
    },
    config::Durability,
    dial,
    handle::Handle,
    link::{Blocking, Carrier, Link, Receipt, queued},
    outbox::Outbox,
    place::{Claim, Place},
    settle::{Start, settle},
    shared::{Limits, Progress, Shared, Target},
    stats::Stats,
    writer::{Pending, Writer},
};
#[cfg(all(feature = "cbor", any(feature = "http", feature = "hyper")))]
use crate::{cbor, shared::Mode};
#[cfg(feature = "hyper")]
use crate::{
    dial::HyperFrames,
    link::{InRuntime, LinkFuture},
};

#[cfg(all(test, feature = "http"))]
mod tests;

const LINK_THREAD: &str = "synddb-link";
/// How long commits gather before they are written to the outbox, unless somebody waits.
const LINGER: Duration = Duration::from_millis(10);
/// How long a link that was stopped may take to say goodbye.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A database whose commits are shipped.
///
/// From [`attach`](SyndDB::attach) it stands beside a connection that the application keeps and goes
/// on using; it is then bound to that connection's thread. From [`open`](SyndDB::open) it owns the
/// connection, and both can move between threads together.
///
/// Dropping it is a [`shutdown`](SyndDB::shutdown) whose report nobody reads.
///
/// ```
/// # use synddb_std::{Handle, SyndDB};
/// fn can_move<T: Send>() {}
/// fn can_be_shared<T: Send + Sync + Clone>() {}
/// can_move::<SyndDB<rusqlite::Connection>>();
/// can_be_shared::<Handle>();
/// ```
///
/// ```compile_fail
/// # use synddb_std::SyndDB;
/// fn can_move<T: Send>() {}
/// can_move::<SyndDB>(); // attached to somebody's connection
/// ```
pub struct SyndDB<C: Borrow<Connection> = &'static Connection> {
    // Before the connection: it goes first.
    attached: Attached,
    connection: C,
}

impl<C: Borrow<Connection>> std::fmt::Debug for SyndDB<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyndDB").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What a shutdown left behind.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Shutdown {
    /// What the sequencer has stored.
    pub receipt: Option<Receipt>,
    /// Why it has not stored everything, and how much is left; it goes at the next start.
    pub left: Option<NotStored>,
    /// The next start goes on where this one ended. Where false, it begins with a snapshot.
    pub clean: bool,
}

impl SyndDB {
    /// Ships the commits of `conn` to the sequencer at `url`, with all other settings at their
    /// defaults.
    ///
    /// The application goes on using the connection as before. A connection that was leaked to
    /// become `'static` can be closed again after [`shutdown`](Self::shutdown):
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = std::env::temp_dir().join(format!("synddb-doc-{}", std::process::id()));
    /// # std::fs::create_dir_all(&dir)?;
    /// # let path = dir.join("app.db");
    /// use rusqlite::Connection;
    /// use synddb_std::SyndDB;
    ///
    /// let leaked: *mut Connection = Box::into_raw(Box::new(Connection::open(path)?));
    /// // SAFETY: freed below, after the last use of the reference.
    /// let conn: &'static Connection = unsafe { &*leaked };
    /// # #[cfg(feature = "http")] {
    /// let synddb = SyndDB::attach(conn, "http://127.0.0.1:8433")?;
    /// conn.execute_batch("CREATE TABLE trades(id INTEGER PRIMARY KEY, amount INTEGER)")?;
    /// let report = synddb.shutdown()?;
    /// assert!(report.left.is_some(), "no sequencer is running here");
    /// # }
    /// // SAFETY: made by `Box::into_raw`, and nothing refers to it any more.
    /// drop(unsafe { Box::from_raw(leaked) });
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`attach_with_config`](Self::attach_with_config).
    pub fn attach(conn: &'static Connection, url: &str) -> Result<Self, Error> {
        Self::attach_with_config(conn, Config { sequencer_url: url.into(), ..Default::default() })
    }

    /// Ships the commits of `conn`. Waits for no network: a sequencer that is away shows in
    /// [`stats`](Self::stats), and commits queue until it is there.
    ///
    /// # Errors
    /// [`Error::Config`]: a setting cannot be honoured. [`Error::Capture`]: the connection has an
    /// open transaction, reads only, is attached already, or its file is no database.
    /// [`Error::Outbox`]: its place is unwritable, in use, or holds something else. Nothing stays
    /// behind on the connection.
    pub fn attach_with_config(conn: &'static Connection, config: Config) -> Result<Self, Error> {
        let attached = Attached::by_url(conn, config)?;
        Ok(Self { attached, connection: conn })
    }

    /// As [`attach_with_config`](Self::attach_with_config), over a transport of the user's own;
    /// [`Config::sequencer_url`] is not used.
    ///
    /// # Errors
    /// As [`attach_with_config`](Self::attach_with_config).
    pub fn attach_with_transport<T: Transport + Send + 'static>(
        conn: &'static Connection,
        transport: T,
        config: Config,
    ) -> Result<Self, Error> {
        let attached = Attached::on_thread(conn, transport, config)?;
        Ok(Self { attached, connection: conn })
    }

    /// As [`attach_with_config`](Self::attach_with_config), with the link as a future for the
    /// caller's own tokio runtime, its I/O and time enabled, instead of a thread. It speaks HTTP by
    /// hyper whatever [`Config`] says of clients, so the address is one of HTTP's.
    ///
    /// On a runtime of one thread use [`push_async`](Self::push_async) and
    /// [`shutdown_async`](Self::shutdown_async): the others block that thread until their time is
    /// over, and so does dropping the handle.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("app.db");
    /// # let server = synddb_sequencer::Server::start(synddb_sequencer::Config::new(
    /// #     "127.0.0.1:0".parse()?, dir.path().join("log")))?;
    /// # let sequencer_url = format!("http://{}", server.addr());
    /// use rusqlite::Connection;
    /// use synddb_std::{Config, SyndDB};
    ///
    /// # runtime.block_on(async {
    /// let conn: &'static Connection = Box::leak(Box::new(Connection::open(path)?));
    /// let config = Config { sequencer_url, ..Default::default() };
    /// let (synddb, link) = SyndDB::attach_with_link(conn, config)?;
    /// let link = tokio::spawn(link);
    ///
    /// conn.execute_batch("CREATE TABLE trades(id INTEGER PRIMARY KEY, amount INTEGER)")?;
    /// let receipt = synddb.push_async().await?;
    /// assert_eq!(receipt.commit, synddb.stats().last_commit);
    ///
    /// let report = synddb.shutdown_async().await?;
    /// assert_eq!(report.left, None);
    /// link.await?; // ended by the shutdown
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`attach_with_config`](Self::attach_with_config).
    #[cfg(feature = "hyper")]
    pub fn attach_with_link(
        conn: &'static Connection,
        config: Config,
    ) -> Result<(Self, LinkFuture), Error> {
        let (attached, link) = Attached::with_link(conn, config)?;
        Ok((Self { attached, connection: conn }, link))
    }
}

impl SyndDB<Connection> {
    /// Opens the database at `path`, or makes it, and ships its commits to the sequencer at `url`.
    /// A new database is put into WAL mode, in which commits are captured one by one.
    ///
    /// # Errors
    /// As [`attach_with_config`](SyndDB::attach_with_config), and SQLite's.
    pub fn open(path: impl AsRef<Path>, url: &str) -> Result<Self, Error> {
        Self::open_with_config(path, Config { sequencer_url: url.into(), ..Default::default() })
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_config(path: impl AsRef<Path>, config: Config) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        if pages == 0 {
            connection.pragma_update(None, "journal_mode", "WAL")?;
        }
        Self::own(connection, config)
    }

    /// A database in memory whose commits are shipped when they are pushed. [`Config::stream`] must
    /// name it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in_memory(config: Config) -> Result<Self, Error> {
        Self::own(Connection::open_in_memory()?, config)
    }

    /// Takes over a connection that the application has opened.
    ///
    /// # Errors
    /// As [`attach_with_config`](SyndDB::attach_with_config); the connection is closed then.
    pub fn own(connection: Connection, config: Config) -> Result<Self, Error> {
        let attached = Attached::by_url(&connection, config)?;
        Ok(Self { attached, connection })
    }

    /// As [`own`](Self::own), over a transport of the user's own.
    ///
    /// # Errors
    /// As [`own`](Self::own).
    pub fn own_with_transport<T: Transport + Send + 'static>(
        connection: Connection,
        transport: T,
        config: Config,
    ) -> Result<Self, Error> {
        let attached = Attached::on_thread(&connection, transport, config)?;
        Ok(Self { attached, connection })
    }

    /// As [`own`](Self::own), with the link as a future; see
    /// [`attach_with_link`](SyndDB::attach_with_link).
    ///
    /// # Errors
    /// As [`own`](Self::own).
    #[cfg(feature = "hyper")]
    pub fn own_with_link(
        connection: Connection,
        config: Config,
    ) -> Result<(Self, LinkFuture), Error> {
        let (attached, link) = Attached::with_link(&connection, config)?;
        Ok((Self { attached, connection }, link))
    }
}

impl<C: Borrow<Connection>> SyndDB<C> {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        self.connection.borrow()
    }

    /// Runs `work` in a transaction and commits it, or rolls it back if `work` fails. Outside WAL
    /// mode this is where its changes are captured.
    ///
    /// # Errors
    /// What `work` returned, or SQLite's refusal to begin or commit.
    pub fn transaction<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let transaction = self.connection().unchecked_transaction()?;
        let result = work(&transaction)?;
        transaction.commit()?;
        // The commit has happened: what cannot be read now is read by the next flush.
        if let Err(error) = self.attached.flush(FlushMode::Step) {
            tracing::warn!(%error, "captured later");
        }
        Ok(result)
    }

    /// Waits until the sequencer has durably stored everything that was committed before the call,
    /// at the longest for [`Config::push_timeout`].
    ///
    /// # Errors
    /// [`Error::NotStored`]: the time is over, or the link counts as down and an attempt made for
    /// this call failed as well. Everything stays queued. [`Error::Capture`]: a transaction is
    /// open on the connection.
    pub fn push(&self) -> Result<Receipt, Error> {
        self.push_timeout(self.attached.config.push_timeout)
    }

    /// As [`push`](Self::push), waiting for `timeout` at the longest.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_timeout(&self, timeout: Duration) -> Result<Receipt, Error> {
        self.attached.push(false, timeout)
    }

    /// As [`push`](Self::push), as a future of no particular runtime. Nothing happens before it is
    /// polled.
    pub fn push_async(&self) -> impl Future<Output = Result<Receipt, Error>> + '_ {
        self.attached.push_async(self.attached.config.push_timeout)
    }

    /// Takes a snapshot of the database now, and waits until the sequencer has stored it. It makes
    /// restoring shorter; nothing depends on it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn snapshot(&self) -> Result<Receipt, Error> {
        self.attached.push(true, self.attached.config.push_timeout)
    }

    /// Begins a new epoch from a snapshot, as soon as the sequencer is there: for a stream that
    /// stopped because somebody else took it or because histories differ. [`push`](Self::push)
    /// waits for it.
    pub fn resync(&self) {
        self.attached.shared.resync();
    }

    /// How the stream stands.
    pub fn stats(&self) -> Stats {
        self.handle().stats()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.attached.shared), self.attached.stream)
    }

    /// Ships what is queued, for [`Config::shutdown_timeout`] at the longest or until the link is
    /// known to be down, and takes everything off the connection. What is left goes at the next
    /// start.
    ///
    /// # Errors
    /// [`Error::Capture`]: a transaction is open, and will not be captured; all the same nothing
    /// stays on the connection, and the next start begins with a snapshot.
    pub fn shutdown(mut self) -> Result<Shutdown, Error> {
        let timeout = self.attached.config.shutdown_timeout;
        self.attached.shut_down(timeout)
    }

    /// As [`shutdown`](Self::shutdown), waiting without blocking the thread; the last steps, some
    /// tens of milliseconds, do block it.
    pub async fn shutdown_async(mut self) -> Result<Shutdown, Error> {
        let timeout = self.attached.config.shutdown_timeout;
        // Its outcome is told again by the steps that follow.
        let _ = self.attached.push_async(timeout).await;
        // Where it is a future it may need this thread to end.
        self.attached.shared.stop_link();
        let deadline = Clock::now() + LAST_WORDS;
        poll_fn(|context| self.attached.shared.poll_link_end(deadline, context.waker())).await;
        self.attached.shut_down(Duration::ZERO)
    }
}

/// Capture and the threads behind it, on a connection that outlives them.
struct Attached {
    // Taken out by the shutdown, before the connection can go.
    capture: RefCell<ManuallyDrop<Capture>>,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    claim: Option<Claim>,
    /// The outbox outlives the process.
    lasts: bool,
    writer: Option<JoinHandle<bool>>,
    stream: StreamId,
    config: Config,
    ended: bool,
}

impl Attached {
    #[cfg_attr(
        not(any(feature = "cbor", feature = "http", feature = "hyper", feature = "vsock")),
        expect(unused_variables, reason = "no transport to give it to is compiled in")
    )]
    fn by_url(conn: &Connection, config: Config) -> Result<Self, Error> {
        #[cfg(feature = "cbor")]
        if let Some(config) = dial::over_cbor(&config) {
            return Self::by_cbor(conn, config);
        }
        let dialed = dial::dial(&config)?;
        match dialed {
            #[cfg(feature = "http")]
            dial::Dialed::Http(transport) => Self::on_thread(conn, transport, config),
            #[cfg(feature = "hyper")]
            dial::Dialed::Hyper(frames) => Self::in_own_runtime(conn, *frames, config),
            #[cfg(feature = "vsock")]
            dial::Dialed::Stream(transport) => Self::on_thread(conn, *transport, config),
            #[cfg(all(feature = "vsock", feature = "tls"))]
            dial::Dialed::StreamTls(transport) => Self::on_thread(conn, *transport, config),
        }
    }

    fn on_thread<T: Transport + Send + 'static>(
        conn: &Connection,
        transport: T,
        config: Config,
    ) -> Result<Self, Error> {
        let start = |link: Link<_>, shared: &Arc<Shared>| {
            spawn(LINK_THREAD, shared, move || link.run_here())
        };
        Ok(Self::new(conn, Blocking(transport), config, start)?.0)
    }

    /// A thread that is a runtime of its own for the link.
    #[cfg(feature = "hyper")]
    fn in_own_runtime(
        conn: &Connection,
        frames: HyperFrames,
        config: Config,
    ) -> Result<Self, Error> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build();
        let runtime = runtime.map_err(|error| Error::System(format!("no runtime: {error}")))?;
        let start = |link: Link<_>, shared: &Arc<Shared>| {
            spawn(LINK_THREAD, shared, move || {
                runtime.block_on(LinkFuture::new(link));
                // Not waiting for a name that is still being looked up.
                runtime.shutdown_background();
            })
        };
        Ok(Self::new(conn, InRuntime(frames), config, start)?.0)
    }

    #[cfg(feature = "hyper")]
    fn with_link(conn: &Connection, config: Config) -> Result<(Self, LinkFuture), Error> {
        let carrier = InRuntime(dial::dial_by_hyper(&config)?);
        Self::new(conn, carrier, config, |link, _| Ok(LinkFuture::new(link)))
    }

    /// Over the protocol of existing sequencers; the address is plain.
    #[cfg(feature = "cbor")]
    #[cfg_attr(
        not(any(feature = "http", feature = "hyper")),
        expect(unused_variables, reason = "no transport to give it to is compiled in")
    )]
    fn by_cbor(conn: &Connection, config: Config) -> Result<Self, Error> {
        match dial::dial(&config)? {
            #[cfg(feature = "http")]
            dial::Dialed::Http(frames) => Self::with_cbor(conn, frames.into_exchange(), config),
            #[cfg(feature = "hyper")]
            dial::Dialed::Hyper(frames) => {
                let exchange = synddb_transport_hyper::HyperExchange::new(frames.into_exchange());
                let exchange = exchange.map_err(|error| Error::System(error.to_string()))?;
                Self::with_cbor(conn, exchange, config)
            }
            #[cfg(feature = "vsock")]
            _ => Err(dial::bad_url(format!(
                "{:?} is no address of HTTP's, which existing SyndDB sequencers speak: http, https, \
                 and with the features `hyper` and `vsock` http+unix: and so on",
                config.sequencer_url
            ))),
        }
    }

    #[cfg(all(feature = "cbor", any(feature = "http", feature = "hyper")))]
    fn with_cbor<E: synddb_core::http::HttpGet + Send + 'static>(
        conn: &Connection,
        exchange: E,
        config: Config,
    ) -> Result<Self, Error> {
        let in_line = Some(config.cbor.max_body_bytes as u64);
        let attached = Self::begin(conn, config, in_line, |config, _, outbox, shared| {
            let is_behind = shared.look().mode != Mode::Following;
            cbor::check_size(conn, config, outbox, is_behind)?;
            let (outbox, started) = (Arc::clone(outbox), Arc::clone(shared));
            let link = cbor::CborLink::new(exchange, config, outbox, started)?;
            spawn(LINK_THREAD, shared, move || link.run()).map(drop)
        })?;
        Ok(attached.0)
    }

    /// What `start` makes of the link is the second half of the answer.
    fn new<C: Carrier + 'static, R>(
        conn: &Connection,
        carrier: C,
        config: Config,
        start: impl FnOnce(Link<C>, &Arc<Shared>) -> Result<R, Error>,
    ) -> Result<(Self, R), Error> {
        #[cfg(feature = "cbor")]
        if config.protocol == crate::Protocol::SyndDbCbor {
            let problem = "SyndDbCbor is spoken by address only: a transport of one's own carries \
                           synddb's own frames";
            return Err(Error::Config { setting: "protocol", problem: problem.into() });
        }
        Self::begin(conn, config, None, |config, stream, outbox, shared| {
            let link = Link::new(
                carrier,
                sender_config(config, stream),
                config.stream.clone().unwrap_or_default(),
                config.token_provider.clone(),
                Arc::clone(outbox),
                Arc::clone(shared),
            )?;
            start(link, shared)
        })
    }

    /// `start` starts what carries the outbox to the sequencer; `in_line` is for [`Writer::in_line`].
    fn begin<R>(
        conn: &Connection,
        config: Config,
        in_line: Option<u64>,
        start: impl FnOnce(&Config, StreamId, &Arc<Outbox>, &Arc<Shared>) -> Result<R, Error>,
    ) -> Result<(Self, R), Error> {
        config.validate()?;
        // SAFETY: the connection is open, and used by this thread alone.
        let database = unsafe { database_path(conn.handle()) };
        let place = Place::choose(&config, database)?;
        let snapshots = place.snapshots();
        let shared = Arc::new(Shared::new(Limits {
            buffer_size: config.buffer_size,
            linger: LINGER.min(config.push_interval),
            max_memory: config.max_memory_bytes,
            max_retries: config.max_retries,
        }));
        let options = CaptureOptions {
            snapshot_dir: snapshots.dir.clone(),
            snapshot_prefix: snapshots.prefix.clone(),
            max_changeset_bytes: config.max_changeset_bytes,
            engine: config.engine,
            keep_before_commit: config.durability == Durability::BeforeCommit,
        };
        let sink: Arc<dyn CommitSink> = Arc::clone(&shared) as _;
        // SAFETY: whoever owns an `Attached` keeps the connection until it is dropped, and both
        // stay on one thread or move together.
        let capture = unsafe { Capture::attach(conn.handle(), sink, options) }?;
        let (outbox, claim) = place.open(&config)?;
        let mark = outbox.take_clean_mark()?;
        // SAFETY: as above.
        let fingerprint = unsafe { current_fingerprint(conn.handle()) };
        let mark = mark.as_deref().and_then(Fingerprint::from_bytes);
        let unchanged = mark.is_some() && mark == fingerprint;
        let behind = if !place.lasts() {
            Some(ResyncReason::MemoryOutbox)
        } else {
            // SAFETY: as above.
            let present = unsafe { Present::look(conn.handle()) };
            match settle(conn, present, &outbox, unchanged)? {
                Start::GoesOn => None,
                Start::Behind(reason) => Some(reason),
            }
        };
        let state = outbox.state()?;
        shared.start(state.last_commit, behind, queued(&state));

        let outbox = Arc::new(outbox);
        if config.durability == Durability::BeforeCommit && place.lasts() {
            shared.keep_in(Arc::clone(&outbox));
        }
        let stream = state.stream;
        let max_outbox_bytes = config.max_outbox_bytes.unwrap_or(match place.lasts() {
            true => 1 << 30,
            false => 64 << 20,
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            outbox: Arc::clone(&outbox),
            idle: capture.idle_boundary(),
            place: snapshots,
            max_outbox_bytes,
            snapshot_interval: config.snapshot_interval,
            snapshot_factor: config.snapshot_factor,
            in_line,
            state,
            pending: Pending::default(),
        };
        let started = start(&config, stream, &outbox, &shared)?;
        let writer = spawn("synddb-writer", &shared, move || writer.run()).inspect_err(|_| {
            shared.stop_link();
        })?;
        tracing::info!(%stream, ?behind, "attached");
        let attached = Self {
            capture: RefCell::new(ManuallyDrop::new(capture)),
            shared,
            outbox,
            claim,
            lasts: place.lasts(),
            writer: Some(writer),
            stream,
            config,
            ended: false,
        };
        Ok((attached, started))
    }

    fn flush(&self, mode: FlushMode) -> Result<(), Error> {
        // Borrowed: called from inside a callback of one of capture's own statements.
        let mut capture = self
            .capture
            .try_borrow_mut()
            .map_err(|_| Error::Capture(crate::CaptureError::TransactionOpen))?;
        Ok(capture.flush(mode)?)
    }

    fn push(&self, by_snapshot: bool, timeout: Duration) -> Result<Receipt, Error> {
        self.flush(FlushMode::Complete)?;
        let waiting = Waiting::new(&self.shared, self.shared.last_commit(), by_snapshot, timeout);
        loop {
            match self.shared.wait(&waiting.target) {
                Progress::Stored(receipt) => return Ok(receipt),
                Progress::GaveUp(why) => return Err(Error::NotStored(why)),
                Progress::SnapshotWanted => self.flush(FlushMode::Complete)?,
                Progress::Pending => {}
            }
        }
    }

    async fn push_async(&self, timeout: Duration) -> Result<Receipt, Error> {
        self.flush(FlushMode::Complete)?;
        let waiting = Waiting::new(&self.shared, self.shared.last_commit(), false, timeout);
        poll_fn(|context| {
            loop {
                return match self.shared.poll(&waiting.target, context.waker()) {
                    Progress::Stored(receipt) => Poll::Ready(Ok(receipt)),
                    Progress::GaveUp(why) => Poll::Ready(Err(Error::NotStored(why))),
                    Progress::SnapshotWanted => match self.flush(FlushMode::Complete) {
                        Ok(()) => continue,
                        Err(error) => Poll::Ready(Err(error)),
                    },
                    Progress::Pending => Poll::Pending,
                };
            }
        })
        .await
    }

    fn shut_down(&mut self, timeout: Duration) -> Result<Shutdown, Error> {
        let deadline = Clock::now() + timeout;
        self.ended = true;
        let pushed = self.push(false, timeout);
        self.shared.close();
        let written = self.writer.take().is_some_and(|writer| writer.join().unwrap_or(false));
        let mut capture = self.capture.borrow_mut();
        let mark = if written && self.lasts { capture.clean_mark() } else { None };
        let mark = mark.filter(|_| self.shared.is_complete());
        let clean = mark.is_some_and(|mark| {
            self.outbox.set_clean_mark(&mark.to_bytes()).unwrap_or_else(|error| {
                tracing::warn!(%error, "the next start begins with a snapshot");
                false
            })
        });
        // SAFETY: `ended` keeps it from being touched or dropped again.
        unsafe { ManuallyDrop::take(&mut capture) }.detach();
        self.shared.stop_link();
        // A link that waits for an answer cannot use the outbox any more, and ends by itself.
        let _ = self.shared.wait_for_link(deadline.max(Clock::now() + LAST_WORDS));
        self.outbox.close();
        self.claim = None;
        let receipt = self.shared.look().receipt;
        match pushed {
            Ok(receipt) => Ok(Shutdown { receipt: Some(receipt), left: None, clean }),
            Err(Error::NotStored(left)) => Ok(Shutdown { receipt, left: Some(left), clean }),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match self.shut_down(self.config.shutdown_timeout) {
            Ok(Shutdown { left: Some(left), .. }) => tracing::warn!(%left, "dropped"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "dropped"),
        }
    }
}

/// A wait that ends when it goes out of scope.
pub(crate) struct Waiting<'s> {
    shared: &'s Shared,
    pub(crate) target: Target,
}

impl<'s> Waiting<'s> {
    pub(crate) fn new(
        shared: &'s Shared,
        commit: u64,
        by_snapshot: bool,
        timeout: Duration,
    ) -> Self {
        Self { shared, target: shared.expect(commit, by_snapshot, timeout) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.expected();
    }
}

fn sender_config(config: &Config, stream: StreamId) -> SenderConfig {
    SenderConfig {
        stream,
        instance: Nonce::default(),
        batch: BatchConfig {
            max_bytes: u32::try_from(config.max_batch_size).unwrap_or(u32::MAX),
            linger: config.push_interval,
            // The writer has gathered them already.
            idle_linger: Duration::ZERO,
            ..Default::default()
        },
        backoff: Default::default(),
        response_timeout: config.response_timeout,
        keep_alive: config.keep_alive,
        compression: if config.compression { Compression::Lz4 } else { Compression::None },
        on_divergence: config.on_divergence,
    }
}

/// Starts a thread of which it is told at once when it panics.
fn spawn<T: Send + 'static>(
    name: &'static str,
    shared: &Arc<Shared>,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    struct Watched(&'static str, Arc<Shared>);

    impl Drop for Watched {
        fn drop(&mut self) {
            if thread::panicking() {
                self.1.died(self.0);
            }
        }
    }

    let watched = Watched(name, Arc::clone(shared));
    let run = move || {
        let _watched = watched;
        run()
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| Error::System(format!("no thread {name}: {error}")))
}
