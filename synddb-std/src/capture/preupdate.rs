//! The preupdate engine: commits followed row by row, in every journal mode, by the preupdate hook
//! and a virtual table that joins each transaction.
//!
//! On the app's thread row values are copied, and nothing else is done for a commit but handing
//! them over. What is written in `follower.rs` runs inside SQLite's statements; here stands what
//! may run SQL of its own, between two transactions: the write-ahead log hook and the flush.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use super::boundaries::Boundaries;
use super::ddl::{Header, Look};
use super::ffi::join::{JoinTable, Participant};
use super::ffi::{self, Checkpoint, Db, SqliteError, rows};
use super::fingerprint::Fingerprint;
use super::follower::Follower;
use super::idle::{HandOver, IdleBoundary};
use super::known::{JournalMode, Known, Statements};
use super::position::Position;
use super::sessions::WalHookSlot;
use super::{
    CaptureError, CaptureOptions, Changes, Commit, CommitSink, FlushMode, Following, Lost,
    claim_wal_hook, doing, wall_time_ms,
};

/// Capture by the preupdate hook. The log's hook knows it by its address, hence the box.
pub(super) struct PreupdateEngine(Box<Attached>);

struct Attached {
    db: Db,
    work: RefCell<Work>,
    follower: Rc<Follower>,
    hand_over: Arc<HandOver>,
    panicked: Cell<bool>,
}

/// What only one call at a time may use: the log's hook, or a flush.
struct Work {
    db: Db,
    follower: Rc<Follower>,
    table: Rc<JoinTable>,
    statements: Statements,
    boundaries: Boundaries,
    hand_over: Arc<HandOver>,
}

impl PreupdateEngine {
    pub(super) fn attach(
        db: Db,
        sink: Arc<dyn CommitSink>,
        options: CaptureOptions,
    ) -> Result<PreupdateEngine, CaptureError> {
        if !db.autocommit() || db.writing() {
            return Err(CaptureError::TransactionOpen);
        }
        // The first read: a file that is no database fails here.
        db.query_i64(c"PRAGMA main.schema_version").map_err(doing("read the database"))?;
        if db.read_only() != Some(false) {
            return Err(CaptureError::ReadOnly);
        }
        let autocheckpoint = claim_wal_hook(db)?;
        if !rows::set_hook(db, None).is_null() {
            return Err(CaptureError::PreupdateHookInUse);
        }

        let prepare = doing("prepare capture");
        let hand_over = HandOver::new(sink, db.location());
        let mut statements = Statements::prepare(db).map_err(&prepare)?;
        let mode = statements.mode().map_err(&prepare)?;
        let known = Known::read(&mut statements, db, mode).map_err(&prepare)?;
        hand_over.begin(db, &known, mode);
        let wal_hook = WalHookSlot::new(on_wal_commit, autocheckpoint);
        let (limit, keep) = (options.max_changeset_bytes, options.keep_before_commit);
        let follower =
            Follower::new(db, wal_hook, Arc::clone(&hand_over), limit, known, mode, keep)
                .map_err(&prepare)?;
        let table = JoinTable::new(Rc::clone(&follower) as Rc<dyn Participant>);
        let work = Work {
            db,
            follower: Rc::clone(&follower),
            table,
            statements,
            boundaries: Boundaries::new(db, options, Arc::clone(&hand_over), mode),
            hand_over: Arc::clone(&hand_over),
        };
        let (work, panicked) = (RefCell::new(work), Cell::new(false));
        // From here on dropping it cleans up.
        let engine =
            PreupdateEngine(Box::new(Attached { db, work, follower, hand_over, panicked }));
        engine.install().map_err(&prepare)?;
        Ok(engine)
    }

