//! Databases built out of logs, whole ones and damaged ones.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

mod support;

use std::{ops::ControlFlow, path::Path};

use rusqlite::Connection;
use support::{Log, Source, rows_of};
use synddb_core::{
    Epoch, SeqNo,
    wire::{EntryKind, EntryMeta},
};
use synddb_sequencer::{
    Moment,
    replica::{
        ApplyError, EntryFault, Progress, Restore, RestoreError, Restored, SnapshotFault,
        differences,
    },
    store::LogStore,
};

fn run(restore: Restore<'_>, out: &Path) -> Result<Restored, RestoreError> {
    restore.run(out, |_| ControlFlow::Continue(()))
}

fn newest<'l>(log: &'l Log, source: &Source<'_>) -> Restore<'l> {
    Restore::new(&log.store, source.stream)
}

/// Restores, expects the rows of that entry, and removes the database.
fn expect(log: &Log, source: &Source<'_>, restore: Restore<'_>, epoch: u64, seq: u64) -> Restored {
    let out = log.out("expected.db");
    let restored = run(restore, &out).unwrap();
    assert_eq!((restored.epoch, restored.seq), (Epoch(epoch), SeqNo(seq)));
    assert_eq!(rows_of(&out), source.rows(epoch, seq));
    std::fs::remove_file(out).unwrap();
    restored
}

/// Expects an error that leaves nothing.
fn refused(log: &Log, restore: Restore<'_>) -> RestoreError {
    let error = run(restore, &log.out("refused.db")).unwrap_err();
    assert_eq!(log.results(), [""; 0], "{error}");
    error
}

