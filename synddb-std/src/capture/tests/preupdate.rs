//! The preupdate engine, and every way that is known to break it or the app.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";
const MODES: [Mode; 3] = [Mode::Wal, Mode::Delete, Mode::Memory];

fn app(mode: Mode, schema: &str) -> App {
    let mut app = App::by(Engine::Preupdate, mode);
    app.run(schema);
    app.attach();
    app
}

/// Runs `sql` on an attached connection and replays the one commit that comes of it.
fn replays(app: &App, replica: &Replica, sql: &str) {
    app.run(sql);
    let commits = app.commits();
    assert_eq!(commits.len(), 1, "{sql}");
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, sql);
}

fn assert_sound(app: &App) {
    let check: String = app.conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

fn value(app: &App, sql: &str) -> i64 {
    app.conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn table_of(name: &str) -> String {
    name.to_owned()
}

#[test]
fn every_commit_is_handed_over_before_its_statement_returns_in_every_mode() {
    for mode in MODES {
        let app = app(mode, SCHEMA);
        let replica = Replica::of(&app.conn);
        for sql in [
            "INSERT INTO item VALUES (1, 'a'), (2, 2.5), (3, x'00')",
            "UPDATE item SET v = NULL WHERE id = 2",
            "BEGIN; DELETE FROM item WHERE id = 1; UPDATE item SET id = 7 WHERE id = 3; COMMIT",
            "DELETE FROM item",
        ] {
            app.run(sql);
            let commits = app.commits();
            assert_eq!((commits.len(), commits[0].commits), (1, 1), "{mode:?}, {sql}");
            assert!(commits[0].wall_time_ms > 1_600_000_000_000);
            replica.apply(&commits[0]);
            replica.assert_equals(&app.conn, sql);
        }
    }
}

#[test]
fn rollbacks_of_every_kind_leave_nothing_in_the_journal() {
    let app = app(Mode::Memory, "CREATE TABLE item(id INTEGER PRIMARY KEY, v UNIQUE)");
    let replica = Replica::of(&app.conn);
    app.run("BEGIN; INSERT INTO item VALUES (1, 1); ROLLBACK");
    app.run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (1, 1); ROLLBACK TO s; COMMIT");
    assert_eq!(app.commits().len(), 0);
    replays(
        &app,
        &replica,
        "BEGIN; SAVEPOINT a; SAVEPOINT b; INSERT INTO item VALUES (1, 1); RELEASE b;
         INSERT INTO item VALUES (2, 2); ROLLBACK TO a; INSERT INTO item VALUES (3, 3); COMMIT",
    );
    app.run("BEGIN; INSERT INTO item VALUES (4, 4)");
    app.conn.execute_batch("INSERT INTO item VALUES (5, 5), (6, 6), (7, 3)").unwrap_err();
    app.conn.execute_batch("INSERT OR FAIL INTO item VALUES (8, 8), (9, 3)").unwrap_err();
    replays(&app, &replica, "COMMIT");
    app.run("BEGIN; INSERT INTO item VALUES (10, 10)");
    app.conn.execute_batch("INSERT OR ROLLBACK INTO item VALUES (11, 3)").unwrap_err();
    assert_eq!(app.commits().len(), 0);
    // A failing statement of its own that commits its first row.
    app.conn.execute_batch("INSERT OR FAIL INTO item VALUES (12, 12), (13, 3)").unwrap_err();
    let commits = app.commits();
    assert_eq!(commits.len(), 1);
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, "at the end");
}

/// The changes of a commit, one line each.
fn lines(commit: &Commit) -> Vec<String> {
    use synddb_core::changeset::changes;
    let changeset = changeset(commit);
    changes(&changeset)
        .map(|change| {
            let change = change.unwrap();
            let values = |record: Option<synddb_core::changeset::Record<'_>>| -> Vec<String> {
                record.iter().flat_map(|r| r.values()).map(|v| format!("{v:?}")).collect()
            };
            let (old, new) = (values(change.old).join(" "), values(change.new).join(" "));
            format!("{:?} {} [{old}] [{new}]", change.operation, change.table.name)
        })
        .collect()
}

