//! Others who use the same hooks, and statements of ours that are stopped.

use std::ffi::{c_char, c_int, c_void};

use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

fn autocheckpoint(conn: &Connection) -> i64 {
    conn.query_row("PRAGMA wal_autocheckpoint", [], |row| row.get(0)).unwrap()
}

fn wal_bytes(app: &App) -> u64 {
    std::fs::metadata(app.dir.path().join("app.db-wal")).map_or(0, |wal| wal.len())
}

#[test]
fn the_log_is_checkpointed_as_the_app_has_set_it() {
    let mut app = App::new(Mode::Wal);
    app.run(SCHEMA);
    app.run("PRAGMA wal_autocheckpoint = 10");
    app.attach();
    for id in 0..300 {
        app.conn.execute("INSERT INTO item VALUES (?, zeroblob(3000))", [id]).unwrap();
    }
    assert!(wal_bytes(&app) < 30 * 4200, "{} bytes of log", wal_bytes(&app));
    app.capture = None;
    assert_eq!(autocheckpoint(&app.conn), 10);
}

#[test]
fn autocheckpoint_set_to_nothing_stays_nothing() {
    let mut app = App::new(Mode::Wal);
    app.run(SCHEMA);
    app.run("PRAGMA wal_autocheckpoint = 0");
    app.attach();
    for id in 0..1500 {
        app.conn.execute("INSERT INTO item VALUES (?, zeroblob(10))", [id]).unwrap();
    }
    assert!(wal_bytes(&app) > 1500 * 4096);
    app.capture = None;
    assert_eq!(autocheckpoint(&app.conn), 0);
}

#[test]
fn the_pragma_that_removes_the_hook_is_healed_before_the_next_commit() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    app.run("PRAGMA wal_autocheckpoint = 7");
    app.run("INSERT INTO item VALUES (1, 1)");
    assert_eq!(app.commits().len(), 1);
    app.run("PRAGMA wal_autocheckpoint = 0");
    app.flush();
    app.run("INSERT INTO item VALUES (2, 1)");
    assert_eq!(app.commits().len(), 1);
    app.run("BEGIN; INSERT INTO item VALUES (3, 1); PRAGMA wal_autocheckpoint = 25; COMMIT");
    // Gone between the last row and the commit: it comes with the next.
    assert_eq!(app.commits().len(), 0);
    app.run("INSERT INTO item VALUES (4, 1)");
    let commits = app.commits();
    assert_eq!((commits.len(), commits[0].commits), (1, 2));
    app.capture = None;
    assert_eq!(autocheckpoint(&app.conn), 25);
}

#[test]
fn a_write_ahead_log_hook_of_the_apps_is_refused_or_displaced() {
    let mut app = App::new(Mode::Wal);
    app.run(SCHEMA);
    let calls = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&calls);
    app.conn
        .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, _| {
            *counter.lock().unwrap() += 1;
            Ok(())
        }))
        .unwrap();
    assert!(matches!(app.try_attach(), Err(CaptureError::WalHookInUse)));
    app.attach();
    let counter = Arc::clone(&calls);
    app.conn
        .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, _| {
            *counter.lock().unwrap() += 1;
            Ok(())
        }))
        .unwrap();
    app.run("INSERT INTO item VALUES (1, 1)");
    app.flush();
    assert_eq!(app.commits().len(), 1);
    assert_eq!(*calls.lock().unwrap(), 0);
}

pub(super) unsafe extern "C" fn count_events(
    count: *mut c_void,
    _: *mut ffi::sqlite3,
    _: c_int,
    _: *const c_char,
    _: *const c_char,
    _: i64,
    _: i64,
) {
    // SAFETY: the tests pass a live counter.
    unsafe { *count.cast::<u32>() += 1 };
}

#[test]
fn a_preupdate_hook_of_the_apps_is_refused_or_noticed() {
    for mode in [Mode::Wal, Mode::Delete] {
        let mut app = App::new(mode);
        app.run(SCHEMA);
        let mut count: u32 = 0;
        let arg: *mut c_void = (&raw mut count).cast();
        // SAFETY: the counter outlives the hook, which the refused attach removes.
        unsafe { ffi::sqlite3_preupdate_hook(app.conn.handle(), Some(count_events), arg) };
        assert!(matches!(app.try_attach(), Err(CaptureError::PreupdateHookInUse)));
        app.attach();
        // SAFETY: as before; capture removes it when it notices.
        unsafe { ffi::sqlite3_preupdate_hook(app.conn.handle(), Some(count_events), arg) };
        app.run("INSERT INTO item VALUES (1, 1)");
        app.flush();
        assert_eq!(app.losses(), [Lost::HookReplaced]);
        assert_eq!(count, 1);
        app.run("INSERT INTO item VALUES (2, 1)");
        app.flush();
        assert_eq!(app.commits().len(), 1);
        assert_eq!(count, 1);
    }
}

