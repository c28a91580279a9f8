//! Capture against real databases: what was committed is replayed elsewhere and compared.

mod attach;
mod boundary;
mod commits;
mod cost;
mod ddl;
mod fuzz;
mod hooks;
mod lost;
mod mark;
mod place;
mod preupdate;
mod results;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::config::DbConfig;
use rusqlite::session::{ChangesetItem, ConflictAction, ConflictType};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ffi};
use synddb_core::{content::ContentKey, wire::EntryKind};
use synddb_sequencer::replica::{Applier, content_of, differences};

use super::{
    Capture, CaptureEngine, CaptureError, CaptureOptions, Changes, Commit, CommitSink, FlushMode,
    Lost, library,
};
use crate::content::Content;
use crate::snapshot::{Boundary, CopyControl, SnapshotImage, image_path};

/// What a sink was told, in order.
pub(crate) enum Event {
    Committed(Commit),
    Lost(Lost),
    Boundary(Boundary),
}

/// A sink that keeps everything. It asks for a snapshot when told to, and after losses if
/// `resync` is set.
#[derive(Default)]
pub(crate) struct Log {
    events: Mutex<Vec<Event>>,
    wants: AtomicBool,
    resync: AtomicBool,
    panics: AtomicBool,
}

impl Log {
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub(crate) fn want_snapshot(&self) {
        self.wants.store(true, Ordering::Relaxed);
    }

    pub(crate) fn unwant_snapshot(&self) {
        self.wants.store(false, Ordering::Relaxed);
    }
}

impl CommitSink for Log {
    fn committed(&self, commit: Commit) {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "the test's sink panics");
        assert!(commit.changes.len() > 0);
        self.events.lock().unwrap().push(Event::Committed(commit));
    }

    fn lost(&self, reason: Lost) {
        self.events.lock().unwrap().push(Event::Lost(reason));
        self.wants.fetch_or(self.resync.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn wants_snapshot(&self) -> bool {
        self.wants.load(Ordering::Relaxed)
    }

    fn boundary(&self, boundary: Boundary) {
        self.wants.store(false, Ordering::Relaxed);
        self.events.lock().unwrap().push(Event::Boundary(boundary));
    }
}

/// An application's connection with capture on it.
pub(crate) struct App {
    // Dropped before the connection, as it must be.
    pub(crate) capture: Option<Capture>,
    conn: Connection,
    pub(crate) log: Arc<Log>,
    dir: tempfile::TempDir,
    engine: CaptureEngine,
    max_changeset_bytes: usize,
}

/// For what holds whatever the engine.
const ENGINES: [CaptureEngine; 2] = [CaptureEngine::Session, CaptureEngine::Preupdate];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Wal,
    Delete,
    Memory,
}

impl App {
    /// Not attached yet.
    fn new(mode: Mode) -> App {
        App::by(CaptureEngine::default(), mode)
    }

    /// Not attached yet, to be captured by `engine`.
    fn by(engine: CaptureEngine, mode: Mode) -> App {
        let dir = tempfile::tempdir().unwrap();
        let conn = match mode {
            Mode::Memory => Connection::open_in_memory().unwrap(),
            _ => Connection::open(dir.path().join("app.db")).unwrap(),
        };
        if mode == Mode::Wal {
            conn.pragma_update(None, "journal_mode", "wal").unwrap();
        }
        conn.pragma_update(None, "synchronous", "off").unwrap();
        let log = Arc::default();
        App { capture: None, conn, log, dir, engine, max_changeset_bytes: 64 << 20 }
    }

    /// With a schema, attached.
    pub(crate) fn with(mode: Mode, schema: &str) -> App {
        let mut app = App::new(mode);
        app.run(schema);
        app.attach();
        app
    }

    fn attach(&mut self) {
        self.capture = Some(self.try_attach().unwrap());
    }

    fn try_attach(&self) -> Result<Capture, CaptureError> {
        attach_by(self.engine, &self.conn, &self.log, self.dir.path(), self.max_changeset_bytes)
    }

