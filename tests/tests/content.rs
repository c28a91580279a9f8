//! The content hash from the application to the replica, and what is said when something lasts.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{
    Config, Engine, Error, Health, NotStored, Reason, ResyncReason, SyndDB,
    transport::{Transport, TransportError, TransportErrorKind},
};
use synddb_core::{Epoch, SeqNo, content::ContentKey, wire::EntryMeta};
use synddb_sequencer::{
    replica::{Restore, content_of},
    store::{LogStore, StoredEntry},
    verify::{Standing, verify_replica, verify_stream},
};
use synddb_tests::world::{World, push};

const ENGINES: [Engine; 2] = [Engine::Session, Engine::Preupdate];

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All entries of the newest epoch, and what they say.
fn entries(world: &World, stream: synddb_core::StreamId) -> Vec<(StoredEntry, EntryMeta)> {
    let store = world.store();
    let epoch = store.epochs(stream).unwrap().last().unwrap().epoch;
    let entries = store.entries(stream, epoch, SeqNo(1), usize::MAX).unwrap();
    entries.into_iter().map(|entry| (entry.clone(), entry.decoded_meta().unwrap())).collect()
}

#[test]
fn every_entry_carries_the_hash_of_what_a_replica_holds_after_it() {
    for engine in ENGINES {
        let world = World::new();
        let config = Config { engine, ..world.config() };
        // There are rows before it attaches, and commits while the first snapshot is copied.
        let db = world.open("app.db");
        db.execute_batch(
            "CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, v, r REAL DEFAULT 2);
             CREATE TABLE plain(a, b TEXT COLLATE NOCASE);
             INSERT INTO item(v) VALUES ('before'), (NULL), (x'00ff');
             INSERT INTO plain VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
        )
        .unwrap();
        let synddb = SyndDB::own(db, config.clone()).unwrap();
        let run = |sql: &str| synddb.connection().execute_batch(sql).unwrap();
        for at in 0..20 {
            run(&format!("INSERT INTO item(v, r) VALUES ({at}, {at})"));
        }
        push(&synddb, "first");
        run("UPDATE item SET v = -0.0 WHERE id % 3 = 0; DELETE FROM item WHERE id = 5");
        run("BEGIN; UPDATE plain SET b = 'X'; DELETE FROM plain WHERE rowid = 1; COMMIT");
        let receipt = push(&synddb, "second");
        let told = entries(&world, receipt.stream);
        assert!(told.iter().all(|(_, meta)| meta.content_hash.is_some()), "{engine:?}");
        let key = ContentKey::of(receipt.stream);
        for (entry, meta) in told.iter().rev().take(3) {
            let out = world.path("at.db");
            Restore::new(&world.store(), receipt.stream)
                .to_seq(entry.seq)
                .replace(true)
                .run(&out, |_| ControlFlow::Continue(()))
                .unwrap();
            let found = content_of(&Connection::open(&out).unwrap(), key).unwrap();
            assert_eq!(meta.content_hash, Some(found), "{engine:?}, entry {}", entry.seq);
        }
        // A clean restart goes on with it.
        assert!(synddb.shutdown().unwrap().clean);
        let synddb = SyndDB::open_with_config(world.path("app.db"), config).unwrap();
        synddb.connection().execute_batch("INSERT INTO item(v) VALUES ('after')").unwrap();
        world.check(&synddb, "after a restart");
        let (_, last) = entries(&world, receipt.stream).pop().unwrap();
        let now = content_of(synddb.connection(), key).unwrap();
        assert_eq!(last.content_hash, Some(now), "{engine:?}");
        assert_eq!(synddb.stats().divergences, 0);
        let report =
            verify_stream(&world.store(), receipt.stream, Some(&world.path("")), &mut || true)
                .unwrap();
        assert!(report.findings.is_empty() && report.replayed == 1, "{report:?}");
    }
}

