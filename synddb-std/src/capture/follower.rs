//! Follows one transaction after the other on the app's thread: row events in, marks of savepoints,
//! and at the commit a journal out.
//!
//! ```text
//! preupdate hook ─▶ row_event ─▶ journal        first event: versions, then the join
//! join table     ─▶ savepoint, release, rollback_to ─▶ marks into the journal
//!                ─▶ sync ─▶ versions, sqlite_sequence
//!                ─▶ commit ─▶ CommitSink::committed | lost
//!                ─▶ rollback ─▶ nothing, or in doubt
//! ```
//!
//! Whatever goes wrong here must cost the app nothing and us no more than one resync. So a
//! transaction that could not be followed to its last event is lost as a whole: `missed` says why
//! where it is not even known how it ends, `Transaction::lost` where it is.

mod prepare;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int};
use std::rc::Rc;
use std::sync::Arc;

use super::ddl::{self, Found, Header, Look, SchemaJournal};
use super::ffi::join::{Join, JoinTable, Participant};
use super::ffi::rows::{self, Refusal, RowEvent};
use super::ffi::{self, Db, SqliteError, Stmt};
use super::idle::HandOver;
use super::journal::{self, Journal, Op, Pool};
use super::known::{JournalMode, Known};
use super::sabotage::{Sabotage, sabotaged};
use super::schema::is_internal_table;
use super::sequence::{self, Rows, Sequences};
use super::sessions::WalHookSlot;
use super::tables::{self, Shadow, Table, Tables};
use super::{Changes, Commit, Lost, wall_time_ms};
use prepare::Preparation;

/// Follows the transactions of one connection. SQLite calls it back while it is being called, hence
/// cells; a borrow is never held while something runs on the connection.
pub(super) struct Follower {
    db: Db,
    pub(super) wal_hook: WalHookSlot,
    hand_over: Arc<HandOver>,
    pool: Arc<Pool>,
    limit: usize,
    /// None after the end of capture.
    statements: RefCell<Option<Statements>>,
    sequences: RefCell<Option<Sequences>>,
    tables: RefCell<Arc<Tables>>,
    pub(super) known: Cell<Known>,
    pub(super) mode: Cell<JournalMode>,
    transaction: RefCell<Transaction>,
    /// The join table is part of the transaction.
    joined: Cell<bool>,
    /// A statement of ours is running.
    running: Cell<bool>,
    /// Row events were not followed, in a transaction whose end nothing tells.
    pub(super) missed: RefCell<Option<Lost>>,
    /// Row events of any database since the last look.
    pub(super) events: Cell<u64>,
    /// Not every row that was counted since the last look came with an event: the next look judges
    /// nothing by the counts.
    pub(super) uncounted: Cell<bool>,
    /// Commits handed over or lost since the write-ahead log hook looked last.
    pub(super) commits: Cell<u32>,
    /// Something was lost, or ended in a way that only the database itself can explain.
    pub(super) look: Cell<bool>,
    /// Another hook or session is in our place.
    pub(super) displaced: Cell<bool>,
    /// The schema table was written to by hand.
    pub(super) schema_edited: Cell<bool>,
    before_join: Cell<Option<BeforeJoin>>,
    /// The count of content changes under which the versions were read last: with it unchanged nobody
    /// has committed since, and they still hold at the beginning of a transaction.
    versions_as_of: Cell<Option<u32>>,
    pub(super) panicked: Cell<bool>,
    preparation: Preparation,
}

/// What SQLite counted before the join, which is a statement too and sets `changes()` to 0.
#[derive(Clone, Copy)]
struct BeforeJoin {
    changes: i64,
    total_changes: i64,
    /// Row events of triggers and foreign key actions since.
    nested_events: i64,
}

/// The statements that run in the hook and before a commit.
struct Statements {
    schema_version: Stmt,
    user_version: Stmt,
    data_version: Stmt,
    join: Join,
    /// The schema version the join was prepared under. Under another it must not run.
    join_schema: u32,
    table: Rc<JoinTable>,
}

impl Statements {
    fn prepare(db: Db, table: Rc<JoinTable>, join_schema: u32) -> Result<Statements, SqliteError> {
        Ok(Statements {
            schema_version: db.prepare(c"PRAGMA main.schema_version")?,
            user_version: db.prepare(c"PRAGMA main.user_version")?,
            data_version: db.prepare(c"PRAGMA main.data_version")?,
            join: Join::prepare(db, &table)?,
            join_schema,
            table,
        })
    }

    /// As [`Join::step`].
    fn join(&mut self) -> Result<bool, SqliteError> {
        self.join.step(&self.table)
    }

