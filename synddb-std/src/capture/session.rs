//! The session engine: commits extracted from SQLite's session extension, one by one in the
//! write-ahead log hook where there is one.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ffi::{self, Checkpoint, Db, SqliteError, Stmt, WalIndexHeader};
use super::fingerprint::Fingerprint;
use super::idle::{HandOver, IdleBoundary};
use super::schema::WatchedTables;
use super::sequence::Sequences;
use super::sessions::{Rescue, Sessions, Tap, WalHookSlot};
use super::{CaptureError, CaptureOptions, Changes, Commit, CommitSink, Engine, FlushMode, Lost};
use crate::snapshot::{Advance, Boundary, ForegroundCopy, Reader, SnapshotError};

/// Extractions that may fail in a row before what they would have held counts as lost.
const PATIENCE: u32 = 8;

/// Capture by sessions. The hooks know it by the address of its parts, hence the box.
pub(super) struct SessionEngine(Box<Attached>);

struct Attached {
    db: Db,
    // Before the tap: the sessions in it know the tap by its address.
    work: RefCell<Work>,
    tap: Box<Tap>,
    hand_over: Arc<HandOver>,
    /// The sink panicked under a hook.
    panicked: Cell<bool>,
}

/// What only one call at a time may use: the hook, or a flush.
struct Work {
    db: Db,
    options: CaptureOptions,
    sessions: Sessions,
    statements: Statements,
    sequences: Option<Sequences>,
    known: Known,
    hand_over: Arc<HandOver>,
    journal: Journal,
    /// Extractions that failed since the last one that did not.
    failures: u32,
    /// A reader could not be opened; only a flush tries again.
    reader_failed: bool,
    /// A snapshot being copied on this thread.
    copy: Option<ForegroundCopy>,
}

/// How the database keeps its journal, as far as capture cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Journal {
    /// A write-ahead log whose index is in shared memory: others can read beside the app.
    SharedWal,
    /// A write-ahead log of this connection alone.
    ExclusiveWal,
    /// Any other.
    Rollback,
}

/// The state of the database after the last hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    schema_version: u32,
    user_version: i64,
    application_id: i64,
    /// Moves with commits of other connections.
    data_version: u32,
    /// Counts the commits of this one.
    own_commits: u32,
    total_changes: i64,
    header: Option<WalIndexHeader>,
}

/// Prepared once: most run at every commit.
struct Statements {
    schema_version: Stmt,
    user_version: Stmt,
    application_id: Stmt,
    data_version: Stmt,
    journal_mode: Stmt,
    locking_mode: Stmt,
    rescue: Rescue,
}

impl Statements {
    fn prepare(db: Db) -> Result<Statements, SqliteError> {
        Ok(Statements {
            schema_version: db.prepare(c"PRAGMA main.schema_version")?,
            user_version: db.prepare(c"PRAGMA main.user_version")?,
            application_id: db.prepare(c"PRAGMA main.application_id")?,
            data_version: db.prepare(c"PRAGMA main.data_version")?,
            journal_mode: db.prepare(c"PRAGMA main.journal_mode")?,
            locking_mode: db.prepare(c"PRAGMA main.locking_mode")?,
            rescue: Rescue::prepare(db)?,
        })
    }

    fn journal(&mut self) -> Result<Journal, SqliteError> {
        if self.journal_mode.query_text()? != "wal" {
            return Ok(Journal::Rollback);
        }
        // With exclusive locking the WAL-index may be private memory.
        let shared = self.locking_mode.query_text()? == "normal" && ffi::library_is_threadsafe();
        Ok(if shared { Journal::SharedWal } else { Journal::ExclusiveWal })
    }

    /// Runs `read` inside one read transaction, so that all it sees is of one moment, and
    /// passes it the schema version.
    fn in_one_read<T>(
        &mut self,
        read: impl FnOnce(&mut Statements, u32) -> Result<T, SqliteError>,
    ) -> Result<T, SqliteError> {
        self.rescue.keep_ready()?;
        // A statement that has given a row and is not reset keeps its transaction open.
        self.schema_version.step()?;
        let schema_version = self.schema_version.column_i64(0) as u32;
        let result = read(self, schema_version);
        self.schema_version.reset();
        self.rescue.close_savepoint();
        result
    }
}