#[test]
fn only_the_net_effect_is_left() {
    let app = app(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item VALUES (1, 1), (2, 2)");
    app.commits();
    let net = |sql: &str| -> Vec<String> {
        app.run(&format!("BEGIN; {sql}; COMMIT"));
        app.commits().iter().flat_map(lines).collect()
    };
    let insert = "Insert item [] [Integer(3) Integer(4)]";
    assert_eq!(net("INSERT INTO item VALUES (3, 3); UPDATE item SET v = 4 WHERE id = 3"), [insert]);
    assert_eq!(net("INSERT INTO item VALUES (4, 3); DELETE FROM item WHERE id = 4"), [""; 0]);
    assert_eq!(
        net("UPDATE item SET v = 9; UPDATE item SET v = id WHERE id < 3;
        UPDATE item SET v = 4 WHERE id = 3"),
        [""; 0]
    );
    assert_eq!(net("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 1)"), [""; 0]);
    assert_eq!(
        net("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 5)"),
        ["Update item [Integer(1) Integer(1)] [Undefined Integer(5)]"]
    );
    assert_eq!(
        net("UPDATE item SET id = 8 WHERE id = 2; UPDATE item SET v = 6 WHERE id = 8"),
        ["Delete item [Integer(2) Integer(2)] []", "Insert item [] [Integer(8) Integer(6)]"]
    );
    assert_eq!(
        net("UPDATE item SET v = 1.0 WHERE id = 1; UPDATE item SET v = 5 WHERE id = 1"),
        [""; 0]
    );
}

#[test]
fn changesets_are_what_sessions_write() {
    let schema = "
        CREATE TABLE item(id INTEGER PRIMARY KEY, r REAL, t TEXT, g AS (r + 1), h AS (t) STORED);
        CREATE TABLE loose(a, b);
        CREATE TABLE pair(a, v, b, PRIMARY KEY(b, a)) WITHOUT ROWID;
        CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v);";
    let mut apps = ENGINES.map(|engine| {
        let mut app = App::by(engine, Mode::Wal);
        app.run(schema);
        app.attach();
        app
    });
    for sql in [
        "INSERT INTO item(id, r, t) VALUES (1, 5, 'x'), (2, -0.0, NULL), (3, 1e300, x'ff00')",
        "UPDATE item SET r = 7, t = 7 WHERE id < 3",
        "INSERT INTO loose VALUES (1, 'one'), (1, 'one')",
        "UPDATE loose SET b = 2 WHERE rowid = 2",
        "REPLACE INTO pair VALUES (1, 2, 3), (1, 3, 3), ('1', zeroblob(3), 3)",
        "UPDATE pair SET v = 1 WHERE a = 1",
        "INSERT INTO counted(v) VALUES (1), (2)",
        "DELETE FROM counted",
        "DELETE FROM sqlite_sequence",
        "DELETE FROM pair",
    ] {
        let [session, ours] = apps.each_mut().map(|app| {
            app.run(sql);
            app.flush();
            let mut lines: Vec<_> = app.commits().iter().flat_map(lines).collect();
            lines.sort();
            lines
        });
        assert_eq!(ours, session, "{sql}");
    }
}

#[test]
fn text_of_utf_16_databases_travels_as_utf_8() {
    let app = app(
        Mode::Memory,
        "PRAGMA encoding = 'UTF-16be'; CREATE TABLE t(k TEXT PRIMARY KEY NOT NULL)",
    );
    app.run("INSERT INTO t VALUES ('grün')");
    let commit = app.commits().remove(0);
    let changeset = commit.changes.into_payload().unwrap().1;
    let text: Vec<u8> = "grün".bytes().collect();
    assert!(changeset.windows(text.len()).any(|window| window == text));
}

// The hazards.

#[test]
fn after_ddl_the_first_row_event_does_not_corrupt_the_database() {
    // Tables of many pages: rolling back a statement journal under the app's cursor shows there.
    for mode in MODES {
        let app = app(
            mode,
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE w(k PRIMARY KEY, b) WITHOUT ROWID;
             WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000)
             INSERT INTO t SELECT i * 10, 'some text number ' || i FROM c;
             INSERT INTO w SELECT 'k' || a, b FROM t",
        );
        let replica = copy_of(&app.conn);
        let mut applier = Applier::new(&replica).unwrap();
        for (number, insert) in [
            "INSERT INTO t VALUES (55555, 'mid')",
            "INSERT INTO w VALUES ('k5x', 'mid')",
            "BEGIN; INSERT INTO t VALUES (11, 'mid'); UPDATE w SET b = 1 WHERE k < 'k2'; COMMIT",
            "UPDATE t SET a = a + 1 WHERE a % 1000 = 0",
        ]
        .iter()
        .enumerate()
        {
            app.run(&format!("CREATE TABLE u{number}(x)"));
            app.run(insert);
            assert_sound(&app);
            // Where nothing told of the table in time, it travels with the rows.
            for commit in app.commits() {
                super::replay(&mut applier, &replica, &commit).unwrap();
            }
            assert_eq!(differences(&app.conn, &replica).unwrap(), [], "{mode:?}, {insert}");
        }
        assert_eq!(value(&app, "SELECT count(*) FROM t WHERE b = 'mid'"), 2);
    }
}

#[test]
fn a_table_made_in_the_transaction_that_fills_it_travels_with_its_rows() {
    for mode in MODES {
        let app = app(mode, "CREATE TABLE t(a)");
        let replica = copy_of(&app.conn);
        let mut applier = Applier::new(&replica).unwrap();
        // The first tells that nobody else commits, the second joins under a schema of its own.
        app.run("INSERT INTO t VALUES (1)");
        app.run(
            "BEGIN; CREATE TABLE u(b); INSERT INTO t VALUES (2); INSERT INTO u VALUES (3); COMMIT",
        );
        app.run("INSERT INTO u VALUES (4)");
        for commit in app.commits() {
            super::replay(&mut applier, &replica, &commit).unwrap();
        }
        assert_eq!(differences(&app.conn, &replica).unwrap(), [], "{mode:?}");
        assert_sound(&app);
    }
}

#[test]
fn a_join_that_sqlite_finds_stale_only_when_it_runs_writes_nothing() {
    // Another connection's DDL, first met by the statement that writes.
    let mut app = app(Mode::Delete, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let other = Connection::open(app.path()).unwrap();
    for number in 0..20 {
        app.run(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c
            WHERE i < 500) INSERT INTO t(b) SELECT zeroblob(50) FROM c",
        );
        other.execute_batch(&format!("CREATE TABLE other{number}(x)")).unwrap();
        app.run("INSERT INTO t VALUES (-1, 'x') ON CONFLICT DO UPDATE SET b = b || 'x'");
        assert_sound(&app);
        app.flush();
        assert!(app.losses().contains(&Lost::ForeignWrite));
    }
}