#[test]
fn the_newest_state_is_the_databases() {
    let log = Log::new();
    let source = log.orders();
    let out = log.out("new.db");
    let mut seen = Vec::new();
    let restored = newest(&log, &source)
        .run(&out, |progress| {
            seen.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((restored.epoch, restored.seq), (Epoch(2), SeqNo(9)));
    assert_eq!(restored.moment, Moment::from_unix_ms(1100));
    assert_eq!((restored.snapshot_as_of, restored.entries), (SeqNo(5), 4));
    assert_eq!(restored.pending, None);
    assert_eq!(restored.bytes, std::fs::metadata(&out).unwrap().len());
    assert_eq!(differences(&source.db, &Connection::open(&out).unwrap()).unwrap(), []);
    // One file, which nothing has to be beside, although the source is in WAL mode.
    assert_eq!(log.results(), ["new.db"]);
    assert_eq!(std::fs::read(&out).unwrap()[18..20], [1, 1]);
    let total = restored.snapshot_bytes;
    assert!(seen.contains(&Progress::Snapshot { done: total, total }));
    assert!(seen.contains(&Progress::Entries { done: 4, total: 4 }));
    assert_eq!(seen.last(), Some(&Progress::Check));
}

#[test]
fn every_entry_can_be_the_last_from_every_snapshot() {
    let log = Log::new();
    let source = log.orders();
    for seq in 0..=9 {
        let restore = || newest(&log, &source).to_seq(SeqNo(seq));
        let restored = expect(&log, &source, restore(), 2, seq);
        assert_eq!(restored.snapshot_as_of, SeqNo(if seq < 5 { 0 } else { 5 }), "{seq}");
        let restored = expect(&log, &source, restore().base(SeqNo(4)), 2, seq);
        assert_eq!(restored.snapshot_as_of, SeqNo(0), "{seq}");
    }
}

#[test]
fn every_moment_gives_what_had_come_by_then() {
    let log = Log::new();
    let source = log.orders();
    // Epoch 3 never gets its base; epoch 4 does, long after it began.
    source.at(2000).open_epoch();
    source.at(2010).insert(10, "in epoch 3");
    source.at(3000).open_epoch();
    let note = source.upload();
    source.at(3010).insert(11, "in epoch 4");
    source.at(3020).insert(12, "at the same time");
    source.insert(13, "at the same time");
    source.at(5000).tell(&note);
    let at = |ms| newest(&log, &source).to_moment(Moment::from_unix_ms(ms));
    for (ms, epoch, seq, pending) in [
        (1010, 2, 0, None),
        (1019, 2, 0, None),
        (1020, 2, 1, None),
        (1059, 2, 4, None),
        (1060, 2, 5, None),
        (1061, 2, 5, None),
        (1100, 2, 9, None),
        (1999, 2, 9, None),
        (2500, 2, 9, Some(Epoch(3))),
        (3000, 4, 0, None),
        (3019, 4, 1, None),
        (3020, 4, 3, None),
        (9000, 4, 4, None),
    ] {
        let restored = expect(&log, &source, at(ms), epoch, seq);
        assert_eq!(restored.pending, pending, "{ms}");
        assert!(restored.moment <= Moment::from_unix_ms(ms), "{ms}");
    }
    // Of epoch 5 nothing is restorable before its entry 2.
    source.at(6000).open_epoch();
    source.at(6010).insert(14, "in epoch 5");
    source.at(6020).insert(15, "in epoch 5");
    source.at(6030).snapshot();
    expect(&log, &source, at(6019), 4, 4);
    expect(&log, &source, at(6020), 5, 2);
    // Of one epoch: as it ended.
    expect(&log, &source, at(9000).epoch(Epoch(2)), 2, 9);
    for (restore, earliest) in
        [(at(1009), 1010), (at(2999).epoch(Epoch(4)), 3000), (at(6019).epoch(Epoch(5)), 6020)]
    {
        let error = refused(&log, restore);
        let RestoreError::TooEarly { earliest: found, .. } = error else { panic!("{error}") };
        assert_eq!(found, Moment::from_unix_ms(earliest));
    }
}

#[test]
fn an_epoch_without_its_base_waits() {
    let log = Log::new();
    let source = log.source("orders");
    let error = refused(&log, newest(&log, &source));
    assert!(matches!(error, RestoreError::NoStream { .. }), "{error}");
    source.open_epoch();
    source.insert(1, "a");
    for restore in
        [newest(&log, &source), newest(&log, &source).to_moment(Moment::from_unix_ms(9000))]
    {
        let error = refused(&log, restore);
        assert!(matches!(error, RestoreError::NothingYet { epoch: Epoch(1) }), "{error}");
    }
    source.snapshot();
    source.open_epoch();
    source.insert(2, "b");
    let restored = expect(&log, &source, newest(&log, &source), 1, 2);
    assert_eq!(restored.pending, Some(Epoch(2)));
    let error = refused(&log, newest(&log, &source).epoch(Epoch(2)));
    let pending = |error: &RestoreError, of, last| match error {
        RestoreError::BasePending { epoch, newest } => (*epoch, *newest) == (of, last),
        _ => false,
    };
    assert!(pending(&error, Epoch(2), Epoch(2)), "{error}");
    assert!(error.to_string().contains("yet"), "{error}");
    source.open_epoch();
    let error = refused(&log, newest(&log, &source).epoch(Epoch(2)));
    assert!(pending(&error, Epoch(2), Epoch(3)), "{error}");
    assert!(error.to_string().contains("given up"), "{error}");
    let error = refused(&log, newest(&log, &source).epoch(Epoch(4)));
    assert!(matches!(error, RestoreError::NoEpoch { newest: Epoch(3), .. }), "{error}");
}

#[test]
fn streams_do_not_mix() {
    let log = Log::new();
    let (one, two) = (log.source("one"), log.source("two"));
    for (source, v) in [(&one, "of one"), (&two, "of two")] {
        source.open_epoch();
        source.snapshot();
        source.insert(1, v);
    }
    one.insert(2, "of one too");
    expect(&log, &one, newest(&log, &one), 1, 3);
    expect(&log, &two, newest(&log, &two), 1, 2);
}

#[test]
fn an_entry_outside_the_epoch_is_refused() {
    let log = Log::new();
    let source = log.source("orders");
    source.open_epoch();
    source.insert(1, "a");
    source.insert(2, "b");
    source.snapshot();
    let error = refused(&log, newest(&log, &source).to_seq(SeqNo(4)));
    assert!(matches!(error, RestoreError::BeyondEnd { last: SeqNo(3), .. }), "{error}");
    for restore in [newest(&log, &source).to_seq(SeqNo(1)), newest(&log, &source).base(SeqNo(1))] {
        let error = refused(&log, restore);
        let early =
            matches!(error, RestoreError::NoSnapshot { limit: SeqNo(1), earliest: SeqNo(2), .. });
        assert!(early, "{error}");
    }
}

#[test]
fn damage_is_found_where_it_is() {
    let flip = "CAST(x'00' || substr(payload, 2) AS BLOB)";
    for (damage, seq, fault) in [
        (
            format!("UPDATE entries SET payload = {flip} WHERE epoch = 2 AND seq = 8"),
            8,
            EntryFault::Chain,
        ),
        (
            "UPDATE entries SET payload = x'' WHERE epoch = 2 AND seq = 6".into(),
            6,
            EntryFault::Chain,
        ),
        (
            "UPDATE entries SET meta = CAST(meta || x'00' AS BLOB) WHERE epoch = 2 AND seq = 9"
                .into(),
            9,
            EntryFault::Chain,
        ),
        (
            "UPDATE entries SET chain = zeroblob(32) WHERE epoch = 2 AND seq = 8".into(),
            8,
            EntryFault::Chain,
        ),
        ("DELETE FROM entries WHERE epoch = 2 AND seq = 8".into(), 8, EntryFault::Missing),
        ("DELETE FROM entries WHERE epoch = 2 AND seq = 9".into(), 9, EntryFault::Missing),
        ("DELETE FROM entries WHERE epoch = 2 AND seq > 7".into(), 8, EntryFault::Missing),
        (
            "UPDATE entries SET seq = seq + 100 WHERE epoch = 2 AND seq = 8".into(),
            8,
            EntryFault::Missing,
        ),
    ] {
        let log = Log::new();
        let source = log.orders();
        assert!(log.sql(&damage) > 0);
        let error = refused(&log, newest(&log, &source));
        let RestoreError::Entry { epoch, seq: found, fault: what, good } = error else {
            panic!("{damage}: {error}")
        };
        assert_eq!((epoch, found, what), (Epoch(2), SeqNo(seq), fault), "{damage}");
        assert_eq!(good, Some(SeqNo(seq - 1)), "{damage}");
        // What the error offers works.
        expect(&log, &source, newest(&log, &source).to_seq(SeqNo(seq - 1)), 2, seq - 1);
    }
}

/// Another last entry, without a content hash and with a chain value that fits it: only the stream's
/// head knows better.
#[test]
fn a_forged_end_is_found() {
    let log = Log::new();
    let source = log.orders();
    let last = log.store.entries(source.stream, Epoch(2), SeqNo(9), 0).unwrap().remove(0);
    let before = log.store.chain_at(source.stream, Epoch(2), SeqNo(8)).unwrap().unwrap();
    let meta = EntryMeta { content_hash: None, ..EntryMeta::decode(&last.meta).unwrap() };
    let mut buffer = [0; 128];
    let meta = meta.encode(&mut buffer).unwrap();
    let chain = before.next(meta, b"");
    let meta: String = meta.iter().map(|byte| format!("{byte:02x}")).collect();
    log.sql(&format!(
        "UPDATE entries SET meta = x'{meta}', payload = x'', chain = x'{chain}' WHERE seq = 9"
    ));
    let error = refused(&log, newest(&log, &source));
    let RestoreError::Entry { seq, fault, good, .. } = error else { panic!("{error}") };
    assert_eq!((seq, fault, good), (SeqNo(9), EntryFault::Chain, Some(SeqNo(8))));
}

#[test]
fn a_lost_end_of_an_old_epoch_is_found() {
    let log = Log::new();
    let source = log.orders();
    source.at(2000).open_epoch();
    let of_2 = || newest(&log, &source).epoch(Epoch(2));
    expect(&log, &source, of_2(), 2, 9);
    log.sql("DELETE FROM entries WHERE epoch = 2 AND seq = 9");
    let error = refused(&log, of_2());
    let RestoreError::Entry { seq, fault, good, .. } = error else { panic!("{error}") };
    assert_eq!((seq, fault, good), (SeqNo(8), EntryFault::End, Some(SeqNo(8))));
    expect(&log, &source, of_2().to_seq(SeqNo(8)), 2, 8);
}

#[test]
fn damage_that_is_not_needed_does_not_matter() {
    let log = Log::new();
    let source = log.orders();
    // Before the snapshot, and behind the target.
    log.sql("UPDATE entries SET payload = x'00' WHERE epoch = 2 AND seq IN (3, 9)");
    expect(&log, &source, newest(&log, &source).to_seq(SeqNo(8)), 2, 8);
    refused(&log, newest(&log, &source).base(SeqNo(0)).to_seq(SeqNo(8)));
}

#[test]
fn a_damaged_snapshot_is_found_and_an_older_one_does() {
    let edit = |edit: fn(&mut Vec<u8>)| {
        move |_: &Log, image: &Path| {
            let mut bytes = std::fs::read(image).unwrap();
            edit(&mut bytes);
            std::fs::write(image, bytes).unwrap();
        }
    };
    let sql = |sql: &'static str| move |log: &Log, _: &Path| assert_eq!(log.sql(sql), 1);
    type Damage = Box<dyn Fn(&Log, &Path)>;
    let damages: [(Damage, &str); 7] = [
        (Box::new(edit(|image| image[5000] ^= 1)), "SHA-256"),
        (Box::new(edit(|image| image.truncate(100))), "should have 8192 bytes and has 100"),
        (Box::new(edit(|image| image.push(0))), "should have 8192 bytes and has 8193"),
        (Box::new(|_, image| std::fs::remove_file(image).unwrap()), "No such file"),
        (Box::new(sql("DELETE FROM snapshots WHERE hex(id) LIKE '0202%'")), "not have it whole"),
        (
            Box::new(sql("UPDATE entries SET payload = x'00' WHERE epoch = 2 AND seq = 7")),
            "the entry that tells of it is damaged",
        ),
        (
            Box::new(sql("UPDATE entries SET payload = CAST(payload || x'00' AS BLOB)
                 WHERE epoch = 2 AND seq = 7")),
            "the entry that tells of it is damaged",
        ),
    ];
    for (damage, fault) in damages {
        let log = Log::new();
        let source = log.orders();
        let notes = log.store.snapshots(source.stream).unwrap();
        damage(&log, &log.image(source.stream, notes[1].id));
        let to_6 = || newest(&log, &source).to_seq(SeqNo(6));
        let error = refused(&log, to_6());
        let RestoreError::Snapshot { seq, fault: found, .. } = &error else { panic!("{error}") };
        assert_eq!(*seq, SeqNo(7));
        assert!(found.to_string().contains(fault), "{found}");
        assert!(error.to_string().contains("--base"), "{error}");
        expect(&log, &source, to_6().base(SeqNo(4)), 2, 6);
    }
}

#[test]
fn a_snapshot_that_is_no_database_is_told() {
    for image in
        [&b"not really a database, although it is long enough to be one: no header"[..], &[]]
    {
        let log = Log::new();
        let source = log.source("orders");
        source.open_epoch();
        source.tell(&source.upload_bytes(image));
        source.insert(1, "a");
        let error = refused(&log, newest(&log, &source));
        if image.is_empty() {
            // An empty file is an empty database.
            assert!(matches!(error, RestoreError::Apply { seq: SeqNo(2), .. }), "{error}");
            let out = log.out("empty.db");
            run(newest(&log, &source).to_seq(SeqNo(1)), &out).unwrap();
        } else {
            let RestoreError::Snapshot { fault, .. } = error else { panic!("{error}") };
            assert!(matches!(fault, SnapshotFault::NotADatabase(_)), "{fault}");
        }
    }
}

#[test]
fn what_cannot_be_applied_is_never_passed_over() {
    let log = Log::new();
    let source = log.orders();
    source.append(EntryKind::Schema, b"CREATE TABLE x(y)");
    source.insert(20, "after it");
    let error = refused(&log, newest(&log, &source));
    let RestoreError::Apply { seq, error, .. } = error else { panic!("{error}") };
    assert_eq!(seq, SeqNo(10));
    assert!(matches!(*error, ApplyError::Schema(_)), "{error}");
    // Another entry's number in it.
    let log = Log::new();
    let source = log.orders();
    let last = log.store.entries(source.stream, Epoch(2), SeqNo(9), 0).unwrap().remove(0);
    source.append_raw(&last.meta, b"");
    let error = refused(&log, newest(&log, &source));
    let RestoreError::Entry { seq, fault, .. } = error else { panic!("{error}") };
    assert_eq!((seq, fault), (SeqNo(10), EntryFault::Chain));
    // A kind of a later version: the second field of the meta.
    let log = Log::new();
    let source = log.orders();
    source.append(EntryKind::Changeset, b"");
    let mut meta =
        log.store.entries(source.stream, Epoch(2), SeqNo(10), 0).unwrap()[0].meta.clone();
    (meta[0], meta[1]) = (11, 99);
    let payload =
        log.store.entries(source.stream, Epoch(2), SeqNo(9), 0).unwrap()[0].payload.clone();
    append_of_newer_version(&log, &source, &meta, &payload);
    let error = refused(&log, newest(&log, &source));
    let RestoreError::Entry { seq, fault, .. } = error else { panic!("{error}") };
    assert_eq!((seq, fault), (SeqNo(11), EntryFault::Unknown));
}

/// The store does not take what it does not know; a newer one would have.
fn append_of_newer_version(log: &Log, source: &Source<'_>, meta: &[u8], payload: &[u8]) {
    source.append(EntryKind::Changeset, payload);
    let before = log.store.chain_at(source.stream, Epoch(2), SeqNo(10)).unwrap().unwrap();
    let chain = before.next(meta, payload);
    let hex: String = meta.iter().map(|byte| format!("{byte:02x}")).collect();
    log.sql(&format!(
        "UPDATE entries SET meta = x'{hex}', chain = x'{chain}' WHERE epoch = 2 AND seq = 11"
    ));
}

#[test]
fn an_entry_that_does_not_fit_is_named() {
    let log = Log::new();
    let source = log.orders();
    source.db.execute("INSERT INTO t VALUES (50, 'not in the log')", []).unwrap();
    source.update(50, "in the log");
    let error = refused(&log, newest(&log, &source));
    assert!(matches!(error, RestoreError::Apply { seq: SeqNo(10), .. }), "{error}");
    assert!(error.to_string().contains("no row with key 50"), "{error}");
    expect(&log, &source, newest(&log, &source).to_seq(SeqNo(9)), 2, 9);
}

#[test]
fn more_than_one_transaction_fits() {
    let log = Log::new();
    let source = log.source("orders");
    source.open_epoch();
    source.snapshot();
    for (id, len) in (1..).zip([700 << 10, 700 << 10, 3 << 20, 10, 0, 500 << 10]) {
        source.insert(id, &"x".repeat(len));
    }
    expect(&log, &source, newest(&log, &source), 1, 7);
    expect(&log, &source, newest(&log, &source).to_seq(SeqNo(3)), 1, 3);
}

#[test]
fn a_table_that_only_speaks_of_counters_has_none() {
    let log = Log::new();
    let source = log.source("orders");
    let table = "DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY /* no AUTOINCREMENT */, v)";
    source.db.execute_batch(table).unwrap();
    source.open_epoch();
    source.snapshot();
    source.insert(1, "a");
    expect(&log, &source, newest(&log, &source), 1, 2);
}

#[test]
fn nothing_is_replaced_unasked() {
    let log = Log::new();
    let source = log.orders();
    let out = log.out("old.db");
    for name in ["old.db", "old.db-wal", "old.db-journal"] {
        std::fs::write(log.out(name), "old").unwrap();
        let error = newest(&log, &source).run(&out, |_| panic!("it began")).unwrap_err();
        let RestoreError::Exists { path } = error else { panic!("{error}") };
        assert_eq!(Path::new(&path), log.out(name));
        assert_eq!(log.results(), [name]);
        run(newest(&log, &source).replace(true), &out).unwrap();
        // A journal of the old database would spoil the new one.
        assert_eq!(log.results(), ["old.db"]);
        assert_eq!(rows_of(&out), source.rows(2, 9));
        std::fs::remove_file(&out).unwrap();
    }
    // What fails leaves the old one.
    std::fs::write(&out, "old").unwrap();
    run(newest(&log, &source).to_seq(SeqNo(99)).replace(true), &out).unwrap_err();
    log.sql("DELETE FROM entries WHERE epoch = 2 AND seq = 9");
    run(newest(&log, &source).replace(true), &out).unwrap_err();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "old");
    assert_eq!(log.results(), ["old.db"]);
    // Not even what came while it ran.
    for name in ["late.db", "late.db-wal"] {
        let late = newest(&log, &source).to_seq(SeqNo(8)).run(&log.out("late.db"), |progress| {
            if progress == Progress::Check {
                std::fs::write(log.out(name), "late").unwrap();
            }
            ControlFlow::Continue(())
        });
        assert!(matches!(late, Err(RestoreError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(log.out(name)).unwrap(), "late");
        std::fs::remove_file(log.out(name)).unwrap();
        assert_eq!(log.results(), ["old.db"]);
    }
}

#[test]
fn places_that_cannot_be_written_are_told() {
    let log = Log::new();
    let source = log.orders();
    let file = log.out("file");
    std::fs::write(&file, "").unwrap();
    for out in
        [log.out("no/such/folder.db"), file.join("x.db"), log.data(), "/".into(), "..".into()]
    {
        let error = run(newest(&log, &source).replace(true), &out).unwrap_err();
        assert!(matches!(error, RestoreError::Io { .. }), "{}: {error}", out.display());
    }
}

#[test]
fn who_ends_it_gets_nothing() {
    let log = Log::new();
    let source = log.orders();
    let mut calls = 0;
    // At each of its reports in turn.
    for stop_at in 0.. {
        calls = 0;
        let ended = newest(&log, &source).run(&log.out("x.db"), |_| {
            calls += 1;
            if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match ended {
            Err(RestoreError::Cancelled) => assert_eq!(log.results(), [""; 0]),
            Err(error) => panic!("{error}"),
            Ok(_) => break,
        }
    }
    assert!(calls >= 5, "{calls}");
    assert_eq!(log.results(), ["x.db"]);
}

#[test]
fn collations_of_the_source_can_be_registered() {
    let log = Log::new();
    let source = log.source("orders");
    let register = |db: &Connection| db.create_collation("BACKWARDS", |one, two| two.cmp(one));
    register(&source.db).unwrap();
    source.db.execute_batch("CREATE INDEX i ON t(v COLLATE BACKWARDS)").unwrap();
    source.open_epoch();
    source.snapshot();
    source.insert(1, "a");
    source.insert(2, "b");
    let error = refused(&log, newest(&log, &source));
    assert!(error.to_string().contains("BACKWARDS"), "{error}");
    expect(&log, &source, newest(&log, &source).prepare(register), 1, 3);
}

#[test]
fn a_database_that_was_damaged_at_its_source_is_restored_only_on_request() {
    let log = Log::new();
    let source = log.source("orders");
    source
        .db
        .execute_batch(
            "CREATE TABLE n(a); INSERT INTO n VALUES (NULL); PRAGMA writable_schema = on;
             UPDATE sqlite_schema SET sql = 'CREATE TABLE n(a NOT NULL)' WHERE name = 'n';",
        )
        .unwrap();
    source.open_epoch();
    source.snapshot();
    source.insert(1, "a");
    let error = refused(&log, newest(&log, &source));
    assert!(matches!(error, RestoreError::Check { .. }), "{error}");
    expect(&log, &source, newest(&log, &source).check(false), 1, 2);
}
