//! The capture engine for SQLite's `testfixture`: attaches to every connection a test script opens,
//! and writes down what it captures, for a comparison afterwards.
//!
//! ```text
//! sqlite3_open ─▶ automatic extension ─▶ entry          attach, sentinel
//! a Tcl command ─▶ prepare, exec      ─▶ between_calls  an image to begin with, or to compare with
//! a commit      ─▶ engine             ─▶ changeset, or why there is none
//! sqlite3_close ─▶ closing                              the last image
//!               └▶ SQLite ─▶ sentinel                   detach
//! ```
//!
//! Images are taken by the backup interface, which runs no SQL on the script's connection.
//! Everything goes to the file that `SYNDDB_SUITE_LOG` names; see `log` for its format.

mod connection;
mod image;
mod log;
mod sentinel;

use std::ffi::{CStr, c_char, c_int, c_void};

use rusqlite::ffi::{self, sqlite3};

use connection::{Connection, Moment};

/// The automatic extension.
///
/// # Safety
/// Called by SQLite with a connection that is being opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn synddb_suite_entry(
    db: *mut sqlite3,
    _: *mut *mut c_char,
    _: *const c_void,
) -> c_int {
    if !image::is_ours() {
        let _paused = image::Paused::new();
        // SAFETY: promised by the caller.
        unsafe { Connection::open(db) };
        // Attaching may have been refused, which is not for the script to see.
        // SAFETY: as above; an empty text does nothing but to forget the last error.
        unsafe {
            let none = std::ptr::null_mut();
            ffi::sqlite3_exec(db, c"".as_ptr(), None, none, none.cast());
        }
    }
    ffi::SQLITE_OK
}

/// A script is about to prepare a statement.
///
/// # Safety
/// `db` is null or an open connection, `sql` null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn synddb_suite_between_calls(db: *mut sqlite3, sql: *const c_char) {
    let Some(connection) = connection::find(db) else { return };
    // SAFETY: promised by the caller.
    let sql = if sql.is_null() { c"" } else { unsafe { CStr::from_ptr(sql) } };
    let loses = may_lose(sql.to_bytes());
    let moment = if loses { Moment::BeforeLoss } else { Moment::Other };
    connection.look(moment);
}

/// A script is about to close a connection.
///
/// # Safety
/// `db` is null or an open connection.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn synddb_suite_closing(db: *mut sqlite3) {
    if let Some(connection) = connection::find(db) {
        connection.look(Moment::Closing);
        connection.closing();
    }
}

/// Whether there may be a statement among these that no changeset carries. Before it is the time to
/// compare, after it to look.
fn may_lose(sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 9] = [
        b"create", b"drop", b"alter", b"vacuum", b"pragma", b"reindex", b"attach", b"detach",
        b"analyze",
    ];
    let mut words = sql[..sql.len().min(4096)].split(|byte| !byte.is_ascii_alphabetic());
    words.any(|found| WORDS.iter().any(|word| word.eq_ignore_ascii_case(found)))
}
