//! Beginning and end of capture.

use std::ffi::CString;

use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

#[test]
fn inside_a_transaction_attaching_is_refused() {
    let app = App::new(Mode::Wal);
    app.run(SCHEMA);
    app.run("BEGIN");
    assert!(matches!(app.try_attach(), Err(CaptureError::TransactionOpen)));
    app.run("COMMIT");
    let mut insert = app.conn.prepare("INSERT INTO item(v) VALUES (1), (2) RETURNING id").unwrap();
    let mut rows = insert.query([]).unwrap();
    rows.next().unwrap();
    assert!(matches!(app.try_attach(), Err(CaptureError::TransactionOpen)));
}

#[test]
fn what_cannot_be_written_or_read_is_refused() {
    let app = App::new(Mode::Wal);
    app.run(SCHEMA);
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let reader = Connection::open_with_flags(app.path(), flags).unwrap();
    let error = attach(&reader, &app.log, app.dir.path()).err();
    assert_eq!(error, Some(CaptureError::ReadOnly));

    let garbage = app.dir.path().join("garbage");
    std::fs::write(&garbage, [7; 4096]).unwrap();
    let conn = Connection::open(&garbage).unwrap();
    let Err(CaptureError::Sqlite { error, .. }) = attach(&conn, &app.log, app.dir.path()) else {
        panic!("attached to garbage");
    };
    assert_eq!(error.code, ffi::SQLITE_NOTADB);
    conn.close().unwrap();
}

#[test]
fn a_connection_is_attached_once_at_a_time() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    assert!(matches!(app.try_attach(), Err(CaptureError::AlreadyAttached)));
    app.run("INSERT INTO item VALUES (1, 1)");
    assert_eq!(app.commits().len(), 1);
    app.capture = None;
    app.attach();
    app.run("INSERT INTO item VALUES (2, 1)");
    assert_eq!(app.commits().len(), 1);
}

#[test]
fn after_detaching_nothing_is_left_on_the_connection() {
    let modes = [Mode::Wal, Mode::Delete, Mode::Memory];
    for (mode, engine) in modes.into_iter().flat_map(|mode| ENGINES.map(|engine| (mode, engine))) {
        let mut app = App::by(engine, mode);
        app.run(
            "CREATE TABLE keyed(k TEXT PRIMARY KEY, v);
            CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT);",
        );
        app.attach();
        for id in 0..500 {
            app.conn.execute("INSERT INTO keyed VALUES (?, zeroblob(2000))", [id]).unwrap();
        }
        // A copy in the middle, or a reader that was never copied.
        app.log.want_snapshot();
        app.capture.as_mut().unwrap().flush(FlushMode::Step).unwrap();
        app.capture.take().unwrap().detach();
        app.log.take();
        // SAFETY: looks for statements, and empties a slot that should be empty.
        unsafe {
            let db = app.conn.handle();
            app.conn.flush_prepared_statement_cache();
            assert!(ffi::sqlite3_next_stmt(db, std::ptr::null_mut()).is_null());
            assert!(ffi::sqlite3_preupdate_hook(db, None, std::ptr::null_mut()).is_null());
            assert!(ffi::sqlite3_get_clientdata(db, c"synddb".as_ptr()).is_null());
        }
        let left = "SELECT (SELECT count(*) FROM pragma_module_list WHERE name LIKE 'synddb%')
            + (SELECT count(*) FROM pragma_function_list WHERE name = 'changes' AND NOT builtin)";
        let left: i64 = app.conn.query_row(left, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0);
        app.run("INSERT INTO counted DEFAULT VALUES");
        assert_eq!(app.log.take().len(), 0);
        let App { conn, dir, .. } = app;
        conn.close().unwrap();
        let left: Vec<_> = dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "app.db"), "{left:?}");
    }
}

#[test]
fn closing_before_detaching_fails_and_frees_nothing() {
    for engine in ENGINES {
        let mut app = App::by(engine, Mode::Wal);
        app.run(SCHEMA);
        app.attach();
        app.run("INSERT INTO item VALUES (1, 1)");
        let conn = std::mem::replace(&mut app.conn, Connection::open_in_memory().unwrap());
        let (conn, _) = conn.close().unwrap_err();
        // Still captured.
        conn.execute_batch("INSERT INTO item VALUES (2, 1)").unwrap();
        assert_eq!(app.commits().len(), 2);
        drop(app.capture.take());
        conn.close().unwrap();
    }
}

#[test]
fn a_zombie_connection_goes_with_the_capture() {
    unsafe extern "C" {
        fn sqlite3_close_v2(db: *mut ffi::sqlite3) -> std::ffi::c_int;
    }
    let modes = ["wal", "delete"];
    for (mode, engine) in modes.into_iter().flat_map(|mode| ENGINES.map(|engine| (mode, engine))) {
        let dir = tempfile::tempdir().unwrap();
        let path = CString::new(dir.path().join("zombie.db").to_str().unwrap()).unwrap();
        let log: Arc<Log> = Arc::default();
        let mut db = std::ptr::null_mut();
        // SAFETY: opened and closed here; as a zombie it lives until its last statement.
        let capture = unsafe {
            assert_eq!(ffi::sqlite3_open(path.as_ptr(), &mut db), ffi::SQLITE_OK);
            let conn = Connection::from_handle(db).unwrap();
            conn.pragma_update(None, "journal_mode", mode).unwrap();
            conn.execute_batch("CREATE TABLE t(k TEXT PRIMARY KEY)").unwrap();
            let mut capture = attach_by(engine, &conn, &log, dir.path(), 1 << 20).unwrap();
            log.want_snapshot();
            conn.execute_batch("INSERT INTO t VALUES (1)").unwrap();
            capture.flush(FlushMode::Step).unwrap();
            assert_eq!(log.take().len(), 2);
            drop(conn);
            assert_eq!(sqlite3_close_v2(db), ffi::SQLITE_OK);
            capture
        };
        drop(capture);
        // Closed, so the log is gone.
        assert!(!dir.path().join("zombie.db-wal").exists());
        Connection::open(dir.path().join("zombie.db")).unwrap();
    }
}