#[test]
fn the_join_opens_no_statement_journal_and_never_writes() {
    use super::super::ffi::join::{Join, JoinTable, Participant};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Default)]
    struct Told(RefCell<Vec<String>>);
    impl Participant for Told {
        fn begin(&self) {
            self.0.borrow_mut().push("begin".into());
        }
        fn savepoint(&self, level: c_int) {
            self.0.borrow_mut().push(format!("savepoint {level}"));
        }
        fn release(&self, level: c_int) {
            self.0.borrow_mut().push(format!("release {level}"));
        }
        fn rollback_to(&self, level: c_int) {
            self.0.borrow_mut().push(format!("rollback to {level}"));
        }
        fn sync(&self) -> Result<(), crate::SqliteError> {
            Ok(())
        }
        fn commit(&self) {}
        fn rollback(&self) {}
        fn corrected_changes(&self, changes: i64) -> i64 {
            changes
        }
        fn panicked(&self) {}
    }

    let app = App::new(Mode::Memory);
    app.run(SCHEMA);
    // SAFETY: used while the connection is open.
    let db = unsafe { super::super::ffi::Db::from_raw(app.conn.handle()) }.unwrap();
    let told: Rc<Told> = Rc::default();
    let table = JoinTable::new(Rc::clone(&told) as Rc<dyn Participant>);
    table.register(db).unwrap();
    let mut join = Join::prepare(db, &table).unwrap();
    app.run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (1, 1)");
    assert!(join.step(&table).unwrap());
    // One savepoint is open, the app's; a statement journal would be a second.
    assert_eq!(*told.0.borrow(), ["begin", "savepoint 0"]);
    assert!(join.step(&table).unwrap());
    assert_eq!(told.0.borrow().len(), 2);
    app.run("COMMIT");
    assert_eq!(table.writes(), 0);
    let program: Vec<(String, i64, i64)> = app
        .conn
        .prepare("EXPLAIN DELETE FROM synddb_join WHERE of_synddb_join = 1")
        .unwrap()
        .query_map([], |row| Ok((row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(program.iter().any(|(op, ..)| op == "VUpdate"));
    drop(join);
    table.unregister(db);
}

#[test]
fn with_counts_as_rows_the_join_ends_and_the_app_commits() {
    for attached_before in [false, true] {
        let mut app = App::by(Engine::Preupdate, Mode::Wal);
        app.run("CREATE TABLE t (a INTEGER PRIMARY KEY)");
        if attached_before {
            app.attach();
        }
        app.conn.pragma_update(None, "count_changes", true).unwrap();
        if !attached_before {
            app.attach();
        }
        let replica = Replica::of(&app.conn);
        app.run("BEGIN; INSERT INTO t VALUES (1), (2); COMMIT; DELETE FROM t WHERE a = 1;");
        let commits = app.commits();
        assert_eq!(commits.len(), 2);
        commits.iter().for_each(|commit| replica.apply(commit));
        replica.assert_equals(&app.conn, "with PRAGMA count_changes");
        app.run("DROP TABLE t");
    }
}

#[test]
fn a_table_of_the_apps_under_our_name_is_never_written_to() {
    let mut app = App::by(Engine::Preupdate, Mode::Memory);
    app.run("CREATE TABLE synddb_join(x); INSERT INTO synddb_join VALUES (1)");
    assert!(matches!(app.try_attach(), Err(CaptureError::Sqlite { .. })));
    app.run("ALTER TABLE synddb_join RENAME TO mine; CREATE TABLE item(v)");
    app.attach();
    app.run("ALTER TABLE mine RENAME TO synddb_join; CREATE TEMP TABLE other(x)");
    app.run("INSERT INTO item VALUES (1)");
    assert_eq!(value(&app, "SELECT count(*) FROM synddb_join"), 1);
    // In one transaction, where nobody has looked at the schema in between.
    app.run("ALTER TABLE synddb_join RENAME TO mine");
    app.flush();
    app.run("INSERT INTO item VALUES (2)");
    app.run("BEGIN; ALTER TABLE mine RENAME TO synddb_join; INSERT INTO item VALUES (3); COMMIT");
    assert_eq!(value(&app, "SELECT count(*) FROM synddb_join"), 1);
    assert!(matches!(app.losses()[..], [.., Lost::NotFollowed(_)]));
}

/// Stops at its `at`-th call.
struct Stop {
    calls: u32,
    at: u32,
}

unsafe extern "C" fn stop(stop: *mut c_void) -> c_int {
    // SAFETY: the test passes a live Stop.
    let stop = unsafe { &mut *stop.cast::<Stop>() };
    stop.calls += 1;
    c_int::from(stop.calls == stop.at)
}

/// A progress handler that stops after `at` instructions, while `sql` runs. False if it came to
/// its end before.
fn stopped(conn: &Connection, at: u32, sql: &str) -> bool {
    let mut state = Stop { calls: 0, at };
    // SAFETY: the state outlives the handler, which is removed below.
    unsafe {
        let context = (&raw mut state).cast();
        ffi::sqlite3_progress_handler(conn.handle(), 1, Some(stop), context);
    }
    let _ = conn.execute_batch(sql);
    // SAFETY: removes it.
    unsafe { ffi::sqlite3_progress_handler(conn.handle(), 0, None, std::ptr::null_mut()) };
    state.calls >= at
}

#[test]
fn stopped_at_any_instruction_the_database_is_sound_and_nothing_is_lost_in_silence() {
    for setup in [
        "",
        "BEGIN; INSERT INTO t VALUES (10, 10, 'earlier')",
        "BEGIN; SELECT 1",
        "BEGIN; SAVEPOINT s",
    ] {
        for at in 1.. {
            let mut app = app(
                Mode::Memory,
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b, c TEXT);
                 INSERT INTO t VALUES (1, 1, 'x'), (2, 2, 'y'), (3, 3, 'z')",
            );
            let replica = Replica::of(&app.conn);
            app.run(setup);
            let more =
                stopped(&app.conn, at, "UPDATE t SET b = b + 1, c = c || 'long' WHERE a < 9");
            let _ = app.conn.execute_batch("COMMIT");
            assert!(app.conn.is_autocommit());
            assert_sound(&app);
            app.run("INSERT INTO t VALUES (77, 77, 'after')");
            app.flush();
            let mut lost = false;
            for event in app.log.take() {
                match event {
                    Event::Committed(commit) if !lost => replica.apply(&commit),
                    Event::Committed(_) => {}
                    _ => lost = true,
                }
            }
            if !lost {
                replica.assert_equals(&app.conn, &format!("{setup}, stopped at {at}"));
            }
            if !more {
                break;
            }
        }
    }
}

#[test]
fn a_transaction_that_could_not_be_followed_is_lost_and_the_next_is_not() {
    let app = app(Mode::Wal, SCHEMA);
    app.run("BEGIN; SELECT 1");
    // Denied when the join is compiled anew.
    deny_join(&app.conn, true);
    app.run("INSERT INTO item VALUES (1, 1); COMMIT");
    assert!(matches!(app.losses()[..], [Lost::NotFollowed(_)]));
    deny_join(&app.conn, false);
    app.run("INSERT INTO item VALUES (2, 2)");
    assert_eq!(app.commits().len(), 1);

    // In other modes the next flush tells.
    let mut app = self::app(Mode::Memory, SCHEMA);
    deny_join(&app.conn, true);
    app.run("INSERT INTO item VALUES (1, 1)");
    deny_join(&app.conn, false);
    app.flush();
    assert!(matches!(app.losses()[..], [Lost::NotFollowed(_)]));
    // Never committed: no loss.
    deny_join(&app.conn, true);
    app.run("BEGIN; INSERT INTO item VALUES (2, 2); ROLLBACK");
    deny_join(&app.conn, false);
    app.flush();
    assert_eq!(app.losses(), []);
}

fn deny_join(conn: &Connection, on: bool) {
    unsafe extern "C" fn deny(
        _: *mut c_void,
        action: c_int,
        table: *const c_char,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
    ) -> c_int {
        // SAFETY: SQLite passes null or a terminated name.
        let ours = unsafe { !table.is_null() && CStr::from_ptr(table) == c"synddb_join" };
        if ours && action == ffi::SQLITE_DELETE { ffi::SQLITE_DENY } else { ffi::SQLITE_OK }
    }
    // SAFETY: the callback needs no context.
    unsafe {
        ffi::sqlite3_set_authorizer(conn.handle(), on.then_some(deny as _), std::ptr::null_mut());
    }
}

#[test]
fn an_authorizer_that_denies_the_join_is_found_at_the_attach() {
    let app = App::by(Engine::Preupdate, Mode::Memory);
    app.run(SCHEMA);
    deny_join(&app.conn, true);
    let Err(CaptureError::Sqlite { error, .. }) = app.try_attach() else { panic!("attached") };
    assert_eq!(error.code, ffi::SQLITE_AUTH);
    app.run("INSERT INTO item VALUES (1, 1)");
    deny_join(&app.conn, false);
    assert!(app.try_attach().is_ok());
}

#[test]
fn a_delete_compiled_before_the_attach_is_captured() {
    let mut app = App::by(Engine::Preupdate, Mode::Memory);
    app.run("CREATE TABLE item(id INTEGER PRIMARY KEY); INSERT INTO item VALUES (1), (2)");
    app.conn.prepare_cached("DELETE FROM item").unwrap();
    app.attach();
    let replica = Replica::of(&app.conn);
    assert_eq!(app.conn.prepare_cached("DELETE FROM item").unwrap().execute([]).unwrap(), 2);
    app.commits().iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "empty");
}

