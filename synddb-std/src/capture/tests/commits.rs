//! What is handed over, and when.

use super::*;

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, v);
    CREATE TABLE pair(a TEXT NOT NULL, b INT NOT NULL, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
    CREATE TABLE loose(a, b);
    CREATE TABLE named(k TEXT NOT NULL PRIMARY KEY, v);
    CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
    CREATE TABLE computed(id INTEGER PRIMARY KEY, a INT, b INT AS (a * 2) STORED, c AS (a * 3));
    CREATE TABLE parent(id INTEGER PRIMARY KEY);
    CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE CASCADE);
    CREATE TABLE audit(id INTEGER PRIMARY KEY, what);
    CREATE TRIGGER item_audit AFTER UPDATE ON item BEGIN
        INSERT INTO audit(what) VALUES (new.id);
    END;
    CREATE VIRTUAL TABLE notes USING fts5(body);
    CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);";

/// One statement that may well fail.
fn statement(random: &mut Random) -> String {
    let (id, v) = (random.below(12), random.below(1000));
    match random.below(26) {
        0 => format!("INSERT INTO item(name, v) VALUES ('n{v}', {v})"),
        1 => format!("INSERT OR REPLACE INTO item(id, name, v) VALUES ({id}, 'n{v}', x'00ff')"),
        2 => format!("UPDATE item SET v = {v}.5 WHERE id <= {id}"),
        3 => format!("UPDATE item SET id = id + 20 WHERE id = {id}"),
        4 => format!("DELETE FROM item WHERE id = {id}"),
        5 => format!("INSERT OR IGNORE INTO pair VALUES ('k{id}', {v} % 3, NULL)"),
        6 => format!("REPLACE INTO pair VALUES ('k{id}', {v} % 3, '{v}')"),
        7 => format!("UPDATE pair SET b = b + 3 WHERE a = 'k{id}'"),
        8 => "DELETE FROM pair".into(),
        9 => format!("INSERT INTO loose VALUES ({v}, 'x')"),
        10 => format!("UPDATE loose SET b = {v} WHERE a % 3 = {id} % 3"),
        11 => format!("DELETE FROM loose WHERE a = {v}"),
        12 => format!("INSERT INTO named VALUES ('k{id}', {v}) ON CONFLICT DO UPDATE SET v = {v}"),
        13 => format!("DELETE FROM named WHERE k = 'k{id}'"),
        14 => format!("INSERT INTO counted(v) VALUES ({v})"),
        15 => "DELETE FROM counted".into(),
        16 => format!("INSERT OR REPLACE INTO computed(id, a) VALUES ({id}, {v})"),
        17 => format!("UPDATE computed SET a = a + 1 WHERE id = {id}"),
        18 => format!("INSERT OR IGNORE INTO parent VALUES ({id})"),
        19 => format!("INSERT INTO child(p) VALUES ({id})"),
        20 => format!("DELETE FROM parent WHERE id = {id}"),
        21 => format!("INSERT INTO notes VALUES ('word{v} and {id}')"),
        22 => format!("DELETE FROM notes WHERE rowid = {id}"),
        23 => format!("INSERT OR REPLACE INTO boxes VALUES ({id}, {v}, {v} + 1)"),
        24 => "INSERT OR FAIL INTO item(name) VALUES ('a'), ('b'), ('a')".into(),
        _ => "INSERT INTO named VALUES ('z1', 1), ('z2', 1), ('z1', 1)".into(),
    }
}

/// A transaction with savepoints; some of its statements fail, some of it is rolled back.
fn transaction(conn: &Connection, random: &mut Random) {
    let run = |sql: &str| {
        let _ = conn.execute_batch(sql);
    };
    if random.below(3) == 0 {
        return run(&statement(random));
    }
    run("BEGIN");
    let mut open = 0;
    for _ in 0..random.below(12) {
        match random.below(8) {
            0 => {
                run("SAVEPOINT s");
                open += 1;
            }
            1 if open > 0 => run("ROLLBACK TO s"),
            2 if open > 0 => {
                run("RELEASE s");
                open -= 1;
            }
            _ => run(&statement(random)),
        }
    }
    run(if random.below(5) == 0 { "ROLLBACK" } else { "COMMIT" });
    // OR ROLLBACK and the like may have ended it before.
    if !conn.is_autocommit() {
        run("ROLLBACK");
    }
}

