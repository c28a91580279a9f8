//! Capture with nothing behind it, for tests that bring an SQLite of their own. Not part of the
//! interface: changes without notice.

use std::fmt;
use std::sync::Arc;

use synddb_core::wire::EntryKind;

use crate::capture::{Capture, CaptureOptions, Commit, CommitSink, Engine, FlushMode, sqlite3};
use crate::snapshot::Boundary;
use crate::{CaptureError, Lost};

/// What a connection did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Captured {
    /// A commit, as a changeset; empty if nothing came of it in the end.
    Committed(Vec<u8>),
    /// A commit that changed the schema, as the payload of its entry.
    Schema(Vec<u8>),
    /// The database changed as no changeset tells.
    Lost(Lost),
}

/// The preupdate engine on one connection, until it is dropped.
pub struct Captor(Capture);

impl Captor {
    /// Attaches. `told` is called on the thread of the connection, inside its commits.
    ///
    /// # Errors
    /// Those of attaching; nothing stays behind on the connection.
    ///
    /// # Safety
    /// `db` is an open connection of the library that this crate is linked with, and is not freed
    /// before the value is dropped. Neither is used by two threads at once.
    pub unsafe fn attach(
        db: *mut rusqlite::ffi::sqlite3,
        told: impl Fn(Captured) + Send + Sync + 'static,
    ) -> Result<Captor, CaptureError> {
        let db: *mut sqlite3 = db;
        let options = CaptureOptions {
            // No snapshot is ever wanted.
            snapshot_dir: std::env::temp_dir(),
            snapshot_prefix: "synddb-suite-".into(),
            max_changeset_bytes: 64 << 20,
            keep_before_commit: false,
            engine: Engine::Preupdate,
        };
        // SAFETY: promised by the caller.
        unsafe { Capture::attach(db, Arc::new(Told(told)), options) }.map(Captor)
    }

    /// Looks for what no row event told of. Between two transactions.
    ///
    /// # Errors
    /// Those of reading the database; nothing is lost by them.
    pub fn flush(&mut self) -> Result<(), CaptureError> {
        self.0.flush(FlushMode::Step)
    }
}

impl fmt::Debug for Captor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Captor")
    }
}

struct Told<F>(F);

impl<F: Fn(Captured) + Send + Sync> CommitSink for Told<F> {
    fn committed(&self, commit: Commit) {
        self.0(match commit.changes.into_payload() {
            Ok((EntryKind::Schema, payload)) => Captured::Schema(payload),
            Ok((_, changeset)) => Captured::Committed(changeset),
            Err(reason) => Captured::Lost(reason),
        });
    }

    fn lost(&self, reason: Lost) {
        self.0(Captured::Lost(reason));
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn boundary(&self, _: Boundary) {}
}
