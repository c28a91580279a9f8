//! Changes that no changeset carries are noticed.

use super::*;

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, v);
    CREATE TABLE keyed(k TEXT PRIMARY KEY, v);
    CREATE TABLE pair(a, b, v, PRIMARY KEY(a, b));";

#[test]
fn a_changed_schema_is_a_loss_and_capture_goes_on() {
    for (mode, ddl) in [
        (Mode::Wal, "BEGIN; INSERT INTO item VALUES (9, 9); CREATE TABLE more(x); COMMIT"),
        (Mode::Wal, "ALTER TABLE item ADD COLUMN w DEFAULT 3"),
        (Mode::Wal, "BEGIN; INSERT INTO item VALUES (9, 9); DROP TABLE keyed; COMMIT"),
        (Mode::Wal, "BEGIN; INSERT INTO keyed VALUES (1, 9); DROP TABLE keyed; COMMIT"),
        (Mode::Wal, "VACUUM"),
        (Mode::Delete, "INSERT INTO item VALUES (9, 9); CREATE TABLE more(x)"),
        (Mode::Delete, "VACUUM"),
        (Mode::Memory, "ALTER TABLE item RENAME COLUMN v TO w"),
    ] {
        let mut app = App::with(mode, SCHEMA);
        app.log.resync.store(true, Ordering::Relaxed);
        app.run(ddl);
        app.flush();
        let mut events = app.log.take().into_iter();
        let Some(Event::Lost(Lost::SchemaChanged { from, to })) = events.next() else {
            panic!("{ddl}: no loss");
        };
        assert!(from != to);
        let Some(Event::Boundary(boundary)) = events.next() else { panic!("{ddl}: no boundary") };
        assert_eq!(boundary.schema_version(), to);
        let mut image = app.image(boundary);
        let replica = Replica::of_image(&mut image);
        app.run("INSERT INTO item(id) VALUES (100)");
        app.flush();
        app.commits().iter().for_each(|commit| replica.apply(commit));
        replica.assert_equals(&app.conn, ddl);
    }
}

#[test]
fn in_wal_mode_the_loss_and_the_boundary_come_within_the_commit() {
    let app = App::with(Mode::Wal, SCHEMA);
    app.log.resync.store(true, Ordering::Relaxed);
    app.run("CREATE TABLE more(x)");
    let events = app.log.take();
    assert!(matches!(events[..], [Event::Lost(Lost::SchemaChanged { .. }), Event::Boundary(_)]));
}

#[test]
fn a_hand_edited_schema_is_a_loss() {
    let app = App::with(Mode::Wal, SCHEMA);
    app.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false).unwrap();
    app.run(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = replace(sql, ', v)', ',  v)') WHERE name = 'item'",
    );
    assert!(matches!(app.losses()[..], [Lost::SchemaChanged { .. }]));
}

#[test]
fn another_connections_commit_is_a_loss() {
    for mode in [Mode::Wal, Mode::Delete] {
        let mut app = App::with(mode, SCHEMA);
        let other = Connection::open(app.path()).unwrap();
        other.execute_batch("INSERT INTO item VALUES (1, 'foreign')").unwrap();
        app.flush();
        assert_eq!(app.losses(), [Lost::ForeignWrite], "{mode:?}, idle");
        other.execute_batch("INSERT INTO item VALUES (2, 'foreign')").unwrap();
        app.run("INSERT INTO item VALUES (3, 'own')");
        app.flush();
        assert_eq!(app.losses(), [Lost::ForeignWrite], "{mode:?}, before a commit");
        app.run("INSERT INTO item VALUES (4, 'own')");
        app.flush();
        assert_eq!(app.commits().len(), 1);
    }
}

#[test]
fn another_connections_checkpoint_is_none() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let other = Connection::open(app.path()).unwrap();
    for id in 0..3 {
        app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        if id == 1 {
            app.flush();
        }
    }
    app.run("INSERT INTO item VALUES (9, 1)");
    other.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
    app.flush();
    assert_eq!(app.commits().len(), 4);
    // The same with a foreign commit in front is one.
    other
        .execute_batch("INSERT INTO item VALUES (10, 1); PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    app.run("INSERT INTO item VALUES (11, 1)");
    assert_eq!(app.losses(), [Lost::ForeignWrite]);
}