    fn install(&self) -> Result<(), SqliteError> {
        let Attached { db, work, follower, .. } = &*self.0;
        let work = work.borrow();
        work.table.register(*db)?;
        follower.prepare(&work.table)?;
        let own = c"SELECT 1 FROM pragma_function_list WHERE name = 'changes' AND builtin = 0";
        if !db.prepare(own)?.exists()? {
            work.table.overload_changes(*db)?;
        }
        rows::set_client_data(*db, Rc::as_ptr(follower).cast_mut().cast())?;
        put_hook(*db);
        // A DELETE without WHERE compiled while there was no hook would keep its shortcut past it.
        db.expire_statements()?;
        // SAFETY: the box stays where it is until `drop` has removed the hook.
        unsafe {
            follower.wal_hook.install(*db, std::ptr::from_ref(&*self.0).cast_mut().cast());
        }
        Ok(())
    }
}

impl Following for PreupdateEngine {
    fn flush(&mut self, mode: FlushMode) -> Result<(), CaptureError> {
        let _lock = self.0.db.lock();
        let follower = &*self.0.follower;
        follower.wal_hook.reinstall(self.0.db);
        if follower.wal_hook.displaced.take() {
            tracing::warn!(
                "a write-ahead log hook set on an attached connection was displaced: capture \
                 needs it, and checkpoints by wal_autocheckpoint"
            );
        }
        let mut work = self.0.work.try_borrow_mut().map_err(|_| CaptureError::TransactionOpen)?;
        work.ready()?;
        if self.0.panicked.take() | follower.panicked.take() {
            follower.report(Lost::Panicked);
            self.0.hand_over.lock().panicked = false;
        }
        work.look_at_mode().map_err(doing("read the journal mode"))?;
        work.settle(true).map_err(doing("read what was committed"))?;
        let schema_version = follower.known.get().schema_version;
        work.boundaries.in_flush(mode, schema_version)
    }

    fn idle_boundary(&self) -> IdleBoundary {
        IdleBoundary { shared: Arc::clone(&self.0.hand_over) }
    }

    fn clean_mark(&mut self) -> Option<Fingerprint> {
        let _lock = self.0.db.lock();
        let mut work = self.0.work.try_borrow_mut().ok()?;
        work.ready().ok()?;
        let handed_over = work.hand_over.lock().number;
        if work.look_at_mode().ok()?.is_wal() {
            // Without waiting: a reader that is still there would make the next one wait.
            let (logged, copied) = work.db.checkpoint(Checkpoint::Passive).ok()?;
            if copied < logged {
                return None;
            }
            work.db.checkpoint(Checkpoint::Truncate).ok()?;
        }
        let mark = Fingerprint::settled(work.db)?;
        // What was written before the mark shows now, what comes after it changes the file.
        work.settle(true).ok()?;
        let panicked = self.0.panicked.get() || self.0.follower.panicked.get();
        (work.hand_over.lock().number == handed_over && !panicked).then_some(mark)
    }
}

impl Drop for PreupdateEngine {
    fn drop(&mut self) {
        let Attached { db, work, follower, hand_over, .. } = &*self.0;
        {
            let _lock = db.lock();
            if !db.autocommit() || follower.in_transaction() {
                tracing::warn!("capture ends inside an open transaction, which is not captured");
            }
            hand_over.forget();
            follower.wal_hook.remove(*db);
            if !follower.displaced.get() {
                rows::set_hook(*db, None);
            }
            if rows::set_client_data(*db, std::ptr::null_mut()).is_err() {
                tracing::error!("synddb could not take its mark off the connection");
            }
            JoinTable::restore_changes(*db);
            work.borrow().table.unregister(*db);
        }
        // A connection the app has closed already goes with the last statement, and then the lock
        // would be of nothing. The rest of them go with the box.
        follower.drop_statements();
    }
}

pub(super) fn put_hook(db: Db) {
    rows::set_hook(db, Some(on_row));
}

