//! Capture: what the application commits, taken from its own connection.
//!
//! ```text
//! app thread   COMMIT ─▶ wal hook ─▶ settle ─▶ CommitSink::committed | lost
//!                                      └────▶ CommitSink::boundary, if a snapshot is wanted
//! app thread   Capture::flush ─▶ settle, the same
//! any thread   IdleBoundary::try_take ─▶ CommitSink::boundary
//! ```
//!
//! There are two engines, see [`CaptureEngine`]. What follows speaks of the session engine, the
//! default; where the preupdate engine differs stands at the end.
//!
//! The session engine is SQLite's session extension, extracted after every commit. In WAL mode that happens in the write-ahead log hook, before the app's statement
//! returns; in other journal modes and in memory there is no such moment, so commits gather
//! until [`Capture::flush`] and then go out as one.
//!
//! What the app sees stays as it was: results, `changes()`, `last_insert_rowid()`, error codes
//! and texts. What differs, by SQLite's design:
//! - The write-ahead log hook is taken; checkpoints are made here, by the app's setting of
//!   `wal_autocheckpoint`, which the pragma reports as 0 meanwhile. A hook of the app's makes
//!   [`Capture::attach`] fail; one set later is displaced at the next row event or flush.
//! - The preupdate hook is taken. Sessions of the app live beside ours if made after the attach.
//!   A preupdate hook set later stops at the next commit: SQLite leaves that mixture undefined.
//! - The app's authorizer, progress handler and trace see our statements.
//!
//! Not captured, for SQLite has nothing to capture them by: TEMP tables, attached databases,
//! planner statistics (`sqlite_stat1`), the content of `sqlite3_deserialize`, and commits of
//! other connections that share this one's cache.
//!
//! The preupdate engine hands over every commit in every journal mode, values written by blob I/O
//! included, and changes of the schema, of `user_version` and `application_id` without a snapshot
//! wherever the definitions before and after explain them (`ddl.rs`). VACUUM, which may renumber
//! rowids, takes a snapshot. In exchange:
//! - `sqlite3_changes()`, called while a statement that has written is still giving rows, says 0
//!   instead of the count of the statement before. The SQL function `changes()` is put right, unless
//!   there are triggers: in them 0 may be what it has to say.
//! - A session or preupdate hook that the app sets later ends capture until it is attached anew;
//!   [`Lost::HookReplaced`] says so at the next flush that finds changed rows, and at each one after.
//! - Savepoints rolled back around full text tables are losses; so is a statement that makes a full
//!   text module write before anything else of the transaction ('optimize', 'merge').
//! - Outside WAL mode, restoring a backup into the connection can look like a statement that changed
//!   the schema: call [`SyndDB::resync`](crate::SyndDB::resync) after it.
//! - The connection has a table `synddb_join`, which no schema may refer to.

mod boundaries;
mod ddl;
mod ffi;
mod fingerprint;
mod follower;
mod idle;
mod journal;
mod known;
mod position;
mod preupdate;
mod sabotage;
mod schema;
mod sequence;
mod session;
mod sessions;
mod tables;
mod twice;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::c_int;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use synddb_core::wire::EntryKind;

use crate::snapshot::{Boundary, SnapshotError};

pub(crate) use ddl::SchemaJournal;
pub(crate) use ffi::sqlite3;
pub(crate) use fingerprint::{Fingerprint, current_fingerprint};
pub(crate) use idle::IdleBoundary;
pub(crate) use journal::Journal;
pub(crate) use position::{Distance, Position, Present};

pub use ffi::SqliteError;
#[cfg(test)]
pub(crate) use sabotage::{Sabotage, sabotage};
pub(crate) use tables::scan;
/// For snapshots, which talk to the same library.
pub(crate) mod library {
    pub(crate) use super::ffi::{
        Access, Backup, Db, Location, OwnedDb, SQLITE_BUSY, SQLITE_FULL, SQLITE_LOCKED,
        SerializedDb, SqliteError, WalIndexHeader, sqlite_path,
    };
}

/// Receives what an engine captures.
///
/// The calls come from the thread that uses the connection, inside its commit, except that
/// [`IdleBoundary::try_take`] makes [`CommitSink::boundary`] come from its caller's thread. They
/// come one at a time in the order of the commits, must not block, and must not call back into
/// the capture or the connection.
pub(crate) trait CommitSink: Send + Sync {
    /// The next commit, or several as one.
    fn committed(&self, commit: Commit);

