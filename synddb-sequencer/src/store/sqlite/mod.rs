//! The log in one directory, no server needed.
//!
//! ```text
//!  DIR/log.db                     streams, epochs, entries, staged pieces (WAL, synchronous=FULL)
//!  DIR/snapshots/STREAM/ID        database images
//!  DIR/lock                       held by the process that serves the directory
//! ```

mod images;
mod writer;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use synddb_core::{
    Chain, Epoch, OpenId, SeqNo, SnapshotId, StreamId,
    receiver::Receiver,
    wire::{
        EntryKind,
        message::{ResyncReason, SnapshotProgress},
    },
};

use self::{images::Images, writer::Writer};
use super::{
    Change, EpochInfo, LogStore, MAX_NUMBER, Prunable, Received, SnapshotInfo, SnapshotOutcome,
    StoreError, StoredEntry, StreamInfo,
};

/// Version of the file's layout, in `PRAGMA user_version`.
const FORMAT: i64 = 3;
/// Marks the file as a log, in `PRAGMA application_id`: "SYDL".
const APPLICATION_ID: i64 = 0x5359_444C;
/// Connections for reading that are kept open.
const MAX_IDLE_READERS: usize = 8;

const SCHEMA: &str = "
CREATE TABLE streams(
  stream BLOB PRIMARY KEY, name TEXT NOT NULL, receiver BLOB NOT NULL, created_ms INTEGER NOT NULL,
  owner TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE epochs(
  stream BLOB NOT NULL, epoch INTEGER NOT NULL, open_id BLOB NOT NULL, genesis BLOB NOT NULL,
  reason BLOB NOT NULL, opened_ms INTEGER NOT NULL,
  pruned INTEGER NOT NULL DEFAULT 0, pruned_chain BLOB,
  PRIMARY KEY (stream, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE entries(
  stream BLOB NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, snapshot INTEGER NOT NULL,
  meta BLOB NOT NULL, chain BLOB NOT NULL, received_ms INTEGER NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY (stream, epoch, seq)
) STRICT;
CREATE INDEX snapshot_notes ON entries(stream, epoch, seq) WHERE snapshot;
CREATE TABLE parts(
  stream BLOB NOT NULL, offset INTEGER NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (stream, offset)
) STRICT;
CREATE TABLE snapshots(
  stream BLOB NOT NULL, id BLOB NOT NULL, epoch INTEGER NOT NULL, len INTEGER NOT NULL,
  sha256 BLOB, created_ms INTEGER NOT NULL,
  PRIMARY KEY (stream, id)
) STRICT, WITHOUT ROWID;
";

/// From format 1, which knew no owners, to 2.
const ADD_OWNERS: &str = "ALTER TABLE streams ADD COLUMN owner TEXT NOT NULL DEFAULT ''";

/// From format 2, which kept everything.
const ADD_PRUNED: &str = "
ALTER TABLE epochs ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN pruned_chain BLOB;
";

/// A [`LogStore`] in a directory of the local disk.
#[derive(Debug)]
pub struct SqliteStore {
    db: PathBuf,
    images: Images,
    readers: Mutex<Vec<Connection>>,
    writer: Option<Writer>,
    /// Dropped last: nobody else may come in before the writer has ended.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the log in `dir` for reading and writing, and makes it where there is none. One
    /// process at a time can.
    ///
    /// # Errors
    /// `InUse`, `Io`, `Sqlite`, `NotALog`, `NewerFormat`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|error| io(dir, &error))?;
        let lock = lock(dir)?;
        let db = dir.join("log.db");
        let mut connection = Connection::open(&db)?;
        prepare(&mut connection)?;
        images::sync_dir(dir)?;
        Ok(Self {
            db,
            images: Images::new(dir.join("snapshots")),
            readers: Mutex::default(),
            writer: Some(Writer::start(connection)?),
            _lock: Some(lock),
        })
    }

    /// Opens the log in `dir` for reading, beside the process that serves it or without one.
    ///
    /// # Errors
    /// `NoLog`, `Sqlite`, `NotALog`, `NewerFormat`.
    pub fn open_read_only(dir: &Path) -> Result<Self, StoreError> {
        let db = dir.join("log.db");
        if !db.is_file() {
            return Err(StoreError::NoLog { path: dir.display().to_string() });
        }
        let store = Self {
            db,
            images: Images::new(dir.join("snapshots")),
            readers: Mutex::default(),
            writer: None,
            _lock: None,
        };
        store.read(|connection| match check_format(connection)? {
            Some(FORMAT) => Ok(()),
            Some(found) => Err(StoreError::OlderFormat { found }),
            None => Err(StoreError::NotALog),
        })?;
        Ok(store)
    }

    /// Gives what was pruned back to the file system.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn shrink(&self) -> Result<(), StoreError> {
        self.writer()?;
        let connection = Connection::open(&self.db)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(())
    }

    fn writer(&self) -> Result<&Writer, StoreError> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                // A reader in WAL mode needs the right to write to the shared memory beside it.
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.db, flags)?;
                connection.busy_timeout(Duration::from_secs(10))?;
                connection.pragma_update(None, "query_only", true)?;
                connection
            }
        };
        let result = work(&connection);
        let mut idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_READERS {
            idle.push(connection);
        }
        result
    }

    fn snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
    ) -> Result<Option<SnapshotInfo>, StoreError> {
        Ok(self.snapshots(stream)?.into_iter().find(|info| info.id == id))
    }

    fn progress(
        &self,
        stream: StreamId,
        info: &SnapshotInfo,
    ) -> Result<SnapshotProgress, StoreError> {
        let complete = info.sha256.is_some();
        let offset = if complete { info.len } else { self.images.len(stream, info.id)? };
        Ok(SnapshotProgress { id: info.id, offset, complete })
    }
}

