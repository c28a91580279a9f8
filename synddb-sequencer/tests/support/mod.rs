//! Logs on disk, made entry by entry, beside the databases that they are of.
#![allow(dead_code, unreachable_pub)] // each test program uses its part

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use sha2::{Digest, Sha256};
use synddb_core::{
    Epoch, OpenId, SeqNo, SnapshotId, StreamId,
    changeset::{ChangesetWriter, Value},
    content::ContentKey,
    wire::{
        EntryKind, EntryMeta, SnapshotNote,
        message::{Head, OpenEpoch, ResyncReason},
    },
};
use synddb_sequencer::{
    replica::content_of,
    store::{Change, LogStore, NewEntry, SnapshotOutcome, SqliteStore},
};

/// A data directory, open for writing.
pub struct Log {
    dir: tempfile::TempDir,
    pub store: SqliteStore,
}

impl Log {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("out")).unwrap();
        Self { store: SqliteStore::open(&dir.path().join("data")).unwrap(), dir }
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A path in a folder for results.
    pub fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    /// What is in the folder for results.
    pub fn results(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.dir.path().join("out")).unwrap();
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The log's database, to damage it.
    pub fn sql(&self, sql: &str) -> usize {
        Connection::open(self.data().join("log.db")).unwrap().execute(sql, []).unwrap()
    }

    /// The file of a snapshot, to damage it.
    pub fn image(&self, stream: StreamId, id: SnapshotId) -> PathBuf {
        self.data().join("snapshots").join(stream.to_string()).join(id.to_string())
    }

    /// The data directory, closed.
    pub fn close(self) -> tempfile::TempDir {
        self.dir
    }

    /// The stream "orders". Its epoch 1 never got a base. Epoch 2 has one, told by entry 1, and a
    /// snapshot as of entry 5, told by entry 7; entry 9 is the last. Entry 1 came at 1020 ms, and
    /// each of the others 10 ms after the one before it.
    pub fn orders(&self) -> Source<'_> {
        let source = self.source("orders");
        source.at(1000).open_epoch();
        source.insert(1, "before the base");
        source.at(1010).open_epoch();
        source.at(1020).snapshot();
        source.at(1030).insert(2, "b");
        source.at(1040).update(1, "a");
        source.at(1050).insert(3, "c");
        source.at(1060).delete(2);
        let note = source.upload();
        source.at(1070).insert(4, "d");
        source.at(1080).tell(&note);
        source.at(1090).update(4, "D");
        source.at(1100).insert(2, "b again");
        source
    }

    /// A stream of a new database: in WAL mode, with the table `t(id INTEGER PRIMARY KEY, v)`.
    pub fn source(&self, name: &str) -> Source<'_> {
        let path = self.dir.path().join(format!("{name}.db"));
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        let stream = StreamId::from_name(name);
        let source = Source {
            store: &self.store,
            stream,
            db,
            path,
            now_ms: Cell::new(0),
            ids: Cell::new(0),
            states: RefCell::default(),
        };
        let state = self.store.receiver(stream).unwrap();
        let named = Change::Session { name: Some(name.into()) };
        self.store.commit(&state, &state, named, 0).unwrap();
        source
    }
}

/// A database, and its stream in the log.
pub struct Source<'l> {
    store: &'l SqliteStore,
    pub stream: StreamId,
    pub db: Connection,
    path: PathBuf,
    /// The sequencer's clock.
    now_ms: Cell<u64>,
    ids: Cell<u8>,
    /// The rows after each entry.
    states: RefCell<BTreeMap<(u64, u64), String>>,
}