/// What one look at the database found.
struct Findings {
    now: Known,
    changeset: Vec<u8>,
    lost: Option<Lost>,
    /// A commit without row events or any other trace.
    unexplained: bool,
    /// What the schema says after a change of it.
    reloaded: Option<(WatchedTables, Option<Sequences>)>,
}

impl SessionEngine {
    pub(super) fn attach(
        db: Db,
        sink: Arc<dyn CommitSink>,
        options: CaptureOptions,
    ) -> Result<SessionEngine, CaptureError> {
        if !db.autocommit() || db.writing() {
            return Err(CaptureError::TransactionOpen);
        }
        // The first read: a file that is no database fails here.
        db.query_i64(c"PRAGMA main.schema_version").map_err(doing("read the database"))?;
        if db.read_only() != Some(false) {
            return Err(CaptureError::ReadOnly);
        }
        let autocheckpoint = claim_wal_hook(db)?;
        if !ffi::session::take_preupdate_slot(db).is_null() {
            return Err(CaptureError::PreupdateHookInUse);
        }

        let prepare = doing("prepare capture");
        let watched = WatchedTables::load(db).map_err(&prepare)?;
        let tap = Box::new(Tap::new(db, WalHookSlot::new(on_wal_commit, autocheckpoint), watched));
        // SAFETY: the slot was just found empty; the tap is boxed and outlives the sessions.
        let sessions = unsafe { Sessions::new(db, &*tap) }.map_err(&prepare)?;
        let mut statements = Statements::prepare(db).map_err(&prepare)?;
        let journal = statements.journal().map_err(&prepare)?;
        let known = Known::read(&mut statements, db, journal).map_err(&prepare)?;
        let sequences = Sequences::load(db).map_err(&prepare)?;
        db.expire_statements().map_err(&prepare)?;

        let hand_over = HandOver::new(sink, db.location());
        hand_over.lock().header = known.header;
        let work = Work {
            db,
            options,
            sessions,
            statements,
            sequences,
            known,
            hand_over: Arc::clone(&hand_over),
            journal,
            failures: 0,
            reader_failed: false,
            copy: None,
        };
        if journal == Journal::Rollback {
            journal.warn(db);
        }
        let panicked = Cell::new(false);
        let attached = Attached { db, work: RefCell::new(work), tap, hand_over, panicked };
        let attached = Box::new(attached);
        // SAFETY: the box stays where it is until `drop` has removed the hook.
        unsafe {
            attached.tap.wal_hook.install(db, std::ptr::from_ref(&*attached).cast_mut().cast())
        };
        Ok(SessionEngine(attached))
    }
}

impl Engine for SessionEngine {
    fn flush(&mut self, mode: FlushMode) -> Result<(), CaptureError> {
        let _lock = self.0.db.lock();
        let tap = &*self.0.tap;
        tap.wal_hook.reinstall(self.0.db);
        if tap.wal_hook.displaced.take() {
            tracing::warn!(
                "a write-ahead log hook set on an attached connection was displaced: capture \
                 needs it, and checkpoints by wal_autocheckpoint"
            );
        }
        let mut work = self.0.work.try_borrow_mut().map_err(|_| CaptureError::TransactionOpen)?;
        work.ready()?;
        if self.0.panicked.take() {
            let _last = work.hand_over.lock();
            work.hand_over.sink.lost(Lost::Panicked);
        }
        work.look_at_journal().map_err(doing("read the journal mode"))?;
        work.settle(tap, true).map_err(doing("read what was committed"))?;
        work.boundary_in_flush(mode)
    }

    fn idle_boundary(&self) -> IdleBoundary {
        IdleBoundary { shared: Arc::clone(&self.0.hand_over) }
    }

    fn clean_mark(&mut self) -> Option<Fingerprint> {
        let _lock = self.0.db.lock();
        let tap = &*self.0.tap;
        let mut work = self.0.work.try_borrow_mut().ok()?;
        work.ready().ok()?;
        let handed_over = work.hand_over.lock().number;
        if work.look_at_journal().ok()? != Journal::Rollback {
            // Without waiting: a reader that is still there would make the next one wait.
            let (logged, copied) = work.db.checkpoint(Checkpoint::Passive).ok()?;
            if copied < logged {
                return None;
            }
            work.db.checkpoint(Checkpoint::Truncate).ok()?;
        }
        let mark = Fingerprint::settled(work.db)?;
        // What was written before the mark shows now, what comes after it changes the file.
        work.settle(tap, true).ok()?;
        let quiet = work.hand_over.lock().number == handed_over && !self.0.panicked.get();
        (quiet && work.failures == 0).then_some(mark)
    }
}

