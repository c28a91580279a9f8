//! Between an application's SQLite connection and a transport: capture, outbox, snapshots, and
//! the threads that ship what was committed.
//!
//! ```text
//!  app thread            writer thread           link thread
//!  ──────────            ─────────────           ───────────
//!  commit ─▶ capture ─▶ memory ─▶ outbox ─▶ Sender + Transport ══▶ sequencer
//!                                (sidecar)  ◀── trim ── acknowledged
//!  a boundary between two commits ─▶ a thread copies ─▶ snapshot ─▶
//! ```
//!
//! An application uses it through the crate `synddb-client`, which chooses the transports.
//!
//! # What it does not do
//!
//! It changes neither the schema nor the results of the application, never waits for the network
//! but in [`push`](SyndDB::push) and [`shutdown`](SyndDB::shutdown), holds no signing keys and
//! publishes nothing.

/// A place at which a crash test may kill the process; no code without the feature `kill-points`.
#[cfg(feature = "kill-points")]
macro_rules! kill_point {
    ($name:literal) => {
        $crate::kill_point::reached($name)
    };
}
#[cfg(not(feature = "kill-points"))]
macro_rules! kill_point {
    ($name:literal) => {};
}

mod capture;
#[cfg(all(feature = "cbor", any(feature = "http", feature = "hyper")))]
mod cbor;
mod compress;
mod config;
mod content;
mod dial;
mod error;
mod handle;
#[cfg(feature = "kill-points")]
mod kill_point;
mod link;
mod outbox;
mod place;
mod settle;
mod shared;
mod snapshot;
mod stats;
#[cfg(feature = "suite")]
#[doc(hidden)]
pub mod suite;
mod synddb;
mod token;
mod writer;

pub use capture::{CaptureError, Lost, SqliteError};
#[cfg(all(feature = "http", feature = "hyper"))]
pub use config::HttpClient;
#[cfg(feature = "cbor")]
pub use config::{CborConfig, OnDoubt, Protocol};
pub use config::{Config, Durability, Engine, OnDivergence};
pub use error::{Error, NotStored, Reason};
pub use handle::Handle;
#[cfg(feature = "hyper")]
pub use link::LinkFuture;
pub use link::{LinkState, Receipt, Signed};
pub use outbox::OutboxError;
pub use snapshot::SnapshotError;
#[cfg(feature = "cbor")]
pub use stats::CborStats;
pub use stats::{Divergence, Health, Stats};
pub use synddb::{Shutdown, SyndDB};
pub use synddb_core::{StreamId, sender::StopReason, wire::message::ResyncReason};
#[cfg(feature = "tls")]
pub use synddb_tls as tls;
#[cfg(unix)]
pub use token::ConfidentialSpace;
pub use token::{TokenProvider, TokenRequest};