#[test]
fn a_preupdate_hook_set_and_never_used_leaves_detaching_safe() {
    let app = App::with(Mode::Wal, SCHEMA);
    let mut count: u32 = 0;
    // SAFETY: the counter outlives the hook, which detaching removes.
    unsafe {
        let arg = (&raw mut count).cast();
        ffi::sqlite3_preupdate_hook(app.conn.handle(), Some(count_events), arg);
    }
    drop(app);
}

#[test]
fn sessions_of_the_app_live_beside_ours() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    let theirs = Replica::of(&app.conn);
    {
        let mut session = rusqlite::session::Session::new(&app.conn).unwrap();
        session.attach::<&str>(None).unwrap();
        for id in 0..5 {
            app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
            app.run("UPDATE item SET v = v + 1");
        }
        let commits = app.commits();
        assert_eq!(commits.len(), 10);
        commits.iter().for_each(|commit| replica.apply(commit));
        // Detaching leaves theirs in place.
        app.capture = None;
        app.run("INSERT INTO item VALUES (100, 1)");
        let mut changeset = Vec::new();
        session.changeset_strm(&mut changeset).unwrap();
        let changes = Changes::Changeset(changeset);
        theirs.apply(&Commit {
            changes,
            commits: 1,
            schema_version: 0,
            wall_time_ms: 0,
            position: None,
        });
        theirs.assert_equals(&app.conn, "the app's session");
    }
    app.run("DELETE FROM item WHERE id = 100");
    replica.assert_equals(&app.conn, "our sessions");
}

#[test]
fn a_session_made_and_dropped_by_the_app_leaves_capture_whole() {
    let app = App::with(Mode::Wal, SCHEMA);
    for id in 0..3 {
        let session = rusqlite::session::Session::new(&app.conn).unwrap();
        if id > 0 {
            app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
        }
        drop(session);
        app.run(&format!("INSERT INTO item VALUES ({id} + 10, 1)"));
    }
    assert_eq!(app.commits().len(), 5);
}

#[test]
fn a_renamed_main_database_is_noticed() {
    for mode in [Mode::Wal, Mode::Memory] {
        let mut app = App::with(mode, SCHEMA);
        // SAFETY: a static name.
        unsafe {
            let name = c"renamed".as_ptr();
            ffi::sqlite3_db_config(app.conn.handle(), ffi::SQLITE_DBCONFIG_MAINDBNAME, name)
        };
        app.run("INSERT INTO item VALUES (1, 1)");
        app.flush();
        assert_eq!(app.losses(), [Lost::HookReplaced], "{mode:?}");
        app.run("INSERT INTO item VALUES (2, 1)");
        app.flush();
        assert_eq!(app.commits().len(), 1);
    }
}

unsafe extern "C" fn commit_elsewhere(
    _: std::ffi::c_uint,
    other: *mut c_void,
    _: *mut c_void,
    sql: *mut c_void,
) -> c_int {
    // SAFETY: SQLITE_TRACE_STMT passes the SQL text; the test passes a live connection.
    unsafe {
        if std::ffi::CStr::from_ptr(sql.cast()).to_str().unwrap().contains("data_version") {
            (*other.cast::<Connection>()).execute_batch("INSERT INTO item DEFAULT VALUES").unwrap();
        }
    }
    0
}

#[test]
fn a_foreign_commit_in_the_midst_of_an_extraction_is_not_taken_for_ours() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let idle = app.capture.as_ref().unwrap().idle_boundary();
    let mut other = Connection::open(app.path()).unwrap();
    let trace = |on: bool, other: &mut Connection| {
        let callback = on.then_some(commit_elsewhere as _);
        // SAFETY: the other connection outlives the trace, which is removed below.
        unsafe {
            let (db, other) = (app.conn.handle(), std::ptr::from_mut(other).cast());
            ffi::sqlite3_trace_v2(db, ffi::SQLITE_TRACE_STMT, callback, other);
        }
    };
    trace(true, &mut other);
    app.run("INSERT INTO item VALUES (10, 1)");
    trace(false, &mut other);
    // The commit itself was read in one transaction, before the other one.
    assert_eq!(app.commits().len(), 1);
    app.log.want_snapshot();
    assert_eq!(idle.try_take(), Ok(false));
    app.flush();
    assert!(matches!(app.log.take()[..], [Event::Lost(Lost::ForeignWrite), Event::Boundary(_)]));
}

/// Interrupts the connection when a statement that contains `at` begins.
struct Interrupter {
    db: *mut ffi::sqlite3,
    at: &'static str,
    times: u32,
}

