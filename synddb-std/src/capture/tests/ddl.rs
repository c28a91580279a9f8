//! Changes of the schema, with the preupdate engine: what travels as an entry, what takes a snapshot.

use super::*;

const MODES: [Mode; 3] = [Mode::Wal, Mode::Delete, Mode::Memory];

const SCHEMA: &str = "
CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, v REAL DEFAULT 1);
CREATE TABLE line(item REFERENCES item, n, PRIMARY KEY(item, n)) WITHOUT ROWID;
CREATE TABLE log(text);
CREATE INDEX by_name ON item(name);
CREATE VIEW names AS SELECT name FROM item;
CREATE TRIGGER logged AFTER INSERT ON line BEGIN INSERT INTO log VALUES (new.n); END;
INSERT INTO item(name) VALUES ('a'), ('b'), ('c');
INSERT INTO line VALUES (1, 1), (1, 2), (2, 1)";

struct World {
    app: App,
    replica: Connection,
}

impl World {
    fn new(mode: Mode, schema: &str) -> World {
        let mut app = App::by(Engine::Preupdate, mode);
        app.run(schema);
        app.attach();
        let replica = copy_of(&app.conn);
        World { app, replica }
    }

    /// What was captured so far, replayed; the losses where there are some.
    fn replay(&mut self) -> Vec<Lost> {
        self.app.flush();
        let mut applier = Applier::new(&self.replica).unwrap();
        let mut losses = Vec::new();
        for event in self.app.log.take() {
            match event {
                Event::Committed(commit) if losses.is_empty() => {
                    replay(&mut applier, &self.replica, &commit).unwrap();
                }
                Event::Lost(reason) => losses.push(reason),
                _ => {}
            }
        }
        losses
    }

    fn assert_carried(&mut self, context: &str) {
        assert_eq!(self.replay(), [], "{context}");
        assert_eq!(differences(&self.app.conn, &self.replica).unwrap(), [], "{context}");
        for pragma in ["user_version", "application_id"] {
            let value = |conn: &Connection| -> i64 {
                conn.pragma_query_value(None, pragma, |row| row.get(0)).unwrap()
            };
            assert_eq!(value(&self.app.conn), value(&self.replica), "{context}, {pragma}");
        }
        // FTS5 does not notice what its own connection writes to shadow tables: a copy is asked.
        let replica = copy_of(&self.replica);
        for (which, conn) in [("app", &self.app.conn), ("replica", &replica)] {
            let sound: String =
                conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok", "{context}, {which}");
        }
    }
}

/// Statement by statement and in one transaction, each followed by rows.
fn carried(statements: &str) {
    for mode in MODES {
        for in_transaction in [false, true] {
            let mut world = World::new(mode, SCHEMA);
            let context = format!("{mode:?}, transaction {in_transaction}: {statements}");
            if in_transaction {
                world.app.run(&format!("BEGIN; {statements}; COMMIT"));
            } else {
                world.app.run(statements);
            }
            world.assert_carried(&context);
            world.app.run("INSERT INTO log VALUES ('after')");
            world.assert_carried(&context);
        }
    }
}

#[test]
fn what_is_made_travels_without_a_snapshot() {
    for statements in [
        "CREATE TABLE more(x)",
        "CREATE TABLE more(id INTEGER PRIMARY KEY AUTOINCREMENT, x UNIQUE) STRICT"
            .replace("x UNIQUE", "x TEXT UNIQUE")
            .as_str(),
        "CREATE TABLE \"it's \"\"more\"\"\"(\"a b\" TEXT, k TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE more AS SELECT * FROM item, line",
        "CREATE INDEX i ON item(v DESC) WHERE v > 0",
        "CREATE UNIQUE INDEX i ON item(name COLLATE NOCASE, abs(v))",
        "CREATE VIEW w AS SELECT * FROM \"nothing at all\"",
        "CREATE TRIGGER g AFTER UPDATE OF v ON item BEGIN INSERT INTO log VALUES ('x;y'); SELECT 1; END",
        "ANALYZE",
        "PRAGMA user_version = 7",
        "PRAGMA user_version = -7; CREATE TABLE more(x)",
    ] {
        carried(statements);
    }
    // Not noticed inside a transaction, but at the next flush.
    let mut world = World::new(Mode::Wal, SCHEMA);
    world.app.run("PRAGMA application_id = 77");
    world.assert_carried("application_id");
    world.app.run("BEGIN; PRAGMA application_id = -1; INSERT INTO log VALUES (1); COMMIT");
    world.assert_carried("application_id with rows");
}