impl Drop for SessionEngine {
    fn drop(&mut self) {
        let Attached { db, tap, hand_over, .. } = &*self.0;
        let _lock = db.lock();
        if !db.autocommit() {
            tracing::warn!("capture ends inside an open transaction, which is not captured");
        } else if tap.recorded.get() > 0 {
            tracing::warn!("capture ends with commits that were not flushed");
        }
        hand_over.forget();
        tap.wal_hook.remove(*db);
        // Sessions, copies and statements go with the box, before the tap and the lock.
    }
}

/// Sees that no hook of the app's is in the slot, and returns the app's checkpoint setting.
fn claim_wal_hook(db: Db) -> Result<c_int, CaptureError> {
    let frames =
        db.query_i64(c"PRAGMA wal_autocheckpoint").map_err(doing("read the checkpoint setting"))?;
    // The pragma knows SQLite's own hook; 0 stands for none and for any other.
    // SAFETY: an empty slot needs no argument.
    if frames == 0 && !unsafe { db.set_wal_hook(None, std::ptr::null_mut()) }.is_null() {
        return Err(CaptureError::WalHookInUse);
    }
    Ok(c_int::try_from(frames).unwrap_or(0))
}

unsafe extern "C" fn on_wal_commit(
    attached: *mut c_void,
    _: *mut ffi::sqlite3,
    database: *const c_char,
    frames: c_int,
) -> c_int {
    // SAFETY: the box that `install` was given; it is freed after the hook is removed.
    let attached = unsafe { &*attached.cast_const().cast::<Attached>() };
    // SAFETY: SQLite passes a terminated name that lives during the call.
    let is_main = unsafe { attached.db.is_main(database) };
    if is_main && catch_unwind(AssertUnwindSafe(|| attached.committed())).is_err() {
        attached.panicked.set(true);
        attached.hand_over.forget();
    }
    let limit = attached.tap.wal_hook.autocheckpoint.get();
    if limit > 0 && frames >= limit {
        // SAFETY: the same name.
        unsafe { attached.db.checkpoint_passive(database) };
    }
    // Anything else would turn the app's commit, which has happened, into an error.
    0
}

impl Attached {
    /// The main database was committed to, in WAL mode.
    fn committed(&self) {
        // Borrowed: one of our own statements has ended, and SQLite tells of an older commit;
        // the settling that is under way covers it.
        let Ok(mut work) = self.work.try_borrow_mut() else { return };
        // The commit is an older one, and a statement of the app is writing the next.
        if work.ready().is_err() {
            return;
        }
        if work.journal == Journal::Rollback && work.look_at_journal().is_err() {
            return;
        }
        match work.settle(&self.tap, false) {
            Ok(()) => work.boundary_in_hook(),
            Err(error) => tracing::debug!(%error, "extraction put off"),
        }
    }
}

impl Work {
    /// Whether the connection is between two transactions.
    fn ready(&self) -> Result<(), CaptureError> {
        if !self.db.autocommit() || self.db.writing() {
            return Err(CaptureError::TransactionOpen);
        }
        Ok(())
    }

    /// Hands over what was committed since the last call, or that it is lost. An error leaves
    /// everything as it is, to be tried again.
    fn settle(&mut self, tap: &Tap, flush: bool) -> Result<(), SqliteError> {
        let findings = match self.look(tap, flush) {
            Ok(findings) => findings,
            Err(error) => {
                // While others lock the database the app cannot write more of it.
                self.failures += u32::from(!is_locked(&error));
                if self.failures < PATIENCE {
                    return Err(error);
                }
                Findings {
                    now: self.known,
                    changeset: Vec::new(),
                    lost: Some(Lost::ExtractFailed(error)),
                    unexplained: false,
                    reloaded: None,
                }
            }
        };
        self.failures = 0;
        let Findings { now, changeset, mut lost, unexplained, reloaded } = findings;
        if unexplained && !self.sessions.repair()? {
            lost = Some(Lost::HookReplaced);
        } else if tap.recorded.get() > 0 {
            self.sessions.renew()?;
        }
        if let Some((watched, sequences)) = reloaded {
            tap.watched.replace(watched);
            self.sequences = sequences;
        }
        let commits = now.own_commits.wrapping_sub(self.known.own_commits);
        self.known = now;
        tap.clear();

        let mut last = self.hand_over.lock();
        last.header = now.header;
        if lost.is_none() && changeset.is_empty() {
            return Ok(());
        }
        last.number += 1;
        match lost {
            Some(reason) => self.hand_over.sink.lost(reason),
            None => self.hand_over.sink.committed(Commit {
                changes: Changes::Changeset(changeset),
                commits: u64::from(commits.max(1)),
                schema_version: now.schema_version,
                wall_time_ms: wall_time_ms(),
            }),
        }
        Ok(())
    }

