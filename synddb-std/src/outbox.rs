//! The outbox: entries that are committed in the application and not yet acknowledged.
//!
//! A sidecar SQLite database beside the application's, or in memory for databases in memory. What
//! was appended survives kill -9, and on disk power loss too: the file is synced before an append
//! returns, and no byte is sent before that.
//!
//! ```text
//!  current generation   entries of the granted epoch, trimmed as they are acknowledged
//!  next generation      entries after a snapshot, waiting for their epoch to be granted
//! ```
//!
//! Beside them it knows the *place* of the last commit that was appended, by which a restart proves
//! that the database holds no more; and where commits are kept before they happen, those *prepared*:
//! each with the place of the database before it, until its entry is appended. The newest stays until
//! the next one's entry is.
//!
//! It knows the [content hash](Content) after the newest entry, and gives each entry its own. Where a
//! generation begins it is not known before its snapshot was read to the end: the epoch is not wished
//! for until then, and what was appended meanwhile gets its hashes [when it is](Outbox::establish).
//!
//! At most two generations exist: a third snapshot replaces the second's wish and entries, since it
//! holds what they held. Past its limit the outbox [collapses](Outbox::collapse): nothing is kept,
//! and nothing is taken in before a snapshot begins the next generation.

#[cfg(all(feature = "cbor", any(feature = "http", feature = "hyper")))]
mod peer;

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, params};
use synddb_core::{
    Chain, Epoch, OpenId, SeqNo, StreamId,
    content::{ContentKey, ContentSum},
    sender,
    wire::{
        EntryKind, EntryMeta,
        entry::MAX_META_LEN,
        message::{Head, ResyncReason},
    },
};

use crate::{
    capture::Position,
    content::{Content, Part},
};

/// Version of the file's layout, in `PRAGMA user_version`.
const FORMAT: i64 = 3;

/// How long to wait for others that use the file: nobody should.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is damaged where SQLite says so.
const DAMAGED_FILE: &str = "the file";

const SCHEMA: &str = "
CREATE TABLE outbox(
  id INTEGER PRIMARY KEY CHECK (id = 1),
  stream BLOB NOT NULL,
  epoch INTEGER NOT NULL, next_seq INTEGER NOT NULL, chain BLOB NOT NULL,
  last_commit INTEGER NOT NULL, acked_commit INTEGER NOT NULL,
  queued_entries INTEGER NOT NULL, queued_bytes INTEGER NOT NULL,
  generations INTEGER NOT NULL, current INTEGER NOT NULL, current_from INTEGER NOT NULL,
  next INTEGER, next_from INTEGER, open_id BLOB, reason BLOB,
  base_noted INTEGER NOT NULL, snapshot_commit INTEGER NOT NULL, collapsed INTEGER NOT NULL,
  clean_mark BLOB, database TEXT, place BLOB,
  next_ready INTEGER NOT NULL DEFAULT 0, content_known INTEGER NOT NULL DEFAULT 0,
  appended_bytes INTEGER NOT NULL DEFAULT 0,
  snapshot_at INTEGER NOT NULL DEFAULT 0, snapshot_len INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE content(
  name TEXT NOT NULL, row INTEGER NOT NULL, counts BLOB, sum BLOB NOT NULL,
  PRIMARY KEY (name, row)
) STRICT, WITHOUT ROWID;
CREATE TABLE asked(number INTEGER PRIMARY KEY, open_id BLOB NOT NULL) STRICT;
CREATE TABLE entries(
  generation INTEGER NOT NULL, seq INTEGER NOT NULL, last_commit INTEGER NOT NULL,
  meta BLOB NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY (generation, seq)
) STRICT;
CREATE TABLE prepared(
  number INTEGER PRIMARY KEY, place BLOB NOT NULL,
  time_ms INTEGER NOT NULL, schema_version INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
";

/// From format 1, which had neither places nor prepared commits.
const FROM_1: &str = "
ALTER TABLE outbox ADD COLUMN place BLOB;
CREATE TABLE prepared(
  number INTEGER PRIMARY KEY, place BLOB NOT NULL,
  time_ms INTEGER NOT NULL, schema_version INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
";

/// From format 2, which had neither content hashes nor weights.
const FROM_2: &str = "
ALTER TABLE outbox ADD COLUMN next_ready INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN content_known INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN appended_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN snapshot_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN snapshot_len INTEGER NOT NULL DEFAULT 0;
CREATE TABLE content(
  name TEXT NOT NULL, row INTEGER NOT NULL, counts BLOB, sum BLOB NOT NULL,
  PRIMARY KEY (name, row)
) STRICT, WITHOUT ROWID;
";

/// Why the outbox cannot be used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum OutboxError {
    /// SQLite could not read or write the sidecar file: place, permissions, space.
    Sqlite(String),
    /// The file was written by a newer version of synddb.
    NewerFormat {
        /// Its version.
        found: i64,
    },
    /// The file is a database of something else.
    NotAnOutbox,
    /// The file is the outbox of another stream than the one configured.
    OtherStream {
        /// Its stream.
        found: StreamId,
        /// The configured one.
        configured: StreamId,
    },
    /// The outbox was made for another database, which still is where it was.
    OtherDatabase {
        /// The path of that database.
        database: String,
    },
    /// Another connection or process has this outbox open.
    InUse {
        /// The outbox.
        path: String,
    },
    /// The outbox was closed by a shutdown.
    Closed,
    /// What the file holds does not decode, or does not fit what was asked of it.
    Corrupt(&'static str),
}

impl core::fmt::Display for OutboxError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Sqlite(message) => write!(
                f,
                "the outbox cannot be read or written: {message}; its place must be writable and \
                 have free space"
            ),
            Self::NewerFormat { found } => write!(
                f,
                "the outbox has format {found}, this version of synddb knows formats up to \
                 {FORMAT}: use a newer synddb"
            ),
            Self::NotAnOutbox => f.write_str(
                "the file at the outbox's place is another database: choose another place for the \
                 outbox",
            ),
            Self::OtherStream { found, configured } => write!(
                f,
                "the outbox belongs to stream {found}, configured is {configured}: choose another \
                 place for the outbox or the stream's own name"
            ),
            Self::OtherDatabase { database } => write!(
                f,
                "the outbox belongs to the database {database}, which still exists: choose another \
                 place for the outbox; if this database is a copy of it, remove the copied outbox, \
                 and the copy becomes a stream of its own"
            ),
            Self::InUse { path } => write!(
                f,
                "the outbox {path} is in use: its database is attached already, by another \
                 connection or process; shut that down first"
            ),
            Self::Closed => f.write_str("the outbox was closed by a shutdown"),
            Self::Corrupt(part) => write!(
                f,
                "the outbox is damaged ({part}): remove it, and the stream begins anew from a \
                 snapshot"
            ),
        }
    }
}

