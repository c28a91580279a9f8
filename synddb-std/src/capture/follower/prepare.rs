//! What names a commit, and what is kept of it before it happens.
//!
//! ```text
//! join ─▶ the change counter │ sync ─▶ changeset and position ─▶ CommitSink::prepare
//!                            │ a row event after it, a rollback ─▶ CommitSink::withdraw
//! commit ─▶ the position behind it, if nobody else can have come
//! ```
//!
//! What is kept and not withdrawn must be the whole of what commits, or a restart would take a part
//! of a transaction for all of it.

use std::cell::{Cell, RefCell};

use super::super::position::Position;
use super::super::{Prepared, journal};
use super::{Follower, Header, JournalMode, Tables, Transaction, sequence, wall_time_ms};

/// Of one connection.
#[derive(Default)]
pub(super) struct Preparation {
    /// Commits are to be kept before they happen.
    wanted: bool,
    /// The changeset that was kept of the open transaction.
    changeset: RefCell<Option<Vec<u8>>>,
    /// What was kept last is not known to have been committed.
    outstanding: Cell<bool>,
    /// The change counter when the transaction began to write, in modes in which that names a state.
    counter: Cell<Option<u32>>,
}

impl Preparation {
    pub(super) fn new(wanted: bool) -> Preparation {
        Preparation { wanted, ..Preparation::default() }
    }

    /// The changeset that was kept, now that its transaction has committed.
    pub(super) fn committed(&self) -> Option<Vec<u8>> {
        self.outstanding.set(false);
        self.changeset.take()
    }
}

impl Follower {
    /// The transaction is about to write its first row.
    pub(super) fn note_counter(&self) {
        let counter = (self.mode.get() == JournalMode::Rollback).then(|| self.change_counter());
        self.preparation.counter.set(counter.flatten());
    }

    fn change_counter(&self) -> Option<u32> {
        const AT: i64 = 24;
        let mut counter = [0; 4];
        self.db.read_file(AT, &mut counter)?;
        Some(u32::from_be_bytes(counter))
    }

    /// About to commit: keeps what will be committed, where that is wanted and possible.
    pub(super) fn prepare_commit(&self) {
        // A cache that was too small has written the first page early, and its counter.
        if let Some(counter) = self.preparation.counter.get()
            && self.change_counter() != Some(counter)
        {
            self.preparation.counter.set(None);
        }
        if !self.preparation.wanted {
            return;
        }
        let changeset = self.changeset_to_keep();
        let kept = changeset.filter(|changeset| {
            let position = self.position_before_commit();
            position.is_some_and(|position| {
                self.hand_over.sink.prepare(Prepared {
                    changeset,
                    position,
                    schema_version: self.schema_version(),
                    wall_time_ms: wall_time_ms(),
                })
            })
        });
        match kept {
            Some(changeset) => {
                self.preparation.changeset.replace(Some(changeset));
                self.preparation.outstanding.set(true);
            }
            None => self.withdraw(),
        }
    }

    /// What was kept is not what will be committed, if anything is.
    pub(super) fn withdraw(&self) {
        if self.preparation.outstanding.take() {
            self.preparation.changeset.take();
            self.hand_over.sink.withdraw();
        }
    }

    fn changeset_to_keep(&self) -> Option<Vec<u8>> {
        let mut transaction = self.transaction.borrow_mut();
        let known = self.known.get();
        let header = Header::between(known.user_version, transaction.user_version);
        let rows_only = transaction.schema.is_none()
            && transaction.blobs.is_empty()
            && header == Header::default();
        // Full text tables may write more when it is their turn to sync.
        let whole = transaction.lost.is_none() && !transaction.shadow_touched && self.is_sure();
        if !whole || !rows_only {
            return None;
        }
        let tables = self.tables();
        let len = transaction.journal.len();
        self.append_sequence(&mut transaction, &tables);
        // Without any event it is no commit that is handed over.
        let changeset = (!transaction.journal.is_empty())
            .then(|| journal::net_effect(&transaction.journal, &tables, &[], self.limit));
        transaction.journal.truncate(len);
        changeset?.ok()
    }

    /// What became of `sqlite_sequence`, as `commit` will append it.
    fn append_sequence(&self, transaction: &mut Transaction, tables: &Tables) {
        let sequences = self.sequences.borrow();
        if let (Some(now), Some(sequences)) = (&transaction.sequence, sequences.as_ref())
            && *now != sequences.rows
        {
            let out = &mut transaction.journal;
            sequence::journal_changes(&sequences.rows, now, tables.sequence(), out);
        }
    }

    /// Nobody else can commit while this transaction writes.
    fn position_before_commit(&self) -> Option<Position> {
        let application_id = self.known.get().application_id;
        match self.mode.get() {
            JournalMode::SharedWal => {
                // A log that begins anew gets salts that nobody knows before. So it begins now.
                if self.db.log_may_begin_anew() {
                    self.db.flush_cache();
                }
                Position::in_log(self.db, self.db.wal_index_header()?, application_id)
            }
            mode => {
                let counter = self.preparation.counter.get()?;
                self.position_in_file(mode, application_id)
                    .filter(|position| position.change_counter() == Some(counter))
            }
        }
    }

    fn position_in_file(&self, mode: JournalMode, application_id: i64) -> Option<Position> {
        Position::in_file(self.db, self.hand_over.location.as_ref(), mode, application_id)
    }

    /// The commit that has just happened is the last one counted. Another process may have come
    /// after it already: then the state has no name.
    pub(super) fn position_after_commit(&self) -> Option<Position> {
        if !self.is_sure() {
            return None;
        }
        let known = self.known.get();
        match self.mode.get() {
            JournalMode::SharedWal => {
                let (then, now) = (known.header?, self.db.wal_index_header()?);
                let ours = then.commit_counter().wrapping_add(self.commits.get());
                (now.commit_counter() == ours)
                    .then(|| Position::in_log(self.db, now, known.application_id))
                    .flatten()
            }
            mode => {
                let counter = self.preparation.counter.take()?.wrapping_add(1);
                self.position_in_file(mode, known.application_id)
                    .filter(|position| position.change_counter() == Some(counter))
            }
        }
    }

    /// Nothing was missed, as far as can be seen without running a statement.
    pub(in super::super) fn is_sure(&self) -> bool {
        let missed = self.missed.try_borrow().map_or(true, |missed| missed.is_some());
        !missed
            && !self.look.get()
            && !self.panicked.get()
            && (self.uncounted.get() || !self.events_were_silent(self.db.total_changes(), 0))
    }
}
