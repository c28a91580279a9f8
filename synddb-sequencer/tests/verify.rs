//! Damaged logs and replicas are found; what is pruned was not needed.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

mod support;

use std::{fs, ops::ControlFlow, path::Path};

use rusqlite::{Connection, params};
use support::{Log, rows_of};
use synddb_core::{Epoch, SeqNo};
use synddb_sequencer::{
    Moment,
    prune::{PruneError, plan},
    replica::{EntryFault, Restore, RestoreError, SnapshotFault},
    store::{LogStore, SqliteStore},
    verify::{Fault, Finding, Report, Standing, verify_replica, verify_stream},
};

fn verify(log: &Log, source: &support::Source<'_>) -> Report {
    verify_stream(&log.store, source.stream, Some(&log.out("")), &mut || true).unwrap()
}

fn only(report: Report) -> Finding {
    let mut findings = report.findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

/// A small generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % limit
    }
}

#[test]
fn a_sound_log_is_found_sound() {
    let log = Log::new();
    let source = log.orders();
    let report = verify(&log, &source);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.epochs, report.entries, report.snapshots), (2, 10, 2));
    assert_eq!((report.replayed, report.without_base), (1, 1), "epoch 1 never got a base");
    assert_eq!(log.results(), [""; 0], "nothing is left");
}

#[test]
fn a_byte_of_an_entry_that_changes_is_found_with_its_place() {
    let log = Log::new();
    let source = log.orders();
    let db = Connection::open(log.data().join("log.db")).unwrap();
    let places: Vec<(i64, i64)> = db
        .prepare("SELECT epoch, seq FROM entries ORDER BY epoch, seq")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut random = Random(1);
    for round in 0..150 {
        let (epoch, seq) = places[random.below(places.len())];
        let column = ["meta", "payload", "chain"][random.below(3)];
        let place = params![epoch, seq];
        let sql = format!("SELECT {column} FROM entries WHERE epoch = ?1 AND seq = ?2");
        let sound: Vec<u8> = db.query_row(&sql, place, |row| row.get(0)).unwrap();
        let mut damaged = sound.clone();
        let at = random.below(damaged.len());
        damaged[at] ^= 1 << random.below(8);
        let sql = format!("UPDATE entries SET {column} = ?3 WHERE epoch = ?1 AND seq = ?2");
        db.execute(&sql, params![epoch, seq, damaged]).unwrap();
        let context = format!("round {round}: {column} of {epoch}/{seq}, byte {at}");
        let report = verify(&log, &source);
        let found = report.findings.first().unwrap_or_else(|| panic!("{context}: not found"));
        assert_eq!(found.epoch, Epoch(epoch as u64), "{context}: {found}");
        assert_eq!(found.seq, SeqNo(seq as u64), "{context}: {found}");
        assert!(matches!(found.fault, Fault::Entry(EntryFault::Chain)), "{context}: {found}");
        assert_eq!(found.stream, source.stream);
        db.execute(&sql, params![epoch, seq, sound]).unwrap();
    }
    assert!(verify(&log, &source).findings.is_empty());
}

/// What a log says that restores are made of, or why it cannot be read.
fn told(data: &Path) -> Result<Vec<String>, rusqlite::Error> {
    let db = Connection::open(data.join("log.db"))?;
    let mut told = Vec::new();
    for (table, columns) in [
        ("streams", "stream"),
        ("epochs", "stream, epoch, open_id, genesis"),
        ("entries", "stream, epoch, seq, snapshot, meta, chain, payload"),
        ("snapshots", "stream, id, len, sha256"),
    ] {
        let sql = format!("SELECT {columns} FROM {table} NOT INDEXED ORDER BY 1");
        let mut rows = db.prepare(&sql)?;
        let width = rows.column_count();
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let cells: Result<Vec<_>, _> = (0..width).map(|at| row.get_ref(at)).collect();
            told.push(format!("{table} {:?}", cells?));
        }
    }
    Ok(told)
}