    /// Reads all there is to know about the commits since the last hand-over.
    fn look(&mut self, tap: &Tap, flush: bool) -> Result<Findings, SqliteError> {
        let Work { db, options, sessions, statements, sequences, known, journal, .. } = self;
        let shared_wal = *journal == Journal::SharedWal;
        let header_before = shared_wal.then(|| db.wal_index_header()).flatten();
        let (mut changeset, mut lost) = (Vec::new(), None);
        let mut now = *known;
        let quiet = tap.events.get() == 0;

        statements.in_one_read(|statements, schema_version| {
            now.schema_version = schema_version;
            now.user_version = statements.user_version.query_i64()?;
            if quiet || flush {
                now.application_id = statements.application_id.query_i64()?;
            }
            now.read_counters(statements, *db)?;
            if schema_version != known.schema_version || tap.schema_edited.get() {
                lost = Some(Lost::SchemaChanged { from: known.schema_version, to: schema_version });
                return Ok(());
            }
            if tap.recorded.get() > 0 {
                match sessions.changeset(options.max_changeset_bytes) {
                    Ok(bytes) => changeset = bytes,
                    Err(error) if may_pass(&error) => return Err(error),
                    Err(error) if error.primary() == ffi::SQLITE_TOOBIG => {
                        lost = Some(Lost::TooLarge { limit: options.max_changeset_bytes });
                    }
                    Err(error) => lost = Some(Lost::ExtractFailed(error)),
                }
            }
            let mut null_key = tap.null_key.borrow_mut();
            tap.watched.borrow_mut().probe_keys(&mut null_key)?;
            if let Some(table) = null_key.clone() {
                lost = Some(Lost::NullKey { table });
            }
            if let Some(sequences) = sequences {
                sequences.append_changes(&mut changeset)?;
            }
            Ok(())
        })?;

        let header_after = shared_wal.then(|| db.wal_index_header()).flatten();
        now.header = header_after.filter(|_| header_before == header_after);
        let header_changed =
            (now.user_version, now.application_id) != (known.user_version, known.application_id);
        if lost.is_none() && header_changed {
            lost = Some(Lost::HeaderChanged);
        }
        if lost.is_none() && known.foreign_write_before(&now, flush) {
            lost = Some(Lost::ForeignWrite);
        }
        // The log's hook speaks of commits that wrote; others may have been empty.
        let wrote = !flush || now.total_changes != known.total_changes;
        let committed = now.own_commits != known.own_commits;
        let unexplained = quiet && committed && wrote && lost.is_none() && changeset.is_empty();
        let reloaded = match lost {
            Some(Lost::SchemaChanged { .. }) => {
                Some((WatchedTables::load(*db)?, Sequences::load(*db)?))
            }
            _ => None,
        };
        Ok(Findings { now, changeset, lost, unexplained, reloaded })
    }

    /// Notices a changed journal mode, which decides how boundaries are taken.
    fn look_at_journal(&mut self) -> Result<Journal, SqliteError> {
        let journal = self.statements.journal()?;
        if journal != self.journal {
            if journal == Journal::Rollback {
                journal.warn(self.db);
            }
            self.journal = journal;
            self.copy = None;
            // The header was not read, or is of a log that is gone.
            self.hand_over.lock().header = None;
        }
        Ok(journal)
    }

    fn boundary_in_hook(&mut self) {
        if self.journal != Journal::SharedWal || self.reader_failed {
            return;
        }
        if let Err(error) = self.boundary_by_reader() {
            self.reader_failed = true;
            tracing::warn!(%error, "no second connection for a snapshot; the next flush tries again");
        }
    }