#[test]
fn the_hash_follows_the_schema_and_comes_back_where_it_cannot() {
    let world = World::new();
    let config = Config { engine: Engine::Preupdate, ..world.config() };
    let synddb = SyndDB::own(world.open("app.db"), config).unwrap();
    let run = |sql: &str| synddb.connection().execute_batch(sql).unwrap();
    let newest = || {
        let receipt = push(&synddb, "newest");
        let (_, meta) = entries(&world, receipt.stream).pop().unwrap();
        let now = content_of(synddb.connection(), ContentKey::of(receipt.stream)).unwrap();
        (meta.content_hash, now)
    };
    push(&synddb, "empty");
    for sql in [
        "CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO a(v) VALUES (1), (2)",
        "CREATE TABLE b(x); INSERT INTO b SELECT v FROM a; INSERT INTO b VALUES (x'00')",
        "ALTER TABLE a ADD COLUMN w",
        "UPDATE a SET w = v",
        "ALTER TABLE a RENAME COLUMN w TO z",
        "ALTER TABLE b RENAME TO c",
        "INSERT INTO c VALUES (9)",
        "CREATE UNIQUE INDEX i ON a(z); DROP TABLE c",
        "ALTER TABLE a DROP COLUMN v; INSERT INTO a(z) VALUES (77)",
    ] {
        run(sql);
        let (told, now) = newest();
        assert_eq!(told, Some(now), "{sql}");
    }
    let epochs = || world.store().epochs(push(&synddb, "epochs").stream).unwrap().len();
    assert_eq!(epochs(), 1);
    // The rows of a column that has a default are in no changeset.
    run("ALTER TABLE a ADD COLUMN filled DEFAULT 'x'; INSERT INTO a(z) VALUES (78)");
    assert_eq!(newest().0, None);
    world.check(&synddb, "without hashes");
    synddb.snapshot().unwrap();
    run("INSERT INTO a(z) VALUES (79)");
    let (told, now) = newest();
    assert_eq!(told, Some(now));
    assert_eq!(epochs(), 2, "the snapshot began an epoch that has them again");
    world.check(&synddb, "with hashes again");
}

#[test]
fn a_changed_cell_of_a_replica_is_named() {
    let world = World::new();
    let synddb = SyndDB::own(world.open("app.db"), world.config()).unwrap();
    let run = |sql: &str| synddb.connection().execute_batch(sql).unwrap();
    run("CREATE TABLE account(name TEXT PRIMARY KEY NOT NULL, cents INTEGER)");
    push(&synddb, "the schema");
    run("INSERT INTO account VALUES ('ann', 100), ('bob', 200)");
    let receipt = push(&synddb, "rows");
    let (replica, restored) = world.restore(&receipt);
    drop(replica);
    let stand = |sql: &str| {
        let db = Connection::open(world.path("restored.db")).unwrap();
        db.execute_batch(sql).unwrap();
        let store = world.store();
        let restore = Restore::new(&store, receipt.stream);
        let work = world.path("");
        verify_replica(&store, receipt.stream, &db, restore, &work, &mut || true).unwrap()
    };
    let sound = stand("");
    let Standing::At { epoch, seq, .. } = sound else { panic!("{sound:?}") };
    assert_eq!((epoch, seq), (restored.epoch, restored.seq));
    let damaged = stand("UPDATE account SET cents = 201 WHERE name = 'bob'");
    let Standing::Differs { differences, .. } = damaged else { panic!("{damaged:?}") };
    let told: Vec<_> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["table account: (\"bob\", 201) against (\"bob\", 200)"]);
}

#[test]
fn a_log_that_outweighs_its_snapshot_gets_another() {
    for (factor, at_least) in [(1.0, 3), (0.0, 1)] {
        let world = World::new();
        let config = Config { snapshot_factor: factor, ..world.config() };
        let synddb = SyndDB::own(world.open("app.db"), config).unwrap();
        synddb.connection().execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        push(&synddb, "first");
        let base = synddb.stats().snapshots;
        for round in 0..13 {
            // Two megabytes in the log, old and new, and always the same few rows in the database.
            synddb
                .connection()
                .execute("INSERT OR REPLACE INTO t VALUES (1, randomblob(1048576))", [])
                .unwrap();
            push(&synddb, "a megabyte");
            let grown = || synddb.stats().snapshots >= base + (round + 1) / 5;
            if factor > 0.0 {
                wait_until("a snapshot for every five megabytes", grown);
            }
        }
        let taken = synddb.stats().snapshots - base + 1;
        if factor > 0.0 {
            assert!((at_least..=8).contains(&taken), "{taken}");
        } else {
            assert_eq!(taken, at_least);
        }
        world.check(&synddb, "by weight");
        let epoch = push(&synddb, "by weight").head.epoch;
        let resyncs: u64 = synddb.stats().resyncs.iter().map(|(_, count)| count).sum();
        assert_eq!(Epoch(resyncs), epoch, "none of them began an epoch of its own");
    }
}

