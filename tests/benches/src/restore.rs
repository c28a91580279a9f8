//! Rebuilding a database from the log.

use std::{fs::File, io, ops::ControlFlow, path::Path, time::Instant};

use rusqlite::{
    Connection,
    session::{ChangesetItem, ConflictAction, ConflictType},
};
use synddb_client::{Config, Engine, StreamId, SyndDB};
use synddb_core::{
    SeqNo,
    wire::{EntryKind, SnapshotNote},
};
use synddb_sequencer::{
    replica::Restore,
    store::{LogStore, SqliteStore},
};

use crate::{
    Result, Scale,
    measure::median,
    server::Remote,
    table::{Row, Table},
    throughput::{database, write},
};

const ROUNDS: usize = 3;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let commits = scale.pick(50_000, 2_000);
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let sequencer = Remote::sequencer(&log, None)?;
    let sequencer_url = sequencer.url.clone();
    let config = Config { sequencer_url, engine: Engine::Preupdate, ..Default::default() };
    let synddb = SyndDB::open_with_config(dir.path().join("app.db"), config)?;
    database(synddb.connection())?;
    synddb.push()?;
    write(synddb.connection(), commits, 1)?;
    let stream = synddb.push()?.stream;
    drop(synddb);

    let store = SqliteStore::open_read_only(&log)?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let start = Instant::now();
        let restored = Restore::new(&store, stream)
            .run(&dir.path().join(format!("ours-{round}.db")), |_| ControlFlow::Continue(()))?;
        ours.push(restored.entries as f64 / start.elapsed().as_secs_f64());
        let out = dir.path().join(format!("floor-{round}.db"));
        floor.push(commits as f64 / apply_all(&store, stream, &out)?);
    }
    Ok(Table {
        setting: format!("a log of {commits} single-row changesets"),
        floor: "sqlite3changeset_apply of the same changesets, a transaction each, without syncs; \
                ours checks chain, hash, old values and the result as well",
        rows: vec![Row::new("entries/s", "higher is better", median(ours), median(floor))],
    })
}

/// Seconds that SQLite's own applier takes.
fn apply_all(store: &SqliteStore, stream: StreamId, out: &Path) -> Result<f64> {
    let epoch = store.receiver(stream)?.head().epoch;
    let note = store.snapshot_notes(stream, epoch)?.pop().ok_or("no snapshot")?;
    let note = SnapshotNote::decode(&note.payload).map_err(|error| error.to_string())?;
    let start = Instant::now();
    io::copy(&mut store.open_snapshot(stream, note.id)?, &mut File::create(out)?)?;
    let replica = Connection::open(out)?;
    replica.pragma_update(None, "synchronous", "OFF")?;
    replica.pragma_update(None, "journal_mode", "MEMORY")?;
    let mut next = SeqNo::FIRST;
    loop {
        let entries = store.entries(stream, epoch, next, 1 << 20)?;
        let Some(last) = entries.last() else { return Ok(start.elapsed().as_secs_f64()) };
        next = last.seq.next();
        for entry in &entries {
            if entry.decoded_meta()?.kind == EntryKind::Changeset {
                replica.apply_strm(
                    &mut entry.payload.as_slice(),
                    None::<fn(&str) -> bool>,
                    |_: ConflictType, _: &ChangesetItem| ConflictAction::SQLITE_CHANGESET_ABORT,
                )?;
            }
        }
    }
}
