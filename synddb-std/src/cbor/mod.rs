//! The protocol of existing SyndDB sequencers: CBOR over HTTP.
//!
//! It knows no streams, epochs, chains or acknowledgements: changesets and snapshots are posted, each
//! request is given a number and signed, and that is all. [`machine`] decides so that what arrives
//! there leads to the application's database all the same, or says what it could not make sure of.
//!
//! ```text
//!  outbox ─▶ link ─▶ split, body ─▶ HTTP exchange ══▶ POST /changesets, /snapshots, /batch/flush
//!              └ machine ◀──────────────────────────  GET /status
//! ```
//!
//! Everything goes in one line: a snapshot stands in the log exactly between the changesets that it
//! holds and those that it does not, since each begins a generation of the outbox.

mod body;
mod machine;
mod split;
