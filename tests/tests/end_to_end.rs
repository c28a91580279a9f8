//! An application's commits through capture, outbox, link and sequencer into a replica that is
//! equal to the source.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use rusqlite::{Connection, params};
use synddb_client::{
    Config, Durability, Engine, Error, Health, OnDivergence, Reason, ResyncReason, SyndDB,
};
use synddb_sequencer::{replica::differences, store::LogStore};
use synddb_tests::{
    scenarios::{SCENARIOS, SCHEMA},
    world::{World, push},
};

const ITEMS: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

fn insert(connection: &Connection, from: i64, to: i64) {
    let mut insert = connection.prepare("INSERT INTO item(v) VALUES (?1)").unwrap();
    for v in from..to {
        insert.execute([v]).unwrap();
    }
}

fn resyncs<C: std::borrow::Borrow<Connection>>(synddb: &SyndDB<C>) -> Vec<ResyncReason> {
    synddb.stats().resyncs.into_iter().map(|(reason, _)| reason).collect()
}

#[test]
fn every_scenario_reaches_the_replica() {
    for engine in [Engine::Session, Engine::Preupdate] {
        scenarios_reach_the_replica(engine);
    }
}

fn scenarios_reach_the_replica(engine: Engine) {
    let world = World::new();
    for (number, (name, statements)) in SCENARIOS.iter().enumerate() {
        let connection = world.open(&format!("{number}.db"));
        connection.execute_batch(SCHEMA).unwrap();
        let config = Config { engine, ..world.config() };
        let synddb = SyndDB::own(connection, config).unwrap();
        // From here on it goes by changesets.
        push(&synddb, name);
        for statement in *statements {
            // Errors of single statements belong to the scenarios.
            let _ = synddb.connection().execute_batch(statement);
        }
        if !synddb.connection().is_autocommit() {
            synddb.connection().execute_batch("ROLLBACK").unwrap();
        }
        world.check(&synddb, name);
        assert_eq!(resyncs(&synddb), [ResyncReason::FirstAttach], "{name}");
    }
}

#[test]
fn what_was_there_before_is_in_the_first_snapshot() {
    let world = World::new();
    let connection = world.open("app.db");
    connection.execute_batch(ITEMS).unwrap();
    insert(&connection, 0, 100);
    let synddb = SyndDB::own(connection, world.config()).unwrap();
    world.check(&synddb, "attached");
    insert(synddb.connection(), 100, 200);
    world.check(&synddb, "written");
}