/// Brings the replica to the state of the app, by a copy where the preupdate engine says that a
/// savepoint of a full text table was rolled back.
fn replay(app: &App, replica: &mut Replica) {
    for event in app.log.take() {
        match event {
            Event::Committed(commit) => replica.apply(&commit),
            Event::Lost(Lost::ShadowTable { .. }) if app.engine == Engine::Preupdate => {
                // With all that comes behind it.
                *replica = Replica::of(&app.conn);
                return;
            }
            Event::Lost(reason) => panic!("lost: {reason}"),
            Event::Boundary(_) => panic!("an unwanted boundary"),
        }
    }
}

#[test]
fn in_wal_mode_a_commit_is_handed_over_before_its_statement_returns() {
    let app = App::with(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item(name) VALUES ('a')");
    let first = app.commits();
    assert_eq!((first.len(), first[0].commits), (1, 1));
    let version: u32 = app.conn.query_row("PRAGMA schema_version", [], |row| row.get(0)).unwrap();
    assert_eq!(first[0].schema_version, version);
    app.run("BEGIN; INSERT INTO item(name) VALUES ('b'); INSERT INTO loose VALUES (1, 2)");
    assert_eq!(app.commits().len(), 0);
    app.run("COMMIT");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn outside_wal_mode_commits_gather_until_the_flush() {
    for mode in [Mode::Delete, Mode::Memory] {
        let mut app = App::with(mode, SCHEMA);
        let replica = Replica::of(&app.conn);
        app.run("INSERT INTO item(name) VALUES ('a')");
        app.run("INSERT INTO item(name) VALUES ('b')");
        app.run("DELETE FROM item WHERE name = 'a'");
        assert_eq!(app.commits().len(), 0);
        app.flush();
        let commits = app.commits();
        assert_eq!(commits.len(), 1, "{mode:?}");
        assert_eq!(commits[0].commits, 3, "{mode:?}");
        replica.apply(&commits[0]);
        replica.assert_equals(&app.conn, "after the flush");
        app.flush();
        assert_eq!(app.commits().len(), 0);
    }
}

#[test]
fn random_work_replays_to_the_same_rows_in_wal_mode() {
    for (seed, engine) in seeds(60).into_iter().flat_map(|seed| ENGINES.map(|e| (seed, e))) {
        let mut random = Random(seed);
        let mut app = App::by(engine, Mode::Wal);
        app.run(SCHEMA);
        app.attach();
        let mut replica = Replica::of(&app.conn);
        for step in 0..40 {
            transaction(&app.conn, &mut random);
            if random.below(10) == 0 {
                app.flush();
            }
            replay(&app, &mut replica);
            // A failed statement in autocommit may commit without the hook being told.
            if random.below(4) == 0 {
                app.flush();
                replay(&app, &mut replica);
                replica.assert_equals(&app.conn, &format!("{engine:?}, seed {seed}, step {step}"));
            }
        }
        app.flush();
        replay(&app, &mut replica);
        replica.assert_equals(&app.conn, &format!("{engine:?}, seed {seed}, at the end"));
    }
}

#[test]
fn random_work_replays_to_the_same_rows_in_other_modes() {
    for (seed, engine) in seeds(40).into_iter().flat_map(|seed| ENGINES.map(|e| (seed, e))) {
        let mut random = Random(seed);
        let mode = if seed % 2 == 0 { Mode::Delete } else { Mode::Memory };
        let mut app = App::by(engine, mode);
        app.run(SCHEMA);
        app.attach();
        let mut replica = Replica::of(&app.conn);
        for step in 0..12 {
            for _ in 0..=random.below(5) {
                transaction(&app.conn, &mut random);
            }
            app.flush();
            replay(&app, &mut replica);
            replica.assert_equals(
                &app.conn,
                &format!("{engine:?}, seed {seed}, step {step}, {mode:?}"),
            );
        }
    }
}

#[test]
fn a_commit_without_net_effect_is_not_handed_over() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item(id, v) VALUES (1, 1)");
    app.commits();
    app.run("UPDATE item SET v = v");
    app.commits(); // The audit trigger's row.
    app.run("BEGIN; INSERT INTO loose VALUES (1, 1); DELETE FROM loose; COMMIT");
    app.run("BEGIN; INSERT INTO loose VALUES (1, 1); ROLLBACK");
    app.run("BEGIN IMMEDIATE; COMMIT");
    app.flush();
    assert_eq!(app.commits().len(), 0);
}

#[test]
fn a_commit_the_hook_is_not_told_of_comes_with_the_next() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    // Fails, and commits its first row all the same.
    app.conn.execute("INSERT OR FAIL INTO item(name) VALUES ('a'), ('a')", []).unwrap_err();
    assert_eq!(app.commits().len(), 0);
    app.run("INSERT INTO loose VALUES (1, 2)");
    let commits = app.commits();
    assert_eq!((commits.len(), commits[0].commits), (1, 2));
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, "both commits");

    app.conn.execute("INSERT OR FAIL INTO item(name) VALUES ('b'), ('b')", []).unwrap_err();
    app.flush();
    let commits = app.commits();
    assert_eq!(commits.len(), 1);
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, "by the flush");
}