#[test]
fn a_bit_of_the_logs_file_that_flips_is_found_where_it_means_anything() {
    let log = Log::new();
    let source = log.orders();
    let stream = source.stream;
    drop(source);
    let data = log.data();
    let dir = log.close();
    let db = Connection::open(data.join("log.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    db.close().unwrap();
    let (sound, before) = (fs::read(data.join("log.db")).unwrap(), told(&data).unwrap());
    let (mut random, mut found, mut harmless) = (Random(2), 0, 0);
    for round in 0..200 {
        let mut damaged = sound.clone();
        let at = random.below(damaged.len());
        damaged[at] ^= 1 << random.below(8);
        for companion in ["log.db-wal", "log.db-shm"] {
            let _ = fs::remove_file(data.join(companion));
        }
        fs::write(data.join("log.db"), damaged).unwrap();
        let changed = |data: &Path| -> Vec<String> {
            let now = told(data).unwrap_or_default();
            now.into_iter().filter(|line| !before.contains(line)).collect()
        };
        let same = told(&data).is_ok_and(|told| told == before);
        let verified = SqliteStore::open_read_only(&data)
            .map_err(RestoreError::from)
            .and_then(|store| verify_stream(&store, stream, Some(dir.path()), &mut || true));
        let beneath = SqliteStore::open_read_only(&data).and_then(|store| store.damage());
        let is_found = verified.is_err()
            || verified.is_ok_and(|report| !report.findings.is_empty())
            || !matches!(beneath, Ok(None));
        found += u32::from(is_found);
        harmless += u32::from(same);
        assert!(is_found || same, "round {round}: byte {at} is not found: {:?}", changed(&data));
    }
    assert!(found > 20 && harmless > 20, "{found} found, {harmless} in unused places");
}

#[test]
fn damage_of_a_snapshot_is_found() {
    let log = Log::new();
    let source = log.source("s");
    source.open_epoch();
    source.insert(1, "a");
    let first = source.snapshot();
    source.insert(2, "b");
    let second = source.snapshot();
    let path = log.image(source.stream, second.id);
    let sound = fs::read(&path).unwrap();
    let mut random = Random(3);
    for _ in 0..20 {
        let mut damaged = sound.clone();
        let at = random.below(damaged.len());
        damaged[at] ^= 1 << random.below(8);
        fs::write(&path, damaged).unwrap();
        let found = only(verify(&log, &source));
        assert_eq!((found.epoch, found.seq), (Epoch(1), SeqNo(4)));
        assert!(matches!(found.fault, Fault::Snapshot(SnapshotFault::Hash)), "{found}");
    }
    fs::write(&path, &sound[..1000]).unwrap();
    let found = only(verify(&log, &source));
    assert!(matches!(found.fault, Fault::Snapshot(SnapshotFault::Length { .. })), "{found}");
    fs::write(&path, sound).unwrap();
    fs::remove_file(log.image(source.stream, first.id)).unwrap();
    let found = only(verify(&log, &source));
    assert_eq!(found.seq, SeqNo(2));
    assert!(matches!(found.fault, Fault::Snapshot(SnapshotFault::Unreadable(_))), "{found}");
}

#[test]
fn entries_that_are_missing_at_an_end_are_found() {
    let log = Log::new();
    let source = log.orders();
    log.sql("DELETE FROM entries WHERE epoch = 2 AND seq = 9");
    let found = only(verify(&log, &source));
    assert_eq!((found.epoch, found.seq), (Epoch(2), SeqNo(8)));
    assert!(matches!(found.fault, Fault::Entry(EntryFault::End)), "{found}");
    log.sql("DELETE FROM entries WHERE epoch = 1");
    let report = verify(&log, &source);
    assert_eq!((report.findings[0].epoch, report.findings[0].seq), (Epoch(1), SeqNo(0)));
    assert!(matches!(report.findings[0].fault, Fault::Entry(EntryFault::End)));
}

/// A sender that lost the change of a row: it is in its database, and in no changeset.
#[test]
fn content_that_went_another_way_is_found_at_the_first_entry_that_shows_it() {
    let log = Log::new();
    let source = log.source("s");
    source.open_epoch();
    source.snapshot();
    source.insert(1, "a");
    source.insert(2, "b");
    source.db.execute("UPDATE t SET v = 'lost' WHERE id = 1", []).unwrap();
    let seq = source.insert(3, "c");
    source.insert(4, "d");
    source.snapshot();
    let found = only(verify(&log, &source));
    assert_eq!((found.epoch, found.seq), (Epoch(1), seq));
    let Fault::Replay(error) = &found.fault else { panic!("{found}") };
    assert!(matches!(**error, RestoreError::Content { .. }), "{error}");
    // The later snapshot is right, and restores. So does the state before.
    let restore = || Restore::new(&log.store, source.stream);
    restore().run(&log.out("new.db"), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(rows_of(&log.out("new.db")), "1=lost 2=b 3=c 4=d");
    restore().to_seq(SeqNo(3)).run(&log.out("old.db"), |_| ControlFlow::Continue(())).unwrap();
    let refused = restore().to_seq(SeqNo(4)).run(&log.out("x.db"), |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(RestoreError::Content { seq: SeqNo(4), .. })), "{refused:?}");
}

/// A sender whose changesets lead somewhere else than its later snapshot, without a hash in between.
#[test]
fn a_snapshot_of_something_else_is_found_by_the_changesets_before_it() {
    let log = Log::new();
    let source = log.source("s");
    source.open_epoch();
    source.snapshot();
    let seq = source.insert(1, "a");
    source.db.execute("UPDATE t SET v = 'lost' WHERE id = 1", []).unwrap();
    let note = source.upload();
    source.db.execute("UPDATE t SET v = 'a' WHERE id = 1", []).unwrap();
    source.tell(&note);
    let found = only(verify(&log, &source));
    assert_eq!(found.seq, seq);
    assert!(matches!(found.fault, Fault::Replay(_)), "{found}");
}

#[test]
fn a_restore_reads_all_rows_at_its_end() {
    let log = Log::new();
    let source = log.orders();
    let restore = || {
        Restore::new(&log.store, source.stream)
            .prepare(|db| db.execute_batch("UPDATE t SET v = 'elsewhere' WHERE id = 3"))
    };
    let out = log.out("x.db");
    let refused = restore().run(&out, |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(RestoreError::Content { seq: SeqNo(9), .. })), "{refused:?}");
    let refused = restore().check_base(true).run(&out, |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(RestoreError::Content { seq: SeqNo(5), .. })), "{refused:?}");
    restore().check(false).run(&out, |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_replica_is_told_where_it_stands_and_what_is_different() {
    let log = Log::new();
    let source = log.orders();
    let restore = || Restore::new(&log.store, source.stream);
    let standing = |path: &Path, of: Restore<'_>| {
        let replica = Connection::open(path).unwrap();
        let work = log.out("");
        verify_replica(&log.store, source.stream, &replica, of, &work, &mut || true).unwrap()
    };
    for seq in [1, 3, 6, 9] {
        let out = log.out(&format!("{seq}.db"));
        restore().to_seq(SeqNo(seq)).run(&out, |_| ControlFlow::Continue(())).unwrap();
        let found = standing(&out, restore());
        let Standing::At { epoch: Epoch(2), seq: found } = found else { panic!("{found:?}") };
        // The entry of a snapshot changes nothing: the state after it is the same.
        assert!(found == SeqNo(seq) || (seq == 6 && found == SeqNo(7)), "{seq}: {found}");
    }
    let out = log.out("9.db");
    let db = Connection::open(&out).unwrap();
    db.execute_batch("UPDATE t SET v = 'd' WHERE id = 4").unwrap();
    drop(db);
    let found = standing(&out, restore());
    let Standing::Differs { epoch: Epoch(2), seq: SeqNo(9), differences } = found else {
        panic!("{found:?}")
    };
    let told: Vec<_> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["table t: (4, \"d\") against (4, \"D\")"]);
    // Compared with one state, another is different.
    let found = standing(&log.out("3.db"), restore().to_seq(SeqNo(4)));
    assert!(matches!(found, Standing::Differs { seq: SeqNo(4), .. }), "{found:?}");
}