    /// The versions of schema and data as they are now, the join being prepared under the former.
    fn fresh(&mut self, db: Db) -> Result<(u32, u32), SqliteError> {
        let schema_version = self.schema_version.query_i64()? as u32;
        let data_version = self.data_version.query_i64()? as u32;
        let stale = self.join.expired() || self.join_schema != schema_version;
        if stale && !sabotaged(Sabotage::StaleJoin) {
            self.join = Join::prepare(db, &self.table)?;
            self.join_schema = schema_version;
        }
        Ok((schema_version, data_version))
    }
}

/// The open transaction, from the join on.
#[derive(Default)]
struct Transaction {
    journal: Vec<u8>,
    /// Row events so far, those that were not written down included.
    events: u64,
    marks: Vec<Mark>,
    lost: Option<Loss>,
    /// Where the values of the old row begin.
    offsets: Vec<usize>,
    /// The table of the last event: most often the next one's too.
    last_table: usize,
    /// A savepoint has opened, and no event since can but belong to the time before it.
    savepoint_opening: bool,
    data_version: u32,
    /// The versions before the commit.
    schema_version: u32,
    user_version: i64,
    sequence_touched: bool,
    sequence: Option<Rows>,
    /// A virtual table wrote to a table of its own.
    shadow_touched: bool,
    /// Row events that did not fit the schema as it was known, and so are not in the journal.
    skipped: Vec<Skipped>,
    /// Values written by incremental blob I/O: the rows are read before the commit.
    blobs: Vec<BlobWrite>,
    /// The change of the schema that commits with the transaction.
    schema: Option<Box<PendingSchema>>,
    /// The count of content changes when it was about to commit.
    synced: Option<u32>,
}

#[derive(Clone, Copy)]
struct Mark {
    level: c_int,
    len: usize,
    events: u64,
    /// Events of virtual tables' own tables came while it opened, which may belong before it.
    blurred: bool,
}

/// A table whose row events were skipped.
struct Skipped {
    /// None for any that is not known.
    table: Option<usize>,
    /// Undone by a rollback to a mark with no more events than this.
    events: u64,
}

#[derive(Clone, Copy)]
struct BlobWrite {
    table: usize,
    rowid: i64,
    /// Where its event stands in the journal.
    at: usize,
}

/// The schema as of the commit, adopted once it has happened.
struct PendingSchema {
    tables: Arc<Tables>,
    sequences: Option<Sequences>,
    found: Found,
    /// Row events when it was looked at.
    events: u64,
}

struct Loss {
    reason: Lost,
    /// Undone by a rollback to a mark with no more events than this; None for nothing but the end.
    events: Option<u64>,
}

impl Transaction {
    /// Ready for the next, memory kept.
    fn clear(&mut self) {
        self.journal.clear();
        self.events = 0;
        self.marks.clear();
        self.lost = None;
        self.savepoint_opening = false;
        self.sequence_touched = false;
        self.sequence = None;
        self.shadow_touched = false;
        self.skipped.clear();
        self.blobs.clear();
        self.schema = None;
        self.synced = None;
    }

    fn skip(&mut self, table: Option<usize>) {
        if self.skipped.iter().all(|known| known.table != table) {
            self.skipped.push(Skipped { table, events: self.events });
        }
    }

    fn lose(&mut self, reason: Lost) {
        self.journal.clear();
        // What cannot be undone weighs more than what can.
        if self.lost.as_ref().is_none_or(|lost| lost.events.is_some()) {
            self.lost = Some(Loss { reason, events: None });
        }
    }

    /// Loses the event that is being told of, and those after it.
    fn lose_event(&mut self, reason: Lost) {
        if self.lost.is_none() {
            self.lost = Some(Loss { reason, events: Some(self.events) });
        }
    }
}

impl Follower {
    pub(super) fn new(
        db: Db,
        wal_hook: WalHookSlot,
        hand_over: Arc<HandOver>,
        limit: usize,
        known: Known,
        mode: JournalMode,
        keep_before_commit: bool,
    ) -> Result<Rc<Follower>, SqliteError> {
        let tables = Tables::load(db, known.schema_version)?;
        let sequences = Sequences::load(db)?;
        Ok(Rc::new(Follower {
            db,
            wal_hook,
            hand_over,
            pool: Arc::default(),
            limit,
            statements: RefCell::new(None),
            sequences: RefCell::new(sequences),
            tables: RefCell::new(Arc::new(tables)),
            known: Cell::new(known),
            mode: Cell::new(mode),
            transaction: RefCell::default(),
            joined: Cell::new(false),
            running: Cell::new(false),
            missed: RefCell::new(None),
            events: Cell::new(0),
            uncounted: Cell::new(false),
            commits: Cell::new(0),
            look: Cell::new(false),
            displaced: Cell::new(false),
            schema_edited: Cell::new(false),
            before_join: Cell::new(None),
            versions_as_of: Cell::new(None),
            panicked: Cell::new(false),
            preparation: Preparation::new(keep_before_commit),
        }))
    }