impl LogStore for SqliteStore {
    fn receiver(&self, stream: StreamId) -> Result<Receiver, StoreError> {
        self.read(|connection| {
            let state: Option<Vec<u8>> = connection
                .prepare_cached("SELECT receiver FROM streams WHERE stream = ?1")?
                .query_row([stream.as_bytes()], |row| row.get(0))
                .optional()?;
            state.map_or(Ok(Receiver::new(stream)), |bytes| decode_receiver(&bytes))
        })
    }

    fn owner(&self, stream: StreamId) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT owner FROM streams WHERE stream = ?1")?
                .query_row([stream.as_bytes()], |row| row.get(0))
                .optional()
                .map_err(StoreError::from)
        })
    }

    fn commit(
        &self,
        expected: &Receiver,
        after: &Receiver,
        change: Change,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let writer = self.writer()?;
        let stream = after.stream();
        let fresh = encode_receiver(&Receiver::new(stream))?;
        let expected = encode_receiver(expected)?;
        let state = encode_receiver(after)?;
        let head = after.head();
        writer.run(move |db| {
            let stored: Option<Vec<u8>> = db
                .prepare_cached("SELECT receiver FROM streams WHERE stream = ?1")?
                .query_row([stream.as_bytes()], |row| row.get(0))
                .optional()?;
            if *stored.as_ref().unwrap_or(&fresh) != expected {
                return Err(StoreError::Conflict);
            }
            db.prepare_cached(
                "INSERT INTO streams(stream, name, receiver, created_ms) VALUES (?1, '', ?2, ?3)
                 ON CONFLICT(stream) DO UPDATE SET receiver = excluded.receiver",
            )?
            .execute(params![stream.as_bytes(), state, now_ms as i64])?;
            apply(db, stream, &head, &change, now_ms)
        })
    }

    fn staged(&self, stream: StreamId) -> Result<Vec<u8>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT data FROM parts WHERE stream = ?1 ORDER BY offset")?;
            let mut rows = statement.query([stream.as_bytes()])?;
            let mut payload = Vec::new();
            while let Some(row) = rows.next()? {
                payload.extend_from_slice(blob(row, 0)?);
            }
            Ok(payload)
        })
    }

    fn chain_at(
        &self,
        stream: StreamId,
        epoch: Epoch,
        seq: SeqNo,
    ) -> Result<Option<Chain>, StoreError> {
        let Ok(number) = i64::try_from(seq.0) else { return Ok(None) };
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT chain FROM entries WHERE stream = ?1 AND epoch = ?2 AND seq = ?3
                     UNION ALL
                     SELECT pruned_chain FROM epochs
                     WHERE stream = ?1 AND epoch = ?2 AND pruned = ?3 AND pruned > 0",
                )?
                .query_row(params![stream.as_bytes(), epoch.0 as i64, number], |row| row.get(0))
                .optional()
                .map(|chain| chain.map(Chain))
                .map_err(StoreError::from)
        })
    }

    fn entries(
        &self,
        stream: StreamId,
        epoch: Epoch,
        from: SeqNo,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let Ok(number) = i64::try_from(from.0) else { return Ok(Vec::new()) };
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT epoch, seq, meta, payload, chain, received_ms FROM entries
                 WHERE stream = ?1 AND epoch = ?2 AND seq >= ?3 ORDER BY seq",
            )?;
            let mut rows = statement.query(params![stream.as_bytes(), epoch.0 as i64, number])?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                bytes += blob(row, 3)?.len();
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(stored_entry(row)?);
            }
            Ok(entries)
        })
    }

    fn last_received(
        &self,
        stream: StreamId,
        epoch: Epoch,
        until: SeqNo,
    ) -> Result<Option<Received>, StoreError> {
        let until = until.0.min(MAX_NUMBER) as i64;
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT seq, received_ms FROM entries
                     WHERE stream = ?1 AND epoch = ?2 AND seq <= ?3 ORDER BY seq DESC LIMIT 1",
                )?
                .query_row(params![stream.as_bytes(), epoch.0 as i64, until], |row| {
                    Ok(Received { seq: SeqNo(number(row, 0)?), ms: number(row, 1)? })
                })
                .optional()
                .map_err(StoreError::from)
        })
    }

    fn snapshot_notes(
        &self,
        stream: StreamId,
        epoch: Epoch,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT epoch, seq, meta, payload, chain, received_ms FROM entries
                 WHERE stream = ?1 AND epoch = ?2 AND snapshot ORDER BY seq DESC",
            )?;
            let rows =
                statement.query_map(params![stream.as_bytes(), epoch.0 as i64], stored_entry)?;
            rows.map(|row| row.map_err(StoreError::from)).collect()
        })
    }

    fn streams(&self) -> Result<Vec<StreamInfo>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, receiver, created_ms, owner FROM streams ORDER BY created_ms",
            )?;
            let mut rows = statement.query([])?;
            let mut streams = Vec::new();
            while let Some(row) = rows.next()? {
                streams.push(StreamInfo {
                    name: row.get(0)?,
                    receiver: decode_receiver(blob(row, 1)?)?,
                    created_ms: number(row, 2)?,
                    owner: row.get(3)?,
                });
            }
            Ok(streams)
        })
    }

    fn epochs(&self, stream: StreamId) -> Result<Vec<EpochInfo>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT epoch, open_id, genesis, reason, opened_ms, pruned FROM epochs
                 WHERE stream = ?1 ORDER BY epoch",
            )?;
            let mut rows = statement.query([stream.as_bytes()])?;
            let mut epochs = Vec::new();
            while let Some(row) = rows.next()? {
                epochs.push(EpochInfo {
                    epoch: Epoch(number(row, 0)?),
                    open_id: OpenId(row.get(1)?),
                    genesis: Chain(row.get(2)?),
                    reason: ResyncReason::decode(blob(row, 3)?)
                        .map_err(|_| StoreError::Corrupt("an epoch's reason"))?,
                    opened_ms: number(row, 4)?,
                    pruned: SeqNo(number(row, 5)?),
                });
            }
            Ok(epochs)
        })
    }

    fn snapshots(&self, stream: StreamId) -> Result<Vec<SnapshotInfo>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, epoch, len, sha256 FROM snapshots
                 WHERE stream = ?1 ORDER BY created_ms",
            )?;
            let rows = statement.query_map([stream.as_bytes()], |row| {
                Ok(SnapshotInfo {
                    id: SnapshotId(row.get(0)?),
                    epoch: Epoch(number(row, 1)?),
                    len: number(row, 2)?,
                    sha256: row.get(3)?,
                })
            })?;
            rows.map(|row| row.map_err(StoreError::from)).collect()
        })
    }

    fn begin_snapshot(
        &self,
        stream: StreamId,
        epoch: Epoch,
        id: SnapshotId,
        len: u64,
        now_ms: u64,
    ) -> Result<SnapshotOutcome, StoreError> {
        let writer = self.writer()?;
        let _guard = self.images.guard(stream);
        if let Some(info) = self.snapshot(stream, id)? {
            if info.len == len {
                return Ok(SnapshotOutcome::Progress(self.progress(stream, &info)?));
            }
            // Other bytes under a known name. What is complete stays.
            if info.sha256.is_some() {
                return Ok(SnapshotOutcome::Invalid);
            }
        }
        for abandoned in self.snapshots(stream)?.iter().filter(|info| info.sha256.is_none()) {
            self.images.remove(stream, abandoned.id)?;
        }
        self.images.create(stream, id)?;
        writer.run(move |db| {
            db.execute(
                "DELETE FROM snapshots WHERE stream = ?1 AND sha256 IS NULL",
                [stream.as_bytes()],
            )?;
            db.execute(
                "INSERT INTO snapshots(stream, id, epoch, len, sha256, created_ms)
                 VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
                params![stream.as_bytes(), id.0, epoch.0 as i64, len as i64, now_ms as i64],
            )?;
            Ok(())
        })?;
        Ok(SnapshotOutcome::Progress(SnapshotProgress { id, offset: 0, complete: false }))
    }

    fn write_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
        offset: u64,
        data: &[u8],
    ) -> Result<SnapshotOutcome, StoreError> {
        self.writer()?;
        let _guard = self.images.guard(stream);
        let Some(info) = self.snapshot(stream, id)? else { return Ok(SnapshotOutcome::Invalid) };
        let progress = self.progress(stream, &info)?;
        if offset > progress.offset {
            return Ok(SnapshotOutcome::Gap(progress));
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > info.len {
            return Ok(SnapshotOutcome::Invalid);
        }
        if end <= progress.offset {
            return Ok(SnapshotOutcome::Progress(progress));
        }
        // Shorter than `data`, since `end` lies behind what is here.
        let known = (progress.offset - offset) as usize;
        self.images.append(stream, id, progress.offset, &data[known..])?;
        kill_point!("snapshot-chunk");
        Ok(SnapshotOutcome::Progress(SnapshotProgress { offset: end, ..progress }))
    }

    fn end_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
        len: u64,
        sha256: &[u8; 32],
    ) -> Result<SnapshotOutcome, StoreError> {
        let writer = self.writer()?;
        let _guard = self.images.guard(stream);
        let Some(info) = self.snapshot(stream, id)? else { return Ok(SnapshotOutcome::Invalid) };
        if let Some(known) = info.sha256 {
            return Ok(if known == *sha256 && info.len == len {
                SnapshotOutcome::Progress(self.progress(stream, &info)?)
            } else {
                SnapshotOutcome::Invalid
            });
        }
        let progress = self.progress(stream, &info)?;
        if info.len == len && progress.offset < len {
            return Ok(SnapshotOutcome::Gap(progress));
        }
        if info.len != len || self.images.seal(stream, id)? != *sha256 {
            self.images.create(stream, id)?;
            return Ok(SnapshotOutcome::Invalid);
        }
        kill_point!("snapshot-sealed");
        let sha256 = *sha256;
        writer.run(move |db| {
            db.execute(
                "UPDATE snapshots SET sha256 = ?3 WHERE stream = ?1 AND id = ?2",
                params![stream.as_bytes(), id.0, sha256],
            )?;
            Ok(())
        })?;
        Ok(SnapshotOutcome::Progress(SnapshotProgress { id, offset: len, complete: true }))
    }

    fn snapshot_progress(
        &self,
        stream: StreamId,
        id: Option<SnapshotId>,
    ) -> Result<Option<SnapshotProgress>, StoreError> {
        let wanted = |info: &SnapshotInfo| match id {
            Some(id) => info.id == id,
            None => info.sha256.is_none(),
        };
        match self.snapshots(stream)?.into_iter().find(wanted) {
            Some(info) => self.progress(stream, &info).map(Some),
            None => Ok(None),
        }
    }

    fn damage(&self) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            let found: String =
                connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            Ok((found != "ok").then_some(found))
        })
    }

    fn prune(&self, stream: StreamId, prunable: &Prunable) -> Result<(), StoreError> {
        let writer = self.writer()?;
        let _guard = self.images.guard(stream);
        let Prunable { epoch, seq, snapshots } = prunable.clone();
        let chain = self.chain_at(stream, epoch, seq)?;
        if chain.is_none() && seq > SeqNo(0) {
            return Err(StoreError::Conflict);
        }
        let dropped = snapshots.clone();
        writer.run(move |db| {
            let (stream, epoch) = (stream.as_bytes(), epoch.0 as i64);
            for table in ["entries", "epochs"] {
                let sql = format!("DELETE FROM {table} WHERE stream = ?1 AND epoch < ?2");
                db.execute(&sql, params![stream, epoch])?;
            }
            db.execute(
                "DELETE FROM entries WHERE stream = ?1 AND epoch = ?2 AND seq <= ?3",
                params![stream, epoch, seq.0 as i64],
            )?;
            db.execute(
                "UPDATE epochs SET pruned = ?3, pruned_chain = ?4
                 WHERE stream = ?1 AND epoch = ?2 AND pruned < ?3",
                params![stream, epoch, seq.0 as i64, chain.map(|chain| chain.0)],
            )?;
            for id in &dropped {
                db.execute(
                    "DELETE FROM snapshots WHERE stream = ?1 AND id = ?2",
                    params![stream, id.0],
                )?;
            }
            Ok(())
        })?;
        // Last: a row without its file would be a fault, a file without its row is only in the way.
        snapshots.iter().try_for_each(|id| self.images.remove(stream, *id))
    }

    fn open_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
    ) -> Result<Box<dyn std::io::Read + Send>, StoreError> {
        Ok(Box::new(self.images.open(stream, id)?))
    }
}

