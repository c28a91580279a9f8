//! Large things, and what a long outage takes. The small ones run with all tests, the big ones by
//! `cargo xtask large`, each in a process of its own whose peak of memory is measured.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{path::Path, time::Duration};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, ResyncReason, SyndDB};
use synddb_tests::world::{World, push};

const MIB: u64 = 1 << 20;

/// The most that this process has ever had in memory, in bytes: application and sequencer together.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn attach(world: &World, engine: Engine, change: impl FnOnce(&mut Config)) -> SyndDB<Connection> {
    let mut config = Config {
        engine,
        // Which snapshots are taken is what is looked at.
        snapshot_factor: 0.0,
        push_timeout: Duration::from_secs(600),
        shutdown_timeout: Duration::from_secs(600),
        ..world.config()
    };
    change(&mut config);
    SyndDB::own(world.open("app.db"), config).unwrap()
}

fn insert(connection: &Connection, rows: u64, bytes: u64) {
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO item(v) SELECT randomblob(?2) FROM n",
            [rows as i64, bytes as i64],
        )
        .unwrap();
}

const ITEM: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

fn one_transaction(engine: Engine, rows: u64) {
    let world = World::new();
    let synddb = attach(&world, engine, |config| config.max_batch_size = 64 << 10);
    synddb.connection().execute_batch(ITEM).unwrap();
    push(&synddb, "before");
    let snapshots = synddb.stats().snapshots;
    insert(synddb.connection(), rows, 20);
    world.check(&synddb, "one transaction");
    assert_eq!(synddb.stats().snapshots, snapshots, "it went as a changeset: {synddb:?}");
}

#[test]
fn a_transaction_larger_than_many_frames_arrives() {
    for engine in [Engine::Session, Engine::Preupdate] {
        one_transaction(engine, 20_000);
    }
}

#[test]
#[ignore = "big: cargo xtask large"]
fn a_transaction_of_a_million_rows() {
    one_transaction(Engine::Session, 1_000_000);
    println!("peak: {} MiB", peak() / MIB);
}

#[test]
#[ignore = "big: cargo xtask large"]
fn a_transaction_of_a_million_rows_by_the_preupdate_engine() {
    one_transaction(Engine::Preupdate, 1_000_000);
    println!("peak: {} MiB", peak() / MIB);
}

fn many_tables(count: u32) {
    for engine in [Engine::Session, Engine::Preupdate] {
        let world = World::new();
        let synddb = attach(&world, engine, |_| {});
        let all = |sql: &dyn Fn(u32) -> String| {
            let script: String = (0..count).map(sql).collect();
            synddb.connection().execute_batch(&format!("BEGIN; {script} COMMIT")).unwrap();
        };
        all(&|table| format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY, v);"));
        push(&synddb, "tables");
        all(&|table| format!("INSERT INTO t{table}(v) VALUES ({table});"));
        all(&|table| format!("UPDATE t{table} SET v = v + 1;"));
        world.check(&synddb, "tables");
    }
}

#[test]
fn a_hundred_tables_arrive() {
    many_tables(100);
}

#[test]
#[ignore = "big: cargo xtask large"]
fn a_thousand_tables() {
    many_tables(1000);
    println!("peak: {} MiB", peak() / MIB);
}

/// No whole copy of the database is in memory, on either side.
#[test]
#[ignore = "big: cargo xtask large"]
fn a_table_of_500_megabytes_in_a_snapshot() {
    let world = World::new();
    let database = world.open("app.db");
    database.execute_batch(ITEM).unwrap();
    for _ in 0..50 {
        insert(&database, 10, MIB);
    }
    drop(database);
    let before = peak();
    let synddb = attach(&world, Engine::Session, |_| {});
    push(&synddb, "the snapshot");
    let took = peak() - before;
    println!("peak: {} MiB more than before", took / MIB);
    assert!(took < 100 * MIB, "{} MiB for a database of 500", took / MIB);
    world.check(&synddb, "the snapshot");
}

fn file_len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// What a long outage leaves is within the limits all along, and past them one snapshot tells all.
fn outage(durability: Durability, commits: u64, limit: u64) {
    let mut world = World::new();
    let synddb = attach(&world, Engine::Preupdate, |config| {
        config.durability = durability;
        config.stream = (durability == Durability::Memory).then(|| "outage".into());
        config.max_outbox_bytes = Some(limit);
        config.max_memory_bytes = limit as usize;
        config.push_timeout = Duration::from_secs(30);
    });
    synddb.connection().execute_batch(ITEM).unwrap();
    push(&synddb, "before");
    world.stop();
    let outbox = world.path("app.db-synddb");
    let (mut most_queued, mut most_memory) = (0, 0);
    for _ in 0..commits {
        insert(synddb.connection(), 10, 1000);
        let stats = synddb.stats();
        most_queued = most_queued.max(stats.queued_bytes);
        most_memory = most_memory.max(stats.memory_bytes);
    }
    // One write may go past the limit before the outbox is collapsed; what it holds is then in memory.
    assert!(most_queued <= 2 * limit, "{most_queued} bytes were queued, {limit} may be");
    assert!(most_memory as u64 <= limit, "{most_memory} bytes were in memory, {limit} may be");
    assert!(file_len(&outbox) + file_len(&world.path("app.db-synddb-wal")) < 8 * limit + 8 * MIB);
    // SQLite empties it at a thousand pages where nobody holds it: 4 MiB, and one commit more.
    let log = file_len(&world.path("app.db-wal"));
    assert!(log < 6 * MIB, "the application's log has {log} bytes");
    let stats = synddb.stats();
    assert_eq!(stats.behind, Some(ResyncReason::QueueFull), "{stats:?}");
    let before = stats.snapshots;
    world.start();
    world.check(&synddb, "after");
    assert_eq!(synddb.stats().snapshots, before + 1, "one snapshot: {synddb:?}");
}

#[test]
fn a_long_outage_stays_within_its_limits() {
    outage(Durability::Background, 300, MIB);
}

#[test]
fn a_long_outage_stays_within_its_limits_in_memory() {
    outage(Durability::Memory, 300, MIB);
}

#[test]
#[ignore = "big: cargo xtask large"]
fn an_outage_of_a_gigabyte() {
    let before = peak();
    outage(Durability::Background, 100_000, 16 * MIB);
    let took = peak() - before;
    println!("peak: {} MiB more than before", took / MIB);
    assert!(took < 200 * MIB);
}
