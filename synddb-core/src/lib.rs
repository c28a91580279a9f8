//! The transport-agnostic core of synddb: everything about shipping the committed changes of an
//! SQLite database that needs no operating system.
//!
//! ```text
//!  application side                                     sequencer side
//!  ────────────────                                     ──────────────
//!  commits ─▶ changeset ─▶ outbox                       log store ─▶ replica
//!                            │ ▲                            ▲ │
//!                    ranges  ▼ │ trim                append │ ▼ head
//!                         [Sender] ══ frames ══════════▶ [Receiver]
//!                                  ◀═ acks, refusals ════
//! ```
//!
//! * [`wire`] — frames: a fixed header and a postcard body, decoded by borrowing.
//! * [`Chain`] — the hash chain that gives every entry its identity.
//! * [`sender::Sender`] — what to send next, in order, exactly once, whatever the link does.
//! * [`receiver::Receiver`] — what to store, what was stored already, what to refuse and why.
//! * [`changeset`] — reader and writer of SQLite's changeset format.
//! * [`content`] — the hash of a database's content, kept up to date by changesets.
//! * [`device`] — a whole sender for machines without SQLite: tables, rows, storage, drivers.
//! * [`batcher::Batcher`], [`backoff::Backoff`] — when to send, when to try again.
//! * [`transport`] — the traits a transport implements, blocking and async, and a transport over
//!   any `embedded-io` byte stream.
//!
//! # Call order
//!
//! A driver owns the clock, the randomness, the outbox and the transport, and loops:
//!
//! 1. `handle_*` — tell the state machine what happened (entries queued, connected, frame came);
//! 2. [`poll_action`](sender::Sender::poll_action) until `None` — do what it says;
//! 3. [`poll_event`](sender::Sender::poll_event) until `None` — acknowledgements, resyncs, stops;
//! 4. sleep until [`poll_timeout`](sender::Sender::poll_timeout) or until something happens.
//!
//! # What it does not do
//!
//! No I/O, no clock, no randomness, no threads, no allocation (except in the parts behind the
//! feature `alloc`), no `unsafe`. It does not talk to SQLite and signs nothing.
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::std_instead_of_core, clippy::std_instead_of_alloc, clippy::alloc_instead_of_core)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod backoff;
pub mod batcher;
mod chain;
pub mod changeset;
pub mod content;
pub mod device;
#[cfg(feature = "alloc")]
pub mod http;
mod id;
pub mod receiver;
mod rng;
pub mod sender;
mod time;
pub mod transport;
pub mod wire;

pub use chain::{Chain, ChainHasher};
pub use id::{Epoch, InvalidStreamId, Nonce, OpenId, SeqNo, SnapshotId, StreamId};
pub use rng::Rng;
pub use time::Instant;
