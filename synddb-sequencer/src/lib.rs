//! The receiving end of synddb: takes frames, stores entries durably, exactly once and in
//! order.
//!
//! ```text
//!  POST /v1/frames ──▶ [http] ──▶ [ingest::Connection] ──▶ Receiver (synddb-core) decides
//!                                         │
//!                                         ▼ compare-and-set, durable
//!                                 [store::LogStore]
//! ```
//!
//! * [`Server`] — a whole sequencer in a thread of its own.
//! * [`ingest`] — what to do with a frame, whatever it came over.
//! * [`store`] — the log; [`store::SqliteStore`] keeps it in one directory.
//!
//! # What it does not do yet
//!
//! No restore yet. No access control and no TLS: listeners beyond loopback have to be asked for.
#![forbid(unsafe_code)]

mod decompress;
pub mod http;
pub mod ingest;
pub mod replica;
mod server;
pub mod store;

pub use server::{Config, Server, StartError};