#[test]
fn commits_go_on_their_way_by_themselves() {
    let world = World::new();
    let connection = world.open("app.db");
    connection.execute_batch(ITEMS).unwrap();
    let synddb = SyndDB::own(connection, world.config()).unwrap();
    insert(synddb.connection(), 0, 10);
    let handle = synddb.handle();
    // Without a push: the handle only looks. Waiting by it would be one.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while handle.stats().unacknowledged_commits > 0 {
        assert!(std::time::Instant::now() < deadline, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    let receipt = handle.stats().receipt.unwrap();
    world.compare(synddb.connection(), &receipt, "by itself");
}

#[test]
fn every_journal_mode_is_pushed() {
    let world = World::new();
    for mode in ["wal", "delete", "truncate", "persist", "memory", "off"] {
        let connection = world.open(&format!("{mode}.db"));
        connection.pragma_update(None, "journal_mode", mode).unwrap();
        connection.execute_batch(ITEMS).unwrap();
        insert(&connection, 0, 10);
        let synddb = SyndDB::own(connection, world.config()).unwrap();
        world.check(&synddb, mode);
        insert(synddb.connection(), 10, 20);
        synddb
            .transaction(|tx| Ok(tx.execute("UPDATE item SET v = v + 1 WHERE id % 3 = 0", [])?))
            .unwrap();
        world.check(&synddb, mode);
        synddb.connection().execute_batch("ALTER TABLE item ADD COLUMN w DEFAULT 5").unwrap();
        world.check(&synddb, mode);
    }
}

#[test]
fn the_preupdate_engine_captures_by_itself_in_every_journal_mode() {
    let world = World::new();
    for mode in ["wal", "delete", "memory"] {
        let connection = world.open(&format!("{mode}.db"));
        connection.pragma_update(None, "journal_mode", mode).unwrap();
        connection.execute_batch(ITEMS).unwrap();
        let config = Config { engine: Engine::Preupdate, ..world.config() };
        let synddb = SyndDB::own(connection, config).unwrap();
        push(&synddb, mode);
        insert(synddb.connection(), 0, 100);
        let handle = synddb.handle();
        let receipt = handle.wait(handle.last_commit(), Duration::from_secs(30)).unwrap();
        world.compare(synddb.connection(), &receipt, mode);
        // Changes without a net effect are commits too.
        synddb.connection().execute_batch("BEGIN; INSERT INTO item VALUES (1000, 1); DELETE FROM item WHERE id = 1000; COMMIT").unwrap();
        world.check(&synddb, mode);
        assert_eq!(resyncs(&synddb), [ResyncReason::FirstAttach], "{mode}");
    }
}

#[test]
fn a_database_in_memory_is_pushed() {
    let world = World::new();
    let config = Config { stream: Some("memory".into()), ..world.config() };
    let synddb = SyndDB::open_in_memory(config.clone()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    insert(synddb.connection(), 0, 1000);
    world.check(&synddb, "first");
    insert(synddb.connection(), 0, 10);
    world.check(&synddb, "more");
    drop(synddb);
    // Another start is another epoch of the same stream.
    let synddb = SyndDB::open_in_memory(config).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    world.check(&synddb, "again");
    assert_eq!(resyncs(&synddb)[0], ResyncReason::MemoryOutbox);

    let unnamed = SyndDB::open_in_memory(world.config()).unwrap_err();
    assert!(matches!(unnamed, Error::Config { setting: "stream", .. }), "{unnamed}");
}

#[test]
fn changes_of_the_schema_are_carried() {
    let world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    let steps = [
        ITEMS,
        "INSERT INTO item VALUES (1, 1)",
        "CREATE INDEX by_v ON item(v)",
        "ALTER TABLE item ADD COLUMN w DEFAULT 'x'",
        "BEGIN; CREATE TABLE other(a, b); INSERT INTO other SELECT id, v FROM item; COMMIT",
        "CREATE TABLE copied AS SELECT * FROM item",
        "INSERT INTO copied SELECT * FROM item",
        "ALTER TABLE item DROP COLUMN w",
        "CREATE VIRTUAL TABLE notes USING fts5(body)",
        "INSERT INTO notes VALUES ('one'), ('two')",
        "DROP TABLE other",
        "VACUUM",
        "INSERT INTO item VALUES (7, 7)",
    ];
    for step in steps {
        synddb.connection().execute_batch(step).unwrap();
        world.check(&synddb, step);
    }
}

#[test]
fn the_preupdate_engine_carries_the_schema_without_snapshots() {
    let world = World::new();
    for mode in ["WAL", "DELETE"] {
        let connection = world.open(&format!("{mode}.db"));
        connection.pragma_update(None, "journal_mode", mode).unwrap();
        let config = Config { engine: Engine::Preupdate, ..world.config() };
        let synddb = SyndDB::own(connection, config).unwrap();
        let steps = [
            ITEMS,
            "INSERT INTO item VALUES (1, 1)",
            "CREATE UNIQUE INDEX by_v ON item(v)",
            "ALTER TABLE item ADD COLUMN w DEFAULT 'x'",
            "BEGIN; CREATE TABLE other(a, b); INSERT INTO other SELECT id, v FROM item; COMMIT",
            "CREATE TABLE copied AS SELECT * FROM item",
            "ALTER TABLE item RENAME COLUMN w TO x",
            "ALTER TABLE item DROP COLUMN x",
            "CREATE VIRTUAL TABLE notes USING fts5(body)",
            "INSERT INTO notes VALUES ('one'), ('two')",
            "DROP TABLE other; CREATE VIEW items AS SELECT * FROM item",
            "PRAGMA user_version = 3",
        ];
        push(&synddb, "attached");
        let before = resyncs(&synddb);
        for step in steps {
            synddb.connection().execute_batch(step).unwrap();
            // A snapshot is no help here: the log has to lead to the database.
            let receipt = push(&synddb, step);
            let (replica, restored) = world.restore(&receipt);
            assert_eq!(differences(synddb.connection(), &replica).unwrap(), [], "{mode}, {step}");
            assert_eq!(restored.epoch.0, 1, "{mode}, {step}");
        }
        assert_eq!(resyncs(&synddb), before, "{mode}");
        assert_eq!(synddb.shutdown().unwrap().left, None);
    }
}

#[test]
fn writes_of_others_and_null_keys_are_carried() {
    let world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb
        .connection()
        .execute_batch(
            "CREATE TABLE keyed(k TEXT PRIMARY KEY, v); INSERT INTO keyed VALUES ('a', 1)",
        )
        .unwrap();
    push(&synddb, "attached");
    let other = Connection::open(world.path("app.db")).unwrap();
    other.execute_batch("INSERT INTO keyed VALUES ('b', 2)").unwrap();
    world.check(&synddb, "another connection");
    assert!(resyncs(&synddb).contains(&ResyncReason::ForeignWrite));
    synddb.connection().execute_batch("INSERT INTO keyed VALUES (NULL, 3)").unwrap();
    world.check(&synddb, "a NULL key");
    assert!(resyncs(&synddb).contains(&ResyncReason::NullKey));
}

#[test]
fn a_key_that_changes_to_an_equal_one_is_carried() {
    let world = World::new();
    for engine in [Engine::Session, Engine::Preupdate] {
        let config = Config { engine, ..world.config() };
        let path = world.path(&format!("{engine:?}.db"));
        let synddb = SyndDB::open_with_config(path, config).unwrap();
        synddb
            .connection()
            .execute_batch(
                "CREATE TABLE word(w TEXT PRIMARY KEY COLLATE NOCASE NOT NULL, n);
                 CREATE TABLE any(k PRIMARY KEY NOT NULL, n);
                 INSERT INTO word VALUES ('apple', 1), ('pear', 2);
                 INSERT INTO any VALUES (1, 1), (2, 2);",
            )
            .unwrap();
        push(&synddb, "before");
        for step in [
            "UPDATE word SET w = 'Apple' WHERE n = 1",
            "UPDATE any SET k = 1.0 WHERE n = 1",
            "UPDATE word SET n = 3 WHERE n = 2; INSERT INTO word VALUES ('plum', 4)",
        ] {
            synddb.connection().execute_batch(step).unwrap();
            world.check(&synddb, step);
        }
    }
}

#[test]
fn a_clean_stop_needs_no_snapshot() {
    let world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    insert(synddb.connection(), 0, 10);
    push(&synddb, "first");
    let report = synddb.shutdown().unwrap();
    assert!(report.clean && report.left.is_none(), "{report:?}");

    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    insert(synddb.connection(), 10, 20);
    world.check(&synddb, "second");
    assert_eq!(resyncs(&synddb), []);
    assert!(synddb.shutdown().unwrap().clean);

    // Somebody wrote while nobody watched.
    insert(&world.open("app.db"), 20, 30);
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    world.check(&synddb, "third");
    assert_eq!(resyncs(&synddb), [ResyncReason::UncleanRestart]);
}

#[test]
fn commits_wait_for_a_sequencer_that_is_away() {
    let mut world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    push(&synddb, "first");
    world.stop();
    insert(synddb.connection(), 0, 50);
    let error = synddb.push().unwrap_err();
    let Error::NotStored(left) = error else { panic!("{error}") };
    assert!(matches!(left.reason, Reason::LinkDown(_)), "{left}");
    assert_eq!(left.commits, 50);
    assert!(matches!(synddb.handle().health(), Health::Waiting { .. }));
    let report = synddb.shutdown().unwrap();
    assert!(report.clean && report.left.is_some(), "{report:?}");

    // The queue is on disk: the next start sends it.
    world.start();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    insert(synddb.connection(), 50, 60);
    world.check(&synddb, "back");
    assert_eq!(resyncs(&synddb), []);
}

#[test]
fn a_loss_that_no_snapshot_has_mended_survives_a_clean_stop() {
    let mut world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    push(&synddb, "first");
    world.stop();
    // No changeset carries what VACUUM may do to rowids.
    synddb.connection().execute_batch("VACUUM; INSERT INTO item VALUES (1, 1)").unwrap();
    assert!(!synddb.shutdown().unwrap().clean);
    world.start();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    world.check(&synddb, "back");
}

#[test]
fn a_first_snapshot_waits_for_a_sequencer_that_is_away() {
    let mut world = World::new();
    world.stop();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    insert(synddb.connection(), 0, 50);
    assert_eq!(synddb.stats().behind, Some(ResyncReason::FirstAttach));
    synddb.push().unwrap_err();
    let stats = synddb.stats();
    assert_eq!((stats.queued_entries, stats.memory_commits), (0, 0), "nothing grows");
    world.start();
    world.check(&synddb, "there");
}

#[test]
fn past_its_limit_the_backlog_becomes_one_snapshot() {
    let mut world = World::new();
    for durability in [Durability::Background, Durability::Memory] {
        let config = Config {
            max_outbox_bytes: Some(20_000),
            durability,
            stream: Some(format!("{durability:?}")),
            ..world.config()
        };
        let path = world.path(&format!("{durability:?}.db"));
        let synddb = SyndDB::open_with_config(path, config).unwrap();
        synddb.connection().execute_batch(ITEMS).unwrap();
        push(&synddb, "first");
        world.stop();
        for _ in 0..100 {
            synddb
                .connection()
                .execute("INSERT INTO item(v) VALUES (randomblob(1000))", [])
                .unwrap();
        }
        synddb.push().unwrap_err();
        let stats = synddb.stats();
        assert!(stats.queued_bytes <= 20_000, "{stats:?}");
        world.start();
        world.check(&synddb, "back");
        assert!(resyncs(&synddb).contains(&ResyncReason::QueueFull), "{synddb:?}");
        insert(synddb.connection(), 0, 5);
        world.check(&synddb, "and on");
    }
}

#[test]
fn snapshots_in_between_make_restoring_shorter() {
    let world = World::new();
    let config = Config { snapshot_interval: 100, ..world.config() };
    // Before it attaches: with the session engine a new table may take a snapshot of its own.
    let connection = Connection::open(world.path("app.db")).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; {ITEMS}")).unwrap();
    let synddb = SyndDB::own(connection, config).unwrap();
    push(&synddb, "first");
    insert(synddb.connection(), 0, 150);
    push(&synddb, "second");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while synddb.stats().snapshots < 2 {
        assert!(std::time::Instant::now() < deadline, "{:?}", synddb.stats());
        std::thread::yield_now();
    }
    world.check(&synddb, "by count");
    let receipt = push(&synddb, "by count");
    assert!(world.restore(&receipt).1.snapshot_as_of.0 > 0);

    insert(synddb.connection(), 150, 160);
    let receipt = synddb.snapshot().unwrap_or_else(|error| panic!("{error}, {synddb:?}"));
    let (_, restored) = world.restore(&receipt);
    assert!(restored.entries < 10, "{restored:?}");
    world.check(&synddb, "by hand");
    assert_eq!(resyncs(&synddb).len(), 1, "none of them began an epoch: {:?}", synddb.stats());
}

#[test]
fn snapshots_in_quick_succession_take_each_its_own_state() {
    for engine in [Engine::Session, Engine::Preupdate] {
        let world = World::new();
        let config = Config { engine, snapshot_interval: 5, ..world.config() };
        let synddb = SyndDB::open_with_config(world.path("app.db"), config).unwrap();
        synddb.connection().execute_batch(ITEMS).unwrap();
        let mut rng = synddb_core::Rng::new(7);
        for round in 0..60 {
            insert(synddb.connection(), round * 10, round * 10 + 10);
            match rng.up_to(3) {
                0 => synddb.resync(),
                1 => {
                    synddb.connection().execute_batch(&format!("CREATE TABLE t{round}(x)")).unwrap()
                }
                2 => std::thread::yield_now(),
                _ => {}
            }
            if round % 20 == 19 {
                world.check(&synddb, &format!("{engine:?}, round {round}"));
            }
        }
        assert_eq!(synddb.stats().divergences, 0, "{engine:?}");
    }
}

#[test]
fn a_copy_of_the_database_takes_nothing_in_silence() {
    for on_divergence in [OnDivergence::Resync, OnDivergence::Halt] {
        a_copy_is_fenced(on_divergence);
    }
}

fn a_copy_is_fenced(on_divergence: OnDivergence) {
    let world = World::new();
    let stream = Some("orders".into());
    let config = Config { stream, on_divergence, ..world.config() };
    let synddb = SyndDB::open_with_config(world.path("app.db"), config.clone()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    push(&synddb, "first");
    assert!(synddb.shutdown().unwrap().clean);
    for suffix in ["", "-synddb"] {
        let from = world.path(&format!("app.db{suffix}"));
        std::fs::copy(from, world.path(&format!("copy.db{suffix}"))).unwrap();
    }
    let refused = SyndDB::open_with_config(world.path("copy.db"), config.clone()).unwrap_err();
    assert!(refused.to_string().contains("copy"), "{refused}");

    // As on another machine, where the original is not to be seen.
    let original = SyndDB::open_with_config(world.path("app.db"), config.clone()).unwrap();
    insert(original.connection(), 0, 5);
    push(&original, "the original");
    std::fs::rename(world.path("app.db"), world.path("elsewhere.db")).unwrap();
    let copy = SyndDB::open_with_config(world.path("copy.db"), config).unwrap();
    insert(copy.connection(), 10, 15);
    if on_divergence == OnDivergence::Halt {
        let Error::NotStored(left) = copy.push().unwrap_err() else { panic!("another error") };
        assert_eq!(left.reason, Reason::Diverged);
        copy.resync();
    }
    world.check(&copy, "the copy has the stream");
    insert(original.connection(), 5, 10);
    let stopped = original.push().unwrap_err();
    let Error::NotStored(left) = &stopped else { panic!("{stopped}") };
    assert_eq!(left.reason, Reason::Superseded);
    assert!(matches!(original.handle().health(), Health::Stopped { .. }));
    // Loudly, and not by itself, it can be taken back.
    original.resync();
    world.check(&original, "taken back");
}

#[test]
fn a_sequencer_restored_from_an_older_backup_gets_a_snapshot() {
    let mut world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    push(&synddb, "first");
    world.stop();
    let copy = |world: &World, from: &str, to: &str| {
        let _ = std::fs::remove_dir_all(world.path(to));
        copy_dir(&world.path(from), &world.path(to));
    };
    copy(&world, "log", "backup");
    world.start();
    insert(synddb.connection(), 0, 20);
    push(&synddb, "second");
    world.stop();
    copy(&world, "backup", "log");
    world.start();
    insert(synddb.connection(), 20, 30);
    world.check(&synddb, "restored");
    assert!(resyncs(&synddb).contains(&ResyncReason::SequencerLostData));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn one_connection_at_a_time() {
    let world = World::new();
    let first = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    let second = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap_err();
    assert!(matches!(second, Error::Outbox(synddb_client::OutboxError::InUse { .. })), "{second}");
    drop(first);
    SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
}

#[test]
fn what_cannot_be_attached_to_is_refused_and_left_as_it_was() {
    let world = World::new();
    let garbage = world.path("garbage");
    std::fs::write(&garbage, [b'x'; 4096]).unwrap();
    SyndDB::own(Connection::open(&garbage).unwrap(), world.config()).unwrap_err();
    assert!(!world.path("garbage-synddb").exists());

    let connection = world.open("app.db");
    connection.execute_batch(ITEMS).unwrap();
    drop(connection);
    let reader = synddb_tests::world::open_read_only(&world.path("app.db"));
    SyndDB::own(reader, world.config()).unwrap_err();

    let config = Config { outbox_path: Some(world.path("no/such/place")), ..world.config() };
    let refused = SyndDB::own(world.open("app.db"), config).unwrap_err();
    assert!(matches!(refused, Error::Outbox(_)), "{refused}");

    let config = Config { outbox_path: Some(world.path("app.db")), ..world.config() };
    let refused = SyndDB::own(world.open("app.db"), config).unwrap_err();
    assert!(refused.to_string().contains("another place"), "{refused}");

    for url in ["", "gopher://sequencer", "http://"] {
        let config = Config { sequencer_url: url.into(), ..world.config() };
        let refused = SyndDB::own(world.open("app.db"), config).unwrap_err();
        assert!(matches!(refused, Error::Config { setting: "sequencer_url", .. }), "{refused}");
    }
    let connection = world.open("app.db");
    connection.execute_batch("BEGIN").unwrap();
    SyndDB::own(connection, world.config()).unwrap_err();
}

#[test]
fn a_shutdown_leaves_nothing_on_the_connection() {
    let world = World::new();
    let leaked = Box::into_raw(Box::new(world.open("app.db")));
    // SAFETY: freed at the end, after the last use of the reference.
    let connection: &'static Connection = unsafe { &*leaked };
    connection.execute_batch(ITEMS).unwrap();
    let synddb = SyndDB::attach_with_config(connection, world.config()).unwrap();
    insert(connection, 0, 5);
    let report = synddb.shutdown().unwrap();
    world.compare(connection, &report.receipt.unwrap(), "shut down");
    insert(connection, 5, 10);
    // SAFETY: made by `Box::into_raw`; the handle that referred to it is gone.
    unsafe { *Box::from_raw(leaked) }.close().unwrap();
}

#[test]
fn pushing_works_as_a_future_of_no_runtime() {
    let world = World::new();
    let connection = world.open("app.db");
    connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
    connection.execute_batch(ITEMS).unwrap();
    let synddb = SyndDB::own(connection, world.config()).unwrap();
    insert(synddb.connection(), 0, 5);
    let receipt = block_on(synddb.push_async()).unwrap();
    world.compare(synddb.connection(), &receipt, "pushed");
    let handle = synddb.handle();
    let again = block_on(handle.wait_async(receipt.commit, Duration::from_secs(30))).unwrap();
    assert_eq!(again.commit, receipt.commit);
    let never = block_on(handle.wait_async(receipt.commit + 1, Duration::from_millis(50)));
    assert!(matches!(never, Err(Error::NotStored(left)) if left.reason == Reason::TimedOut(None)));
    let report = block_on(synddb.shutdown_async()).unwrap();
    assert!(report.clean, "{report:?}");
}

fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn many_databases_in_one_process() {
    let world = World::new();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (config, path) = (world.config(), world.path(&format!("{thread}.db")));
            std::thread::spawn(move || {
                let synddb = SyndDB::open_with_config(path, config).unwrap();
                synddb.connection().execute_batch(ITEMS).unwrap();
                insert(synddb.connection(), 0, 200);
                synddb
            })
        })
        .collect();
    for (number, thread) in threads.into_iter().enumerate() {
        world.check(&thread.join().unwrap(), &number.to_string());
    }
    assert_eq!(world.store().streams().unwrap().len(), 4);
}

#[test]
fn a_commit_of_fifty_megabytes_arrives() {
    let world = World::new();
    let synddb = SyndDB::open_with_config(world.path("app.db"), world.config()).unwrap();
    synddb.connection().execute_batch(ITEMS).unwrap();
    push(&synddb, "first");
    let before = resyncs(&synddb);
    synddb
        .transaction(|tx| {
            for _ in 0..50 {
                tx.execute("INSERT INTO item(v) VALUES (randomblob(?1))", params![1_000_000])?;
            }
            Ok(())
        })
        .unwrap();
    world.check(&synddb, "large");
    assert_eq!(resyncs(&synddb), before, "it went as a changeset");
}
