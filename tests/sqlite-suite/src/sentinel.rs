//! A virtual table that SQLite disconnects at the beginning of `sqlite3_close`, before it looks for
//! statements that are still there: the moment to take capture off a connection whose owner knows
//! nothing of it.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use rusqlite::ffi::{self, sqlite3};

use crate::connection;

const NAME: &std::ffi::CStr = c"synddb_suite_end";

/// Registers the table and has the connection connect it. False if that was refused.
///
/// # Safety
/// `db` is an open connection.
pub(crate) unsafe fn post(db: *mut sqlite3) -> bool {
    // SAFETY: promised by the caller; the module is static. A statement that is only prepared
    // connects the table, and does not keep it.
    unsafe {
        let none = ptr::null_mut();
        let code = ffi::sqlite3_create_module_v2(db, NAME.as_ptr(), &MODULE.0, none, None);
        if code != ffi::SQLITE_OK {
            return false;
        }
        let mut stmt = ptr::null_mut();
        let sql = c"SELECT 1 FROM synddb_suite_end".as_ptr();
        let code = ffi::sqlite3_prepare_v2(db, sql, -1, &mut stmt, ptr::null_mut());
        ffi::sqlite3_finalize(stmt);
        code == ffi::SQLITE_OK
    }
}

struct Module(ffi::sqlite3_module);

// SAFETY: function pointers and integers, never written to.
unsafe impl Sync for Module {}

static MODULE: Module = Module(ffi::sqlite3_module {
    iVersion: 0,
    xCreate: None,
    xConnect: Some(connect),
    xBestIndex: Some(best_index),
    xDisconnect: Some(disconnect),
    xOpen: Some(open),
    // SAFETY: every other method may be missing, and none of them is reached without `xOpen`.
    ..unsafe { std::mem::zeroed() }
});

#[repr(C)]
struct Table {
    base: ffi::sqlite3_vtab,
    db: *mut sqlite3,
}

unsafe extern "C" fn connect(
    db: *mut sqlite3,
    _: *mut c_void,
    _: c_int,
    _: *const *const c_char,
    vtab: *mut *mut ffi::sqlite3_vtab,
    _: *mut *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes its open connection and a place for the result.
    unsafe {
        let code = ffi::sqlite3_declare_vtab(db, c"CREATE TABLE x(x)".as_ptr());
        if code == ffi::SQLITE_OK {
            *vtab = Box::into_raw(Box::new(Table { base: std::mem::zeroed(), db })).cast();
        }
        code
    }
}

unsafe extern "C" fn best_index(
    _: *mut ffi::sqlite3_vtab,
    _: *mut ffi::sqlite3_index_info,
) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vtab,
    _: *mut *mut ffi::sqlite3_vtab_cursor,
) -> c_int {
    // Nobody reads it.
    ffi::SQLITE_ERROR
}

unsafe extern "C" fn disconnect(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: made by `connect`, given up once.
    let table = unsafe { Box::from_raw(vtab.cast::<Table>()) };
    connection::end(table.db);
    ffi::SQLITE_OK
}