impl core::error::Error for OutboxError {}

impl OutboxError {
    /// What SQLite finds in the file is no outbox any more: nothing helps but another one.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt(DAMAGED_FILE) | Self::NotAnOutbox)
    }
}

impl From<rusqlite::Error> for OutboxError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => Self::NotAnOutbox,
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => Self::Corrupt(DAMAGED_FILE),
            _ => Self::Sqlite(error.to_string()),
        }
    }
}

/// One entry to be appended; its number is given by the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewEntry {
    /// What the payload is.
    pub(crate) kind: EntryKind,
    /// Number of the first commit in it.
    pub(crate) first_commit: u64,
    /// Number of the last commit in it.
    pub(crate) last_commit: u64,
    /// When the last of them was committed, milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// `PRAGMA schema_version` of the payload.
    pub(crate) schema_version: u32,
    /// The payload.
    pub(crate) payload: Vec<u8>,
}

/// A commit that is about to happen.
#[derive(Debug)]
pub(crate) struct PreparedCommit<'p> {
    /// The number it will have.
    pub(crate) number: u64,
    /// Where the database is before it.
    pub(crate) place: Position,
    pub(crate) time_ms: u64,
    pub(crate) schema_version: u32,
    /// Its changeset.
    pub(crate) payload: &'p [u8],
}

/// What [`Outbox::traces`] tells.
#[derive(Debug)]
pub(crate) struct Traces {
    /// Where the database was after the last commit that was appended.
    pub(crate) place: Option<Position>,
    /// In the order of their numbers.
    pub(crate) prepared: Vec<Trace>,
}

/// A commit that was prepared.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) number: u64,
    /// Where the database was before it.
    pub(crate) place: Option<Position>,
    pub(crate) time_ms: u64,
    pub(crate) schema_version: u32,
    pub(crate) payload: Vec<u8>,
}

/// A wish to open an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Names it.
    pub(crate) open_id: OpenId,
    /// Why.
    pub(crate) reason: ResyncReason,
}

/// A snapshot that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredSnapshot {
    /// The generation it is of.
    pub(crate) generation: i64,
    /// That generation begins from it.
    pub(crate) is_base: bool,
    /// The commit as of which it holds the database.
    pub(crate) as_of_commit: u64,
    /// [`State::appended_bytes`] as of the same moment.
    pub(crate) as_of_bytes: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
}

/// What the outbox knows beside its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The stream.
    pub(crate) stream: StreamId,
    /// What was acknowledged.
    pub(crate) position: sender::Position,
    /// The generation that `position` speaks of.
    pub(crate) generation: i64,
    /// Newest entry of the current generation; one before `position.next_seq` where there is none.
    pub(crate) last_seq: SeqNo,
    /// Entries that are not acknowledged, in both generations.
    pub(crate) entries: u64,
    /// Bytes of their payloads.
    pub(crate) bytes: u64,
    /// Number of the last commit that was appended.
    pub(crate) last_commit: u64,
    /// Number of the last commit that was acknowledged.
    pub(crate) acked_commit: u64,
    /// The commit as of which the current epoch's snapshot holds the database.
    pub(crate) from_commit: u64,
    /// The next generation's wish, where one waits.
    pub(crate) wish: Option<Wish>,
    /// Its snapshot is ready: the epoch may be asked for.
    pub(crate) next_ready: bool,
    /// Bytes of payloads that were ever appended.
    pub(crate) appended_bytes: u64,
    /// What that was as of the newest stored snapshot.
    pub(crate) snapshot_at: u64,
    /// Length of the newest stored snapshot in bytes.
    pub(crate) snapshot_len: u64,
    /// The current epoch's snapshot is stored, and an entry says so.
    pub(crate) base_noted: bool,
    /// The commit as of which the newest stored snapshot holds the database.
    pub(crate) snapshot_commit: u64,
    /// Entries were given up for a snapshot that is still to come.
    pub(crate) collapsed: bool,
    /// Wishes that were replaced or given up since the last epoch began, the newest last. One of
    /// them may have been granted all the same.
    pub(crate) asked: Vec<OpenId>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Outbox {
    db: Mutex<Option<Connection>>,
    /// `None` in memory.
    path: Option<PathBuf>,
    /// The path of the database, once it is known.
    database: OnceLock<String>,
    stream: StreamId,
    key: ContentKey,
    /// The content after the newest entry; the outer `None` where the file has to be asked. Locked
    /// before `db`, by those who append: hashing must not keep others from the file.
    content: Mutex<Option<Option<Content>>>,
}

/// The open database.
struct Locked<'o>(MutexGuard<'o, Option<Connection>>);

impl Deref for Locked<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("looked at when it was locked")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.as_mut().expect("looked at when it was locked")
    }
}

impl Outbox {
    /// Opens the outbox at `path`, or makes it. `stream` is the configured stream, if any; a new
    /// outbox without one gets `fresh`.
    ///
    /// # Errors
    /// Any [`OutboxError`]; the file is not changed then.
    pub(crate) fn open(
        path: &Path,
        stream: Option<StreamId>,
        fresh: StreamId,
    ) -> Result<Self, OutboxError> {
        Self::of(open_file(path)?, Some(path), stream, fresh)
    }

    /// An outbox that lives as long as the process.
    ///
    /// # Errors
    /// `Sqlite`: out of memory.
    pub(crate) fn in_memory(stream: StreamId) -> Result<Self, OutboxError> {
        Self::of(Connection::open_in_memory()?, None, Some(stream), stream)
    }

    fn of(
        mut db: Connection,
        path: Option<&Path>,
        stream: Option<StreamId>,
        fresh: StreamId,
    ) -> Result<Self, OutboxError> {
        set_up(&mut db, stream.unwrap_or(fresh))?;
        let found = read_state(&db)?.stream;
        match stream {
            Some(configured) if configured != found => {
                Err(OutboxError::OtherStream { found, configured })
            }
            _ => Ok(Self {
                db: Mutex::new(Some(db)),
                path: path.map(Path::to_owned),
                database: OnceLock::new(),
                stream: found,
                key: ContentKey::of(found),
                content: Mutex::new(None),
            }),
        }
    }