    /// Prepares what runs in the hook. At attach, and at safe points after a change of the schema;
    /// where it fails, the hook tries again.
    pub(super) fn prepare(&self, table: &Rc<JoinTable>) -> Result<(), SqliteError> {
        let schema_version = self.schema_version();
        let fresh = Statements::prepare(self.db, Rc::clone(table), schema_version)?;
        self.statements.replace(Some(fresh));
        Ok(())
    }

    /// Reads the schema again, and what became of it. At safe points; `single` as in
    /// [`ddl::Before`].
    pub(super) fn look_at_schema(&self, version: u32, single: bool) -> Result<Look, SqliteError> {
        self.compare_schema(version, &[], single)
    }

    /// Whether definitions are not those known under the same version. At safe points.
    pub(super) fn is_redefined(&self) -> Result<bool, SqliteError> {
        let now = ddl::Objects::load(self.db)?;
        Ok(!self.tables.borrow().objects.are(&now))
    }

    fn compare_schema(
        &self,
        schema_version: u32,
        rewritten: &[usize],
        single: bool,
    ) -> Result<Look, SqliteError> {
        let tables = self.tables();
        let sequence = self.sequences.borrow().as_ref().map(|sequences| sequences.rows.clone());
        let before =
            ddl::Before { tables: &tables, sequence: sequence.as_ref(), rewritten, single };
        ddl::look(self.db, schema_version, &before, self.limit)
    }

    /// From here on rows are of this schema. Gives the one before.
    pub(super) fn adopt(&self, tables: Arc<Tables>, sequences: Option<Sequences>) -> Arc<Tables> {
        self.sequences.replace(sequences);
        self.tables.replace(tables)
    }

    /// A change of the schema as a commit without row events.
    pub(super) fn schema_journal(
        &self,
        old: Arc<Tables>,
        found: Option<Found>,
        header: Header,
        events: Option<Journal>,
    ) -> SchemaJournal {
        let none =
            || Journal::new(Vec::new(), Arc::clone(&old), Arc::clone(&self.pool), self.limit);
        let events = events.unwrap_or_else(none);
        SchemaJournal::new(old, self.tables(), found, header, events, self.limit)
    }

    /// The versions of schema and data that are known were read under this count of content changes.
    pub(super) fn versions_are_of(&self, change_count: u32) {
        self.versions_as_of.set(Some(change_count));
    }

    pub(super) fn schema_version(&self) -> u32 {
        self.tables.borrow().schema_version
    }

    pub(super) fn has_virtual_tables(&self) -> bool {
        self.tables.borrow().has_virtual
    }

    /// Reads `sqlite_sequence`, and returns what changed since it was last handed over. At safe
    /// points; to be kept by [`Follower::keep_sequence`].
    pub(super) fn sequence_changes(&self) -> Result<Option<(Rows, Journal)>, SqliteError> {
        let mut sequences = self.sequences.borrow_mut();
        let Some(sequences) = sequences.as_mut() else { return Ok(None) };
        let now = sequences.read()?;
        if now == sequences.rows {
            return Ok(None);
        }
        let tables = Arc::clone(&self.tables.borrow());
        let mut bytes = self.pool.take(0);
        sequence::journal_changes(&sequences.rows, &now, tables.sequence(), &mut bytes);
        Ok(Some((now, Journal::new(bytes, tables, Arc::clone(&self.pool), self.limit))))
    }

    pub(super) fn keep_sequence(&self, now: Rows) {
        if let Some(sequences) = self.sequences.borrow_mut().as_mut() {
            sequences.rows = now;
        }
    }

    /// Frees the statements, after the last other call on the connection: if the app has closed
    /// it, it goes with them.
    pub(super) fn drop_statements(&self) {
        self.sequences.replace(None);
        self.statements.replace(None);
    }

    /// A transaction of which row events were captured is open.
    pub(super) fn in_transaction(&self) -> bool {
        self.joined.get()
    }