#[test]
fn a_statement_left_in_the_middle_is_captured() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    // A commit that the hook is told of only while the next statement writes.
    app.conn.execute("INSERT OR FAIL INTO item(name) VALUES ('z'), ('z')", []).unwrap_err();
    {
        let mut insert =
            app.conn.prepare("INSERT INTO item(name) VALUES ('a'), ('b') RETURNING id").unwrap();
        let mut rows = insert.query([]).unwrap();
        rows.next().unwrap().unwrap();
        // Reading and finishing another statement while the first still writes.
        let _: i64 =
            app.conn.query_row("SELECT count(*) FROM loose", [], |row| row.get(0)).unwrap();
        assert_eq!(app.commits().len(), 0);
        assert_eq!(
            app.capture.as_mut().unwrap().flush(FlushMode::Complete),
            Err(CaptureError::TransactionOpen)
        );
    }
    app.flush();
    app.commits().iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "after the reset");
}

#[test]
fn commits_inside_a_running_select_are_captured() {
    let app = App::with(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item(id) VALUES (1), (2), (3)");
    app.commits();
    let replica = Replica::of(&app.conn);
    let mut select = app.conn.prepare("SELECT id FROM item").unwrap();
    let mut rows = select.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let id: i64 = row.get(0).unwrap();
        app.conn.execute("INSERT INTO loose VALUES (?, 'seen')", [id]).unwrap();
        let commits = app.commits();
        assert_eq!(commits.len(), 1);
        replica.apply(&commits[0]);
    }
    replica.assert_equals(&app.conn, "after the loop");
}

#[test]
fn incremental_blob_writes_are_captured() {
    let app = App::with(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item(id, v) VALUES (1, zeroblob(10))");
    app.commits();
    let replica = Replica::of(&app.conn);
    // SAFETY: an open connection; the blob is closed.
    unsafe {
        let (db, mut blob) = (app.conn.handle(), std::ptr::null_mut());
        let [schema, table, column] = [c"main", c"item", c"v"].map(|name| name.as_ptr());
        let code = ffi::sqlite3_blob_open(db, schema, table, column, 1, 1, &mut blob);
        assert_eq!(code, ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_blob_write(blob, c"hello".as_ptr().cast(), 5, 2), ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_blob_close(blob), ffi::SQLITE_OK);
    }
    app.run("INSERT INTO loose VALUES (1, 1)");
    let commits = app.commits();
    assert_eq!(commits.len(), 1);
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, "after the blob");
}

#[test]
fn full_text_and_rtree_tables_answer_on_the_replica() {
    let app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    app.run(
        "INSERT INTO notes VALUES ('one fish'), ('two fish');
         DELETE FROM notes WHERE rowid = 1;
         INSERT INTO notes(notes) VALUES ('optimize');
         INSERT INTO boxes VALUES (1, 0, 10), (2, 5, 7);",
    );
    app.commits().iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "shadow tables");
    let count = |conn: &Connection, sql: &str| -> i64 {
        conn.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&replica.0, "SELECT count(*) FROM notes('fish')"), 1);
    assert_eq!(count(&replica.0, "SELECT count(*) FROM boxes WHERE x0 >= 5"), 1);
    replica.0.execute_batch("INSERT INTO notes(notes) VALUES ('integrity-check')").unwrap();
}

#[test]
fn a_delete_compiled_before_the_attach_is_captured() {
    let mut app = App::new(Mode::Wal);
    app.run("CREATE TABLE item(id INTEGER PRIMARY KEY); INSERT INTO item VALUES (1), (2)");
    app.conn.prepare_cached("DELETE FROM item").unwrap();
    app.attach();
    let replica = Replica::of(&app.conn);
    assert_eq!(app.conn.prepare_cached("DELETE FROM item").unwrap().execute([]).unwrap(), 2);
    app.commits().iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "empty");
}