#[test]
fn what_is_made_travels_with_its_rows() {
    for statements in [
        "CREATE TABLE more(x); INSERT INTO more VALUES (1), ('two'), (x'03'), (NULL), (4.5)",
        "CREATE TABLE more(id INTEGER PRIMARY KEY AUTOINCREMENT, x); INSERT INTO more(x) VALUES (1);
         DELETE FROM more; INSERT INTO more(x) VALUES (2)",
        "CREATE TABLE more(a, b AS (a * 2), c AS (a || 'x') STORED, r REAL, PRIMARY KEY(r, a)) WITHOUT ROWID;
         INSERT INTO more(a, r) VALUES (1, 1), (2, 1)",
        "INSERT INTO item(name) VALUES ('d'); CREATE TABLE more(x REFERENCES item);
         INSERT INTO more SELECT id FROM item; UPDATE item SET v = 9; DELETE FROM line WHERE n = 2",
        "UPDATE item SET name = name || id; CREATE UNIQUE INDEX i ON item(name)",
        "CREATE TABLE one(x); CREATE TABLE two(y); CREATE INDEX i ON two(y); INSERT INTO one VALUES (1);
         INSERT INTO two SELECT * FROM one; CREATE VIEW w AS SELECT * FROM two; PRAGMA user_version = 3",
    ] {
        carried(statements);
    }
    // Keys that two rows swap, and a unique index that only the outcome fits.
    carried(
        "DELETE FROM line; DELETE FROM item WHERE name = 'b'; UPDATE item SET name = 'a' WHERE id = 3;
             UPDATE item SET name = 'b' WHERE id = 1; CREATE UNIQUE INDEX i ON item(name)",
    );
}

#[test]
fn what_goes_travels_without_a_snapshot() {
    for statements in [
        "DROP TABLE log",
        "DROP TABLE item",
        "DROP INDEX by_name",
        "DROP VIEW names",
        "DROP TRIGGER logged",
        "INSERT INTO line VALUES (3, 3); DROP TABLE line",
        "DELETE FROM log; DROP TABLE line; DROP VIEW names; DROP INDEX by_name",
    ] {
        for mode in MODES {
            let mut world = World::new(mode, SCHEMA);
            world.app.run("PRAGMA foreign_keys = off");
            world.app.run(&format!("BEGIN; {statements}; COMMIT"));
            world.assert_carried(&format!("{mode:?}: {statements}"));
            world.app.run("PRAGMA user_version = 1");
            world.assert_carried(&format!("{mode:?}: after {statements}"));
        }
    }
}

#[test]
fn altered_tables_travel_by_their_definition_or_whole() {
    for statements in [
        "ALTER TABLE item ADD COLUMN w DEFAULT 3",
        "ALTER TABLE item ADD COLUMN w REAL NOT NULL DEFAULT 3",
        "ALTER TABLE item ADD COLUMN w AS (v * 2)",
        "ALTER TABLE item ADD COLUMN w REFERENCES log",
        "ALTER TABLE line ADD COLUMN w DEFAULT 'x'",
        "ALTER TABLE item RENAME COLUMN name TO \"the name\"",
        "ALTER TABLE item DROP COLUMN v",
        "ALTER TABLE item RENAME TO thing",
        "ALTER TABLE item ADD COLUMN w DEFAULT 3; UPDATE item SET w = id WHERE id > 1",
        "UPDATE item SET v = 5; ALTER TABLE item ADD COLUMN w DEFAULT 3; INSERT INTO line VALUES (3, 9)",
        "ALTER TABLE item RENAME COLUMN name TO title; UPDATE item SET title = 'z' WHERE id = 1",
        "ALTER TABLE item DROP COLUMN v; INSERT INTO item(name) VALUES ('x'); CREATE TABLE more(y)",
        "DROP INDEX by_name; CREATE INDEX by_name ON item(name, v)",
        "DROP VIEW names; CREATE VIEW names AS SELECT id FROM item",
        "ALTER TABLE line RENAME TO part; INSERT INTO part VALUES (3, 5)",
    ] {
        for mode in MODES {
            let mut world = World::new(mode, SCHEMA);
            world.app.run(&format!("BEGIN; {statements}; COMMIT"));
            let context = format!("{mode:?}: {statements}");
            let losses = world.replay();
            // Two statements for one difference: outside WAL mode one may have been of before.
            let unclear = mode != Mode::Wal && statements.starts_with("DROP ");
            assert_eq!(!losses.is_empty(), unclear, "{context}: {losses:?}");
            if losses.is_empty() {
                world.assert_carried(&context);
            }
        }
    }
}

