//! What a session captures, applied to a replica, gives the source again.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use rusqlite::{Connection, session::Session};
use synddb_core::Rng;
use synddb_sequencer::replica::{Applier, differences};
use synddb_tests::scenarios::{SCENARIOS, SCHEMA};

/// Runs the statements on a source, ships one changeset for every commit, and compares.
fn replay(name: &str, schema: &str, statements: &[&str]) {
    let source = Connection::open_in_memory().unwrap();
    let replica = Connection::open_in_memory().unwrap();
    for db in [&source, &replica] {
        db.execute_batch(schema).unwrap();
    }
    let mut applier = Applier::new(&replica).unwrap();
    let session = || {
        let mut session = Session::new(&source).unwrap();
        session.attach::<&str>(None).unwrap();
        session
    };
    let mut current = session();
    for statement in statements {
        // Errors of single statements belong to the scenarios.
        let _ = source.execute_batch(statement);
        if !source.is_autocommit() {
            continue;
        }
        let mut changeset = Vec::new();
        current.changeset_strm(&mut changeset).unwrap();
        drop(current);
        current = session();
        replica.execute_batch("BEGIN").unwrap();
        applier.apply(&changeset).unwrap_or_else(|error| panic!("{name}: {statement}: {error}"));
        replica.execute_batch("COMMIT").unwrap();
    }
    drop(current);
    let found = differences(&source, &replica).unwrap();
    // A plain session does not see tables without a key; capture asks for rowids.
    let found: Vec<_> =
        found.into_iter().filter(|difference| !difference.to_string().contains("nopk")).collect();
    assert!(found.is_empty(), "{name}: {found:?}");
}

#[test]
fn every_scenario_replays() {
    for (name, statements) in SCENARIOS {
        replay(name, SCHEMA, statements);
    }
}

/// Where `sqlite3changeset_apply` fails or gives something else.
///
/// Not here: a key that changes only in case (NOCASE) or from 1 to 1.0. The session extension tells
/// such a row twice, as an UPDATE and as an INSERT, so that no applier can be right; an engine that
/// sees rows as they change must be.
#[test]
fn what_sqlite_cannot_apply_replays() {
    for (name, schema, statements) in [
        (
            "unique values swapped",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, u UNIQUE); INSERT INTO t VALUES (1, 'x'), (2, 'y')",
            &[
                "BEGIN; UPDATE t SET u = 'z' WHERE a = 1; UPDATE t SET u = 'x' WHERE a = 2; UPDATE t SET u = 'y' WHERE a = 1; COMMIT",
            ][..],
        ),
        (
            "unique values rotated",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, u UNIQUE); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')",
            &[
                "BEGIN; DELETE FROM t WHERE a = 3; UPDATE t SET u = 'z' WHERE a = 2; UPDATE t SET u = 'y' WHERE a = 1; INSERT INTO t VALUES (4, 'x'); COMMIT",
            ],
        ),
        (
            "a row that breaks a CHECK",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, v CHECK (v <> 0)); INSERT INTO t VALUES (1, 1)",
            &["PRAGMA ignore_check_constraints = on", "INSERT INTO t VALUES (2, 0)"],
        ),
        (
            "negative zero",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, r REAL, n); INSERT INTO t VALUES (1, 1.5, 1.5)",
            &["UPDATE t SET r = -0.0, n = -0.0"],
        ),
        (
            "text that is not UTF-8",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'p')",
            &["INSERT INTO t VALUES (2, CAST(x'ff0041' AS TEXT))"],
        ),
        (
            "a unique generated column",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b, g AS (b * 2) STORED UNIQUE); INSERT INTO t(a, b) VALUES (1, 1), (2, 2)",
            &["BEGIN; UPDATE t SET b = 9 WHERE a = 1; UPDATE t SET b = 1 WHERE a = 2; COMMIT"],
        ),
        (
            "foreign keys and triggers",
            "CREATE TABLE p(a INTEGER PRIMARY KEY); CREATE TABLE c(a INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE); CREATE TRIGGER t AFTER DELETE ON c BEGIN INSERT INTO p VALUES (old.a + 100); END; INSERT INTO p VALUES (1); INSERT INTO c VALUES (1, 1)",
            &["PRAGMA foreign_keys = on", "DELETE FROM p WHERE a = 1"],
        ),
    ] {
        replay(name, schema, statements);
    }
}