    /// The database changed in a way that no changeset carries. Changesets go on afterwards, but
    /// build on a state the receiver does not have: only a snapshot mends that.
    fn lost(&self, reason: Lost);

    /// Asked at every boundary, so it should cost no more than an atomic read.
    fn wants_snapshot(&self) -> bool;

    /// A state of the database exactly between two commits: all before it were handed over (or
    /// lost), all after it come after this call. Not called unless a snapshot is wanted.
    fn boundary(&self, boundary: Boundary);

    /// A transaction is about to commit: keeps what it changes, durably. False where that was not
    /// done. What is kept replaces what was kept last, if that was not committed meanwhile. Called
    /// only where [`CaptureOptions::keep_before_commit`] asks for it.
    fn prepare(&self, _: Prepared<'_>) -> bool {
        false
    }

    /// What was kept last will not be committed, or not alone: forgets it, durably.
    fn withdraw(&self) {}

    /// The state after the last hand-over has this name.
    fn named(&self, _: Position) {}
}

/// A transaction that is about to commit.
pub(crate) struct Prepared<'p> {
    /// Its net effect.
    pub(crate) changeset: &'p [u8],
    /// The state of the database before it.
    pub(crate) position: Position,
    /// As [`Commit::schema_version`].
    pub(crate) schema_version: u32,
    /// As [`Commit::wall_time_ms`].
    pub(crate) wall_time_ms: u64,
}

/// One commit, or the net effect of several.
#[derive(Debug)]
pub(crate) struct Commit {
    /// What it changed. To be turned into a changeset off the app's thread.
    pub(crate) changes: Changes,
    /// How many write transactions it covers. In WAL mode 1, unless an earlier extraction had
    /// to be put off.
    pub(crate) commits: u64,
    /// `PRAGMA schema_version` of the schema the rows are in.
    pub(crate) schema_version: u32,
    /// Wall time of the extraction, in milliseconds since 1970. Advisory.
    pub(crate) wall_time_ms: u64,
    /// The state of the database after exactly this commit, where it can be named.
    pub(crate) position: Option<Position>,
}

/// What a commit changed, in the form in which its engine found it.
#[derive(Debug)]
pub(crate) enum Changes {
    /// A changeset that SQLite wrote, never empty.
    Changeset(Vec<u8>),
    /// Row events in their order, whose net effect may turn out to be nothing.
    Journal(Journal),
    /// The net effect of such, as it was kept before the commit.
    Kept(Vec<u8>),
    /// A change of the schema, with the rows that changed.
    Schema(Box<SchemaJournal>),
}

impl Changes {
    /// Bytes held, for whoever bounds a queue.
    pub(crate) fn len(&self) -> usize {
        match self {
            Changes::Changeset(changeset) | Changes::Kept(changeset) => changeset.len(),
            Changes::Journal(journal) => journal.len(),
            Changes::Schema(schema) => schema.len(),
        }
    }

    /// The net effect as an entry's payload: a changeset in SQLite's format, empty if there is
    /// none, or a change of the schema. Takes time in proportion to the changes: not for the app's
    /// thread.
    ///
    /// # Errors
    /// [`Lost::TooLarge`] past the limit of the capture, [`Lost::KeyRewritten`]. Treat it as
    /// [`CommitSink::lost`] in the place of this commit.
    pub(crate) fn into_payload(self) -> Result<(EntryKind, Vec<u8>), Lost> {
        let changeset = match self {
            Changes::Changeset(changeset) => match twice::table_told_twice(&changeset) {
                None => Ok(changeset),
                Some(table) => Err(Lost::KeyRewritten { table }),
            },
            Changes::Journal(journal) => journal.to_changeset(),
            Changes::Kept(changeset) => Ok(changeset),
            Changes::Schema(schema) => match schema.to_payload()? {
                Some(payload) => return Ok((EntryKind::Schema, payload)),
                None => Ok(Vec::new()),
            },
        };
        Ok((EntryKind::Changeset, changeset?))
    }
}