    fn boundary_in_flush(&mut self, mode: FlushMode) -> Result<(), CaptureError> {
        let Some(kind) = self.hand_over.sink.wants_snapshot() else {
            self.copy = None;
            return Ok(());
        };
        if self.journal == Journal::SharedWal {
            match self.boundary_by_reader() {
                Ok(()) => {
                    self.reader_failed = false;
                    return Ok(());
                }
                Err(error) => tracing::warn!(
                    %error,
                    "no second connection for a snapshot; copying on the application's thread"
                ),
            }
        }
        let copy = match self.copy.take() {
            Some(copy) => copy,
            None => {
                let Work { db, options, .. } = self;
                // SAFETY: the connection outlives the copy, which `drop` takes off it.
                unsafe {
                    ForegroundCopy::start(*db, &options.snapshot_dir, &options.snapshot_prefix)
                }
                .map_err(CaptureError::Snapshot)?
            }
        };
        match copy.advance(mode == FlushMode::Complete).map_err(CaptureError::Snapshot)? {
            Advance::Complete(copied) => {
                let boundary = Boundary::from_copy(kind, self.known.schema_version, copied);
                let _last = self.hand_over.lock();
                self.hand_over.sink.boundary(boundary);
            }
            Advance::Unfinished(copy) => self.copy = Some(copy),
        }
        Ok(())
    }

    fn boundary_by_reader(&mut self) -> Result<(), SnapshotError> {
        let HandOver { sink, location, .. } = &*self.hand_over;
        let (Some(kind), Some(location)) = (sink.wants_snapshot(), location) else {
            return Ok(());
        };
        let reader = Reader::open(location)?;
        // Ordered with the boundaries of other threads.
        let _last = self.hand_over.lock();
        sink.boundary(Boundary::from_reader(kind, reader));
        Ok(())
    }
}

impl Known {
    fn read(statements: &mut Statements, db: Db, journal: Journal) -> Result<Known, SqliteError> {
        let shared_wal = journal == Journal::SharedWal;
        let before = shared_wal.then(|| db.wal_index_header()).flatten();
        let mut known = statements.in_one_read(|statements, schema_version| {
            let mut known = Known {
                schema_version,
                user_version: statements.user_version.query_i64()?,
                application_id: statements.application_id.query_i64()?,
                data_version: 0,
                own_commits: 0,
                total_changes: 0,
                header: None,
            };
            known.read_counters(statements, db)?;
            Ok(known)
        })?;
        let after = shared_wal.then(|| db.wal_index_header()).flatten();
        known.header = after.filter(|_| before == after);
        Ok(known)
    }

    /// Inside a read transaction, where the counters are up to date.
    fn read_counters(&mut self, statements: &mut Statements, db: Db) -> Result<(), SqliteError> {
        self.data_version = statements.data_version.query_i64()? as u32;
        self.own_commits = db.change_count().wrapping_sub(self.data_version);
        self.total_changes = db.total_changes();
        Ok(())
    }

    /// Whether another connection has committed between this state and `now`.
    fn foreign_write_before(&self, now: &Known, flush: bool) -> bool {
        if self.data_version == now.data_version {
            return false;
        }
        // Another connection that restarts the log moves data_version too. The log's commit
        // counter tells: it grew by as much as this connection is certain to have added.
        let (Some(then), Some(header)) = (self.header, now.header) else { return true };
        let own = now.own_commits.wrapping_sub(self.own_commits);
        let counted = header.commit_counter().wrapping_sub(then.commit_counter());
        // Some commits of our own write nothing; the one a hook tells of did.
        let certain = own == 0 || (own == 1 && !flush);
        !(certain && counted == own)
    }
}

impl Journal {
    fn warn(self, db: Db) {
        let place = if db.location().is_some() { "not in WAL mode" } else { "in memory" };
        tracing::warn!(
            "the database is {place}: commits are captured when they are pushed, not one by one"
        );
    }
}

/// Whether extraction can succeed at another time, the recorder being unharmed.
fn may_pass(error: &SqliteError) -> bool {
    is_locked(error) || [ffi::SQLITE_INTERRUPT, ffi::SQLITE_AUTH].contains(&error.primary())
}

fn is_locked(error: &SqliteError) -> bool {
    [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED].contains(&error.primary())
}

fn doing(doing: &'static str) -> impl Fn(SqliteError) -> CaptureError {
    move |error| CaptureError::Sqlite { doing, error }
}

fn wall_time_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