    pub(super) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.borrow())
    }

    /// A row event could not be followed, nor the transaction it is part of.
    fn miss(&self, reason: Lost) {
        if let Ok(mut missed) = self.missed.try_borrow_mut() {
            missed.get_or_insert(reason);
        }
        self.look.set(true);
        if let Ok(mut transaction) = self.transaction.try_borrow_mut() {
            transaction.lose(Lost::ExtractFailed(SqliteError::from_code(ffi::SQLITE_ABORT)));
            if !self.joined.get() {
                transaction.clear();
            }
        }
    }

    /// The preupdate hook.
    ///
    /// # Safety
    /// Called with what SQLite passes to a preupdate hook of this connection.
    pub(super) unsafe fn row_event(
        &self,
        op: c_int,
        database: *const std::ffi::c_char,
        table: &CStr,
        rowids: (i64, i64),
    ) {
        self.events.set(self.events.get() + 1);
        // SAFETY: SQLite passes a terminated name that lives during the call.
        if !unsafe { self.db.is_main(database) } {
            return;
        }
        self.withdraw();
        if self.running.get() {
            // A callback of the app's writes, inside a statement of ours.
            return self.miss(Lost::NotFollowed(SqliteError::from_code(ffi::SQLITE_MISUSE)));
        }
        let name = table.to_bytes();
        // SAFETY: nothing has run on the connection since SQLite called the hook.
        let row = unsafe { RowEvent::new(self.db, self.limit) };
        // Values first: after the join, should it fail, they may be gone.
        let depth = row.depth();
        let Some(deferred) = self.record(&row, op, name, rowids) else { return };
        if self.joined.get() {
            if let Some(mut before) = self.before_join.get() {
                before.nested_events += i64::from(depth > 0);
                self.before_join.set(Some(before));
            }
            return;
        }
        let joined = if deferred {
            let table = String::from_utf8_lossy(name).into_owned();
            Err(Lost::ShadowTable { table })
        } else {
            self.wal_hook.reinstall(self.db);
            self.running.set(true);
            let joined = self.join(depth);
            self.running.set(false);
            joined
        };
        if let Err(reason) = joined {
            self.miss(reason);
        }
    }

    /// Writes the event down. None for tables that are nobody's content, else whether the table
    /// is one that its module may write to at any time.
    fn record(&self, row: &RowEvent, op: c_int, name: &[u8], rowids: (i64, i64)) -> Option<bool> {
        let Ok(mut transaction) = self.transaction.try_borrow_mut() else {
            self.miss(Lost::NotFollowed(SqliteError::from_code(ffi::SQLITE_MISUSE)));
            return None;
        };
        let transaction = &mut *transaction;
        let tables = self.tables.borrow();
        if is_internal_table(name) {
            let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
            if is(b"sqlite_sequence") {
                transaction.sequence_touched = true;
            } else if is(b"sqlite_master") || is(b"sqlite_schema") {
                let version = tables.schema_version;
                transaction.lose(Lost::SchemaChanged { from: version, to: version });
                self.schema_edited.set(true);
            } else {
                return None;
            }
            transaction.events += 1;
            return Some(false);
        }
        let known = tables.get(transaction.last_table).filter(|t| t.name.as_bytes() == name);
        let found = match known {
            Some(_) => Some(transaction.last_table),
            None => tables.find(name),
        };
        let Some((number, table)) = found.and_then(|at| Some((at, tables.get(at)?))) else {
            // Made since the schema was read: its rows are read before the commit.
            transaction.skip(None);
            transaction.events += 1;
            return Some(tables::may_be_deferred(name));
        };
        if sabotaged(Sabotage::LostEvent) && self.events.get().is_multiple_of(7) {
            return Some(false);
        }
        transaction.last_table = number;
        if table.shadow != Some(Shadow::Deferred) {
            transaction.savepoint_opening = false;
        } else if transaction.savepoint_opening
            && let Some(mark) = transaction.marks.last_mut()
        {
            mark.blurred = true;
        }
        transaction.sequence_touched |= table.autoincrement && op == rows::INSERT;
        transaction.shadow_touched |= table.shadow.is_some();
        transaction.put(row, op, number, table, rowids, self.limit);
        transaction.events += 1;
        Some(table.shadow == Some(Shadow::Deferred))
    }

    /// Makes the join table part of the transaction, and looks whether others were here before.
    fn join(&self, depth: c_int) -> Result<(), Lost> {
        let Ok(mut statements) = self.statements.try_borrow_mut() else {
            return Err(Lost::NotFollowed(SqliteError::from_code(ffi::SQLITE_MISUSE)));
        };
        let Some(statements) = statements.as_mut() else {
            return Err(Lost::NotFollowed(SqliteError::from_code(ffi::SQLITE_NOMEM)));
        };
        let known = self.versions_as_of.get() == Some(self.db.change_count())
            && statements.join_schema == self.schema_version()
            && !statements.join.expired();
        let mut versions = (self.schema_version(), self.known.get().data_version);
        if !known {
            versions = statements.fresh(self.db).map_err(Lost::NotFollowed)?;
        }
        let (changes, total_changes) = (self.db.changes(), self.db.total_changes());
        self.note_counter();
        // The join table's `begin` and `savepoint` are called from here.
        if !statements.join().map_err(Lost::NotFollowed)? {
            // The transaction has changed the schema before its first row.
            versions = statements.fresh(self.db).map_err(Lost::NotFollowed)?;
            statements.join().map_err(Lost::NotFollowed)?;
        }
        if !self.joined.get() {
            return Err(Lost::NotFollowed(SqliteError::from_code(ffi::SQLITE_MISUSE)));
        }
        let (schema_version, data_version) = versions;
        // Tables that are made from a query are filled without row events.
        let counted = !self.uncounted.take() && schema_version == self.schema_version();
        let silent = counted && self.events_were_silent(total_changes, 1);
        if silent || !counted {
            // Told once: counting starts anew with this event.
            let mut known = self.known.get();
            known.total_changes = total_changes;
            self.known.set(known);
            self.events.set(1);
        }
        let foreign = self.foreign_commit_before(data_version);
        let nested_events = i64::from(depth > 0);
        let before = BeforeJoin { changes, total_changes, nested_events };
        self.before_join.set(Some(before).filter(|before| before.changes != 0));
        let mut transaction = self.transaction.borrow_mut();
        transaction.data_version = data_version;
        if silent {
            transaction.lose(Lost::HookReplaced);
        } else if foreign {
            transaction.lose(Lost::ForeignWrite);
        }
        Ok(())
    }

    /// Whether more rows were counted as changed since the last look than row events came, the
    /// last `pending` aside. Modules of virtual tables count too, so where there are some this
    /// cannot be told.
    pub(super) fn events_were_silent(&self, total_changes: i64, pending: u64) -> bool {
        let counted = total_changes.wrapping_sub(self.known.get().total_changes);
        let events = self.events.get().saturating_sub(pending);
        !self.has_virtual_tables() && counted > i64::try_from(events).unwrap_or(i64::MAX)
    }

    /// Whether another connection has committed, at the beginning of a write transaction.
    fn foreign_commit_before(&self, data_version: u32) -> bool {
        let mut known = self.known.get();
        if known.data_version == data_version {
            return false;
        }
        // The log's commit counter tells commits from mere checkpoints.
        let header = (self.mode.get() == JournalMode::SharedWal)
            .then(|| self.db.wal_index_header())
            .flatten();
        let (Some(then), Some(now)) = (known.header, header) else { return true };
        let own = self.commits.get();
        let foreign = now.commit_counter() != then.commit_counter().wrapping_add(own);
        if !foreign {
            known.data_version = data_version;
            self.known.set(known);
        }
        foreign
    }

    /// Whether the main database was committed after all, `count` being its count of content
    /// changes before.
    fn may_be_committed(&self, count: u32) -> bool {
        if count != self.db.change_count() {
            return true;
        }
        let known = self.known.get().header.map(|header| header.commit_counter());
        match self.mode.get() {
            JournalMode::Rollback | JournalMode::LooseRollback | JournalMode::Off => false,
            // The log may hold the commit although the pager went back behind it.
            JournalMode::SharedWal => {
                let now = self.db.wal_index_header().map(|header| header.commit_counter());
                now != known.map(|counter| counter.wrapping_add(self.commits.get()))
            }
            JournalMode::ExclusiveWal => true,
        }
    }

    /// Also if that cannot be told.
    fn has_triggers(&self) -> bool {
        let sql = c"SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger')
                        OR EXISTS (SELECT 1 FROM temp.sqlite_schema WHERE type = 'trigger')";
        self.db.query_i64(sql) != Ok(0)
    }

    /// Reports a loss that is not that of a commit.
    pub(super) fn report(&self, reason: Lost) {
        let mut last = self.hand_over.lock();
        last.header = None;
        last.position = None;
        last.number += 1;
        self.hand_over.sink.lost(reason);
    }

    /// Reads what row events do not tell, before the commit.
    fn look_before_commit(&self) -> Result<BeforeCommit, SqliteError> {
        let (schema_version, user_version) = {
            let mut statements = self.statements.borrow_mut();
            let statements =
                statements.as_mut().ok_or_else(|| SqliteError::from_code(ffi::SQLITE_MISUSE))?;
            let schema_version = statements.schema_version.query_i64()? as u32;
            (schema_version, statements.user_version.query_i64()?)
        };
        let mut before = BeforeCommit { schema_version, user_version, ..Default::default() };
        let transaction = self.transaction.borrow();
        if transaction.lost.is_some() {
            return Ok(before);
        }
        let touched = transaction.sequence_touched;
        let blobs = transaction.blobs.clone();
        let same_schema = schema_version == self.schema_version();
        let rewritten: Vec<_> = match same_schema {
            true => Vec::new(),
            false => transaction.skipped.iter().filter_map(|skipped| skipped.table).collect(),
        };
        drop(transaction);
        if !blobs.is_empty() {
            before.blob_rows = self.read_rows(&blobs)?;
        }
        if !same_schema {
            // In WAL mode every commit was looked at: nothing came between the last one and this.
            let single = self.mode.get().is_wal() && !self.look.get();
            let mut look = self.compare_schema(schema_version, &rewritten, single)?;
            let since = self.known.get().header;
            if self.mode.get() == JournalMode::SharedWal && self.db.wal_index_header() != since {
                // A backup into the connection, which runs no statement.
                let from = self.schema_version();
                look.found = Err(Lost::SchemaChanged { from, to: schema_version });
            }
            before.schema = Some(look);
        } else if touched && let Some(sequences) = self.sequences.borrow_mut().as_mut() {
            before.sequence = Some(sequences.read()?);
        }
        Ok(before)
    }

    /// Keeps what was found before the commit for the commit.
    fn keep_look(&self, looked: Result<BeforeCommit, SqliteError>) {
        let tables = self.tables();
        let mut transaction = self.transaction.borrow_mut();
        transaction.synced = Some(self.db.change_count());
        transaction.schema = None;
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => return transaction.lose(Lost::ExtractFailed(error)),
        };
        transaction.schema_version = looked.schema_version;
        transaction.user_version = looked.user_version;
        transaction.sequence = looked.sequence;
        transaction.journal.extend_from_slice(&looked.blob_rows);
        let (from, to) = (tables.schema_version, looked.schema_version);
        match looked.schema {
            None if transaction.skipped.is_empty() => {}
            None => transaction.lose(Lost::SchemaChanged { from, to }),
            Some(Look { found: Err(reason), .. }) => transaction.lose(reason),
            Some(Look { found: Ok(found), tables, sequences }) => {
                let mut skipped = transaction.skipped.iter().filter_map(|skipped| skipped.table);
                if !skipped.all(|table| found.makes_anew(table)) {
                    return transaction.lose(Lost::SchemaChanged { from, to });
                }
                let events = transaction.events;
                let pending = PendingSchema { tables, sequences, found, events };
                transaction.schema = Some(Box::new(pending));
            }
        }
    }

    /// Rows that blob I/O wrote to, as INSERT events: in the journal they follow a DELETE.
    fn read_rows(&self, blobs: &[BlobWrite]) -> Result<Vec<u8>, SqliteError> {
        let tables = self.tables();
        let mut out = Vec::new();
        for (at, blob) in blobs.iter().enumerate() {
            let again =
                |earlier: &BlobWrite| (earlier.table, earlier.rowid) == (blob.table, blob.rowid);
            if !blobs[..at].iter().any(again)
                && let Some(table) = tables.get(blob.table)
            {
                table.put_row(self.db, blob.table, blob.rowid, &mut out)?;
            }
        }
        Ok(out)
    }
}

