//! A sequencer, an application's database, and the comparison of what can be restored with it.

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use synddb_client::{Config, Engine, HttpClient, Receipt, SyndDB};
use synddb_sequencer::{
    Config as SequencerConfig, ListenAddress, Server,
    replica::{Restore, Restored, differences},
    store::SqliteStore,
};
use tempfile::TempDir;

/// An empty folder, and a sequencer that keeps its log in it and can be stopped and started.
pub struct World {
    dir: TempDir,
    server: Option<Server>,
    address: SocketAddr,
    change: Change,
}

/// Changes the sequencer's settings, knowing the folder.
type Change = Box<dyn Fn(&Path, &mut SequencerConfig)>;

impl World {
    /// With a running sequencer.
    pub fn new() -> Self {
        Self::configured(|_, _| {})
    }

    /// With a running sequencer whose settings are changed by what is told the folder and the
    /// settings; the first address stays what it is.
    pub fn configured(change: impl Fn(&Path, &mut SequencerConfig) + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let address = ([127, 0, 0, 1], 0).into();
        let mut world = Self { dir, server: None, address, change: Box::new(change) };
        world.start();
        world
    }

    /// The folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the sequencer listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the sequencer listens that runs.
    pub fn addresses(&self) -> &[ListenAddress] {
        self.server.as_ref().map(Server::addresses).unwrap_or_default()
    }

    /// The sequencer's address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Settings for a test: little patience with a sequencer that is away. `SYNDDB_TEST_ENGINE` may
    /// choose the engine, `SYNDDB_TEST_HTTP` the HTTP client.
    pub fn config(&self) -> Config {
        let engine = match std::env::var("SYNDDB_TEST_ENGINE").as_deref() {
            Ok("session") => Engine::Session,
            Ok(other) => panic!("SYNDDB_TEST_ENGINE={other}: there is only `session`"),
            Err(_) => Engine::default(),
        };
        let http_client = match std::env::var("SYNDDB_TEST_HTTP").as_deref() {
            Ok("hyper") => HttpClient::Hyper,
            Ok(other) => panic!("SYNDDB_TEST_HTTP={other}: there is only `hyper`"),
            Err(_) => HttpClient::Ureq,
        };
        Config {
            engine,
            http_client,
            sequencer_url: self.url(),
            push_interval: Duration::from_millis(20),
            shutdown_timeout: Duration::from_secs(30),
            max_retries: 1,
            ..Default::default()
        }
    }

    /// Has the sequencer read its files again.
    pub fn reload(&self) {
        if let Some(server) = &self.server {
            server.reload();
        }
    }

    /// Stops the sequencer.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Starts it where it was.
    pub fn start(&mut self) {
        let mut config = SequencerConfig::new(self.address.into(), self.path("log"));
        (self.change)(self.dir.path(), &mut config);
        let server = Server::start(config).expect("the sequencer starts");
        self.address = server.addr();
        self.server = Some(server);
    }

    /// The sequencer's log.
    pub fn store(&self) -> SqliteStore {
        SqliteStore::open_read_only(&self.path("log")).expect("the log opens")
    }

    /// Opens the application's database in WAL mode.
    pub fn open(&self, name: &str) -> Connection {
        let connection = Connection::open(self.path(name)).expect("the database opens");
        connection.pragma_update(None, "journal_mode", "WAL").expect("WAL mode");
        connection
    }

    /// Restores the stream of `receipt`.
    pub fn restore(&self, receipt: &Receipt) -> (Connection, Restored) {
        let out = self.path("restored.db");
        let _ = std::fs::remove_file(&out);
        let restored = Restore::new(&self.store(), receipt.stream)
            .run(&out, |_| ControlFlow::Continue(()))
            .unwrap_or_else(|error| panic!("restore: {error}"));
        (open_read_only(&out), restored)
    }

    /// Pushes, restores, and finds no difference.
    pub fn check<C: std::borrow::Borrow<Connection>>(&self, synddb: &SyndDB<C>, context: &str) {
        let receipt = push(synddb, context);
        self.compare(synddb.connection(), &receipt, context);
    }

    /// Restores, and finds no difference.
    pub fn compare(&self, source: &Connection, receipt: &Receipt, context: &str) {
        let (replica, _) = self.restore(receipt);
        let found = differences(source, &replica).expect("both databases can be read");
        assert!(found.is_empty(), "{context}: {found:#?}");
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens without a chance to change anything.
pub fn open_read_only(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Pushes until the sequencer is there again: for a minute at the longest.
pub fn push<C: std::borrow::Borrow<Connection>>(synddb: &SyndDB<C>, context: &str) -> Receipt {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match synddb.push() {
            Ok(receipt) => return receipt,
            Err(error) if std::time::Instant::now() > deadline => {
                panic!("{context}: {error}, {:?}", synddb.stats())
            }
            Err(synddb_client::Error::NotStored(_)) => {}
            Err(error) => panic!("{context}: {error}"),
        }
    }
}