#[test]
fn temp_tables_attached_databases_and_statistics_leave_no_trace() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let other = app.dir.path().join("other.db");
    app.conn.execute("ATTACH ? AS other", [other.to_str().unwrap()]).unwrap();
    app.run(
        "PRAGMA other.journal_mode = wal;
         CREATE TEMP TABLE item(id INTEGER PRIMARY KEY, name, v);
         CREATE TABLE other.item(id INTEGER PRIMARY KEY);
         INSERT INTO temp.item(id) VALUES (1);
         INSERT INTO other.item VALUES (2);",
    );
    app.flush();
    assert_eq!(app.commits().len(), 0);
    app.run(
        "BEGIN; INSERT INTO other.item VALUES (3); INSERT INTO main.item(id) VALUES (4); COMMIT",
    );
    assert_eq!(app.commits().len(), 1);
}

/// The rows for sqlite_sequence in a changeset, as (operation, name, new value).
fn sequence_changes(commit: &Commit) -> Vec<(rusqlite::hooks::Action, String, i64)> {
    use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
    use rusqlite::session::ChangesetIter;

    let changeset = changeset(commit);
    let mut input: &[u8] = &changeset;
    let input: &mut dyn std::io::Read = &mut input;
    let mut changes = ChangesetIter::start_strm(&input).unwrap();
    let mut found = Vec::new();
    while let Some(item) = changes.next().unwrap() {
        let op = item.op().unwrap();
        if op.table_name() != "sqlite_sequence" {
            continue;
        }
        let deleted = op.code() == rusqlite::hooks::Action::SQLITE_DELETE;
        let value = |column| {
            if deleted { item.old_value(column) } else { item.new_value(column) }
        };
        // An update that leaves the name alone has none.
        let name = value(1).map_or("", |name| name.as_str().unwrap()).to_owned();
        found.push((op.code(), name, value(2).unwrap().as_i64().unwrap()));
    }
    found
}

#[test]
fn autoincrement_counters_travel_with_the_commit_that_moved_them() {
    use rusqlite::hooks::Action;

    let app = App::with(Mode::Wal, SCHEMA);
    let mut seen = Vec::new();
    for sql in [
        "INSERT INTO counted(v) VALUES (1)",
        "INSERT INTO counted VALUES (100, 1)",
        "DELETE FROM counted",
        "DELETE FROM sqlite_sequence",
        "INSERT INTO loose VALUES (1, 1)",
    ] {
        app.run(sql);
        seen.push(app.commits().iter().flat_map(sequence_changes).collect::<Vec<_>>());
    }
    assert_eq!(
        seen,
        [
            vec![(Action::SQLITE_INSERT, "counted".into(), 1)],
            vec![(Action::SQLITE_UPDATE, String::new(), 100)],
            vec![],
            vec![(Action::SQLITE_DELETE, "counted".into(), 100)],
            vec![],
        ]
    );
}

#[test]
fn the_journal_mode_may_change_while_attached() {
    let mut app = App::with(Mode::Delete, SCHEMA);
    app.log.resync.store(true, Ordering::Relaxed);
    let mut replica = Replica::of(&app.conn);
    for (number, mode) in ["wal", "delete", "wal", "truncate", "memory", "wal"].iter().enumerate() {
        app.run(&format!("INSERT INTO loose VALUES ({number}, 'before')"));
        app.run(&format!("PRAGMA journal_mode = {mode}"));
        for when in ["first", "second"] {
            app.run(&format!("INSERT INTO loose VALUES ({number}, '{when}')"));
            if *mode != "wal" {
                app.flush();
            }
        }
        let mut whole = true;
        for event in app.log.take() {
            match event {
                Event::Committed(commit) if whole => replica.apply(&commit),
                Event::Committed(_) => {}
                // SQLite shows a changed mode as it shows another connection's commit.
                Event::Lost(reason) => {
                    assert_eq!(reason, Lost::ForeignWrite);
                    whole = false;
                }
                Event::Boundary(boundary) => {
                    replica = Replica::of_image(&mut app.image(boundary));
                    whole = true;
                }
            }
        }
        assert!(whole, "{mode}");
        replica.assert_equals(&app.conn, mode);
        assert_eq!(app.dir.path().join("app.db-shm").exists(), *mode == "wal");
    }
}
