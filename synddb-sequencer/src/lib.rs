//! The receiving end of synddb: takes frames, stores entries durably, exactly once and in
//! order.
//!
//! ```text
//!  POST /v1/frames ──▶ [http] ──┬─▶ [ingest::Connection] ──▶ Receiver (synddb-core) decides
//!  vsock, unix ──────▶ [stream] ┘          │
//!                                          ▼ compare-and-set, durable
//!                                  [store::LogStore]
//! ```
//!
//! * [`Server`] — a whole sequencer in a thread of its own.
//! * [`ingest`] — what to do with a frame, whatever it came over.
//! * [`store`] — the log; [`store::SqliteStore`] keeps it in one directory.
//! * [`replica`] — databases out of the log: [`replica::Restore`] builds one, as of any entry or
//!   moment.
//! * [`access`] — who may do what.
//! * [`status`] — what a sequencer says of itself.
//!
//! # Who is let in
//!
//! Listeners that others than this machine reach need TLS and either [`access`] rules or known client
//! certificates; without, they have to be asked for by [`Config::insecure`]. Peers that are slow or
//! silent hold nothing for long, and make room for others.
#![forbid(unsafe_code)]

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

pub mod access;
mod decompress;
pub mod http;
pub mod ingest;
#[cfg(feature = "kill-points")]
mod kill_point;
mod listen;
mod moment;
pub mod prune;
mod rate;
pub mod replica;
mod server;
mod slots;
pub mod status;
pub mod store;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod unread;
pub mod verify;
mod versions;

pub use listen::{InvalidListenAddress, ListenAddress};
pub use moment::{InvalidMoment, Moment};
pub use rate::Rate;
pub use server::{Config, Server, StartError};
pub use stream::StreamLimits;
#[cfg(feature = "tls")]
pub use synddb_tls;
pub use synddb_transport_vsock::Address;
