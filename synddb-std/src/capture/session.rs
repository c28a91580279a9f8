//! The session engine: commits extracted from SQLite's session extension, one by one in the
//! write-ahead log hook where there is one.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::boundaries::Boundaries;
use super::ffi::{self, Checkpoint, Db, SqliteError};
use super::fingerprint::Fingerprint;
use super::idle::{HandOver, IdleBoundary};
use super::known::{JournalMode, Known, Statements};
use super::position::Position;
use super::schema::WatchedTables;
use super::sequence::Sequences;
use super::sessions::{Sessions, Tap, WalHookSlot};
use super::{
    CaptureError, CaptureOptions, Changes, Commit, CommitSink, FlushMode, Following, Lost,
    claim_wal_hook, doing, wall_time_ms,
};

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
    max_changeset_bytes: usize,
    sessions: Sessions,
    statements: Statements,
    sequences: Option<Sequences>,
    known: Known,
    hand_over: Arc<HandOver>,
    boundaries: Boundaries,
    /// Extractions that failed since the last one that did not.
    failures: u32,
}

/// What one look at the database found.
struct Findings {
    now: Known,
    changeset: Vec<u8>,
    lost: Option<Lost>,
    /// A commit without row events or any other trace.
    unexplained: bool,
    /// Names the state that was looked at.
    position: Option<Position>,
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
        let mode = statements.mode().map_err(&prepare)?;
        let known = Known::read(&mut statements, db, mode).map_err(&prepare)?;
        let sequences = Sequences::load(db).map_err(&prepare)?;
        db.expire_statements().map_err(&prepare)?;

        let hand_over = HandOver::new(sink, db.location());
        hand_over.begin(db, &known, mode);
        let max_changeset_bytes = options.max_changeset_bytes;
        let work = Work {
            db,
            max_changeset_bytes,
            sessions,
            statements,
            sequences,
            known,
            hand_over: Arc::clone(&hand_over),
            boundaries: Boundaries::new(db, options, Arc::clone(&hand_over), mode),
            failures: 0,
        };
        if !mode.is_wal() {
            mode.warn(db);
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

impl Following for SessionEngine {
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
            let mut last = work.hand_over.lock();
            last.panicked = false;
            work.hand_over.sink.lost(Lost::Panicked);
        }
        work.look_at_journal().map_err(doing("read the journal mode"))?;
        work.settle(tap, true).map_err(doing("read what was committed"))?;
        let schema_version = work.known.schema_version;
        work.boundaries.in_flush(mode, schema_version)
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
        if work.look_at_journal().ok()?.is_wal() {
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
        if !work.boundaries.mode.is_wal() && work.look_at_journal().is_err() {
            return;
        }
        match work.settle(&self.tap, false) {
            Ok(()) => work.boundaries.in_hook(),
            Err(error) => tracing::debug!(%error, "extraction put off"),
        }
    }
}

impl Work {
    fn look_at_journal(&mut self) -> Result<JournalMode, SqliteError> {
        let before = self.boundaries.mode;
        let mode = self.boundaries.look_at_mode(&mut self.statements)?;
        if mode != before && !mode.is_wal() && before.is_wal() {
            mode.warn(self.db);
        }
        Ok(mode)
    }

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
                    position: None,
                    reloaded: None,
                }
            }
        };
        self.failures = 0;
        let Findings { now, changeset, mut lost, unexplained, position, reloaded } = findings;
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
            drop(last);
            self.hand_over.name(position);
            return Ok(());
        }
        last.number += 1;
        last.position = position.filter(|_| !last.panicked);
        match lost {
            // What names the state counts for the snapshot that will be taken of it.
            Some(reason) => self.hand_over.sink.lost(reason),
            None => self.hand_over.sink.committed(Commit {
                changes: Changes::Changeset(changeset),
                commits: u64::from(commits.max(1)),
                schema_version: now.schema_version,
                wall_time_ms: wall_time_ms(),
                position: last.position,
            }),
        }
        Ok(())
    }

    /// Reads all there is to know about the commits since the last hand-over.
    fn look(&mut self, tap: &Tap, flush: bool) -> Result<Findings, SqliteError> {
        let Work { db, sessions, statements, sequences, known, boundaries, hand_over, .. } = self;
        let limit = self.max_changeset_bytes;
        let shared_wal = boundaries.mode == JournalMode::SharedWal;
        let header_before = shared_wal.then(|| db.wal_index_header()).flatten();
        let (mut changeset, mut lost) = (Vec::new(), None);
        let mut position = None;
        let mut now = *known;
        let quiet = tap.events.get() == 0;

        statements.in_one_read(|statements, schema_version| {
            now.schema_version = schema_version;
            now.user_version = statements.user_version.query_i64()?;
            if quiet || flush {
                now.application_id = statements.application_id.query_i64()?;
            }
            now.read_counters(statements, *db)?;
            let location = hand_over.location.as_ref();
            position = Position::in_file(*db, location, boundaries.mode, now.application_id);
            if schema_version != known.schema_version || tap.schema_edited.get() {
                lost = Some(Lost::SchemaChanged { from: known.schema_version, to: schema_version });
                return Ok(());
            }
            if tap.recorded.get() > 0 {
                match sessions.changeset(limit) {
                    Ok(bytes) => changeset = bytes,
                    Err(error) if may_pass(&error) => return Err(error),
                    Err(error) if error.primary() == ffi::SQLITE_TOOBIG => {
                        lost = Some(Lost::TooLarge { limit });
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
        if let Some(header) = now.header {
            position = Position::in_log(*db, header, now.application_id);
        }
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
        Ok(Findings { now, changeset, lost, unexplained, position, reloaded })
    }
}

/// Whether extraction can succeed at another time, the recorder being unharmed.
fn may_pass(error: &SqliteError) -> bool {
    is_locked(error) || [ffi::SQLITE_INTERRUPT, ffi::SQLITE_AUTH].contains(&error.primary())
}

fn is_locked(error: &SqliteError) -> bool {
    [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED].contains(&error.primary())
}
