//! Between an application's SQLite connection and a transport: the outbox and the link.
//!
//! ```text
//!  commits ─▶ outbox (sidecar file) ─▶ link (a thread: Sender + Transport) ─▶ sequencer
//!                    ◀── trim ───────────── acknowledged
//! ```
//!
//! See the project's ARCHITECTURE.md for what is there and what is not yet.

pub mod link;
pub mod outbox;
