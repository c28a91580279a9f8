//! What the app sees is what it would see without capture.

use std::ffi::{CStr, CString};

use super::*;

/// Everything SQLite tells about the last call on a connection.
fn told(db: *mut ffi::sqlite3) -> String {
    // SAFETY: an open connection; the text is copied at once.
    unsafe {
        let message = CStr::from_ptr(ffi::sqlite3_errmsg(db)).to_str().unwrap();
        format!(
            "code {} extended {} message {message:?} offset {} system {} changes {} total {} \
             rowid {} autocommit {} state {}",
            ffi::sqlite3_errcode(db),
            ffi::sqlite3_extended_errcode(db),
            ffi::sqlite3_error_offset(db),
            ffi::sqlite3_system_errno(db),
            ffi::sqlite3_changes64(db),
            ffi::sqlite3_total_changes64(db),
            ffi::sqlite3_last_insert_rowid(db),
            ffi::sqlite3_get_autocommit(db),
            ffi::sqlite3_txn_state(db, std::ptr::null()),
        )
    }
}

/// Prepares, steps to the end and finalizes, and notes what was told after every call.
fn transcript(conn: &Connection, sql: &str) -> Vec<String> {
    // SAFETY: used while the connection is open.
    let db = unsafe { conn.handle() };
    let mut lines = vec![sql.to_owned()];
    let text = CString::new(sql).unwrap();
    // SAFETY: an open connection, used on this thread only; the statement is finalized.
    unsafe {
        let mut stmt = std::ptr::null_mut();
        let code = ffi::sqlite3_prepare_v2(db, text.as_ptr(), -1, &mut stmt, std::ptr::null_mut());
        lines.push(format!("prepare {code}: {}", told(db)));
        if code != ffi::SQLITE_OK {
            return lines;
        }
        loop {
            let code = ffi::sqlite3_step(stmt);
            lines.push(format!("step {code}: {}", told(db)));
            if code != ffi::SQLITE_ROW {
                break;
            }
        }
        lines.push(format!("reset {}: {}", ffi::sqlite3_reset(stmt), told(db)));
        lines.push(format!("finalize {}: {}", ffi::sqlite3_finalize(stmt), told(db)));
    }
    lines
}

fn forget_count_at_rows(line: &mut String) {
    if line.starts_with("step 100") {
        let (from, to) = (line.find(" changes ").unwrap(), line.find(" total ").unwrap());
        line.replace_range(from..to, "");
    }
}

const WORK: &[&str] = &[
    "INSERT INTO item(name) VALUES ('a'), ('b'), ('c') RETURNING id, changes()",
    "INSERT INTO item(name) VALUES ('a')",
    "UPDATE item SET v = 1",
    "SELECT changes(), total_changes(), last_insert_rowid()",
    "INSERT OR FAIL INTO item(name) VALUES ('d'), ('a')",
    "SELECT changes(), last_insert_rowid()",
    "INSERT OR REPLACE INTO item(id, name) VALUES (9, 'b')",
    "INSERT INTO keyed VALUES (NULL, 1), ('k', 2)",
    "BEGIN",
    "INSERT INTO item(name) VALUES ('e')",
    "SAVEPOINT s",
    "DELETE FROM item",
    "ROLLBACK TO s",
    "INSERT INTO child VALUES (1, 77)",
    "COMMIT",
    "SELECT changes()",
    "ROLLBACK",
    "INSERT INTO counted(v) VALUES (1)",
    "SELECT nonsense FROM",
    "CREATE TABLE item(x)",
    "CREATE TABLE more(x, y)",
    "INSERT INTO more VALUES (1, 2)",
    "ALTER TABLE more DROP COLUMN y",
    "DELETE FROM more",
    "DELETE FROM item",
    "SELECT changes(), total_changes(), last_insert_rowid()",
    "PRAGMA user_version = 7",
    "PRAGMA wal_checkpoint",
    "INSERT INTO item(id, v) VALUES (1, (SELECT raise FROM nothing))",
    "INSERT INTO notes VALUES ('text')",
    "DROP TABLE more",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "COMMIT",
];

#[test]
fn codes_texts_and_counters_stay_as_they_were() {
    let modes = [Mode::Wal, Mode::Delete, Mode::Memory];
    for (mode, engine) in modes.into_iter().flat_map(|mode| ENGINES.map(|engine| (mode, engine))) {
        let mut with = App::by(engine, mode);
        let without = App::new(mode);
        for app in [&with, &without] {
            app.run(
                "PRAGMA foreign_keys = on;
                 CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, v);
                 CREATE TABLE keyed(k TEXT PRIMARY KEY, v);
                 CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
                 CREATE TABLE child(id INTEGER PRIMARY KEY,
                     p REFERENCES item DEFERRABLE INITIALLY DEFERRED);
                 CREATE VIRTUAL TABLE notes USING fts5(body);",
            );
        }
        with.attach();
        for (number, sql) in WORK.iter().enumerate() {
            // A boundary in the middle must not show either.
            if number % 3 == 0 {
                with.log.want_snapshot();
            }
            let [mut ours, mut theirs] = [&with, &without].map(|app| transcript(&app.conn, sql));
            if engine == Engine::Preupdate {
                // The documented exception: sqlite3_changes() before a statement has ended.
                ours.iter_mut().chain(&mut theirs).for_each(forget_count_at_rows);
            }
            assert_eq!(ours, theirs, "{engine:?} {mode:?}");
        }
        assert_eq!(dump(&with.conn), dump(&without.conn));
        let schema = |conn: &Connection| -> Vec<String> {
            let sql = "SELECT coalesce(sql, name) FROM sqlite_schema
                       UNION ALL SELECT sql FROM sqlite_temp_schema";
            let mut rows = conn.prepare(sql).unwrap();
            rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(schema(&with.conn), schema(&without.conn));
        // Boundaries are dropped before the connection closes, readers and all.
        with.log.take();
    }
}

#[test]
fn a_flush_leaves_deferred_foreign_keys_deferred() {
    for engine in ENGINES {
        let mut app = App::by(engine, Mode::Wal);
        app.run("PRAGMA foreign_keys = on; CREATE TABLE item(id INTEGER PRIMARY KEY, p REFERENCES item)");
        app.attach();
        app.run("PRAGMA defer_foreign_keys = on");
        app.flush();
        app.run("BEGIN; INSERT INTO item VALUES (1, 2); INSERT INTO item VALUES (2, 1); COMMIT");
    }
}