#[test]
fn a_rollback_without_a_journal_is_a_loss() {
    let mut app = App::by(Engine::Preupdate, Mode::Delete);
    app.run(SCHEMA);
    app.conn.query_row("PRAGMA journal_mode = off", [], |_| Ok(())).unwrap();
    app.attach();
    app.run("BEGIN; INSERT INTO item VALUES (1, 1); ROLLBACK");
    assert_eq!(app.losses(), [Lost::NotRolledBack]);
    // SQLite shows it as it shows another connection's commit, too.
    app.flush();
    app.losses();
    app.run("BEGIN; SAVEPOINT s; INSERT INTO item VALUES (2, 1); ROLLBACK TO s; COMMIT");
    assert_eq!(app.losses(), [Lost::NotRolledBack]);
    app.run("INSERT INTO item VALUES (3, 1)");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn an_index_that_a_failed_statement_leaves_behind_is_a_loss() {
    let mut app = App::by(Engine::Preupdate, Mode::Delete);
    app.run("CREATE TABLE t(a); INSERT INTO t VALUES (1), (1); CREATE TABLE u(b)");
    app.run("PRAGMA journal_mode = off");
    app.attach();
    app.run("BEGIN");
    app.conn.execute_batch("CREATE UNIQUE INDEX i ON t(a)").unwrap_err();
    app.run("INSERT INTO u VALUES (1); COMMIT");
    // What SQLite does then is undefined; this is what it does.
    let left = value(&app, "SELECT count(*) FROM sqlite_schema WHERE name = 'i'");
    assert_eq!(left, 1);
    app.flush();
    assert!(matches!(app.losses()[..], [Lost::SchemaChanged { .. }]));
}

#[test]
fn a_busy_commit_is_neither_lost_nor_handed_over_twice() {
    let app = app(Mode::Delete, SCHEMA);
    let replica = Replica::of(&app.conn);
    let other = Connection::open(app.path()).unwrap();
    app.run("INSERT INTO item VALUES (1, 1)");
    app.commits().iter().for_each(|commit| replica.apply(commit));
    app.conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    let read = |run: &dyn Fn()| {
        let mut select = other.prepare("SELECT * FROM item").unwrap();
        let mut rows = select.query([]).unwrap();
        rows.next().unwrap();
        run();
    };
    // Rolled back, after it was about to commit.
    read(&|| drop(app.conn.execute_batch("INSERT INTO item VALUES (2, 2)").unwrap_err()));
    assert_eq!(app.log.take().len(), 0);
    app.run("BEGIN; INSERT INTO item VALUES (3, 3)");
    read(&|| drop(app.conn.execute_batch("COMMIT").unwrap_err()));
    app.run("INSERT INTO item VALUES (4, 4)");
    replays(&app, &replica, "COMMIT");
}

#[cfg(target_os = "linux")]
#[test]
fn a_commit_to_two_files_that_fails_halfway_is_a_loss() {
    // Full is a page limit of the attached database alone.
    let mut app = app(Mode::Wal, SCHEMA);
    let other = app.dir.path().join("other.db");
    app.conn.execute("ATTACH ? AS other", [other.to_str().unwrap()]).unwrap();
    app.run("PRAGMA other.journal_mode = wal; CREATE TABLE other.big(v)");
    app.flush();
    app.log.take();
    app.run("BEGIN; INSERT INTO item VALUES (1, 'MAIN'); INSERT INTO big VALUES (zeroblob(90000))");
    let failed = limited_to_file_size(60_000, || app.conn.execute_batch("COMMIT").is_err());
    assert!(failed);
    assert!(app.conn.is_autocommit());
    // Half of it is there, which is what makes it a hazard.
    assert_eq!(value(&app, "SELECT count(*) FROM item"), 1);
    app.run("DELETE FROM item");
    app.flush();
    assert_eq!(app.losses(), [Lost::InDoubt]);
}

/// Writes past `bytes` of any file fail meanwhile, as on a full disk.
#[cfg(target_os = "linux")]
fn limited_to_file_size<T>(bytes: u64, run: impl FnOnce() -> T) -> T {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Limit {
        soft: u64,
        hard: u64,
    }
    const FILE_SIZE: c_int = 1;
    const TOO_LARGE_FILE_SIGNAL: c_int = 25;
    unsafe extern "C" {
        fn getrlimit(resource: c_int, limit: *mut Limit) -> c_int;
        fn setrlimit(resource: c_int, limit: *const Limit) -> c_int;
        fn signal(signal: c_int, handler: usize) -> usize;
    }
    let mut before = Limit { soft: 0, hard: 0 };
    // SAFETY: plain system calls on values of this frame; 1 ignores the signal.
    unsafe {
        signal(TOO_LARGE_FILE_SIGNAL, 1);
        assert_eq!(getrlimit(FILE_SIZE, &mut before), 0);
        assert_eq!(setrlimit(FILE_SIZE, &Limit { soft: bytes, ..before }), 0);
    }
    let result = run();
    // SAFETY: as above.
    unsafe { assert_eq!(setrlimit(FILE_SIZE, &before), 0) };
    result
}

/// SQLite's usual files under the name "unreadable", whose databases fail to be read once for each
/// time that [`UNREADABLE`] is set.
fn register_unreadable_vfs() {
    type Open = unsafe extern "C" fn(
        *mut ffi::sqlite3_vfs,
        ffi::sqlite3_filename,
        *mut ffi::sqlite3_file,
        c_int,
        *mut c_int,
    ) -> c_int;
    static USUAL: OnceLock<(Open, ffi::sqlite3_io_methods)> = OnceLock::new();
    static METHODS: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();

    unsafe extern "C" fn read(
        file: *mut ffi::sqlite3_file,
        to: *mut c_void,
        len: c_int,
        at: ffi::sqlite3_int64,
    ) -> c_int {
        if UNREADABLE.swap(false, Ordering::Relaxed) {
            return ffi::SQLITE_IOERR_READ;
        }
        let usual = USUAL.get().and_then(|usual| usual.1.xRead).unwrap();
        // SAFETY: the file was opened by the usual methods.
        unsafe { usual(file, to, len, at) }
    }

    unsafe extern "C" fn open(
        vfs: *mut ffi::sqlite3_vfs,
        name: ffi::sqlite3_filename,
        file: *mut ffi::sqlite3_file,
        flags: c_int,
        out: *mut c_int,
    ) -> c_int {
        // SAFETY: SQLite's arguments, passed on; an opened file has methods.
        unsafe {
            let code = (USUAL.get().unwrap().0)(vfs, name, file, flags, out);
            if code == ffi::SQLITE_OK && flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
                (*file).pMethods = METHODS.get_or_init(|| ffi::sqlite3_io_methods {
                    xRead: Some(read),
                    ..USUAL.get().unwrap().1
                });
            }
            code
        }
    }

    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let probe = tempfile::NamedTempFile::new().unwrap();
        let probe = Connection::open(probe.path()).unwrap();
        // SAFETY: the usual VFS lives for ever, and so does the copy; the probe's file is open.
        unsafe {
            let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
            ffi::sqlite3_file_control(
                probe.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_FILE_POINTER,
                (&raw mut file).cast(),
            );
            let mut vfs = Box::new(*ffi::sqlite3_vfs_find(std::ptr::null()));
            let _ = USUAL.set((vfs.xOpen.unwrap(), *(*file).pMethods));
            vfs.zName = c"unreadable".as_ptr();
            vfs.xOpen = Some(open);
            assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0), ffi::SQLITE_OK);
        }
    });
}

