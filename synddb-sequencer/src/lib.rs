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
//! * [`status`] — what a sequencer says of itself.
//!
//! # What it does not do yet
//!
//! No access control and no TLS: listeners that others than this machine reach have to be asked for.
#![forbid(unsafe_code)]

mod decompress;
pub mod http;
pub mod ingest;
mod listen;
mod moment;
pub mod replica;
mod server;
pub mod status;
pub mod store;
mod stream;

pub use listen::{InvalidListenAddress, ListenAddress};
pub use moment::{InvalidMoment, Moment};
pub use server::{Config, Server, StartError};
pub use stream::StreamLimits;
pub use synddb_transport_vsock::Address;