/// What [`Follower::look_before_commit`] found.
#[derive(Default)]
struct BeforeCommit {
    schema_version: u32,
    user_version: i64,
    sequence: Option<Rows>,
    blob_rows: Vec<u8>,
    schema: Option<Look>,
}

impl Participant for Follower {
    fn begin(&self) {
        self.joined.set(true);
    }

    fn savepoint(&self, level: c_int) {
        let mut transaction = self.transaction.borrow_mut();
        let at_join = self.running.get();
        let mark = Mark {
            level,
            // The event that made the table join came after all that is open.
            len: if at_join { 0 } else { transaction.journal.len() },
            events: if at_join { 0 } else { transaction.events },
            blurred: false,
        };
        transaction.marks.retain(|mark| mark.level < level);
        transaction.marks.push(mark);
        transaction.savepoint_opening = !at_join;
    }

    fn release(&self, level: c_int) {
        let mut transaction = self.transaction.borrow_mut();
        transaction.marks.retain(|mark| mark.level < level);
        transaction.savepoint_opening = false;
    }

    fn rollback_to(&self, level: c_int) {
        if sabotaged(Sabotage::SkippedRollback) {
            return;
        }
        self.before_join.set(None);
        let mut transaction = self.transaction.borrow_mut();
        transaction.marks.retain(|mark| mark.level <= level);
        let open_at_join = Mark { level, len: 0, events: 0, blurred: false };
        let mark = transaction
            .marks
            .last()
            .copied()
            .filter(|mark| mark.level == level)
            .unwrap_or(open_at_join);
        if self.mode.get() == JournalMode::Off {
            transaction.lose(Lost::NotRolledBack);
        }
        if mark.blurred {
            transaction.lose(Lost::ShadowTable { table: String::new() });
        }
        transaction.journal.truncate(mark.len);
        transaction.events = mark.events;
        transaction.savepoint_opening = false;
        let undone = |lost: &Loss| lost.events.is_some_and(|events| events >= mark.events);
        if transaction.lost.as_ref().is_some_and(undone) {
            transaction.lost = None;
        }
        transaction.skipped.retain(|skipped| skipped.events < mark.events);
        transaction.blobs.retain(|blob| blob.at < mark.len);
    }