#[test]
fn rows_that_were_stored_before_a_column_was_added_stay_readable() {
    let mut world = World::new(Mode::Wal, SCHEMA);
    world.app.run("ALTER TABLE item ADD COLUMN w REAL DEFAULT 3");
    world.app.run("UPDATE item SET name = 'x' WHERE id = 2; DELETE FROM item WHERE id = 3");
    world.assert_carried("a default in rows from before");
}

#[test]
fn what_looks_as_if_nothing_had_happened_takes_a_snapshot() {
    let lost = |losses: &[Lost]| matches!(losses, [Lost::SchemaChanged { .. }, ..]);
    for statements in [
        "BEGIN; DROP TABLE log; CREATE TABLE log(text); COMMIT",
        "BEGIN; DROP TABLE log; CREATE TABLE log(text); CREATE TABLE more(x); COMMIT",
        "BEGIN; CREATE TABLE new(text); INSERT INTO new SELECT * FROM log; DROP TRIGGER logged; DROP TABLE log;
         ALTER TABLE new RENAME TO log; COMMIT",
        "VACUUM",
        "PRAGMA schema_version = 1000",
        "PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = sql || ' '
         WHERE name = 'log'; PRAGMA writable_schema = reset",
    ] {
        for mode in MODES {
            let mut world = World::new(mode, SCHEMA);
            world.app.run("INSERT INTO log VALUES ('before')");
            assert_eq!(world.replay(), []);
            world.app.run(statements);
            world.app.run("INSERT INTO log VALUES ('after')");
            let losses = world.replay();
            assert!(lost(&losses), "{mode:?}: {statements}: {losses:?}");
            // From a snapshot on it goes on.
            world.replica = copy_of(&world.app.conn);
            world.app.run("INSERT INTO log VALUES ('more'); CREATE TABLE yet(x)");
            world.assert_carried(&format!("{mode:?}, after {statements}"));
        }
    }
}

#[test]
fn a_database_that_is_reset_takes_a_snapshot_whatever_its_version_says() {
    for mode in [Mode::Wal, Mode::Delete] {
        // The schema's version is 1 before and after it.
        let mut world = World::new(mode, "CREATE TABLE item(a)");
        world.app.run("INSERT INTO item VALUES (1), (2)");
        world.assert_carried("before");
        let reset = DbConfig::SQLITE_DBCONFIG_RESET_DATABASE;
        world.app.conn.set_db_config(reset, true).unwrap();
        world.app.run("VACUUM");
        world.app.conn.set_db_config(reset, false).unwrap();
        assert!(matches!(world.replay()[..], [Lost::SchemaChanged { .. }]), "{mode:?}");
        world.replica = copy_of(&world.app.conn);
        world.app.run("CREATE TABLE other(b); INSERT INTO other VALUES (1)");
        world.assert_carried("after");
        // Commits without rows that change nothing that travels.
        world.app.run("PRAGMA auto_vacuum = 1; ANALYZE");
        world.assert_carried("statistics");
        world.app.run("ANALYZE; INSERT INTO other VALUES (2); ANALYZE");
        world.assert_carried("statistics again");
    }
}

#[test]
fn a_backup_into_the_connection_takes_a_snapshot() {
    let mut world = World::new(
        Mode::Wal,
        "CREATE TABLE t(x); CREATE TABLE more(y);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 4000)
         INSERT INTO t SELECT i FROM c",
    );
    // As if a table had been dropped, but all rows are others.
    let other = copy_of(&world.app.conn);
    other.execute_batch("UPDATE t SET x = -x; DROP TABLE more").unwrap();
    {
        // SAFETY: both connections are open; the backup ends here.
        let done = unsafe {
            let backup = ffi::sqlite3_backup_init(
                world.app.conn.handle(),
                c"main".as_ptr(),
                other.handle(),
                c"main".as_ptr(),
            );
            assert!(!backup.is_null());
            ffi::sqlite3_backup_step(backup, -1);
            ffi::sqlite3_backup_finish(backup)
        };
        assert_eq!(done, ffi::SQLITE_OK);
    }
    world.app.run("INSERT INTO t VALUES (0)");
    assert!(!world.replay().is_empty());
}