/// Why changesets alone no longer lead to the app's database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// `PRAGMA schema_version` moved: DDL, VACUUM, a backup into this connection; or the schema
    /// table was edited by hand. Rows of the same transaction are part of the loss.
    SchemaChanged {
        /// The version changesets were in so far.
        from: u32,
        /// The version now.
        to: u32,
    },
    /// `PRAGMA user_version` or `application_id` changed; a changeset has no room for them. The
    /// latter, set together with rows, is noticed by the next flush.
    HeaderChanged,
    /// Another connection committed (`PRAGMA data_version` moved), or this one changed the journal
    /// mode, which looks the same.
    ForeignWrite,
    /// A commit came without row events: the preupdate hook had been replaced, or the main
    /// database renamed. Capture has put itself in place again.
    HookReplaced,
    /// A row with NULL in its declared primary key was written; sessions skip such rows.
    NullKey {
        /// The table.
        table: String,
    },
    /// A key was changed to one that is equal to it, such as `'a'` to `'A'` under `NOCASE`; the
    /// session extension tells such a row twice.
    KeyRewritten {
        /// The table.
        table: String,
    },
    /// The changeset of one commit is larger than the limit.
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// SQLite could not produce the changeset.
    ExtractFailed(SqliteError),
    /// The code that takes captured commits panicked.
    Panicked,
    /// A transaction could not be followed: SQLite refused the statement by which capture becomes
    /// part of it, say because of an interrupt or the app's authorizer.
    NotFollowed(SqliteError),
    /// A commit to several database files failed halfway.
    InDoubt,
    /// `sqlite3_close` was called in the middle of a transaction, and refused.
    CloseRefused,
    /// A rollback in `journal_mode = off`, which leaves rows behind.
    NotRolledBack,
    /// A value was written by incremental blob I/O, and the row's rowid changed in the same
    /// transaction.
    BlobWritten {
        /// The table.
        table: String,
    },
    /// A table has no key, and columns by all three names of the rowid.
    Unaddressable {
        /// The table.
        table: String,
    },
    /// A virtual table wrote to its own tables at a moment that cannot be told apart from a
    /// savepoint's beginning, and the savepoint was rolled back; or so only.
    ShadowTable {
        /// The table it wrote to, where there is one.
        table: String,
    },
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::SchemaChanged { from, to } => {
                write!(f, "the schema changed (schema_version {from} to {to})")
            }
            Lost::HeaderChanged => f.write_str("user_version or application_id changed"),
            Lost::ForeignWrite => f.write_str(
                "another connection wrote to the database, of which only writes of the attached \
                 connection are captured; or its journal mode was changed",
            ),
            Lost::HookReplaced => f.write_str(
                "commits came without row events: the connection's preupdate hook was replaced \
                 or its main database renamed",
            ),
            Lost::NullKey { table } => {
                write!(f, "a row of table {table:?} has NULL in its primary key")
            }
            Lost::KeyRewritten { table } => {
                write!(f, "a key of table {table:?} was changed to one that is equal to it")
            }
            Lost::TooLarge { limit } => {
                write!(f, "the changes of one commit exceed {limit} bytes")
            }
            Lost::ExtractFailed(error) => write!(f, "SQLite gave no changeset: {error}"),
            Lost::Panicked => f.write_str("the receiver of captured commits panicked"),
            Lost::NotFollowed(error) => write!(f, "a transaction could not be followed: {error}"),
            Lost::InDoubt => f.write_str("a commit to several database files failed halfway"),
            Lost::CloseRefused => f.write_str("closing was refused in the middle of a transaction"),
            Lost::NotRolledBack => {
                f.write_str("a rollback without a rollback journal, which leaves rows behind")
            }
            Lost::BlobWritten { table } => {
                write!(
                    f,
                    "a value of table {table:?} was written by incremental blob I/O, and rowids of \
                     the table were changed"
                )
            }
            Lost::Unaddressable { table } => {
                write!(f, "table {table:?} has no key, and columns named as the rowid is")
            }
            Lost::ShadowTable { table } => {
                write!(f, "a virtual table wrote to {table:?} when it could not be followed")
            }
        }
    }
}