#[test]
fn a_changed_user_version_is_a_loss() {
    for mode in [Mode::Wal, Mode::Delete] {
        for sql in [
            "PRAGMA user_version = 3",
            "BEGIN; INSERT INTO item VALUES (1, 1); PRAGMA user_version = 3; COMMIT",
            "PRAGMA application_id = 3",
        ] {
            let mut app = App::with(mode, SCHEMA);
            app.run(sql);
            app.flush();
            assert_eq!(app.losses(), [Lost::HeaderChanged], "{sql}");
            app.flush();
            assert_eq!(app.commits().len(), 0);
        }
    }
}

#[test]
fn rows_with_null_in_their_key_are_losses() {
    for mode in [Mode::Wal, Mode::Delete, Mode::Memory] {
        let mut app = App::with(mode, SCHEMA);
        let mut step = |sql: &str| {
            app.run(sql);
            app.flush();
            app.losses()
        };
        let keyed = [Lost::NullKey { table: "keyed".into() }];
        let pair = [Lost::NullKey { table: "pair".into() }];
        assert_eq!(step("INSERT INTO keyed VALUES ('a', 1), ('b', 2)"), []);
        assert_eq!(step("INSERT INTO keyed VALUES (NULL, 1)"), keyed);
        assert_eq!(step("UPDATE keyed SET v = 2 WHERE k IS NULL"), keyed);
        assert_eq!(step("UPDATE keyed SET v = 2 WHERE k = 'a'"), []);
        assert_eq!(step("UPDATE keyed SET k = NULL WHERE k = 'a'"), keyed);
        assert_eq!(step("UPDATE keyed SET k = rowid WHERE k IS NULL"), keyed);
        assert_eq!(step("INSERT INTO keyed VALUES (NULL, 1)"), keyed);
        assert_eq!(step("DELETE FROM keyed WHERE k IS NULL"), keyed);
        assert_eq!(step("DELETE FROM keyed"), []);
        assert_eq!(step("BEGIN; INSERT INTO keyed VALUES (NULL, 1); ROLLBACK"), []);
        assert_eq!(step("INSERT INTO pair VALUES (1, 1, 1), (2, 2, 2)"), []);
        assert_eq!(step("INSERT INTO pair VALUES (1, NULL, 1)"), pair);
        assert_eq!(step("UPDATE pair SET v = 2 WHERE a = 2"), []);
        assert_eq!(step("UPDATE pair SET v = 2 WHERE b IS NULL"), pair);
        assert_eq!(step("DELETE FROM pair"), pair);
        assert_eq!(step("INSERT INTO pair VALUES (1, 1, 1)"), []);
    }
}

#[test]
fn null_keys_already_there_do_no_harm_until_touched() {
    let mut app = App::new(Mode::Wal);
    app.run(SCHEMA);
    app.run("INSERT INTO keyed VALUES (NULL, 1), ('a', 1)");
    app.attach();
    app.run("UPDATE keyed SET v = 5 WHERE k = 'a'");
    assert_eq!(app.commits().len(), 1);
    app.run("UPDATE keyed SET v = 5 WHERE k IS NULL");
    assert_eq!(app.losses().len(), 1);
}

#[test]
fn a_changeset_over_the_limit_is_a_loss() {
    for engine in ENGINES {
        let mut app = App::by(engine, Mode::Wal);
        app.run(SCHEMA);
        app.max_changeset_bytes = 10_000;
        app.attach();
        app.run("INSERT INTO item VALUES (1, zeroblob(9000))");
        assert_eq!(app.commits().len(), 1);
        app.run("INSERT INTO item VALUES (2, zeroblob(10000))");
        assert_eq!(app.losses(), [Lost::TooLarge { limit: 10_000 }]);
        assert!(app.conn.is_autocommit());
        app.run("INSERT INTO item VALUES (3, 1)");
        assert_eq!(app.commits().len(), 1);
    }
}

#[test]
fn a_panicking_sink_costs_a_resync_and_not_the_apps_commit() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    app.log.panics.store(true, Ordering::Relaxed);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = app.conn.execute("INSERT INTO item VALUES (1, 1)", []);
    std::panic::set_hook(hook);
    assert_eq!(result, Ok(1));
    app.flush();
    assert_eq!(app.losses(), [Lost::Panicked]);
    app.run("INSERT INTO item VALUES (2, 1)");
    assert_eq!(app.commits().len(), 1);
}