fn prune(log: &Log, source: &support::Source<'_>, since: Option<u64>) {
    let since = since.map(Moment::from_unix_ms);
    let plan = plan(&log.store, source.stream, since, &mut || true).unwrap();
    log.store.prune(source.stream, &plan.prunable).unwrap();
}

fn restored(log: &Log, source: &support::Source<'_>, seq: u64) -> Result<String, RestoreError> {
    let out = log.out("restored.db");
    Restore::new(&log.store, source.stream)
        .to_seq(SeqNo(seq))
        .replace(true)
        .run(&out, |_| ControlFlow::Continue(()))
        .map(|_| rows_of(&out))
}

#[test]
fn what_is_pruned_was_not_needed() {
    let log = Log::new();
    let source = log.orders();
    prune(&log, &source, None);
    let epochs = log.store.epochs(source.stream).unwrap();
    assert_eq!((epochs.len(), epochs[0].epoch, epochs[0].pruned), (1, Epoch(2), SeqNo(5)));
    assert_eq!(log.sql("UPDATE entries SET seq = seq"), 4);
    assert_eq!(log.store.snapshots(source.stream).unwrap().len(), 1);
    for seq in 5..=9 {
        assert_eq!(restored(&log, &source, seq).unwrap(), source.rows(2, seq), "{seq}");
    }
    let refused = restored(&log, &source, 4).unwrap_err();
    let RestoreError::NoSnapshot { earliest, .. } = refused else { panic!("{refused}") };
    assert_eq!(earliest, SeqNo(5));
    let report = verify(&log, &source);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.entries, report.snapshots, report.replayed), (4, 1, 1));
    // Again: nothing is left to go. The stream goes on, and its next snapshot makes more go.
    assert!(plan(&log.store, source.stream, None, &mut || true).unwrap().is_empty());
    source.insert(10, "on");
    source.snapshot();
    source.update(10, "and on");
    prune(&log, &source, None);
    let last = source.head().next_seq.previous().0;
    assert_eq!(restored(&log, &source, last).unwrap(), source.rows(2, last));
    assert!(verify(&log, &source).findings.is_empty());
    // What an older epoch's end would have shown is not missed, damage of what is left is.
    log.sql("UPDATE entries SET payload = x'00'");
    assert!(!verify(&log, &source).findings.is_empty());
}