    pub(crate) fn run(&self, sql: &str) {
        self.conn.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn flush(&mut self) {
        self.capture.as_mut().unwrap().flush(FlushMode::Complete).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    /// The commits since the last call; anything else fails the test.
    fn commits(&self) -> Vec<Commit> {
        self.log
            .take()
            .into_iter()
            .map(|event| match event {
                Event::Committed(commit) => commit,
                Event::Lost(reason) => panic!("lost: {reason}"),
                Event::Boundary(_) => panic!("an unwanted boundary"),
            })
            .collect()
    }

    /// The losses since the last call; commits among them are passed over.
    fn losses(&self) -> Vec<Lost> {
        let lost = |event| if let Event::Lost(reason) = event { Some(reason) } else { None };
        self.log.take().into_iter().filter_map(lost).collect()
    }

    fn image(&self, boundary: Boundary) -> SnapshotImage {
        let path = image_path(self.dir.path(), "snap-");
        boundary.copy_to(&path, &CopyControl::default()).unwrap()
    }
}

pub(crate) fn attach(
    conn: &Connection,
    log: &Arc<Log>,
    dir: &Path,
) -> Result<Capture, CaptureError> {
    attach_by(CaptureEngine::default(), conn, log, dir, 64 << 20)
}

fn attach_by(
    engine: CaptureEngine,
    conn: &Connection,
    log: &Arc<Log>,
    dir: &Path,
    max_changeset_bytes: usize,
) -> Result<Capture, CaptureError> {
    let options = CaptureOptions {
        keep_before_commit: false,
        snapshot_dir: dir.to_owned(),
        snapshot_prefix: "snap-".into(),
        max_changeset_bytes,
        engine,
    };
    // SAFETY: tests drop the capture before the connection, and use both on one thread.
    unsafe { Capture::attach(conn.handle(), Arc::clone(log) as Arc<dyn CommitSink>, options) }
}

/// A copy of a database that follows it by changesets.
struct Replica(Connection);

impl Replica {
    fn of(source: &Connection) -> Replica {
        Replica::new(copy_of(source))
    }

    fn of_image(image: &mut SnapshotImage) -> Replica {
        let mut bytes = vec![0; usize::try_from(image.len()).unwrap()];
        assert_eq!(image.read_at(0, &mut bytes).unwrap(), bytes.len());
        let mut conn = Connection::open_in_memory().unwrap();
        conn.deserialize_read_exact("main", bytes.as_slice(), bytes.len(), false).unwrap();
        Replica::new(conn)
    }

    fn new(conn: Connection) -> Replica {
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
        conn.pragma_update(None, "foreign_keys", false).unwrap();
        Replica(conn)
    }

    /// Through SQLite's own applier, which knows nothing of sqlite_sequence. No conflict is
    /// expected, ever.
    fn apply(&self, commit: &Commit) {
        self.0
            .apply_strm(
                &mut changeset(commit).as_slice(),
                Some(|table: &str| table != "sqlite_sequence"),
                |conflict: ConflictType, item: &ChangesetItem| {
                    let table = item.op().map(|op| op.table_name().to_owned());
                    eprintln!("conflict {conflict:?} at {table:?}");
                    ConflictAction::SQLITE_CHANGESET_ABORT
                },
            )
            .unwrap();
    }

    fn assert_equals(&self, source: &Connection, context: &str) {
        let (ours, theirs) = (dump(&self.0), dump(source));
        let only = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|line| !b.contains(line)).cloned().collect()
        };
        if ours != theirs {
            panic!(
                "{context}: only here {:#?}, only there {:#?}",
                only(&ours, &theirs),
                only(&theirs, &ours)
            );
        }
    }
}

fn changeset(commit: &Commit) -> Vec<u8> {
    match payload(commit) {
        (EntryKind::Changeset, changeset) => changeset,
        (kind, _) => panic!("{kind:?}"),
    }
}

fn payload(commit: &Commit) -> (EntryKind, Vec<u8>) {
    let changeset = match &commit.changes {
        Changes::Changeset(changeset) | Changes::Kept(changeset) => changeset.clone(),
        Changes::Journal(journal) => journal.to_changeset().unwrap(),
        Changes::Schema(schema) => match schema.to_payload().unwrap() {
            Some(payload) => return (EntryKind::Schema, payload),
            None => Vec::new(),
        },
    };
    (EntryKind::Changeset, changeset)
}

fn copy_of(conn: &Connection) -> Connection {
    let mut copy = Connection::open_in_memory().unwrap();
    rusqlite::backup::Backup::new(conn, &mut copy)
        .unwrap()
        .run_to_completion(1 << 20, std::time::Duration::ZERO, None)
        .unwrap();
    copy
}

/// Replays a commit as a restore does, in a transaction of its own.
fn replay(applier: &mut Applier<'_>, replica: &Connection, commit: &Commit) -> Result<(), String> {
    let (kind, payload) = payload(commit);
    replica.execute_batch("BEGIN").unwrap();
    let applied = match kind {
        EntryKind::Schema => applier.apply_schema(&payload),
        _ => applier.apply(&payload),
    };
    applied.map_err(|error| error.to_string())?;
    replica.execute_batch("COMMIT").unwrap();
    Ok(())
}

const CONTENT_KEY: ContentKey = ContentKey::from_bytes([9; 16]);

/// The content by reading all of it, in both ways that there are.
fn read_content(conn: &Connection) -> Content {
    // SAFETY: the connection outlives the handle.
    let db = unsafe { library::Db::from_raw(conn.handle()) }.unwrap();
    let content = Content::read(CONTENT_KEY, db, || true).unwrap().unwrap();
    assert_eq!(content.total(), content_of(conn, CONTENT_KEY).unwrap());
    content
}

/// Every row of every real table, shadow tables included, with the rowid where it is the key.
fn dump(conn: &Connection) -> Vec<String> {
    let mut tables = conn
        .prepare(
            "SELECT t.name, EXISTS (SELECT 1 FROM pragma_table_xinfo(t.name) WHERE pk > 0)
             FROM sqlite_schema AS t
             WHERE t.rootpage > 0 AND t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             ORDER BY t.name",
        )
        .unwrap();
    let mut lines = Vec::new();
    let mut rows = tables.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (table, has_key): (String, bool) = (row.get(0).unwrap(), row.get(1).unwrap());
        let rowid = if has_key { "" } else { "_rowid_ AS rowid_," };
        let mut select = conn.prepare(&format!("SELECT {rowid} * FROM \"{table}\"")).unwrap();
        let width = select.column_count();
        let mut cells = select.query([]).unwrap();
        let mut of_table = Vec::new();
        while let Some(row) = cells.next().unwrap() {
            let cells: Vec<_> = (0..width).map(|i| brief(row.get_ref(i).unwrap())).collect();
            of_table.push(format!("{table}: {}", cells.join(", ")));
        }
        of_table.sort();
        lines.extend(of_table);
    }
    lines
}

/// A value, or length and hash of a long one.
fn brief(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Blob(blob) if blob.len() > 40 => {
            let hash = <sha2::Sha256 as sha2::Digest>::digest(blob);
            format!("Blob of {}: {:?}", blob.len(), &hash[..6])
        }
        value => format!("{value:?}"),
    }
}

/// A small generator (SplitMix64), so that a seed replays.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The seeds of a test: one given by `SYNDDB_SEED`, else the first `count`.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SYNDDB_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..count).collect(),
    }
}