#[test]
fn a_large_table_is_not_read_in_the_commit_that_alters_it() {
    let rows = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 3000)
                INSERT INTO item(name) SELECT hex(zeroblob(300)) FROM c";
    let mut world = World::new(Mode::Wal, SCHEMA);
    world.app.run(rows);
    assert_eq!(world.replay(), []);
    world.app.run("ALTER TABLE item DROP COLUMN v");
    assert!(matches!(world.replay()[..], [Lost::TooLarge { .. }]));
    // A column that is added is no reason to read it, and a new table may be as large.
    let mut world = World::new(Mode::Wal, SCHEMA);
    world.app.run(rows);
    world.app.run("ALTER TABLE item ADD COLUMN w; CREATE TABLE more AS SELECT * FROM item");
    world.assert_carried("a large table");
}

#[test]
fn virtual_tables_travel_by_their_shadow_tables() {
    for module in ["fts5(body)", "fts4(body)", "rtree(id, x0, x1)", "fts5(body, content='')"] {
        for mode in MODES {
            let context = format!("{mode:?}: {module}");
            let insert = |id: i64| match module.starts_with('r') {
                true => format!("INSERT INTO v VALUES ({id}, 1, 2)"),
                false => format!("INSERT INTO v(rowid, body) VALUES ({id}, 'some words {id}')"),
            };
            let mut world = World::new(mode, SCHEMA);
            world.app.run(&format!("CREATE VIRTUAL TABLE v USING {module}"));
            world.app.run(&insert(1));
            world.assert_carried(&context);
            world.app.run(&format!("BEGIN; {}; {}; COMMIT", insert(2), insert(3)));
            world.assert_carried(&context);
            if module == "fts5(body)" {
                let found: i64 = copy_of(&world.replica)
                    .query_row("SELECT count(*) FROM v WHERE v MATCH 'words'", [], |row| row.get(0))
                    .unwrap();
                assert_eq!(found, 3);
            }
            world.app.run("DROP TABLE v");
            world.assert_carried(&context);
            // With rows in the transaction that makes it: carried, or lost, but never wrong.
            world.app.run(&format!(
                "BEGIN; CREATE VIRTUAL TABLE v USING {module}; {}; COMMIT",
                insert(1)
            ));
            let losses = world.replay();
            if losses.is_empty() {
                world.assert_carried(&context);
            } else {
                assert!(matches!(losses[..], [Lost::ShadowTable { .. }]), "{context}: {losses:?}");
            }
        }
    }
}

#[test]
fn a_change_of_the_schema_that_is_undone_leaves_nothing() {
    for mode in MODES {
        let mut world = World::new(mode, SCHEMA);
        world.app.run(
            "BEGIN; SAVEPOINT s; CREATE TABLE more(x); INSERT INTO more VALUES (1);
             ALTER TABLE item ADD COLUMN w; UPDATE item SET w = 1; ROLLBACK TO s;
             INSERT INTO log VALUES (1); UPDATE item SET v = 3; COMMIT",
        );
        world.assert_carried("rolled back to a savepoint");
        world.app.run("BEGIN; CREATE TABLE more(x); INSERT INTO more VALUES (1); ROLLBACK");
        world.app.run("CREATE TABLE more(y, z); INSERT INTO more VALUES (1, 2)");
        world.assert_carried("rolled back, and made otherwise");
    }
}

#[test]
fn a_busy_commit_with_a_change_of_the_schema_is_told_once() {
    let mut world = World::new(Mode::Delete, SCHEMA);
    world.app.conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(world.app.path()).unwrap();
    world.app.run("BEGIN; CREATE TABLE more(x); INSERT INTO more VALUES (1)");
    {
        let mut reading = other.prepare("SELECT * FROM item").unwrap();
        let mut rows = reading.query([]).unwrap();
        rows.next().unwrap();
        assert!(world.app.conn.execute_batch("COMMIT").is_err());
    }
    world.app.run("INSERT INTO more VALUES (2); COMMIT");
    assert_eq!(
        world
            .app
            .log
            .events
            .lock()
            .unwrap()
            .iter()
            .filter(|e| matches!(e, Event::Committed(_)))
            .count(),
        1
    );
    world.assert_carried("busy, then not");
}