    fn sync(&self) -> Result<(), SqliteError> {
        let writing = self.db.writing();
        self.running.set(true);
        let looked = self.look_before_commit();
        self.running.set(false);
        let error = looked.as_ref().err().cloned();
        self.keep_look(looked);
        if writing && !self.db.writing() {
            return Err(error.unwrap_or_else(|| SqliteError::from_code(ffi::SQLITE_ABORT)));
        }
        self.prepare_commit();
        Ok(())
    }

    fn commit(&self) {
        self.joined.set(false);
        self.before_join.set(None);
        let kept = self.preparation.committed();
        let missed = self.missed.take();
        let mut transaction = self.transaction.borrow_mut();
        self.commits.set(self.commits.get().wrapping_add(1));
        let schema = transaction.schema.take();
        if schema.as_ref().is_some_and(|schema| schema.events != transaction.events) {
            // A virtual table has written since the rows were read.
            transaction.lose(Lost::ShadowTable { table: String::new() });
        }
        let mut known = self.known.get();
        if let Some(reason) = missed.or_else(|| transaction.lost.take().map(|lost| lost.reason)) {
            self.look.set(true);
            known.header = None;
            known.data_version = transaction.data_version;
            if transaction.synced.is_some() {
                known.schema_version = transaction.schema_version;
                known.user_version = transaction.user_version;
            }
            self.known.set(known);
            transaction.clear();
            drop(transaction);
            self.versions_as_of.set(None);
            return self.report(reason);
        }
        self.versions_as_of.set(Some(self.db.change_count()));
        let tables = self.tables();
        if let (Some(now), Some(sequences)) =
            (transaction.sequence.take(), self.sequences.borrow_mut().as_mut())
            && now != sequences.rows
        {
            let out = &mut transaction.journal;
            sequence::journal_changes(&sequences.rows, &now, tables.sequence(), out);
            sequences.rows = now;
        }
        let header = Header::between(known.user_version, transaction.user_version);
        let journal = std::mem::take(&mut transaction.journal);
        let (schema_version, user_version) = (transaction.schema_version, transaction.user_version);
        transaction.clear();
        if journal.is_empty() && schema.is_none() && header == Header::default() {
            transaction.journal = journal;
            return;
        }
        transaction.journal = self.pool.take(journal.len());
        transaction.last_table = if schema.is_some() { 0 } else { transaction.last_table };
        drop(transaction);
        let position = self.position_after_commit();
        let journal =
            Journal::new(journal, Arc::clone(&tables), Arc::clone(&self.pool), self.limit);
        let changes = if let Some(changeset) = kept {
            Changes::Kept(changeset)
        } else if schema.is_none() && header == Header::default() {
            Changes::Journal(journal)
        } else {
            let found = schema.map(|schema| {
                let PendingSchema { tables, sequences, found, .. } = *schema;
                self.adopt(tables, sequences);
                found
            });
            known.schema_version = schema_version;
            known.user_version = user_version;
            self.known.set(known);
            self.uncounted.set(true);
            Changes::Schema(Box::new(self.schema_journal(tables, found, header, Some(journal))))
        };
        let mut last = self.hand_over.lock();
        // What tells it from others is known once the log's hook has run.
        last.header = None;
        last.position = position;
        last.number += 1;
        self.hand_over.sink.committed(Commit {
            changes,
            commits: 1,
            schema_version,
            wall_time_ms: wall_time_ms(),
            position,
        });
    }