unsafe extern "C" fn interrupt_at(
    _: std::ffi::c_uint,
    context: *mut c_void,
    _: *mut c_void,
    sql: *mut c_void,
) -> c_int {
    // SAFETY: SQLITE_TRACE_STMT passes the SQL text; the test passes a live Interrupter.
    unsafe {
        let interrupter = &mut *context.cast::<Interrupter>();
        let sql = std::ffi::CStr::from_ptr(sql.cast()).to_str().unwrap();
        if interrupter.times > 0 && sql.contains(interrupter.at) {
            interrupter.times -= 1;
            ffi::sqlite3_interrupt(interrupter.db);
        }
    }
    0
}

#[test]
fn interrupted_extraction_is_made_up_for_and_leaves_no_transaction_open() {
    for at in ["SAVEPOINT changeset", "RELEASE changeset", "SELECT", "data_version", "user_version"]
    {
        for reading in [false, true] {
            let mut app = App::with(Mode::Wal, SCHEMA);
            app.run("INSERT INTO item VALUES (1, 1), (2, 2)");
            app.commits();
            let replica = Replica::of(&app.conn);
            let mut select = app.conn.prepare("SELECT id FROM item").unwrap();
            let mut rows = select.query([]).unwrap();
            if reading {
                // While a statement runs, an interrupt stays pending.
                rows.next().unwrap().unwrap();
            }
            // SAFETY: used while the connection is open.
            let db = unsafe { app.conn.handle() };
            let mut interrupter = Interrupter { db, at, times: 1 };
            // SAFETY: the interrupter outlives the trace, which is removed below.
            unsafe {
                let context = (&raw mut interrupter).cast();
                let mask = ffi::SQLITE_TRACE_STMT;
                ffi::sqlite3_trace_v2(db, mask, Some(interrupt_at), context);
            }
            assert_eq!(app.conn.execute("INSERT INTO item VALUES (3, 3)", []), Ok(1), "{at}");
            // SAFETY: removes the trace.
            unsafe { ffi::sqlite3_trace_v2(db, 0, None, std::ptr::null_mut()) };
            assert_eq!(interrupter.times, 0, "{at} never ran");
            assert!(app.conn.is_autocommit(), "{at}, reading {reading}");
            drop(rows);
            drop(select);
            app.run("INSERT INTO item VALUES (4, 4)");
            app.flush();
            app.commits().iter().for_each(|commit| replica.apply(commit));
            replica.assert_equals(&app.conn, at);
        }
    }
}

#[test]
fn a_progress_handler_that_stops_everything_costs_nothing_but_time() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    let armed = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&armed);
    app.conn
        .commit_hook(Some(move || {
            stop.store(true, Ordering::Relaxed);
            false
        }))
        .unwrap();
    let stop = Arc::clone(&armed);
    app.conn.progress_handler(1, Some(move || stop.load(Ordering::Relaxed))).unwrap();
    // The commit has happened when the handler starts to stop things.
    let _ = app.conn.execute("INSERT INTO item VALUES (1, 1)", []);
    assert!(app.conn.is_autocommit());
    app.conn.progress_handler(0, None::<fn() -> bool>).unwrap();
    app.conn.commit_hook(None::<fn() -> bool>).unwrap();
    app.flush();
    app.commits().iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "after the handler is gone");
}

#[test]
fn a_denying_authorizer_is_outlasted_or_becomes_a_loss() {
    unsafe extern "C" fn deny_pragmas(
        _: *mut c_void,
        action: c_int,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
    ) -> c_int {
        if action == ffi::SQLITE_SAVEPOINT { ffi::SQLITE_DENY } else { ffi::SQLITE_OK }
    }
    let mut app = App::with(Mode::Wal, SCHEMA);
    let replica = Replica::of(&app.conn);
    let authorize = |on: bool| {
        let callback = on.then_some(deny_pragmas as _);
        // SAFETY: the callback needs no context.
        unsafe {
            ffi::sqlite3_set_authorizer(app.conn.handle(), callback, std::ptr::null_mut());
        }
    };
    authorize(true);
    app.run("INSERT INTO item VALUES (1, 1)");
    app.run("INSERT INTO item VALUES (2, 1)");
    assert_eq!(app.commits().len(), 0);
    authorize(false);
    app.run("INSERT INTO item VALUES (3, 1)");
    let commits = app.commits();
    assert_eq!((commits.len(), commits[0].commits), (1, 3));
    replica.apply(&commits[0]);
    replica.assert_equals(&app.conn, "allowed again");

    authorize(true);
    for id in 10..17 {
        app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
    }
    assert_eq!(app.commits().len(), 0);
    app.run("INSERT INTO item VALUES (17, 1)");
    assert!(matches!(app.losses()[..], [Lost::ExtractFailed(_)]));
    let capture = app.capture.as_mut().unwrap();
    capture.flush(FlushMode::Complete).unwrap();
    authorize(false);
}
