//! The clean mark: what proves that nobody wrote while capture was away.

use super::super::{Fingerprint, current_fingerprint};
use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

fn current(conn: &Connection) -> Option<Fingerprint> {
    // SAFETY: an open connection, used on this thread only.
    unsafe { current_fingerprint(conn.handle()) }
}

/// Stops cleanly: the mark, and where the database is.
fn stop(app: &mut App) -> Option<Fingerprint> {
    app.flush();
    let mark = app.capture.as_mut().unwrap().clean_mark();
    app.capture.take().unwrap().detach();
    mark
}

#[test]
fn an_untouched_file_is_recognised() {
    for mode in [Mode::Wal, Mode::Delete] {
        for close in [true, false] {
            let mut app = App::with(mode, SCHEMA);
            app.run("INSERT INTO item VALUES (1, 1)");
            let mark = stop(&mut app).expect("a mark");
            let stored = Fingerprint::from_bytes(&mark.to_bytes());
            assert_eq!(stored, Some(mark));
            if close {
                app.conn = Connection::open_in_memory().unwrap();
            }
            let conn = Connection::open(app.path()).unwrap();
            let _: i64 = conn.query_row("SELECT count(*) FROM item", [], |r| r.get(0)).unwrap();
            assert_eq!(current(&conn), stored, "{mode:?}, closed {close}");
        }
    }
}

#[test]
fn any_write_is_noticed_however_soon() {
    for mode in [Mode::Wal, Mode::Delete] {
        for sql in [
            "UPDATE item SET v = 2",
            "INSERT INTO item VALUES (2, 1)",
            "PRAGMA user_version = 2",
            "VACUUM",
        ] {
            for close in [true, false] {
                let mut app = App::with(mode, SCHEMA);
                app.run("INSERT INTO item VALUES (1, 1)");
                let mark = stop(&mut app);
                assert!(mark.is_some());
                app.run(sql);
                if close {
                    app.conn = Connection::open_in_memory().unwrap();
                }
                let conn = Connection::open(app.path()).unwrap();
                assert_ne!(current(&conn), mark, "{mode:?}, {sql}, closed {close}");
            }
        }
    }
}

#[test]
fn a_database_in_use_has_no_mark() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    app.run("INSERT INTO item VALUES (1, 1)");
    assert_eq!(current(&app.conn), None);
    let reader = Connection::open(app.path()).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM item").unwrap();
    app.run("INSERT INTO item VALUES (2, 1)");
    let start = std::time::Instant::now();
    assert_eq!(app.capture.as_mut().unwrap().clean_mark(), None);
    // Without waiting for the reader by the busy handler, which would take five seconds.
    assert!(start.elapsed().as_secs() < 4);
    reader.execute_batch("COMMIT").unwrap();
    app.run("BEGIN");
    assert_eq!(app.capture.as_mut().unwrap().clean_mark(), None);
    app.run("COMMIT");
    assert!(app.capture.as_mut().unwrap().clean_mark().is_some());
}

#[test]
fn what_was_not_handed_over_before_has_no_mark() {
    let mut app = App::with(Mode::Delete, SCHEMA);
    app.run("INSERT INTO item VALUES (1, 1)");
    assert_eq!(app.capture.as_mut().unwrap().clean_mark(), None);
    assert_eq!(app.commits().len(), 1);
    let other = Connection::open(app.path()).unwrap();
    other.execute_batch("INSERT INTO item VALUES (2, 1)").unwrap();
    assert_eq!(app.capture.as_mut().unwrap().clean_mark(), None);
    assert_eq!(app.losses(), [Lost::ForeignWrite]);
}

#[test]
fn memory_has_no_mark() {
    let mut app = App::with(Mode::Memory, SCHEMA);
    app.flush();
    assert_eq!(app.capture.as_mut().unwrap().clean_mark(), None);
    assert_eq!(current(&app.conn), None);
}

#[test]
fn bytes_of_another_kind_are_no_fingerprint() {
    assert_eq!(Fingerprint::from_bytes(&[]), None);
    assert_eq!(Fingerprint::from_bytes(&[0; Fingerprint::LEN]), None);
    assert_eq!(Fingerprint::from_bytes(&[1; Fingerprint::LEN + 1]), None);
}