static UNREADABLE: AtomicBool = AtomicBool::new(false);

#[test]
fn a_read_before_the_commit_that_undoes_the_transaction_fails_the_commit() {
    register_unreadable_vfs();
    let mut app = App::by(Engine::Preupdate, Mode::Delete);
    let flags = rusqlite::OpenFlags::default();
    app.conn = Connection::open_with_flags_and_vfs(app.path(), flags, c"unreadable").unwrap();
    app.run(
        "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b); CREATE TABLE u (b);
         INSERT INTO t (b) VALUES (0); PRAGMA cache_size = 10;",
    );
    app.attach();
    // The page of the sequence is written out in mid-transaction, and read again before the commit.
    app.run("BEGIN; INSERT INTO t (b) VALUES (1)");
    for _ in 0..50 {
        app.run("INSERT INTO u VALUES (randomblob(3000))");
    }
    UNREADABLE.store(true, Ordering::Relaxed);
    let committed = app.conn.execute_batch("COMMIT");
    assert!(!UNREADABLE.load(Ordering::Relaxed), "nothing was read");
    let rows = (value(&app, "SELECT count(*) FROM t"), value(&app, "SELECT count(*) FROM u"));
    assert_eq!(rows, (1, 0), "SQLite has rolled back");
    assert_eq!(
        committed.unwrap_err().sqlite_error_code(),
        Some(ffi::ErrorCode::SystemIoFailure),
        "and the app is told"
    );
    assert!(app.log.take().iter().all(|event| !matches!(event, Event::Committed(_))));
    assert_sound(&app);
    app.run("INSERT INTO t (b) VALUES (2)");
    app.flush();
}