#[test]
fn what_is_retained_by_time_can_be_restored() {
    let log = Log::new();
    let source = log.orders();
    prune(&log, &source, Some(1045));
    for seq in 0..=9 {
        assert_eq!(restored(&log, &source, seq).unwrap(), source.rows(2, seq), "{seq}");
    }
    assert_eq!(log.store.epochs(source.stream).unwrap().len(), 1, "epoch 1 never got a base");
    let early = plan(&log.store, source.stream, Some(Moment::from_unix_ms(5)), &mut || true);
    assert!(matches!(early, Err(PruneError::Restore(RestoreError::TooEarly { .. }))));
}

#[test]
fn an_epoch_whose_snapshot_is_on_its_way_takes_nothing_from_the_one_before() {
    let log = Log::new();
    let source = log.orders();
    source.at(2000).open_epoch();
    source.insert(77, "not restorable yet");
    let note = source.upload();
    prune(&log, &source, None);
    let out = log.out("restored.db");
    let restore = || Restore::new(&log.store, source.stream).replace(true);
    restore().run(&out, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(rows_of(&out), source.rows(2, 9));
    source.tell(&note);
    restore().run(&out, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(rows_of(&out), source.rows(3, 2));
}

#[test]
fn nothing_is_removed_for_what_is_damaged() {
    let log = Log::new();
    let source = log.orders();
    log.sql("UPDATE entries SET payload = x'00' WHERE epoch = 2 AND seq = 8");
    let refused = plan(&log.store, source.stream, None, &mut || true);
    let Err(PruneError::Damaged(report)) = refused else { panic!("{refused:?}") };
    assert_eq!(only(report).seq, SeqNo(8));
    // Damage of what goes is no reason to keep it.
    let log = Log::new();
    let source = log.orders();
    let first = log.store.snapshots(source.stream).unwrap()[0].id;
    fs::write(log.image(source.stream, first), "x").unwrap();
    prune(&log, &source, None);
    assert_eq!(restored(&log, &source, 9).unwrap(), source.rows(2, 9));
}