/// Writes what comes with a new state, inside the transaction that writes the state.
fn apply(
    db: &Connection,
    stream: StreamId,
    head: &synddb_core::wire::message::Head,
    change: &Change,
    now_ms: u64,
) -> Result<(), StoreError> {
    let drop_parts = || -> Result<(), StoreError> {
        db.prepare_cached("DELETE FROM parts WHERE stream = ?1")?.execute([stream.as_bytes()])?;
        Ok(())
    };
    match change {
        Change::Create { name, owner } => {
            db.prepare_cached("UPDATE streams SET name = ?2, owner = ?3 WHERE stream = ?1")?
                .execute(params![stream.as_bytes(), name, owner])?;
        }
        Change::Session { name: None } => {}
        Change::Session { name: Some(name) } => {
            db.prepare_cached("UPDATE streams SET name = ?2 WHERE stream = ?1")?
                .execute(params![stream.as_bytes(), name])?;
        }
        Change::OpenEpoch { reason } => {
            drop_parts()?;
            let mut buffer = [0; 16];
            let reason = reason.encode(&mut buffer).map_err(|_| StoreError::Corrupt("a reason"))?;
            db.prepare_cached(
                "INSERT INTO epochs(stream, epoch, open_id, genesis, reason, opened_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                stream.as_bytes(),
                head.epoch.0 as i64,
                head.open_id.0,
                head.chain.0,
                reason,
                now_ms as i64
            ])?;
        }
        Change::Append(entries) => {
            drop_parts()?;
            let mut insert = db.prepare_cached(
                "INSERT INTO entries(stream, epoch, seq, snapshot, meta, chain, received_ms, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            for entry in entries {
                let meta = synddb_core::wire::EntryMeta::decode(&entry.meta)
                    .map_err(|_| StoreError::Corrupt("an entry's meta"))?;
                insert.execute(params![
                    stream.as_bytes(),
                    head.epoch.0 as i64,
                    entry.seq.0 as i64,
                    meta.kind == EntryKind::Snapshot,
                    entry.meta,
                    entry.chain.0,
                    entry.received_ms as i64,
                    entry.payload
                ])?;
            }
        }
        Change::Stage { offset, data } => {
            if *offset == 0 {
                drop_parts()?;
            }
            db.prepare_cached("INSERT INTO parts(stream, offset, data) VALUES (?1, ?2, ?3)")?
                .execute(params![stream.as_bytes(), *offset as i64, data])?;
        }
        Change::Unstage => drop_parts()?,
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: dir.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(io(&path, &error)),
    }
}

fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::from_secs(10))?;
    // Before anything is changed: the file may be somebody else's.
    let found = check_format(connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    if found != Some(FORMAT) {
        let transaction = connection.transaction()?;
        match found {
            None => transaction.execute_batch(SCHEMA)?,
            Some(found) => {
                for upgrade in [ADD_OWNERS, ADD_PRUNED].iter().skip(found as usize - 1) {
                    transaction.execute_batch(upgrade)?;
                }
            }
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()?;
    }
    Ok(())
}

/// The log's format, which is known here; `None` where the file is empty.
fn check_format(connection: &Connection) -> Result<Option<i64>, StoreError> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let found = pragma("user_version")?;
    if pragma("application_id")? == APPLICATION_ID {
        return match found {
            1..=FORMAT => Ok(Some(found)),
            _ => Err(StoreError::NewerFormat { found }),
        };
    }
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if objects == 0 && found == 0 { Ok(None) } else { Err(StoreError::NotALog) }
}

fn stored_entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    Ok(StoredEntry {
        epoch: Epoch(number(row, 0)?),
        seq: SeqNo(number(row, 1)?),
        meta: row.get(2)?,
        payload: row.get(3)?,
        chain: Chain(row.get(4)?),
        received_ms: number(row, 5)?,
    })
}

fn blob<'r>(row: &'r Row<'_>, at: usize) -> Result<&'r [u8], StoreError> {
    row.get_ref(at)?.as_blob().map_err(|_| StoreError::Corrupt("a column"))
}

/// Numbers are stored as the i64 with the same bits.
fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|number| number as u64)
}

fn encode_receiver(receiver: &Receiver) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(receiver).map_err(|_| StoreError::Corrupt("a stream's state"))
}

fn decode_receiver(bytes: &[u8]) -> Result<Receiver, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Corrupt("a stream's state"))
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Io { path: path.display().to_string(), message: error.to_string() }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error.to_string())
    }
}