#[test]
fn a_replica_that_differs_is_noticed_and_named() {
    let source = Connection::open_in_memory().unwrap();
    let schema =
        "CREATE TABLE t(a INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'one'), (2, 2)";
    source.execute_batch(schema).unwrap();
    let mut session = Session::new(&source).unwrap();
    session.attach::<&str>(None).unwrap();
    source.execute_batch("UPDATE t SET v = 'uno' WHERE a = 1").unwrap();
    let mut changeset = Vec::new();
    session.changeset_strm(&mut changeset).unwrap();
    for (other, message) in [
        ("UPDATE t SET v = 'eins' WHERE a = 1", "table t, row 1, column \"v\""),
        ("DELETE FROM t WHERE a = 1", "no row with key 1"),
        ("DROP TABLE t", "no table t"),
        ("ALTER TABLE t ADD COLUMN w", "3 columns in the replica and 2"),
    ] {
        let replica = Connection::open_in_memory().unwrap();
        replica.execute_batch(schema).unwrap();
        replica.execute_batch(other).unwrap();
        let error = Applier::new(&replica).unwrap().apply(&changeset).unwrap_err().to_string();
        assert!(error.contains(message), "{other}: {error}");
    }
}

#[test]
fn comparison_sees_every_difference() {
    let schema =
        "CREATE TABLE t(a INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 0.0), (2, 'x')";
    for change in [
        "UPDATE t SET v = -0.0 WHERE a = 1",
        "UPDATE t SET v = 0 WHERE a = 1",
        "UPDATE t SET v = x'78' WHERE a = 2",
        "DELETE FROM t WHERE a = 2",
        "INSERT INTO t VALUES (3, NULL)",
        "CREATE INDEX i ON t(v)",
    ] {
        let (one, two) =
            (Connection::open_in_memory().unwrap(), Connection::open_in_memory().unwrap());
        one.execute_batch(schema).unwrap();
        two.execute_batch(schema).unwrap();
        assert_eq!(differences(&one, &two).unwrap(), []);
        two.execute_batch(change).unwrap();
        assert_eq!(differences(&one, &two).unwrap().len(), 1, "{change}");
        assert_eq!(differences(&two, &one).unwrap().len(), 1, "{change}");
    }
}

#[test]
fn comparison_passes_over_statistics_and_whatever_belongs_to_them() {
    let (one, two) = (Connection::open_in_memory().unwrap(), Connection::open_in_memory().unwrap());
    // An index of its own, as ANALYZE would not make it.
    one.execute_batch(
        "PRAGMA writable_schema = on; CREATE TABLE sqlite_stat1(tbl, idx UNIQUE, stat);
         PRAGMA writable_schema = off; CREATE TABLE t(a); CREATE INDEX by_a ON t(a)",
    )
    .unwrap();
    two.execute_batch("CREATE TABLE t(a); CREATE INDEX by_a ON t(a)").unwrap();
    assert_eq!(differences(&one, &two).unwrap(), []);
}

#[test]
fn random_statements_replay() {
    let seed = 21;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let pool: Vec<&str> =
        SCENARIOS.iter().flat_map(|(_, statements)| statements.iter().copied()).collect();
    for _ in 0..60 {
        let mut statements: Vec<&str> =
            (0..60).map(|_| pool[rng.up_to(pool.len() as u64 - 1) as usize]).collect();
        statements.push("ROLLBACK");
        replay("random", SCHEMA, &statements);
    }
}

#[test]
fn autoincrement_counters_follow_the_source_whatever_the_rows_do() {
    use synddb_core::changeset::{ChangesetWriter, Value};

    let replica = Connection::open_in_memory().unwrap();
    replica
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
             INSERT INTO t VALUES (4, 'four')",
        )
        .unwrap();
    let sequence = || -> (String, i64) {
        let sql = "SELECT name, seq FROM sqlite_sequence";
        replica.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let mut applier = Applier::new(&replica).unwrap();
    let mut buffer = [0; 256];

    // UPDATE t SET id = 11: the counter stays.
    let mut writer = ChangesetWriter::new(&mut buffer);
    writer.table("t", &[1, 0]).unwrap();
    writer.delete(&[Value::Integer(4), Value::Text(b"four")]).unwrap();
    writer.insert(&[Value::Integer(11), Value::Text(b"four")]).unwrap();
    applier.apply(writer.finish()).unwrap();
    assert_eq!(sequence(), ("t".into(), 4));

    // The counter alone moves, and keeps its name.
    let mut writer = ChangesetWriter::new(&mut buffer);
    writer.table("sqlite_sequence", &[1, 0, 0]).unwrap();
    let (old, new) = (Value::Integer(4), Value::Integer(12));
    writer
        .update(
            &[Value::Integer(1), Value::Undefined, old],
            &[Value::Undefined, Value::Undefined, new],
        )
        .unwrap();
    applier.apply(writer.finish()).unwrap();
    assert_eq!(sequence(), ("t".into(), 12));
}