    /// Begins with nothing, in place of a file that is damaged; that one stays beside it, with
    /// `-damaged` at the end of its name. Whatever it held has to be in a snapshot.
    ///
    /// # Errors
    /// `Sqlite`: the place cannot be written; every later call fails until this one succeeds.
    pub(crate) fn begin_anew(&self) -> Result<State, OutboxError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guard = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        *content = None;
        *guard = None;
        let mut db = match &self.path {
            None => Connection::open_in_memory()?,
            Some(path) => {
                for part in ["", "-wal", "-shm"] {
                    let (mut from, mut to) =
                        (path.clone().into_os_string(), path.clone().into_os_string());
                    from.push(part);
                    to.push(format!("-damaged{part}"));
                    match std::fs::rename(&from, &to) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            let from = Path::new(&from).display();
                            return Err(OutboxError::Sqlite(format!("{from}: {error}")));
                        }
                        _ => {}
                    }
                }
                open_file(path)?
            }
        };
        set_up(&mut db, self.stream)?;
        if let Some(database) = self.database.get() {
            db.execute("UPDATE outbox SET database = ?1", [database])?;
        }
        let state = read_state(&db)?;
        *guard = Some(db);
        Ok(state)
    }

    /// What is in it.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    pub(crate) fn state(&self) -> Result<State, OutboxError> {
        read_state(&*self.lock()?)
    }

    /// Notes that the outbox is that of the database at `path`.
    ///
    /// # Errors
    /// `OtherDatabase` where it was made for another one that still exists: nothing changed.
    pub(crate) fn belongs_to(&self, path: &str) -> Result<(), OutboxError> {
        let db = self.lock()?;
        let known: Option<String> =
            db.query_row("SELECT database FROM outbox", [], |row| row.get(0))?;
        // An outbox is asked once.
        let _ = self.database.set(path.to_owned());
        match known {
            Some(known) if known == path => return Ok(()),
            Some(database) if Path::new(&database).exists() => {
                return Err(OutboxError::OtherDatabase { database });
            }
            // New, or moved together with its database.
            _ => {}
        }
        db.execute("UPDATE outbox SET database = ?1", [path])?;
        Ok(())
    }

    /// Appends `entries` in order, durably, all or none, to the next generation where one waits
    /// and else to the current one. `place` is that of the database after exactly the last commit
    /// in them, where it is known. What was prepared of commits before that one is forgotten.
    ///
    /// # Errors
    /// `Sqlite`: nothing was appended.
    pub(crate) fn append(
        &self,
        entries: &[NewEntry],
        place: Option<Position>,
    ) -> Result<State, OutboxError> {
        let mut content = self.lock_content()?;
        let before = content.take().flatten();
        let mut after = before.clone();
        let mut hashes = Vec::with_capacity(entries.len());
        for entry in entries {
            after = after.and_then(|after| after.after(entry.kind, &entry.payload));
            hashes.push(after.as_ref().map(Content::total));
        }
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        let (generation, seq, gap): (i64, i64, bool) = transaction
            .prepare_cached(
                "SELECT coalesce(next, current),
                    coalesce((SELECT max(seq) FROM entries WHERE generation = coalesce(next, current)),
                             CASE WHEN next IS NULL THEN next_seq - 1 ELSE 0 END),
                    collapsed AND next IS NULL
                 FROM outbox",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        if gap {
            return Err(OutboxError::Corrupt("entries behind those that were given up"));
        }
        insert(&transaction, generation, seq, entries, &hashes)?;
        save_content(&transaction, before.as_ref(), after.as_ref())?;
        if let Some(last) = entries.last() {
            set_place(&transaction, place)?;
            transaction
                .prepare_cached("DELETE FROM prepared WHERE number < ?1")?
                .execute([last.last_commit as i64])?;
        }
        let state = read_state(&transaction)?;
        kill_point!("outbox-append");
        transaction.commit()?;
        kill_point!("outbox-appended");
        *content = Some(after);
        Ok(state)
    }

    /// Keeps a commit that is about to happen, durably, in the place of what was kept under its
    /// number. Waits for nobody but other threads of ours.
    ///
    /// # Errors
    /// `Sqlite`: what was kept before is unchanged.
    pub(crate) fn prepare(&self, commit: &PreparedCommit<'_>) -> Result<(), OutboxError> {
        let db = self.lock()?;
        db.busy_timeout(Duration::ZERO)?;
        let kept = db
            .prepare_cached("INSERT OR REPLACE INTO prepared VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                commit.number as i64,
                commit.place.to_bytes(),
                commit.time_ms as i64,
                commit.schema_version,
                commit.payload,
            ]);
        db.busy_timeout(PATIENCE)?;
        kept?;
        Ok(())
    }

    /// Forgets what was prepared from commit `number` on, durably.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn withdraw(&self, number: u64) -> Result<(), OutboxError> {
        self.lock()?
            .prepare_cached("DELETE FROM prepared WHERE number >= ?1")?
            .execute([number as i64])?;
        Ok(())
    }

    /// The place of the database after the last commit that was appended, if it is known; where it
    /// is not, a restart resyncs. Not synced: of an older one it is known that the database left it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn be_at(&self, place: Option<Position>) -> Result<(), OutboxError> {
        let db = self.lock()?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        let set = set_place(&db, place);
        db.pragma_update(None, "synchronous", "FULL")?;
        set
    }

    /// The stream fell behind: forgets its place and what was prepared, so that a restart resyncs.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn forget_place(&self) -> Result<(), OutboxError> {
        self.settled(None)
    }

    /// A restart has seen to what was prepared, and the database is at `place`.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn settled(&self, place: Option<Position>) -> Result<(), OutboxError> {
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        set_place(&transaction, place)?;
        transaction.execute("DELETE FROM prepared", [])?;
        transaction.commit()?;
        Ok(())
    }

    /// What tells where the database was, and what may have been committed since.
    ///
    /// # Errors
    /// `Sqlite`. Of a place in an unknown form nothing is told.
    pub(crate) fn traces(&self) -> Result<Traces, OutboxError> {
        let db = self.lock()?;
        let place: Option<Vec<u8>> =
            db.query_row("SELECT place FROM outbox", [], |row| row.get(0))?;
        let prepared = db
            .prepare("SELECT * FROM prepared ORDER BY number")?
            .query_map([], |row| {
                Ok(Trace {
                    number: row.get::<_, i64>(0)? as u64,
                    place: Position::from_bytes(&row.get::<_, Vec<u8>>(1)?),
                    time_ms: row.get::<_, i64>(2)? as u64,
                    schema_version: row.get(3)?,
                    payload: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(Traces { place: place.as_deref().and_then(Position::from_bytes), prepared })
    }

    /// Appends `entry`, which says that `snapshot` is stored, to its generation, durably. `None`, and
    /// nothing is done, where the generation is over or another one waits: what is said of its epoch is of no
    /// interest any more.
    ///
    /// # Errors
    /// `Sqlite`: nothing was appended.
    pub(crate) fn note_snapshot(
        &self,
        snapshot: &StoredSnapshot,
        entry: NewEntry,
    ) -> Result<Option<State>, OutboxError> {
        let content = self.lock_content()?;
        let hash = content.as_ref().and_then(Option::as_ref).map(Content::total);
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        let before = read_state(&transaction)?;
        let StoredSnapshot { generation, is_base, as_of_commit, as_of_bytes, len } = *snapshot;
        if before.generation != generation || before.wish.is_some() || before.collapsed {
            return Ok(None);
        }
        insert(&transaction, generation, before.last_seq.0 as i64, &[entry], &[hash])?;
        transaction.execute(
            "UPDATE outbox SET base_noted = base_noted OR ?1,
             snapshot_commit = max(snapshot_commit, ?2), snapshot_at = ?3, snapshot_len = ?4",
            params![is_base, as_of_commit as i64, as_of_bytes as i64, len as i64],
        )?;
        let state = read_state(&transaction)?;
        transaction.commit()?;
        Ok(Some(state))
    }

    /// The hash of the database's content after the newest entry, where it is known.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn content(&self) -> Result<Option<ContentSum>, OutboxError> {
        let content = self.lock_content()?;
        Ok(content.as_ref().and_then(Option::as_ref).map(Content::total))
    }

    /// What hashes are made with.
    pub(crate) fn content_key(&self) -> ContentKey {
        self.key
    }

    /// The snapshot that `generation` waits for is ready, and holds this: gives the entries behind it
    /// their hashes, and lets the epoch be asked for. `None` where the generation is over; nothing is
    /// done then.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`: nothing changed.
    pub(crate) fn establish(
        &self,
        generation: i64,
        base: Option<Content>,
    ) -> Result<Option<State>, OutboxError> {
        let mut content = self.lock_content()?;
        let before = content.take().flatten();
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        let next: Option<i64> =
            transaction.query_row("SELECT next FROM outbox", [], |row| row.get(0))?;
        if next != Some(generation) {
            return Ok(None);
        }
        let mut after = base;
        {
            let mut select = transaction.prepare(
                "SELECT seq, meta, payload FROM entries WHERE generation = ?1 ORDER BY seq",
            )?;
            let mut update = transaction
                .prepare("UPDATE entries SET meta = ?3 WHERE generation = ?1 AND seq = ?2")?;
            let mut rows = select.query([generation])?;
            while let Some(row) = rows.next()? {
                let corrupt = |_| OutboxError::Corrupt("an entry");
                let meta = row.get_ref(1)?.as_blob().map_err(|_| OutboxError::Corrupt("meta"))?;
                let mut meta = EntryMeta::decode(meta).map_err(corrupt)?;
                let payload =
                    row.get_ref(2)?.as_blob().map_err(|_| OutboxError::Corrupt("a payload"))?;
                after = after.and_then(|after| after.after(meta.kind, payload));
                meta.content_hash = after.as_ref().map(Content::total);
                let mut buffer = [0; MAX_META_LEN];
                let meta = meta.encode(&mut buffer).map_err(corrupt)?;
                update.execute(params![generation, row.get::<_, i64>(0)?, meta])?;
            }
        }
        save_content(&transaction, before.as_ref(), after.as_ref())?;
        transaction.execute("UPDATE outbox SET next_ready = 1", [])?;
        let state = read_state(&transaction)?;
        transaction.commit()?;
        *content = Some(after);
        Ok(Some(state))
    }

    /// Calls `visit` with the meta and payload of the current generation's entries from `first`
    /// on, in order, until it returns false or there are no more.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn read(
        &self,
        first: SeqNo,
        mut visit: impl FnMut(SeqNo, &[u8], &[u8]) -> bool,
    ) -> Result<(), OutboxError> {
        let db = self.lock()?;
        let mut select = db.prepare_cached(
            "SELECT seq, meta, payload FROM entries
             WHERE generation = (SELECT current FROM outbox) AND seq >= ?1 ORDER BY seq",
        )?;
        let mut rows = select.query(params![first.0 as i64])?;
        while let Some(row) = rows.next()? {
            let seq = SeqNo(row.get::<_, i64>(0)? as u64);
            let blob = |at| {
                row.get_ref(at)?.as_blob().map_err(|_| OutboxError::Corrupt("an entry's type"))
            };
            if !visit(seq, blob(1)?, blob(2)?) {
                break;
            }
        }
        Ok(())
    }

    /// Everything before `head.next_seq` of the current epoch is acknowledged: forgets it. After a
    /// power cut it may be remembered once more; what is acknowledged twice does no harm.
    ///
    /// # Errors
    /// `Sqlite`; `Corrupt` where `head` is not of the current epoch: nothing changed.
    pub(crate) fn trim(&self, head: Head) -> Result<State, OutboxError> {
        let mut db = self.lock()?;
        // Without a sync of its own: the next append's covers it.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        let trimmed = trim(&mut db, head);
        db.pragma_update(None, "synchronous", "FULL")?;
        trimmed
    }

    /// What is appended from now on follows a snapshot and waits for a new epoch; an earlier wish
    /// and its entries are dropped, since the snapshot holds them. The snapshot holds the database
    /// as of `boundary_commit`. The current generation's entries stay. Gives the new generation.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn begin_next(&self, wish: Wish, boundary_commit: u64) -> Result<i64, OutboxError> {
        let mut content = self.lock_content()?;
        let before = content.take().flatten();
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        remember_wish(&transaction)?;
        delete(&transaction, "generation = (SELECT next FROM outbox) AND ?1", 1)?;
        let mut buffer = [0; 16];
        let reason = wish.reason.encode(&mut buffer).map_err(|_| OutboxError::Corrupt("reason"))?;
        let generation = transaction.query_row(
            "UPDATE outbox SET generations = generations + 1, next = generations + 1,
             next_from = ?3, last_commit = ?3, open_id = ?1, reason = ?2,
             clean_mark = NULL, place = NULL, next_ready = 0
             RETURNING next",
            params![wish.open_id.0, reason, boundary_commit as i64],
            |row| row.get(0),
        )?;
        transaction.execute("DELETE FROM prepared WHERE number <= ?1", [boundary_commit as i64])?;
        // What holds for the snapshot's state is known once it was read.
        save_content(&transaction, before.as_ref(), None)?;
        transaction.commit()?;
        *content = Some(None);
        Ok(generation)
    }

    /// Gives up a wish whose snapshot will never come, and the entries that wait for it: another
    /// snapshot has to stand for them.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn withdraw_next(&self) -> Result<(), OutboxError> {
        let mut content = self.lock_content()?;
        let before = content.take().flatten();
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        remember_wish(&transaction)?;
        delete(&transaction, "generation = (SELECT next FROM outbox) AND ?1", 1)?;
        transaction.execute(
            "UPDATE outbox SET next = NULL,
             next_from = NULL, open_id = NULL, reason = NULL, clean_mark = NULL",
            [],
        )?;
        save_content(&transaction, before.as_ref(), None)?;
        transaction.commit()?;
        *content = Some(None);
        Ok(())
    }

    /// Gives up all entries, those of the current generation too: a snapshot that is still to come
    /// stands for them, and begins the next generation.
    ///
    /// # Errors
    /// `Sqlite`: nothing changed.
    pub(crate) fn collapse(&self) -> Result<(), OutboxError> {
        let mut content = self.lock_content()?;
        let before = content.take().flatten();
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        remember_wish(&transaction)?;
        delete(&transaction, "?1", 1)?;
        transaction.execute(
            "UPDATE outbox SET collapsed = 1, next = NULL,
             next_from = NULL, open_id = NULL, reason = NULL, clean_mark = NULL",
            [],
        )?;
        save_content(&transaction, before.as_ref(), None)?;
        transaction.commit()?;
        *content = Some(None);
        Ok(())
    }

    /// The epoch of `head` was granted. Where it is the one that the next generation waits for,
    /// that becomes the current one and true is returned; where the wish was replaced or given up
    /// meanwhile a newer snapshot holds what that epoch would have held.
    ///
    /// # Errors
    /// `Sqlite`; `Corrupt` where nobody asked for that epoch: nothing changed.
    pub(crate) fn opened(&self, head: Head) -> Result<bool, OutboxError> {
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        let State { wish, asked, .. } = read_state(&transaction)?;
        let ours = wish.is_some_and(|wish| wish.open_id == head.open_id);
        if !ours && !asked.contains(&head.open_id) {
            // Entries are only given up for a snapshot that stands for them.
            return Err(OutboxError::Corrupt("an epoch that nobody asked for"));
        }
        delete(&transaction, "generation = (SELECT current FROM outbox) AND ?1", 1)?;
        if ours {
            transaction.execute("DELETE FROM asked", [])?;
            transaction.execute(
                "UPDATE outbox SET current = next, current_from = next_from, base_noted = 0,
                 collapsed = 0, next = NULL, next_from = NULL, open_id = NULL,
                 reason = NULL, next_ready = 0",
                [],
            )?;
        } else {
            // A generation without entries, and without a snapshot; under a number before that of
            // any other.
            transaction.execute(
                "UPDATE outbox SET generations = generations + 1, current = -generations - 1,
                 base_noted = 0, collapsed = 1",
                [],
            )?;
        }
        set_position(&transaction, head)?;
        transaction.commit()?;
        Ok(ours)
    }

    /// What was left by a clean stop, if nothing was appended since. Reading it takes it away: a
    /// crash from now on is not a clean stop.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn take_clean_mark(&self) -> Result<Option<Vec<u8>>, OutboxError> {
        let mut db = self.lock()?;
        let transaction = db.transaction()?;
        let mark = transaction
            .query_row("SELECT clean_mark FROM outbox", [], |row| row.get(0))
            .optional()?
            .flatten();
        transaction.execute("UPDATE outbox SET clean_mark = NULL", [])?;
        transaction.commit()?;
        Ok(mark)
    }

    /// Notes a clean stop: everything that the database holds was captured. False, and nothing is
    /// noted, where the stream needs a snapshot that is not stored yet: its image is gone with the
    /// process.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn set_clean_mark(&self, mark: &[u8]) -> Result<bool, OutboxError> {
        let changed = self.lock()?.execute(
            "UPDATE outbox SET clean_mark = ?1
             WHERE next IS NULL AND base_noted AND NOT collapsed",
            params![mark],
        )?;
        Ok(changed > 0)
    }

    /// Ends the use of the file, whoever still holds the outbox: every later call fails.
    pub(crate) fn close(&self) {
        *self.db.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Locked with the inner value there, so that `take` leaves a mark where what follows fails.
    fn lock_content(&self) -> Result<MutexGuard<'_, Option<Option<Content>>>, OutboxError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.is_none() {
            *content = Some(load_content(&*self.lock()?, self.key)?);
        }
        Ok(content)
    }

    fn lock(&self) -> Result<Locked<'_>, OutboxError> {
        // A panic elsewhere left no transaction open: they roll back when dropped.
        let guard = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(Locked(guard)) } else { Err(OutboxError::Closed) }
    }
}

