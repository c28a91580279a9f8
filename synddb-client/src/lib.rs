//! Ships every committed change of an SQLite database to a sequencer on another machine: in order,
//! exactly once, nothing lost. The application goes on using its [`Connection`](rusqlite::Connection)
//! as before.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let server = synddb_sequencer::Server::start(synddb_sequencer::Config::new(
//! #     "127.0.0.1:0".parse()?, dir.path().join("log")))?;
//! # let url = &format!("http://{}", server.addr());
//! # let path = &dir.path().join("app.db");
//! use synddb_client::{SyndDB, rusqlite::{Connection, params}};
//!
//! let conn: &'static Connection = Box::leak(Box::new(Connection::open(path)?));
//! conn.pragma_update(None, "journal_mode", "WAL")?;
//! conn.execute("CREATE TABLE IF NOT EXISTS trades(id INTEGER PRIMARY KEY, amount INTEGER)", [])?;
//!
//! let synddb = SyndDB::attach(conn, url)?; // "http://sequencer:8433"
//! conn.execute("INSERT INTO trades VALUES (?1, ?2)", params![1, 100])?;
//!
//! let tx = conn.unchecked_transaction()?;
//! tx.execute("INSERT INTO trades VALUES (?1, ?2)", params![2, 200])?;
//! tx.commit()?;
//!
//! // Commits go on their way by themselves, every second or sooner. To wait for them:
//! let receipt = synddb.push()?;
//! assert_eq!(receipt.commit, synddb.stats().last_commit);
//! # drop(synddb);
//! # Ok(())
//! # }
//! ```
//!
//! # Settings
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = &dir.path().join("app.db");
//! use std::time::Duration;
//! use synddb_client::{Config, SyndDB, rusqlite::Connection};
//!
//! let connection = Box::into_raw(Box::new(Connection::open(path)?));
//! // SAFETY: closed below, after the last use of the reference.
//! let conn: &'static Connection = unsafe { &*connection };
//! let synddb = SyndDB::attach_with_config(conn, Config {
//!     sequencer_url: "http://127.0.0.1:8433".into(),
//!     push_interval: Duration::from_millis(200),
//!     buffer_size: 100,
//!     max_batch_size: 1 << 20,
//!     max_retries: 3,
//!     snapshot_interval: 10_000,
//!     ..Default::default()
//! })?;
//!
//! // Afterwards no hook, statement or thread of synddb is left on the connection.
//! let report = synddb.shutdown()?;
//! if let Some(left) = report.left {
//!     println!("goes at the next start: {left}");
//! }
//! // SAFETY: made by `Box::into_raw`, and nothing refers to it any more.
//! drop(unsafe { Box::from_raw(connection) });
//! # Ok(())
//! # }
//! ```
//!
//! A database that nothing but this handle uses is simpler to own:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("app.db");
//! use synddb_client::SyndDB;
//!
//! let synddb = SyndDB::open(path, "http://127.0.0.1:8433")?;
//! synddb.connection().execute_batch("CREATE TABLE notes(body TEXT)")?;
//! let id = synddb.transaction(|tx| {
//!     tx.execute("INSERT INTO notes VALUES ('hello')", [])?;
//!     Ok(tx.last_insert_rowid())
//! })?;
//! assert_eq!(id, 1);
//!
//! // It is `Send`, and so is a handle to watch it with.
//! let handle = synddb.handle();
//! std::thread::spawn(move || println!("{:?}", handle.health())).join().unwrap();
//! std::thread::spawn(move || synddb.shutdown()).join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! In a tokio runtime of the application's own, with the feature `hyper`, the link can be a future
//! instead of a thread: `SyndDB::attach_with_link`.
//!
//! # Where the sequencer is
//!
//! | address | the way there | feature |
//! |---|---|---|
//! | `http://HOST:PORT` | HTTP | `http`, by default, or `hyper` |
//! | `https://HOST:PORT` | HTTP over TLS | `tls` |
//! | `unix:/path` | a Unix socket | `vsock` |
//! | `vsock://CID:PORT` | AF_VSOCK; from a VM to its host `vsock://host:PORT` | `vsock` |
//! | `vsock+unix:/path:PORT` | from the host into a VM of Firecracker or Cloud Hypervisor | `vsock` |
//!
//! With `hyper` and `vsock`, HTTP goes over these sockets too: `http+unix:/path`,
//! `http+vsock://CID:PORT`, and with `tls` the same with `https+`. Where `http` and `hyper` are both
//! there, `Config::http_client` chooses.
//!
//! With `default-features = false` and `features = ["bundled", "vsock"]` no HTTP client is compiled.
//! Several frames are on their way at once, and what is lost with a connection is sent again on the
//! next. What the errors of these sockets mean is in the documentation of `synddb-transport-vsock`.
//!
//! # What to know
//!
//! * **WAL mode** captures commit by commit. In other journal modes and in memory, commits are
//!   captured by [`push`](SyndDB::push), [`transaction`](SyndDB::transaction) and
//!   [`shutdown`](SyndDB::shutdown), and a warning says so.
//! * A **sidecar file** beside the database, its name with `-synddb` at the end, holds what is not
//!   acknowledged. It belongs to the database: move them together.
//! * **Changes of the schema**, writes by other connections, and rows with NULL in their primary
//!   key are carried by a snapshot of the whole database, taken beside the application's work.
//! * One process at a time can attach to a database, by one connection.
//! * `tracing` shows what happens.
//!
#![cfg_attr(feature = "tls", doc = include_str!("tls.md"))]
//!
#![doc = include_str!("transport.md")]
//!
//! # What it does not do
//!
//! It holds no keys but that of its TLS certificate, signs nothing and publishes nothing: that is the sequencer's side.

pub use rusqlite;
pub use synddb_core::transport;
pub use synddb_std::*;
