//! Between an application's SQLite connection and a transport: the outbox.
//!
//! Capture, worker threads and the handle that applications hold stand on it; see the project's
//! ARCHITECTURE.md for what is there and what is not yet.

pub mod outbox;
