//! Between an application's SQLite connection and a transport: the outbox and the link.
//!
//! ```text
//!  commits ─▶ outbox (sidecar file) ─▶ link (a thread: Sender + Transport) ─▶ sequencer
//!                    ◀── trim ───────────── acknowledged
//! ```
//!
//! See the project's ARCHITECTURE.md for what is there and what is not yet.

// Complete, and so far only used by their own tests: part of the crate once the application's
// handle stands on them. The expectations then fail and go.
#[cfg(test)]
#[expect(unreachable_pub, reason = "no handle uses it yet")]
mod capture;
mod compress;
pub mod link;
pub mod outbox;
#[cfg(test)]
#[expect(dead_code, unreachable_pub, reason = "no handle uses it yet")]
mod snapshot;