    fn rollback(&self) {
        self.joined.set(false);
        self.before_join.set(None);
        let synced = {
            let mut transaction = self.transaction.borrow_mut();
            let synced = transaction.synced;
            transaction.clear();
            synced
        };
        if self.mode.get() == JournalMode::Off {
            self.look.set(true);
            return self.report(Lost::NotRolledBack);
        }
        if synced.is_some_and(|count| self.may_be_committed(count)) {
            // One of several files was committed before another failed. What was kept of it stays:
            // if nothing else comes, a restart can tell.
            self.miss(Lost::InDoubt);
        } else if self.db.writing() {
            self.withdraw();
            // sqlite3_close tells virtual tables of a rollback before it finds the connection busy.
            self.miss(Lost::CloseRefused);
        } else {
            self.withdraw();
        }
    }

    /// The statement whose first row made the table join is running as long as SQLite has counted
    /// no row of its own, but those of its triggers at most. In a trigger 0 may as well be the count
    /// of a statement before, which many a trigger goes by: with triggers about it stays 0.
    fn corrected_changes(&self, changes: i64) -> i64 {
        let Some(before) = self.before_join.get().filter(|_| changes == 0) else { return changes };
        let counted = self.db.total_changes().wrapping_sub(before.total_changes);
        if counted > before.nested_events || self.has_triggers() { 0 } else { before.changes }
    }