#[test]
fn a_damaged_outbox_is_replaced_and_a_snapshot_stands_for_it() {
    for engine in ENGINES {
        let world = World::new();
        let config = Config { engine, ..world.config() };
        let synddb = SyndDB::own(world.open("app.db"), config).unwrap();
        let run = |sql: &str| synddb.connection().execute_batch(sql).unwrap();
        run("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'one')");
        push(&synddb, "first");
        let other = Connection::open(world.path("app.db-synddb")).unwrap();
        other.busy_timeout(Duration::from_secs(10)).unwrap();
        other
            .execute_batch(
                "PRAGMA writable_schema = on;
                 UPDATE sqlite_schema SET sql = 'nonsense' WHERE name = 'entries';
                 PRAGMA schema_version = 1000",
            )
            .unwrap();
        drop(other);
        run("INSERT INTO t VALUES (2, 'two')");
        world.check(&synddb, "over the damage");
        let resyncs = synddb.stats().resyncs;
        let damaged = resyncs.iter().any(|(why, _)| *why == ResyncReason::OutboxDamaged);
        assert!(damaged, "{resyncs:?}");
        run("INSERT INTO t VALUES (3, 'three')");
        world.check(&synddb, "and on");
        assert_eq!(synddb.stats().trouble, None);
        assert!(synddb.shutdown().unwrap().clean);
    }
}

fn refusal<T: fmt::Debug>(result: Result<T, Error>) -> Reason {
    match result {
        Err(Error::NotStored(NotStored { reason, .. })) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_that_is_too_large_is_tried_again_when_the_limit_changes() {
    let limit = Arc::new(AtomicU64::new(4096));
    let its = Arc::clone(&limit);
    let mut world = World::configured(move |_, config| {
        config.limits.max_snapshot = its.load(Ordering::Relaxed);
    });
    let db = world.open("app.db");
    db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (randomblob(100000))").unwrap();
    let synddb = SyndDB::own(db, world.config()).unwrap();
    let why = refusal(synddb.push());
    assert!(matches!(why, Reason::SnapshotTooLarge { limit: 4096, len: 100_000.. }), "{why}");
    let health = synddb.handle().health();
    assert!(matches!(health, Health::Stopped { .. }), "{health:?}");
    // It lasts, and nothing is tried meanwhile.
    wait_until("the refusal in the figures", || synddb.stats().refusals > 0);
    let epochs = |world: &World| world.store().epochs(synddb.stats().stream).unwrap().len();
    let (before, refusals) = (epochs(&world), synddb.stats().refusals);
    let started = Instant::now();
    for _ in 0..5 {
        synddb.connection().execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let why = refusal(synddb.push());
        assert!(matches!(why, Reason::SnapshotTooLarge { .. }), "{why}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "each was told at once");
    assert_eq!((epochs(&world), synddb.stats().refusals), (before, refusals));
    // Somebody asks for another try.
    synddb.resync();
    wait_until("another try", || synddb.stats().refusals > refusals);
    wait_until("the same answer", || synddb.stats().stuck.is_some());
    // The limit changes.
    world.stop();
    limit.store(1 << 30, Ordering::Relaxed);
    world.start();
    wait_until("the new limit", || synddb.stats().stuck.is_none());
    world.check(&synddb, "under the new limit");
    assert_eq!(synddb.handle().health(), Health::Well);
}

/// A transport that panics.
#[derive(Debug)]
struct Panics;

#[derive(Debug)]
struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("never")
    }
}

impl std::error::Error for Never {}

impl TransportError for Never {
    fn kind(&self) -> TransportErrorKind {
        TransportErrorKind::Unreachable
    }
}

impl Transport for Panics {
    type Error = Never;

    fn connect(&mut self) -> Result<(), Never> {
        panic!("the test's transport panics")
    }

    fn close(&mut self) {}

    fn send(&mut self, _: &[u8]) -> Result<(), Never> {
        Err(Never)
    }

    fn recv(&mut self, _: &mut [u8], _: Duration) -> Result<Option<usize>, Never> {
        Err(Never)
    }

    fn max_in_flight(&self) -> usize {
        1
    }
}

#[test]
fn a_thread_that_panics_is_told_at_once() {
    let world = World::new();
    let synddb = SyndDB::own_with_transport(world.open("app.db"), Panics, world.config()).unwrap();
    synddb.connection().execute_batch("CREATE TABLE t(v)").unwrap();
    let started = Instant::now();
    let why = refusal(synddb.push());
    assert!(matches!(&why, Reason::Panicked(thread) if thread == "synddb-link"), "{why}");
    assert!(started.elapsed() < Duration::from_secs(10), "and not by a time-out");
    let stats = synddb.stats();
    assert!(stats.stuck.as_ref().is_some_and(|why| why.contains("synddb-link")), "{stats:?}");
    assert!(matches!(stats.health(), Health::Stopped { .. }));
    synddb.connection().execute_batch("INSERT INTO t VALUES (1)").unwrap();
    assert!(!synddb.shutdown().unwrap().clean, "nothing was stored");
}