fn open_file(path: &Path) -> Result<Connection, OutboxError> {
    let db = Connection::open(path)?;
    db.busy_timeout(PATIENCE)?;
    check_format(&db)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // An entry must not be lost to a power cut once a byte of it was sent: the receiver would
    // be ahead of us, which looks like a fork.
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

/// Makes the tables, for `stream`, or brings those that are there up to date.
fn set_up(db: &mut Connection, stream: StreamId) -> Result<(), OutboxError> {
    let transaction = db.transaction()?;
    match format(&transaction)? {
        0 => {
            transaction.execute_batch(SCHEMA)?;
            transaction.execute(
                "INSERT INTO outbox VALUES (1, ?1, 0, 1, ?2, 0, 0, 0, 0, 0, 0, 0,
                 NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, 0, 0, 0, 0, 0)",
                params![stream.as_bytes(), [0u8; 32]],
            )?;
        }
        found => {
            for upgrade in [FROM_1, FROM_2].iter().skip(found as usize - 1) {
                transaction.execute_batch(upgrade)?;
            }
        }
    }
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()?;
    Ok(())
}

fn format(db: &Connection) -> Result<i64, OutboxError> {
    Ok(db.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Looks before anything is written: the file may be somebody else's.
fn check_format(db: &Connection) -> Result<(), OutboxError> {
    let found = format(db)?;
    let tables: Vec<String> = db
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'peer' ORDER BY name",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let known: &[&str] = match found {
        1 => &["asked", "entries", "outbox"],
        2 => &["asked", "entries", "outbox", "prepared"],
        _ => &["asked", "content", "entries", "outbox", "prepared"],
    };
    // A newer one may have more.
    let ours = known.iter().all(|name| tables.iter().any(|table| table == name))
        && (found > FORMAT || tables.len() == known.len());
    match found {
        0 if tables.is_empty() => Ok(()),
        1..=FORMAT if ours => Ok(()),
        found if ours && found > FORMAT => Err(OutboxError::NewerFormat { found }),
        _ => Err(OutboxError::NotAnOutbox),
    }
}

fn trim(db: &mut Connection, head: Head) -> Result<State, OutboxError> {
    let transaction = db.transaction()?;
    // Another epoch's numbers say nothing of the entries here.
    if read_state(&transaction)?.position.epoch != head.epoch {
        return Err(OutboxError::Corrupt("an acknowledgement of another epoch"));
    }
    let acknowledged = delete(
        &transaction,
        "generation = (SELECT current FROM outbox) AND seq < ?1",
        head.next_seq.0 as i64,
    )?;
    transaction
        .prepare_cached("UPDATE outbox SET acked_commit = max(acked_commit, ?1)")?
        .execute([acknowledged])?;
    set_position(&transaction, head)?;
    let state = read_state(&transaction)?;
    kill_point!("outbox-trim");
    transaction.commit()?;
    Ok(state)
}

fn read_state(db: &Connection) -> Result<State, OutboxError> {
    let mut select = db.prepare_cached(
        "SELECT stream, epoch, next_seq, chain, last_commit, open_id, reason,
                coalesce((SELECT max(seq) FROM entries WHERE generation = current), next_seq - 1),
                queued_entries, queued_bytes, current_from, acked_commit, current, base_noted,
                snapshot_commit, collapsed, next_ready, appended_bytes, snapshot_at, snapshot_len
         FROM outbox",
    )?;
    let mut state = select.query_row([], |row| {
        let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
        let open_id: Option<[u8; 16]> = row.get(5)?;
        let reason: Option<Vec<u8>> = row.get(6)?;
        Ok(State {
            stream: StreamId::from_bytes(row.get(0)?),
            position: sender::Position {
                epoch: Epoch(number(1)?),
                next_seq: SeqNo(number(2)?),
                chain: Chain(row.get(3)?),
            },
            last_commit: number(4)?,
            wish: open_id.map(|open_id| Wish {
                open_id: OpenId(open_id),
                // Only for those who read the log: an unknown one is told as what it amounts to.
                reason: reason
                    .and_then(|bytes| ResyncReason::decode(&bytes).ok())
                    .unwrap_or(ResyncReason::Requested),
            }),
            last_seq: SeqNo(number(7)?),
            entries: number(8)?,
            bytes: number(9)?,
            from_commit: number(10)?,
            acked_commit: number(11)?,
            generation: row.get(12)?,
            base_noted: row.get(13)?,
            snapshot_commit: number(14)?,
            collapsed: row.get(15)?,
            next_ready: row.get(16)?,
            appended_bytes: number(17)?,
            snapshot_at: number(18)?,
            snapshot_len: number(19)?,
            asked: Vec::new(),
        })
    })?;
    state.asked = db
        .prepare_cached("SELECT open_id FROM asked ORDER BY number")?
        .query_map([], |row| row.get(0).map(OpenId))?
        .collect::<Result<_, _>>()?;
    Ok(state)
}

/// The content after the newest entry, as it is kept.
fn load_content(db: &Connection, key: ContentKey) -> Result<Option<Content>, OutboxError> {
    let known: bool = db.query_row("SELECT content_known FROM outbox", [], |row| row.get(0))?;
    if !known {
        return Ok(None);
    }
    let mut select = db.prepare("SELECT name, row, counts, sum FROM content")?;
    let parts = select.query_map([], |row| {
        Ok(Part {
            table: row.get(0)?,
            row: row.get(1)?,
            counts: row.get(2)?,
            sum: ContentSum::from_bytes(row.get(3)?),
        })
    })?;
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Content::of_parts(key, parts)))
}

