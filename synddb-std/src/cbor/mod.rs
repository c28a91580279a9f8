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
mod link;
mod machine;
mod split;

use rusqlite::Connection;

pub(crate) use link::CborLink;

use crate::{Config, Error, outbox::Outbox};

/// Refuses a database that begins with a snapshot, and is too large for one.
///
/// # Errors
/// `Config`; the outbox's.
pub(crate) fn check_size(
    conn: &Connection,
    config: &Config,
    outbox: &Outbox,
    is_behind: bool,
) -> Result<(), Error> {
    let state = outbox.state()?;
    let has_base = state.base_noted && link::known(outbox)?.generation == Some(state.generation);
    if !is_behind && has_base {
        return Ok(());
    }
    let pages: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let page: i64 = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let limit = config.cbor.max_body_bytes as u64;
    let len = u64::try_from(pages * page).unwrap_or(u64::MAX);
    if len > limit {
        return Err(Error::Config {
            setting: "protocol",
            problem: format!(
                "the stream begins with a snapshot of {len} bytes, and a request of this protocol has \
                 up to {limit}: begin with a smaller database (VACUUM may help), have the \
                 sequencer's limit raised and set Config::cbor.max_body_bytes, or switch the \
                 sequencer first"
            ),
        });
    }
    Ok(())
}