/// Why capture could not do what was asked. Nothing is lost by any of these.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureError {
    /// A transaction is open on the connection; commit or roll it back first. Also inside a
    /// callback of one of capture's own statements.
    TransactionOpen,
    /// The connection can only read the database.
    ReadOnly,
    /// The connection is attached already.
    AlreadyAttached,
    /// The connection has a write-ahead log hook of its own. Finding out has removed it, for
    /// SQLite offers no other way; set it again if capture is not to be used.
    WalHookInUse,
    /// The connection has a preupdate hook or a session of its own. Finding out has removed it,
    /// for SQLite offers no other way. Make sessions after attaching; they live beside capture.
    PreupdateHookInUse,
    /// SQLite refused a statement.
    Sqlite {
        /// What capture was about to do.
        doing: &'static str,
        /// SQLite's answer.
        error: SqliteError,
    },
    /// A snapshot was wanted and could not be taken on this thread.
    Snapshot(SnapshotError),
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CaptureError::TransactionOpen => {
                f.write_str("a transaction is open on the connection; commit or roll it back first")
            }
            CaptureError::ReadOnly => f.write_str("the connection can only read the database"),
            CaptureError::AlreadyAttached => f.write_str("the connection is attached already"),
            CaptureError::WalHookInUse => f.write_str(
                "the connection had a write-ahead log hook of its own, which looking for it has \
                 removed; attach before setting one up, and leave checkpoints to capture",
            ),
            CaptureError::PreupdateHookInUse => f.write_str(
                "the connection had a preupdate hook or a session of its own, which looking for \
                 it has removed; create sessions after attaching",
            ),
            CaptureError::Sqlite { doing, error } => write!(f, "could not {doing}: {error}"),
            CaptureError::Snapshot(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CaptureError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CaptureError::Sqlite { error, .. } => Some(error),
            CaptureError::Snapshot(error) => Some(error),
            _ => None,
        }
    }
}

/// Limits and places of one capture.
#[derive(Debug, Clone)]
pub(crate) struct CaptureOptions {
    /// Where copies taken on the app's thread go, if the database is a file.
    pub(crate) snapshot_dir: PathBuf,
    /// How their names begin; see [`crate::snapshot::remove_leftovers`].
    pub(crate) snapshot_prefix: String,
    /// The largest changeset of one commit, in bytes; beyond it the commit is
    /// [`Lost::TooLarge`].
    pub(crate) max_changeset_bytes: usize,
    /// How commits are followed.
    pub(crate) engine: CaptureEngine,
    /// Whether commits are kept before they happen. By the preupdate engine only.
    pub(crate) keep_before_commit: bool,
}

/// How capture follows what the application commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CaptureEngine {
    /// By SQLite's session extension, extracted after every commit.
    #[default]
    Session,
    /// By SQLite's preupdate hook and a virtual table of ours that joins each transaction: commit
    /// by commit in every journal mode, at a fraction of the cost. Young; see the module's docs
    /// for what the connection shows of it.
    Preupdate,
}

/// How much of a snapshot [`Capture::flush`] may take on the calling thread. Where a second
/// connection can read beside the app (WAL mode), it takes next to nothing either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlushMode {
    /// Copy for about two milliseconds and go on at the next call.
    Step,
    /// Copy to the end.
    Complete,
}

/// Follows the commits of one connection until it is dropped. The methods are those of
/// [`Capture`].
trait Engine {
    fn flush(&mut self, mode: FlushMode) -> Result<(), CaptureError>;
    fn idle_boundary(&self) -> IdleBoundary;
    fn clean_mark(&mut self) -> Option<Fingerprint>;
}

/// Capture of one connection, from [`Capture::attach`] to [`Capture::detach`] or drop.
///
/// It must go before the connection does: while it lives, its prepared statements make
/// `sqlite3_close` answer `SQLITE_BUSY`. A connection that rusqlite could not close for that
/// reason stays open and leaks, but is never touched after it is gone.
pub(crate) struct Capture {
    db: ffi::Db,
    engine: Box<dyn Engine>,
    _registered: Registered,
}

impl Capture {
    /// Starts capturing what `db` commits from now on.
    ///
    /// What the database holds already is not captured: take a snapshot.
    ///
    /// # Errors
    /// [`CaptureError::TransactionOpen`], [`CaptureError::ReadOnly`],
    /// [`CaptureError::AlreadyAttached`], [`CaptureError::WalHookInUse`],
    /// [`CaptureError::PreupdateHookInUse`], or SQLite's own, for example of a file that is no
    /// database. Nothing stays behind on the connection.
    ///
    /// # Safety
    /// `db` is an open connection and is not freed before the returned value is dropped (as
    /// long as capture lives `sqlite3_close` fails, so only `sqlite3_close_v2` could). Calls on
    /// the connection and on the returned value are never made at the same time from different
    /// threads, unless the connection is in serialized mode.
    pub(crate) unsafe fn attach(
        db: *mut sqlite3,
        sink: Arc<dyn CommitSink>,
        options: CaptureOptions,
    ) -> Result<Capture, CaptureError> {
        // SAFETY: promised by the caller.
        let db = unsafe { ffi::Db::from_raw(db) }.ok_or_else(|| CaptureError::Sqlite {
            doing: "attach to a null pointer",
            error: SqliteError::from_code(ffi::SQLITE_MISUSE),
        })?;
        let registered = Registered::claim(db)?;
        let engine: Box<dyn Engine> = match options.engine {
            CaptureEngine::Session => Box::new(session::SessionEngine::attach(db, sink, options)?),
            CaptureEngine::Preupdate => {
                Box::new(preupdate::PreupdateEngine::attach(db, sink, options)?)
            }
        };
        Ok(Capture { db, engine, _registered: registered })
    }