/// Keeps what changed of the content.
fn save_content(
    db: &Connection,
    before: Option<&Content>,
    after: Option<&Content>,
) -> Result<(), OutboxError> {
    if after.is_some() != before.is_some() {
        db.prepare_cached("UPDATE outbox SET content_known = ?1")?.execute([after.is_some()])?;
        db.prepare_cached("DELETE FROM content")?.execute([])?;
    }
    let Some(after) = after else { return Ok(()) };
    let (gone, come) = after.since(before);
    for (table, row) in gone {
        db.prepare_cached("DELETE FROM content WHERE name = ?1 AND row = ?2")?
            .execute(params![table, row])?;
    }
    for Part { table, row, counts, sum } in come {
        db.prepare_cached("INSERT OR REPLACE INTO content VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![table, row, counts, sum.to_bytes()])?;
    }
    Ok(())
}

/// Puts `entries` behind entry `seq`, each with the hash of the content after it.
fn insert(
    db: &Connection,
    generation: i64,
    mut seq: i64,
    entries: &[NewEntry],
    hashes: &[Option<ContentSum>],
) -> Result<(), OutboxError> {
    let mut insert = db.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (entry, hash) in entries.iter().zip(hashes) {
        seq += 1;
        let meta = EntryMeta {
            seq: SeqNo(seq as u64),
            kind: entry.kind,
            first_commit: entry.first_commit,
            last_commit: entry.last_commit,
            time_ms: entry.time_ms,
            schema_version: entry.schema_version,
            content_hash: *hash,
        };
        let mut buffer = [0; MAX_META_LEN];
        let meta = meta.encode(&mut buffer).map_err(|_| OutboxError::Corrupt("meta"))?;
        insert.execute(params![generation, seq, entry.last_commit as i64, meta, entry.payload])?;
    }
    if let Some(last) = entries.last() {
        db.prepare_cached(
            "UPDATE outbox SET last_commit = max(last_commit, ?1), clean_mark = NULL,
             queued_entries = queued_entries + ?2, queued_bytes = queued_bytes + ?3,
             appended_bytes = appended_bytes + ?3",
        )?
        .execute(params![
            last.last_commit as i64,
            entries.len() as i64,
            entries.iter().map(|entry| entry.payload.len() as i64).sum::<i64>(),
        ])?;
    }
    Ok(())
}

/// Deletes the entries that fit `condition`, in which ?1 stands for `argument`; the last commit
/// among them, or 0.
fn delete(db: &Connection, condition: &str, argument: i64) -> Result<i64, OutboxError> {
    let (entries, bytes, last_commit): (i64, i64, i64) = db
        .prepare_cached(&format!(
            "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(max(last_commit), 0)
             FROM entries WHERE {condition}"
        ))?
        .query_row([argument], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if entries > 0 {
        db.prepare_cached(&format!("DELETE FROM entries WHERE {condition}"))?
            .execute([argument])?;
        db.prepare_cached(
            "UPDATE outbox SET queued_entries = queued_entries - ?1,
             queued_bytes = queued_bytes - ?2",
        )?
        .execute([entries, bytes])?;
    }
    Ok(last_commit)
}

/// Remembers the wish that is about to be replaced or given up.
fn remember_wish(db: &Connection) -> Result<(), OutboxError> {
    db.execute(
        "INSERT INTO asked(open_id) SELECT open_id FROM outbox WHERE open_id IS NOT NULL",
        [],
    )?;
    Ok(())
}

fn set_place(db: &Connection, place: Option<Position>) -> Result<(), OutboxError> {
    db.prepare_cached("UPDATE outbox SET place = ?1")?.execute([place.map(Position::to_bytes)])?;
    Ok(())
}

fn set_position(db: &Connection, head: Head) -> Result<(), OutboxError> {
    db.prepare_cached("UPDATE outbox SET epoch = ?1, next_seq = ?2, chain = ?3")?
        .execute(params![head.epoch.0 as i64, head.next_seq.0 as i64, head.chain.0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(byte: u8) -> NewEntry {
        NewEntry {
            kind: EntryKind::Changeset,
            first_commit: byte.into(),
            last_commit: byte.into(),
            time_ms: 5,
            schema_version: 1,
            payload: vec![byte; 10],
        }
    }

    fn seqs(outbox: &Outbox, first: u64) -> Vec<(u64, u8)> {
        let mut found = Vec::new();
        outbox
            .read(SeqNo(first), |seq, meta, payload| {
                assert_eq!(EntryMeta::decode(meta).unwrap().seq, seq);
                found.push((seq.0, payload[0]));
                true
            })
            .unwrap();
        found
    }

    fn head(epoch: u64, next_seq: u64, open_id: OpenId) -> Head {
        Head {
            epoch: Epoch(epoch),
            open_id,
            next_seq: SeqNo(next_seq),
            chain: Chain([next_seq as u8; 32]),
            base_complete: false,
        }
    }

    const STREAM: StreamId = StreamId::from_bytes([7; 16]);

    fn snapshot(generation: i64) -> StoredSnapshot {
        StoredSnapshot { generation, is_base: true, as_of_commit: 1, as_of_bytes: 0, len: 4096 }
    }

    #[test]
    fn entries_wait_for_their_epoch_and_are_trimmed_when_acknowledged() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        let wish = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::SchemaChanged };
        outbox.begin_next(wish, 0).unwrap();
        outbox.append(&[entry(1), entry(2), entry(3)], None).unwrap();
        assert_eq!(seqs(&outbox, 1), [], "they are of the next generation");
        assert_eq!(outbox.state().unwrap().wish, Some(wish));
        assert!(outbox.opened(head(1, 1, wish.open_id)).unwrap());
        assert_eq!(seqs(&outbox, 2), [(2, 2), (3, 3)]);
        let state = outbox.trim(head(1, 3, wish.open_id)).unwrap();
        assert_eq!((state.acked_commit, state.entries, state.bytes), (2, 1, 10));
        assert_eq!(seqs(&outbox, 1), [(3, 3)]);
        let state = outbox.append(&[entry(4)], None).unwrap();
        assert_eq!((state.last_seq, state.entries, state.bytes), (SeqNo(4), 2, 20));
        assert_eq!(state.last_commit, 4);
        outbox.trim(head(1, 5, wish.open_id)).unwrap();
        assert_eq!(outbox.append(&[entry(5)], None).unwrap().last_seq, SeqNo(5), "numbers go on");
    }

    #[test]
    fn a_second_wish_replaces_the_first_and_what_waited_for_it() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        let first = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::FirstAttach };
        let second = Wish { open_id: OpenId([2; 16]), reason: ResyncReason::SchemaChanged };
        outbox.begin_next(first, 0).unwrap();
        outbox.append(&[entry(1)], None).unwrap();
        outbox.begin_next(second, 1).unwrap();
        outbox.append(&[entry(2)], None).unwrap();
        assert!(!outbox.opened(head(1, 1, first.open_id)).unwrap(), "granted too late");
        assert_eq!(seqs(&outbox, 1), []);
        assert!(outbox.opened(head(2, 1, second.open_id)).unwrap());
        assert_eq!(seqs(&outbox, 1), [(1, 2)]);
    }

    #[test]
    fn entries_are_not_given_up_for_an_answer_that_does_not_fit() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        let wish = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::FirstAttach };
        outbox.begin_next(wish, 0).unwrap();
        outbox.append(&[entry(1), entry(2)], None).unwrap();
        assert!(outbox.opened(head(1, 1, wish.open_id)).unwrap());
        let before = outbox.state().unwrap();
        outbox.opened(head(1, 1, wish.open_id)).unwrap_err();
        outbox.opened(head(2, 1, OpenId([9; 16]))).unwrap_err();
        outbox.trim(head(2, 3, wish.open_id)).unwrap_err();
        assert_eq!(outbox.state().unwrap(), before);
        assert_eq!(seqs(&outbox, 1), [(1, 1), (2, 2)]);
    }

    #[test]
    fn the_counts_are_those_of_the_entries() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        let first = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::FirstAttach };
        outbox.begin_next(first, 0).unwrap();
        outbox.append(&[entry(1), entry(2), entry(3)], None).unwrap();
        outbox.opened(head(1, 1, first.open_id)).unwrap();
        outbox.trim(head(1, 2, first.open_id)).unwrap();
        let second = Wish { open_id: OpenId([2; 16]), reason: ResyncReason::QueueFull };
        outbox.begin_next(second, 3).unwrap();
        let state = outbox.append(&[entry(4)], None).unwrap();
        assert_eq!((state.entries, state.bytes), (3, 30), "both generations count");
        outbox.collapse().unwrap();
        let state = outbox.state().unwrap();
        assert_eq!((state.entries, state.bytes, state.wish), (0, 0, None));
    }

    #[test]
    fn what_was_appended_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db-synddb");
        let outbox = Outbox::open(&path, None, STREAM).unwrap();
        outbox.append(&[entry(1)], None).unwrap();
        assert!(!outbox.set_clean_mark(b"mark").unwrap(), "no snapshot is stored");
        outbox.note_snapshot(&snapshot(0), entry(2)).unwrap().unwrap();
        assert!(outbox.set_clean_mark(b"mark").unwrap());
        drop(outbox);
        let outbox = Outbox::open(&path, None, StreamId::from_bytes([8; 16])).unwrap();
        assert_eq!(outbox.state().unwrap().stream, STREAM, "a stream keeps its id");
        assert_eq!(outbox.take_clean_mark().unwrap(), Some(b"mark".to_vec()));
        assert_eq!(outbox.take_clean_mark().unwrap(), None, "once");
        assert_eq!(seqs(&outbox, 1), [(1, 1), (2, 2)]);
        outbox.close();
        assert_eq!(outbox.state(), Err(OutboxError::Closed));
    }

    #[test]
    fn a_collapsed_outbox_takes_nothing_in_before_the_next_generation() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        outbox.append(&[entry(1), entry(2)], None).unwrap();
        outbox.collapse().unwrap();
        outbox.append(&[entry(3)], None).unwrap_err();
        assert_eq!(outbox.note_snapshot(&snapshot(0), entry(3)).unwrap(), None);
        let wish = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::QueueFull };
        let generation = outbox.begin_next(wish, 3).unwrap();
        outbox.append(&[entry(4)], None).unwrap();
        assert!(outbox.opened(head(1, 1, wish.open_id)).unwrap());
        let state = outbox.state().unwrap();
        assert_eq!((state.generation, state.collapsed), (generation, false));
        assert_eq!(seqs(&outbox, 1), [(1, 4)]);
    }

    #[test]
    fn a_snapshot_of_another_generation_is_not_noted() {
        let outbox = Outbox::in_memory(STREAM).unwrap();
        let first = Wish { open_id: OpenId([1; 16]), reason: ResyncReason::FirstAttach };
        let second = Wish { open_id: OpenId([2; 16]), reason: ResyncReason::SchemaChanged };
        let replaced = outbox.begin_next(first, 0).unwrap();
        let awaited = outbox.begin_next(second, 1).unwrap();
        assert!(!outbox.opened(head(1, 1, first.open_id)).unwrap());
        let between = outbox.state().unwrap().generation;
        assert!(between != awaited, "{replaced}, {between}, {awaited}");
        assert!(outbox.opened(head(2, 1, second.open_id)).unwrap());
        for other in [0, between] {
            assert_eq!(outbox.note_snapshot(&snapshot(other), entry(1)).unwrap(), None);
        }
        assert!(outbox.note_snapshot(&snapshot(awaited), entry(1)).unwrap().is_some());
    }

    #[test]
    fn an_outbox_follows_its_database_and_no_copy_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (home, away) = (dir.path().join("app.db"), dir.path().join("moved.db"));
        std::fs::write(&home, b"").unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let outbox = Outbox::in_memory(STREAM).unwrap();
        outbox.belongs_to(&path(&home)).unwrap();
        let refused = outbox.belongs_to(&path(&away)).unwrap_err();
        assert_eq!(refused, OutboxError::OtherDatabase { database: path(&home) });
        std::fs::rename(&home, &away).unwrap();
        outbox.belongs_to(&path(&away)).unwrap();
        outbox.belongs_to(&path(&away)).unwrap();
    }

    #[test]
    fn a_damaged_outbox_is_put_aside_for_an_empty_one_of_the_same_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db-synddb");
        let outbox = Outbox::open(&path, None, STREAM).unwrap();
        outbox.belongs_to("/somewhere/app.db").unwrap();
        outbox.append(&[entry(1)], None).unwrap();
        let other = Connection::open(&path).unwrap();
        other
            .execute_batch(
                "PRAGMA writable_schema = on;
                 UPDATE sqlite_schema SET sql = 'nonsense' WHERE name = 'entries';
                 PRAGMA schema_version = 1000",
            )
            .unwrap();
        let error = outbox.append(&[entry(2)], None).unwrap_err();
        assert!(error.is_damage(), "{error}");
        drop(other);
        let state = outbox.begin_anew().unwrap();
        assert_eq!((state.stream, state.entries, state.last_commit), (STREAM, 0, 0));
        assert_eq!(outbox.append(&[entry(3)], None).unwrap().entries, 1);
        assert!(dir.path().join("app.db-synddb-damaged").exists());
        drop(outbox);
        let outbox = Outbox::open(&path, None, StreamId::from_bytes([8; 16])).unwrap();
        assert_eq!(outbox.state().unwrap().stream, STREAM);
        outbox.belongs_to("/somewhere/app.db").unwrap();
        assert_eq!(seqs(&outbox, 1), [(1, 3)]);
    }

    #[test]
    fn an_outbox_of_format_1_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db-synddb");
        let outbox = Outbox::open(&path, None, STREAM).unwrap();
        outbox.append(&[entry(1), entry(2)], None).unwrap();
        let state = outbox.state().unwrap();
        drop(outbox);
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "DROP TABLE prepared; DROP TABLE content; ALTER TABLE outbox DROP COLUMN place;
             ALTER TABLE outbox DROP COLUMN next_ready;
             ALTER TABLE outbox DROP COLUMN content_known;
             ALTER TABLE outbox DROP COLUMN appended_bytes;
             ALTER TABLE outbox DROP COLUMN snapshot_at;
             ALTER TABLE outbox DROP COLUMN snapshot_len;
             PRAGMA user_version = 1",
        )
        .unwrap();
        drop(db);
        let outbox = Outbox::open(&path, None, STREAM).unwrap();
        // Nobody counted them.
        assert_eq!(outbox.state().unwrap(), State { appended_bytes: 0, ..state });
        assert_eq!(outbox.content().unwrap(), None);
        let traces = outbox.traces().unwrap();
        assert!(traces.place.is_none() && traces.prepared.is_empty());
        outbox.append(&[entry(3)], None).unwrap();
        assert_eq!(seqs(&outbox, 1), [(1, 1), (2, 2), (3, 3)]);
        drop(outbox);
        let found = format(&Connection::open(&path).unwrap()).unwrap();
        assert_eq!(found, FORMAT);
    }

    #[test]
    fn a_foreign_file_is_refused_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        let before = std::fs::read(&path).unwrap();
        let refused = Outbox::open(&path, None, STREAM).unwrap_err();
        assert_eq!(refused, OutboxError::NotAnOutbox);
        assert_eq!(std::fs::read(&path).unwrap(), before);

        let path = dir.path().join("newer");
        drop(Outbox::open(&path, None, STREAM).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let refused = Outbox::open(&path, None, STREAM).unwrap_err();
        assert_eq!(refused, OutboxError::NewerFormat { found: 99 });

        std::fs::write(dir.path().join("text"), [b'x'; 5000]).unwrap();
        let refused = Outbox::open(&dir.path().join("text"), None, STREAM).unwrap_err();
        assert_eq!(refused, OutboxError::NotAnOutbox);

        let path = dir.path().join("named");
        drop(Outbox::open(&path, Some(STREAM), STREAM).unwrap());
        let other = StreamId::from_name("other");
        let refused = Outbox::open(&path, Some(other), STREAM).unwrap_err();
        assert_eq!(refused, OutboxError::OtherStream { found: STREAM, configured: other });
    }
}