    fn panicked(&self) {
        self.panicked.set(true);
        self.hand_over.forget();
    }
}

impl Transaction {
    /// Appends an event to the journal, or notes why it cannot be carried.
    fn put(
        &mut self,
        row: &RowEvent,
        op: c_int,
        number: usize,
        table: &Table,
        rowids: (i64, i64),
        limit: usize,
    ) {
        let stop = self.lost.as_ref().is_some_and(|lost| match lost.reason {
            // The journal has a gap, which only a rollback past it closes.
            Lost::TooLarge { .. } => true,
            _ => lost.events.is_none(),
        });
        if stop {
            return;
        }
        let name = || table.name.clone();
        if row.width() != table.width {
            return self.skip(Some(number));
        }
        if table.unreachable() {
            return self.lose_event(Lost::Unaddressable { table: name() });
        }
        let start = self.journal.len();
        let moved = op == rows::UPDATE && rowids.0 != rowids.1;
        if row.is_blob_write() {
            // Told as a DELETE, without the new value; what it comes to is read before the commit.
            self.blobs.push(BlobWrite { table: number, rowid: rowids.0, at: start });
        } else if moved && self.blobs.iter().any(|blob| blob.table == number) {
            return self.lose_event(Lost::BlobWritten { table: name() });
        }
        match self.put_rows(row, op, number, table, rowids) {
            Ok(false) => {}
            Ok(true) => self.lose_event(Lost::NullKey { table: name() }),
            Err(Refusal::Full) => {
                self.journal.truncate(start);
                // Lost already for a lesser reason, it is now lost for this one.
                self.lost = None;
                self.lose_event(Lost::TooLarge { limit });
            }
            Err(Refusal::Sqlite(error)) => self.lose(Lost::ExtractFailed(error)),
        }
    }

    /// True if a key is NULL.
    fn put_rows(
        &mut self,
        row: &RowEvent,
        op: c_int,
        number: usize,
        table: &Table,
        (old_rowid, new_rowid): (i64, i64),
    ) -> Result<bool, Refusal> {
        let Transaction { journal, offsets, .. } = self;
        let key = &table.key[usize::from(table.by_rowid)..];
        let mut null_key = false;
        if op == rows::INSERT {
            journal::put_event(journal, Op::Insert, number);
            if table.by_rowid {
                journal::put_integer(journal, new_rowid);
            }
            for (column, place) in table.columns.iter().zip(key) {
                null_key |= row.append_new(column.number, column.real, journal)? && *place != 0;
            }
            return Ok(null_key);
        }
        let update = op == rows::UPDATE;
        journal::put_event(journal, if update { Op::Update } else { Op::Delete }, number);
        if table.by_rowid {
            journal::put_integer(journal, old_rowid);
        }
        offsets.clear();
        for (column, place) in table.columns.iter().zip(key) {
            offsets.push(journal.len());
            null_key |= row.append_old(column.number, column.real, journal)? && *place != 0;
        }
        if !update {
            return Ok(null_key);
        }
        offsets.push(journal.len());
        if table.by_rowid {
            if old_rowid == new_rowid {
                journal::put_undefined(journal);
            } else {
                journal::put_integer(journal, new_rowid);
            }
        }
        for (at, (column, place)) in table.columns.iter().zip(key).enumerate() {
            let start = journal.len();
            null_key |= row.append_new(column.number, column.real, journal)? && *place != 0;
            if journal[offsets[at]..offsets[at + 1]] == journal[start..] {
                journal.truncate(start);
                journal::put_undefined(journal);
            }
        }
        Ok(null_key)
    }
}