impl Source<'_> {
    pub fn at(&self, ms: u64) -> &Self {
        self.now_ms.set(ms);
        self
    }

    pub fn head(&self) -> Head {
        self.store.receiver(self.stream).unwrap().head()
    }

    /// The rows as they were after an entry.
    pub fn rows(&self, epoch: u64, seq: u64) -> String {
        self.states.borrow()[&(epoch, seq)].clone()
    }

    fn note_state(&self) {
        let head = self.head();
        let place = (head.epoch.0, head.next_seq.previous().0);
        self.states.borrow_mut().insert(place, rows(&self.db));
    }

    pub fn open_epoch(&self) -> Epoch {
        let before = self.store.receiver(self.stream).unwrap();
        let head = before.head();
        let open = OpenEpoch {
            previous: head.epoch,
            previous_next_seq: head.next_seq,
            previous_chain: head.chain,
            floor: Epoch(0),
            open_id: OpenId([head.epoch.0 as u8 + 1; 16]),
            reason: ResyncReason::Requested,
        };
        let mut after = before.clone();
        after.opened(before.handle_open(&open).unwrap().unwrap());
        let change = Change::OpenEpoch { reason: ResyncReason::Requested };
        self.store.commit(&before, &after, change, self.now_ms.get()).unwrap();
        self.note_state();
        after.head().epoch
    }

    /// Appends an entry of any kind.
    pub fn append(&self, kind: EntryKind, payload: &[u8]) -> SeqNo {
        let seq = self.head().next_seq;
        let meta = EntryMeta {
            seq,
            kind,
            first_commit: seq.0 + 10,
            last_commit: seq.0 + 10,
            time_ms: 5,
            schema_version: 1,
            content_hash: content_of(&self.db, ContentKey::of(self.stream)).ok(),
        };
        self.append_raw(meta.encode(&mut [0; 256]).unwrap(), payload)
    }

    pub fn append_raw(&self, meta: &[u8], payload: &[u8]) -> SeqNo {
        let before = self.store.receiver(self.stream).unwrap();
        let head = before.head();
        let (seq, chain) = (head.next_seq, head.chain.next(meta, payload));
        let is_note = EntryMeta::decode(meta).is_ok_and(|meta| meta.kind == EntryKind::Snapshot);
        let mut after = before.clone();
        after.appended(Head {
            next_seq: seq.next(),
            chain,
            base_complete: head.base_complete || is_note,
            ..head
        });
        let (meta, payload) = (meta.to_vec(), payload.to_vec());
        let entry = NewEntry { seq, meta, payload, chain, received_ms: self.now_ms.get() };
        let now_ms = self.now_ms.get();
        self.store.commit(&before, &after, Change::Append(vec![entry]), now_ms).unwrap();
        self.note_state();
        seq
    }

    pub fn insert(&self, id: i64, v: &str) -> SeqNo {
        self.db.execute("INSERT INTO t VALUES (?1, ?2)", (id, v)).unwrap();
        self.changeset(|writer| writer.insert(&[Value::Integer(id), Value::Text(v.as_bytes())]))
    }

    pub fn update(&self, id: i64, v: &str) -> SeqNo {
        let sql = "SELECT v FROM t WHERE id = ?1";
        let old: String = self.db.query_row(sql, [id], |row| row.get(0)).unwrap();
        self.db.execute("UPDATE t SET v = ?2 WHERE id = ?1", (id, v)).unwrap();
        self.changeset(|writer| {
            writer.update(
                &[Value::Integer(id), Value::Text(old.as_bytes())],
                &[Value::Undefined, Value::Text(v.as_bytes())],
            )
        })
    }

    pub fn delete(&self, id: i64) -> SeqNo {
        let sql = "DELETE FROM t WHERE id = ?1 RETURNING v";
        let old: String = self.db.query_row(sql, [id], |row| row.get(0)).unwrap();
        self.changeset(|writer| writer.delete(&[Value::Integer(id), Value::Text(old.as_bytes())]))
    }

    fn changeset<E: std::fmt::Debug>(
        &self,
        write: impl FnOnce(&mut ChangesetWriter<'_>) -> Result<(), E>,
    ) -> SeqNo {
        let mut buffer = vec![0; 1 << 22];
        let mut writer = ChangesetWriter::new(&mut buffer);
        writer.table("t", &[1, 0]).unwrap();
        write(&mut writer).unwrap();
        let len = writer.len();
        self.append(EntryKind::Changeset, &buffer[..len])
    }

    /// Uploads the database as it is, without telling of it in the log.
    pub fn upload(&self) -> SnapshotNote {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let content = content_of(&self.db, ContentKey::of(self.stream)).unwrap();
        let note = self.upload_bytes(&std::fs::read(&self.path).unwrap());
        SnapshotNote { content_hash: Some(content), ..note }
    }

    pub fn upload_bytes(&self, image: &[u8]) -> SnapshotNote {
        self.ids.set(self.ids.get() + 1);
        let head = self.head();
        let (id, len) = (SnapshotId([self.ids.get(); 16]), image.len() as u64);
        let sha256 = Sha256::digest(image).into();
        let (store, stream) = (self.store, self.stream);
        store.begin_snapshot(stream, head.epoch, id, len, self.now_ms.get()).unwrap();
        store.write_snapshot(stream, id, 0, image).unwrap();
        let end = store.end_snapshot(stream, id, len, &sha256).unwrap();
        assert!(matches!(end, SnapshotOutcome::Progress(progress) if progress.complete));
        SnapshotNote { id, as_of: head.next_seq.previous(), len, sha256, content_hash: None }
    }

    /// Tells of a snapshot in the log.
    pub fn tell(&self, note: &SnapshotNote) -> SeqNo {
        let mut buffer = [0; SnapshotNote::MAX_LEN];
        self.append(EntryKind::Snapshot, note.encode(&mut buffer).unwrap())
    }

    /// Uploads the database as it is, and tells of it.
    pub fn snapshot(&self) -> SnapshotNote {
        let note = self.upload();
        self.tell(&note);
        note
    }
}

/// The rows of a database with table `t`.
pub fn rows(db: &Connection) -> String {
    let mut rows = db.prepare("SELECT id || '=' || v FROM t ORDER BY id").unwrap();
    let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.collect::<Result<Vec<_>, _>>().unwrap().join(" ")
}

/// The rows of a database file.
pub fn rows_of(path: &Path) -> String {
    rows(&Connection::open(path).unwrap())
}