#[test]
fn closing_in_mid_transaction_is_refused_and_noticed() {
    let mut app = app(Mode::Memory, SCHEMA);
    app.run("BEGIN; INSERT INTO item VALUES (1, 1)");
    let conn = std::mem::replace(&mut app.conn, Connection::open_in_memory().unwrap());
    let (conn, _) = conn.close().unwrap_err();
    app.conn = conn;
    app.run("INSERT INTO item VALUES (2, 2); COMMIT");
    app.flush();
    assert_eq!(app.losses(), [Lost::CloseRefused]);
    assert_eq!(value(&app, "SELECT count(*) FROM item"), 2);
    app.run("INSERT INTO item VALUES (3, 3)");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn a_session_of_the_apps_is_noticed_and_does_no_harm() {
    for mode in MODES {
        let mut app = app(mode, SCHEMA);
        app.run("INSERT INTO item VALUES (1, 1)");
        assert_eq!(app.commits().len(), 1);
        {
            // Made and used, looked for, and gone.
            let App { conn, capture, .. } = &mut app;
            let mut session = rusqlite::session::Session::new(conn).unwrap();
            session.attach::<&str>(None).unwrap();
            conn.execute_batch("INSERT INTO item VALUES (2, 2)").unwrap();
            capture.as_mut().unwrap().flush(FlushMode::Complete).unwrap();
            drop(session);
            assert_eq!(app.losses(), [Lost::HookReplaced], "{mode:?}");
        }
        // Gone, it has taken our hook with it.
        app.run("INSERT INTO item VALUES (3, 3)");
        app.flush();
        assert_eq!(app.losses(), [Lost::HookReplaced], "{mode:?}");
        app.capture = None;
        app.attach();
        app.run("DELETE FROM item");
        assert_eq!(app.commits().len(), 1, "{mode:?}");
    }
}

#[test]
fn a_hook_that_was_away_for_some_rows_is_noticed_at_the_next() {
    let app = app(Mode::Memory, SCHEMA);
    app.run("INSERT INTO item VALUES (1, 1)");
    app.commits();
    let mut events: u32 = 0;
    // SAFETY: the counter outlives its hook; ours needs no argument and is put back.
    unsafe {
        let db = super::super::ffi::Db::from_raw(app.conn.handle()).unwrap();
        let arg = (&raw mut events).cast();
        ffi::sqlite3_preupdate_hook(app.conn.handle(), Some(super::hooks::count_events), arg);
        app.run("INSERT INTO item VALUES (2, 2), (3, 3), (4, 4)");
        super::super::preupdate::put_hook(db);
    }
    assert_eq!(events, 3);
    app.run("INSERT INTO item VALUES (5, 5)");
    assert_eq!(app.losses(), [Lost::HookReplaced]);
    app.run("INSERT INTO item VALUES (6, 6)");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn rows_that_replace_others_do_not_hide_those_that_are_missed_later() {
    let app = app(Mode::Wal, SCHEMA);
    // Two events each, of which SQLite counts one.
    app.run("INSERT INTO item VALUES (1, 1); REPLACE INTO item VALUES (1, 2), (1, 3), (1, 4)");
    assert_eq!(app.commits().len(), 2);
    app.run("BEGIN; INSERT INTO item VALUES (2, 2)");
    let mut events: u32 = 0;
    // SAFETY: the counter outlives its hook; ours needs no argument and is put back.
    unsafe {
        let db = super::super::ffi::Db::from_raw(app.conn.handle()).unwrap();
        let arg = (&raw mut events).cast();
        ffi::sqlite3_preupdate_hook(app.conn.handle(), Some(super::hooks::count_events), arg);
        app.run("INSERT INTO item VALUES (3, 3), (4, 4)");
        super::super::preupdate::put_hook(db);
    }
    assert_eq!(events, 2);
    app.run("COMMIT");
    assert_eq!(app.losses(), [Lost::HookReplaced]);
}

#[test]
fn changes_inside_a_running_statement_says_what_it_would_without_capture() {
    let schema = "
        CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE); CREATE TABLE u(a INTEGER PRIMARY KEY, b);
        INSERT INTO t VALUES (1, 1), (2, 2), (3, 3); INSERT INTO u VALUES (1, 0), (2, 0), (3, 0);";
    let with = app(Mode::Memory, schema);
    let without = App::new(Mode::Memory);
    without.run(schema);
    for app in [&with, &without] {
        for sql in [
            "UPDATE t SET b = b + 10",
            "UPDATE u SET b = changes()",
            "UPDATE t SET b = b + 10",
            "INSERT INTO u VALUES (10, 0)",
            "UPDATE t SET b = b + 10",
            "INSERT INTO u(a, b) VALUES (20, changes()), (21, changes()), (22, changes())",
            "BEGIN",
            "UPDATE t SET b = b + 10",
            "UPDATE t SET b = 7",
            "INSERT INTO u VALUES (30, changes())",
            "COMMIT",
            "DELETE FROM t WHERE a > 1 RETURNING changes()",
        ] {
            // One of them fails.
            let _ = app.conn.execute_batch(sql);
        }
    }
    assert_eq!(dump(&with.conn), dump(&without.conn));
    let returned = [&with, &without].map(|app| {
        app.run("INSERT INTO t VALUES (4, 4), (5, 5)");
        value(app, "INSERT INTO t VALUES (6, 6) RETURNING changes()")
    });
    assert_eq!(returned, [2, 2]);
}

#[test]
fn a_trigger_that_goes_by_changes_does_what_it_would_without_capture() {
    for kind in ["", "TEMP"] {
        let schema = format!(
            "CREATE TABLE t(a); CREATE TABLE seen(a PRIMARY KEY, n);
             CREATE TABLE many(a); INSERT INTO many VALUES (1), (2), (3);
             CREATE {kind} TRIGGER count_them AFTER INSERT ON t BEGIN
                 UPDATE seen SET n = n + 1 WHERE a = new.a;
                 INSERT INTO seen SELECT new.a, 1 WHERE changes() = 0;
             END;"
        );
        let app = app(Mode::Memory, &schema);
        app.run("UPDATE many SET a = a + 1; INSERT INTO t VALUES ('x'), ('y'), ('x')");
        assert_eq!(value(&app, "SELECT count(*) FROM seen"), 2);
        assert_eq!(value(&app, "SELECT sum(n) FROM seen"), 3);
    }
}

#[test]
fn a_renamed_main_database_is_followed() {
    for mode in MODES {
        let app = app(mode, SCHEMA);
        // SAFETY: a static name.
        unsafe {
            let name = c"renamed".as_ptr();
            ffi::sqlite3_db_config(app.conn.handle(), ffi::SQLITE_DBCONFIG_MAINDBNAME, name)
        };
        app.run("INSERT INTO item VALUES (1, 1)");
        assert_eq!(app.commits().len(), 1, "{mode:?}");
    }
}

#[test]
fn inside_a_transaction_attaching_is_refused() {
    let app = App::by(Engine::Preupdate, Mode::Memory);
    app.run(SCHEMA);
    app.run("BEGIN; INSERT INTO item VALUES (1, 1)");
    assert!(matches!(app.try_attach(), Err(CaptureError::TransactionOpen)));
    app.run("COMMIT");
    assert!(app.try_attach().is_ok());
}

#[test]
fn a_schema_change_that_is_rolled_back_is_no_loss() {
    let mut app = app(Mode::Memory, SCHEMA);
    app.run("BEGIN; CREATE TABLE more(x); INSERT INTO more VALUES (1); ROLLBACK");
    app.run("BEGIN; INSERT INTO item VALUES (1, 1); CREATE TABLE more(x); ROLLBACK");
    app.flush();
    assert_eq!(app.losses(), []);
    app.run("INSERT INTO item VALUES (1, 1)");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn other_connections_commits_are_losses() {
    for mode in [Mode::Wal, Mode::Delete] {
        let mut app = app(mode, SCHEMA);
        let other = Connection::open(app.path()).unwrap();
        other.execute_batch("INSERT INTO item VALUES (1, 'foreign')").unwrap();
        app.flush();
        assert_eq!(app.losses(), [Lost::ForeignWrite], "{mode:?}, idle");
        other.execute_batch("INSERT INTO item VALUES (2, 'foreign')").unwrap();
        app.run("INSERT INTO item VALUES (3, 'own')");
        assert_eq!(app.losses(), [Lost::ForeignWrite], "{mode:?}, before a commit");
        other.execute_batch("INSERT INTO item VALUES (5, 'foreign')").unwrap();
        app.run("BEGIN; INSERT INTO item VALUES (6, 'own'); ROLLBACK");
        app.run("INSERT INTO item VALUES (7, 'own')");
        assert_eq!(app.losses(), [Lost::ForeignWrite], "{mode:?}, after a rollback");
        app.run("INSERT INTO item VALUES (4, 'own')");
        app.flush();
        assert_eq!(app.commits().len(), 1);
    }
}

#[test]
fn another_connections_checkpoint_is_no_loss() {
    let mut app = app(Mode::Wal, SCHEMA);
    let other = Connection::open(app.path()).unwrap();
    for id in 0..5 {
        app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        if id == 3 {
            app.flush();
        }
    }
    assert_eq!(app.commits().len(), 5);
}

#[test]
fn a_real_column_added_with_an_integer_default_holds_reals() {
    let mut app = app(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item VALUES (1, 1); ALTER TABLE item ADD COLUMN r REAL DEFAULT 5");
    app.flush();
    app.losses();
    let replica = Replica::of(&app.conn);
    app.run("DELETE FROM item");
    let commits = app.commits();
    assert_eq!(lines(&commits[0]), ["Delete item [Integer(1) Integer(1) Real(5.0)] []"]);
    replica.apply(&commits[0]);
}

#[test]
fn blob_writes_are_read_before_the_commit() {
    for mode in MODES {
        let app = app(
            mode,
            "CREATE TABLE item(id INTEGER PRIMARY KEY, v);
             CREATE TABLE named(k TEXT PRIMARY KEY, v, w);
             CREATE TABLE bare(v);
             INSERT INTO item VALUES (1, zeroblob(10)), (2, zeroblob(10));
             INSERT INTO named VALUES ('a', zeroblob(10), 1), ('b', zeroblob(10), 2);
             INSERT INTO bare VALUES (zeroblob(10)), (x'00112233445566778899')",
        );
        let replica = copy_of(&app.conn);
        let mut applier = Applier::new(&replica).unwrap();
        let write = |table: &CStr, rowid: i64, offset: c_int| {
            // SAFETY: an open connection; the blob is closed.
            unsafe {
                let (db, mut blob) = (app.conn.handle(), std::ptr::null_mut());
                let [schema, column] = [c"main", c"v"].map(|name| name.as_ptr());
                let table = table.as_ptr();
                let code = ffi::sqlite3_blob_open(db, schema, table, column, rowid, 1, &mut blob);
                assert_eq!(code, ffi::SQLITE_OK);
                let code = ffi::sqlite3_blob_write(blob, c"hello".as_ptr().cast(), 5, offset);
                assert_eq!(code, ffi::SQLITE_OK);
                assert_eq!(ffi::sqlite3_blob_close(blob), ffi::SQLITE_OK);
            }
        };
        let mut same = |what: &str, commits: usize| {
            let told = app.commits();
            assert_eq!(told.len(), commits, "{mode:?}, {what}");
            for commit in told {
                super::replay(&mut applier, &replica, &commit).unwrap();
            }
            assert_eq!(differences(&app.conn, &replica).unwrap(), [], "{mode:?}, {what}");
        };
        write(c"item", 1, 2);
        write(c"named", 2, 0);
        write(c"bare", 2, 5);
        same("alone", 3);
        app.run("BEGIN; INSERT INTO item VALUES (3, zeroblob(9))");
        write(c"item", 3, 1);
        write(c"item", 1, 5);
        write(c"item", 1, 0);
        app.run("UPDATE named SET w = 7");
        write(c"named", 1, 3);
        app.run("UPDATE named SET w = w + 1, k = k || 'x'; COMMIT");
        same("among other changes of the row", 1);
        app.run("BEGIN");
        write(c"item", 2, 1);
        app.run("DELETE FROM item WHERE id = 2; COMMIT");
        same("of a row that goes", 1);
        app.run("BEGIN; SAVEPOINT s");
        write(c"item", 1, 4);
        app.run("ROLLBACK TO s; INSERT INTO item VALUES (2, 2); COMMIT");
        same("undone", 1);
        app.run("BEGIN");
        write(c"named", 1, 1);
        app.run("UPDATE named SET rowid = rowid + 10; COMMIT");
        assert_eq!(app.losses(), [Lost::BlobWritten { table: table_of("named") }]);
    }
}

#[test]
fn rows_that_cannot_be_addressed_are_losses() {
    let app = app(
        Mode::Memory,
        "CREATE TABLE keyed(k TEXT PRIMARY KEY, v); CREATE TABLE hidden(rowid, _rowid_, oid)",
    );
    let step = |sql: &str| {
        app.run(sql);
        app.losses()
    };
    let keyed = [Lost::NullKey { table: table_of("keyed") }];
    assert_eq!(step("INSERT INTO keyed VALUES ('a', 1), (NULL, 2)"), keyed);
    assert_eq!(step("UPDATE keyed SET v = 3 WHERE k = 'a'"), []);
    assert_eq!(step("UPDATE keyed SET v = 3"), keyed);
    assert_eq!(step("UPDATE keyed SET k = NULL WHERE k = 'a'"), keyed);
    assert_eq!(step("DELETE FROM keyed"), keyed);
    assert_eq!(
        step(
            "BEGIN; SAVEPOINT s; INSERT INTO keyed VALUES (NULL, 1); ROLLBACK TO s;
              INSERT INTO keyed VALUES ('b', 1); COMMIT"
        ),
        []
    );
    assert_eq!(
        step("INSERT INTO hidden VALUES (1, 2, 3)"),
        [Lost::Unaddressable { table: table_of("hidden") }]
    );
}

#[test]
fn a_giant_transaction_is_a_loss_unless_it_is_undone() {
    let mut app = App::by(Engine::Preupdate, Mode::Memory);
    app.run(SCHEMA);
    app.max_changeset_bytes = 10_000;
    app.attach();
    let many = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 1000)
        INSERT INTO item(v) SELECT 'some text' FROM c";
    app.run(many);
    assert_eq!(app.losses(), [Lost::TooLarge { limit: 10_000 }]);
    app.run(&format!(
        "BEGIN; SAVEPOINT s; {many}; ROLLBACK TO s; INSERT INTO item(v) VALUES (1); COMMIT"
    ));
    assert_eq!(app.commits().iter().map(|c| lines(c).len()).sum::<usize>(), 1);
    // A savepoint after the gap does not close it.
    app.run(&format!(
        "BEGIN; {many}; SAVEPOINT s; INSERT INTO item(v) VALUES (1); ROLLBACK TO s; COMMIT"
    ));
    assert_eq!(app.losses(), [Lost::TooLarge { limit: 10_000 }]);
    app.run("INSERT INTO item(v) VALUES (zeroblob(900000000))");
    assert_eq!(app.losses(), [Lost::TooLarge { limit: 10_000 }]);
}

#[test]
fn full_text_tables_are_followed_or_lost_but_never_wrong() {
    let schema = "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
        CREATE VIRTUAL TABLE f USING fts5(x);
        CREATE VIRTUAL TABLE g USING fts5(x, content = '', columnsize = 0);";
    for (sql, followed) in [
        ("INSERT INTO f VALUES ('hello')", true),
        ("BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO f VALUES ('hello'); COMMIT", true),
        (
            "BEGIN; INSERT INTO f VALUES ('hello'); SAVEPOINT s; INSERT INTO t VALUES (1, 1); ROLLBACK TO s; COMMIT",
            true,
        ),
        (
            "BEGIN; SAVEPOINT s; INSERT INTO f VALUES ('hello'); ROLLBACK TO s; INSERT INTO t VALUES (1, 1); COMMIT",
            true,
        ),
        // The index is written when the savepoint opens, after our mark.
        (
            "BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO f VALUES ('hello'); SAVEPOINT s; INSERT INTO t VALUES (2, 2); ROLLBACK TO s; COMMIT",
            false,
        ),
        (
            "BEGIN; INSERT INTO t VALUES (1, 1); INSERT INTO f VALUES ('hello'); SAVEPOINT s; INSERT INTO t VALUES (2, 2); RELEASE s; COMMIT",
            true,
        ),
        // Nothing but the index, and only when about to commit.
        ("INSERT INTO g(rowid, x) VALUES (1, 'hello')", false),
        ("INSERT INTO f(f) VALUES ('rebuild')", false),
    ] {
        let mut app = app(Mode::Memory, schema);
        let replica = Replica::of(&app.conn);
        app.run(sql);
        app.flush();
        let events = app.log.take();
        let lost = events.iter().any(|event| matches!(event, Event::Lost(_)));
        assert_eq!(!lost, followed, "{sql}");
        assert_sound(&app);
        if followed {
            for event in events {
                if let Event::Committed(commit) = event {
                    replica.apply(&commit);
                }
            }
            replica.assert_equals(&app.conn, sql);
            replica.0.execute_batch("INSERT INTO f(f) VALUES ('integrity-check')").unwrap();
        }
        app.run("INSERT INTO t VALUES (50, 50)");
        assert_eq!(app.commits().len(), 1, "{sql}");
    }
}

#[test]
fn detached_in_mid_transaction_nothing_is_told_and_nothing_breaks() {
    for mode in MODES {
        let mut app = app(mode, SCHEMA);
        app.run("BEGIN; INSERT INTO item VALUES (1, 1); SAVEPOINT s");
        app.capture = None;
        app.run("INSERT INTO item VALUES (2, 2); ROLLBACK TO s; COMMIT");
        assert_eq!(app.log.take().len(), 0);
        assert_eq!(value(&app, "SELECT count(*) FROM item"), 1);
        app.attach();
        app.run("INSERT INTO item VALUES (3, 3)");
        assert_eq!(app.commits().len(), 1);
    }
}

#[test]
fn a_panicking_sink_costs_a_resync_and_not_the_apps_commit() {
    for mode in MODES {
        let mut app = app(mode, SCHEMA);
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
}

#[test]
fn boundaries_lie_between_commits() {
    for mode in MODES {
        let mut app = app(mode, SCHEMA);
        app.run("INSERT INTO item VALUES (1, 1)");
        app.log.want_snapshot();
        app.run("INSERT INTO item VALUES (2, 2)");
        app.run("INSERT INTO item VALUES (3, 3)");
        app.flush();
        app.run("INSERT INTO item VALUES (4, 4)");
        let mut replica = None;
        for event in app.log.take() {
            match event {
                Event::Boundary(boundary) => {
                    replica = Some(Replica::of_image(&mut app.image(boundary)));
                }
                Event::Committed(commit) => {
                    if let Some(replica) = &replica {
                        replica.apply(&commit);
                    }
                }
                Event::Lost(reason) => panic!("{reason}"),
            }
        }
        replica.unwrap().assert_equals(&app.conn, &format!("{mode:?}"));
    }
}

#[test]
fn another_thread_takes_boundaries_while_the_app_is_idle() {
    let app = app(Mode::Wal, SCHEMA);
    let idle = app.capture.as_ref().unwrap().idle_boundary();
    for id in 0..3 {
        app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
        assert_eq!(app.commits().len(), 1);
        app.log.want_snapshot();
        assert_eq!(idle.try_take(), Ok(true));
        let events = app.log.take();
        let [Event::Boundary(_)] = events[..] else { panic!("no boundary") };
    }
}