    /// Hands over what was committed and not handed over yet, checks that nothing else changed
    /// the database and that the hooks are in place, and takes a boundary if one is wanted.
    ///
    /// Outside WAL mode this is where commits are captured. Call it when the app asks that
    /// everything be sent, after each transaction run on its behalf, and before detaching.
    ///
    /// # Errors
    /// [`CaptureError::TransactionOpen`] inside a transaction, where nothing of this is legal.
    /// [`CaptureError::Sqlite`] if reading failed; what was committed is still held, call again.
    /// [`CaptureError::Snapshot`] if the copy on this thread failed; commits were handed over.
    pub(crate) fn flush(&mut self, mode: FlushMode) -> Result<(), CaptureError> {
        // SQLite takes the end of our reads for that of a transaction, and switches it off.
        let deferred = self.db.query_i64(c"PRAGMA defer_foreign_keys").unwrap_or(0) != 0;
        let flushed = self.engine.flush(mode);
        if deferred && let Err(error) = self.db.exec(c"PRAGMA defer_foreign_keys = on") {
            tracing::warn!(%error, "defer_foreign_keys is off from now on");
        }
        flushed
    }

    /// A handle by which another thread takes boundaries while the app does not commit.
    pub(crate) fn idle_boundary(&self) -> IdleBoundary {
        self.engine.idle_boundary()
    }

    /// After a flush at shutdown: makes the database file complete in itself (in WAL mode by
    /// emptying the log) and describes it, so that the next start can tell whether anybody
    /// wrote to it in between. Detach next.
    ///
    /// None where that cannot be told: in memory, with a transaction open, if something was
    /// lost or committed meanwhile, or if another reader keeps the log from being emptied. May
    /// take some 25 ms, and as long as the connection's busy handler waits for a reader.
    pub(crate) fn clean_mark(&mut self) -> Option<Fingerprint> {
        self.engine.clean_mark()
    }

    /// Takes capture off the connection: no hook, session, statement or second connection is
    /// left, the app's checkpointing is as before. The same as dropping it. What was not
    /// flushed is not handed over.
    pub(crate) fn detach(self) {
        drop(self);
    }
}

// SAFETY: what it points to belongs to the connection, which `attach`'s caller keeps on the same
// thread or moves together with it; nothing in it is bound to the thread that made it.
unsafe impl Send for Capture {}

/// The file of a connection's main database; `None` in memory.
///
/// # Safety
/// As for [`Capture::attach`], for the time of the call.
pub(crate) unsafe fn database_path(db: *mut sqlite3) -> Option<PathBuf> {
    // SAFETY: promised by the caller.
    let db = unsafe { ffi::Db::from_raw(db) }?;
    db.location().map(|location| location.database)
}

/// The connections of this process that are attached, by address.
static ATTACHED: Mutex<Option<HashSet<usize>>> = Mutex::new(None);

struct Registered(usize);

impl Registered {
    fn claim(db: ffi::Db) -> Result<Registered, CaptureError> {
        let address = db.raw().addr();
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        if attached.get_or_insert_default().insert(address) {
            Ok(Registered(address))
        } else {
            Err(CaptureError::AlreadyAttached)
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = attached.as_mut() {
            attached.remove(&self.0);
        }
    }
}

/// Sees that no hook of the app's is in the slot, and returns the app's checkpoint setting.
fn claim_wal_hook(db: ffi::Db) -> Result<c_int, CaptureError> {
    let frames =
        db.query_i64(c"PRAGMA wal_autocheckpoint").map_err(doing("read the checkpoint setting"))?;
    // The pragma knows SQLite's own hook; 0 stands for none and for any other.
    // SAFETY: an empty slot needs no argument.
    if frames == 0 && !unsafe { db.set_wal_hook(None, std::ptr::null_mut()) }.is_null() {
        return Err(CaptureError::WalHookInUse);
    }
    Ok(c_int::try_from(frames).unwrap_or(0))
}

fn doing(doing: &'static str) -> impl Fn(SqliteError) -> CaptureError {
    move |error| CaptureError::Sqlite { doing, error }
}

fn wall_time_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