unsafe extern "C" fn on_row(
    _: *mut c_void,
    db: *mut ffi::sqlite3,
    op: c_int,
    database: *const c_char,
    table: *const c_char,
    old_rowid: i64,
    new_rowid: i64,
) {
    // SAFETY: SQLite passes its open connection and terminated names; the pointer is that of the
    // follower, taken away before it goes.
    unsafe {
        let follower = rows::client_data(db).cast_const().cast::<Follower>();
        let Some(follower) = follower.as_ref() else { return };
        let table = CStr::from_ptr(table);
        let event = || follower.row_event(op, database, table, (old_rowid, new_rowid));
        if catch_unwind(AssertUnwindSafe(event)).is_err() {
            follower.panicked();
        }
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
    let limit = attached.follower.wal_hook.autocheckpoint.get();
    if limit > 0 && frames >= limit {
        // SAFETY: the same name.
        unsafe { attached.db.checkpoint_passive(database) };
    }
    // Anything else would turn the app's commit, which has happened, into an error.
    0
}

impl Attached {
    /// The main database was committed to, in WAL mode: now, or before the statement that runs.
    fn committed(&self) {
        // Borrowed: one of our own statements has ended; what is under way covers the commit.
        let Ok(mut work) = self.work.try_borrow_mut() else { return };
        if work.ready().is_err() {
            return;
        }
        let mode = work.boundaries.mode;
        if !mode.is_wal() && work.look_at_mode().is_err() {
            return;
        }
        if !work.name_state()
            && let Err(error) = work.settle(false)
        {
            tracing::debug!(%error, "a look at the database put off");
            return;
        }
        work.boundaries.in_hook();
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

    fn look_at_mode(&mut self) -> Result<JournalMode, SqliteError> {
        let mode = self.boundaries.look_at_mode(&mut self.statements)?;
        self.follower.mode.set(mode);
        Ok(mode)
    }

    /// After a commit that was followed: notes the log's header, which names the state after it.
    /// False if there is more to look at.
    fn name_state(&self) -> bool {
        let follower = &*self.follower;
        let commits = follower.commits.get();
        if commits == 0 || !follower.is_sure() {
            return false;
        }
        let mut known = follower.known.get();
        // REPLACE gives more events than SQLite counts, which must not hide those that are missed
        // later: counting starts anew.
        known.total_changes = self.db.total_changes();
        follower.known.set(known);
        follower.events.set(0);
        follower.uncounted.set(false);
        if self.boundaries.mode != JournalMode::SharedWal {
            follower.commits.set(0);
            known.own_commits = known.own_commits.wrapping_add(commits);
            follower.known.set(known);
            return true;
        }
        let (Some(then), Some(now)) = (known.header, self.db.wal_index_header()) else {
            return false;
        };
        // The log counts commits: more than ours means that others were here in between.
        if now.commit_counter() != then.commit_counter().wrapping_add(commits) {
            return false;
        }
        follower.commits.set(0);
        known.own_commits = known.own_commits.wrapping_add(commits);
        known.header = Some(now);
        follower.known.set(known);
        self.hand_over.lock().header = known.header;
        self.hand_over.name(Position::in_log(self.db, now, known.application_id));
        true
    }

    /// Looks at everything that can have changed without row events, and reports it. An error
    /// leaves everything as it is, to be tried again.
    fn settle(&mut self, flush: bool) -> Result<(), SqliteError> {
        let Work { db, follower, table, statements, boundaries, hand_over } = self;
        let known = follower.known.get();
        let shared_wal = boundaries.mode == JournalMode::SharedWal;
        let header_before = shared_wal.then(|| db.wal_index_header()).flatten();
        let mut now = known;
        let mut position = None;
        let mut look = None;
        let sequence = statements.in_one_read(|statements, schema_version| {
            now.schema_version = schema_version;
            now.user_version = statements.user_version.query_i64()?;
            now.application_id = statements.application_id.query_i64()?;
            now.read_counters(statements, *db)?;
            let location = hand_over.location.as_ref();
            position = Position::in_file(*db, location, boundaries.mode, now.application_id);
            let same = schema_version == follower.schema_version();
            let own = now.own_commits.wrapping_sub(known.own_commits);
            // VACUUM of a database that is to be reset begins to count at 1 again; and without a journal
            // a statement that fails leaves behind what it had written.
            let untold = own != follower.commits.get() || boundaries.mode == JournalMode::Off;
            if same && untold && follower.is_redefined()? {
                follower.schema_edited.set(true);
            }
            if same && !follower.schema_edited.get() {
                return follower.sequence_changes();
            }
            let single = !flush && now.own_commits.wrapping_sub(known.own_commits) == 1;
            look = Some(follower.look_at_schema(schema_version, single)?);
            Ok(None)
        })?;
        let edited = follower.schema_edited.take();
        let (old, found) = match look {
            Some(Look { tables, sequences, found }) => {
                (follower.adopt(tables, sequences), Some(found))
            }
            None => (follower.tables(), None),
        };
        let moved = known.schema_version != now.schema_version;
        if moved || edited {
            // Where it is refused transactions are lost, not this look.
            if let Err(error) = follower.prepare(table) {
                tracing::warn!(%error, "transactions cannot be followed for the time being");
            }
        }
        let header_after = shared_wal.then(|| db.wal_index_header()).flatten();
        now.header = header_after.filter(|_| header_before == header_after);
        if let Some(header) = now.header {
            position = Position::in_log(*db, header, now.application_id);
        }

        let committed = now.own_commits != known.own_commits;
        // What was missed in a transaction that never committed is no loss.
        let mut lost = follower.missed.take().filter(|_| committed);
        let changed = Lost::SchemaChanged { from: known.schema_version, to: now.schema_version };
        if edited {
            lost = Some(changed.clone());
        }
        if lost.is_none() && known.foreign_write_before(&now, flush) {
            lost = Some(Lost::ForeignWrite);
        }
        // Without a statement that was not looked at before there is nothing to carry.
        let mut found = found.filter(|_| moved);
        if let Some(Err(reason)) = found.take_if(|found| found.is_err()) {
            lost = lost.or(Some(reason));
        }
        // Statements that change the schema run the log's hook; a backup into the connection does not.
        let by_backup = (flush && shared_wal) || known.rewritten_before(&now);
        if lost.is_none() && moved && (found.is_none() || by_backup) {
            lost = Some(changed);
        }
        let no_events = follower.events.get() == 0 && now.total_changes != known.total_changes;
        let uncounted = follower.uncounted.take();
        let silent = !uncounted && (no_events || follower.events_were_silent(now.total_changes, 0));
        if lost.is_none() && !moved && committed && silent && sequence.is_none() {
            lost = Some(Lost::HookReplaced);
        }
        // Whoever took our place keeps it: a session of the app would not survive losing it. To
        // follow again, capture is attached anew.
        follower.displaced.set(lost == Some(Lost::HookReplaced));
        follower.known.set(now);
        follower.versions_are_of(now.own_commits.wrapping_add(now.data_version));
        follower.events.set(0);
        follower.commits.set(0);
        follower.look.set(false);
        let (sequence, journal) = sequence.unzip();
        if let Some(rows) = sequence {
            follower.keep_sequence(rows);
        }
        let mut header = Header::between(known.user_version, now.user_version);
        if known.application_id != now.application_id {
            header.application_id = Some(now.application_id as i32);
        }
        let changes = if let Some(reason) = lost {
            follower.report(reason);
            None
        } else if found.is_some() || header != Header::default() {
            let found = found.and_then(Result::ok);
            let schema = follower.schema_journal(old, found, header, journal);
            Some(Changes::Schema(Box::new(schema)))
        } else {
            journal.map(Changes::Journal)
        };
        if let Some(changes) = changes {
            let mut last = hand_over.lock();
            last.number += 1;
            last.position = None;
            hand_over.sink.committed(Commit {
                changes,
                commits: 1,
                schema_version: now.schema_version,
                wall_time_ms: wall_time_ms(),
                position: None,
            });
        }
        hand_over.lock().header = now.header;
        hand_over.name(position);
        Ok(())
    }
}
