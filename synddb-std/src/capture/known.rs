//! What the database looked like after the last hand-over, and the statements that tell.

use super::ffi::{self, Db, SqliteError, Stmt, WalIndexHeader};
use super::sessions::Rescue;

/// How the database keeps its journal, as far as capture cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JournalMode {
    /// A write-ahead log whose index is in shared memory: others can read beside the app.
    SharedWal,
    /// A write-ahead log of this connection alone.
    ExclusiveWal,
    /// Any other.
    Rollback,
    /// Any other, where the change counter proves nothing: exclusive locking leaves it alone, and
    /// with a journal in memory nobody undoes what a crash has left half written.
    LooseRollback,
    /// None: a rollback leaves rows behind.
    Off,
}

/// The state of the database after the last hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) schema_version: u32,
    pub(super) user_version: i64,
    pub(super) application_id: i64,
    /// Moves with commits of other connections.
    pub(super) data_version: u32,
    /// Counts the commits of this one.
    pub(super) own_commits: u32,
    pub(super) total_changes: i64,
    pub(super) header: Option<WalIndexHeader>,
}

/// Prepared once: most run at every commit.
pub(super) struct Statements {
    pub(super) schema_version: Stmt,
    pub(super) user_version: Stmt,
    pub(super) application_id: Stmt,
    pub(super) data_version: Stmt,
    journal_mode: Stmt,
    locking_mode: Stmt,
    rescue: Rescue,
}

impl Statements {
    pub(super) fn prepare(db: Db) -> Result<Statements, SqliteError> {
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

    pub(super) fn mode(&mut self) -> Result<JournalMode, SqliteError> {
        let journal = self.journal_mode.query_text()?;
        Ok(JournalMode::of(&journal, &self.locking_mode.query_text()?))
    }

    /// Runs `read` inside one read transaction, so that all it sees is of one moment, and
    /// passes it the schema version.
    pub(super) fn in_one_read<T>(
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

impl Known {
    pub(super) fn read(
        statements: &mut Statements,
        db: Db,
        mode: JournalMode,
    ) -> Result<Known, SqliteError> {
        let shared_wal = mode == JournalMode::SharedWal;
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
    pub(super) fn read_counters(
        &mut self,
        statements: &mut Statements,
        db: Db,
    ) -> Result<(), SqliteError> {
        self.data_version = statements.data_version.query_i64()? as u32;
        self.own_commits = db.change_count().wrapping_sub(self.data_version);
        self.total_changes = db.total_changes();
        Ok(())
    }

    /// Whether every page was written, as by a backup into the connection, which moves the schema
    /// version like any statement. Small databases are written whole by many.
    pub(super) fn rewritten_before(&self, now: &Known) -> bool {
        const SMALL: u32 = 16;
        let (Some(then), Some(now)) = (self.header, now.header) else { return false };
        now.pages() > SMALL && now.frames_since(&then) >= now.pages()
    }

    /// Whether another connection has committed between this state and `now`.
    pub(super) fn foreign_write_before(&self, now: &Known, flush: bool) -> bool {
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

impl JournalMode {
    /// Without statements at hand.
    pub(super) fn read(db: Db) -> Result<JournalMode, SqliteError> {
        let journal = db.query_text(c"PRAGMA main.journal_mode")?;
        Ok(JournalMode::of(&journal, &db.query_text(c"PRAGMA main.locking_mode")?))
    }

    fn of(journal: &str, locking: &str) -> JournalMode {
        let shared = locking == "normal";
        match journal {
            // With exclusive locking the WAL-index may be private memory.
            "wal" if shared && ffi::library_is_threadsafe() => JournalMode::SharedWal,
            "wal" => JournalMode::ExclusiveWal,
            "off" => JournalMode::Off,
            "delete" | "truncate" | "persist" if shared => JournalMode::Rollback,
            _ => JournalMode::LooseRollback,
        }
    }

    pub(super) fn is_wal(self) -> bool {
        matches!(self, JournalMode::SharedWal | JournalMode::ExclusiveWal)
    }

    pub(super) fn warn(self, db: Db) {
        let place = if db.location().is_some() { "not in WAL mode" } else { "in memory" };
        tracing::warn!(
            "the database is {place}: commits are captured when they are pushed, not one by one"
        );
    }
}
