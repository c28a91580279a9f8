//! The content of a connection's main database, without a statement on that connection.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr;

use rusqlite::ffi::{self, sqlite3};

/// The largest database that is looked at, in bytes.
const LIMIT: usize = 1 << 20;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the connection that this thread is opening is one of this module's.
pub(crate) fn is_ours() -> bool {
    OURS.get()
}

/// # Safety
/// `db` is an open connection.
pub(crate) unsafe fn take(db: *mut sqlite3) -> Result<Vec<u8>, String> {
    let copy = Copy::open()?;
    // SAFETY: both connections are open; "main" is the first database of either.
    unsafe {
        let main = c"main".as_ptr();
        let backup = ffi::sqlite3_backup_init(copy.0, main, db, main);
        if backup.is_null() {
            return Err(text(ffi::sqlite3_errcode(copy.0)));
        }
        let mut code = ffi::sqlite3_backup_step(backup, 0);
        let pages = usize::try_from(ffi::sqlite3_backup_pagecount(backup)).unwrap_or(0);
        let large = pages > LIMIT / 512;
        if code == ffi::SQLITE_OK && !large {
            code = ffi::sqlite3_backup_step(backup, -1);
        }
        ffi::sqlite3_backup_finish(backup);
        if large {
            return Err("large".into());
        }
        if code != ffi::SQLITE_DONE {
            return Err(text(code));
        }
        let mut len = 0;
        let data = ffi::sqlite3_serialize(copy.0, main, &mut len, 0);
        let len = usize::try_from(len).unwrap_or(0);
        if data.is_null() {
            // So it is for a database without a page.
            return if pages == 0 { Ok(Vec::new()) } else { Err(text(ffi::SQLITE_NOMEM)) };
        }
        let image = std::slice::from_raw_parts(data, len).to_vec();
        ffi::sqlite3_free(data.cast());
        if image.len() > LIMIT { Err("large".into()) } else { Ok(image) }
    }
}

fn text(code: i32) -> String {
    // SAFETY: a static string for any code.
    unsafe { CStr::from_ptr(ffi::sqlite3_errstr(code)) }.to_string_lossy().into_owned()
}

struct Copy(*mut sqlite3);

impl Copy {
    fn open() -> Result<Copy, String> {
        OURS.set(true);
        let mut db = ptr::null_mut();
        // SAFETY: the name is terminated; the handle is closed by `drop`, also after an error.
        let code = unsafe { ffi::sqlite3_open(c":memory:".as_ptr(), &mut db) };
        OURS.set(false);
        let copy = Copy(db);
        if code == ffi::SQLITE_OK { Ok(copy) } else { Err(text(code)) }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // SAFETY: ours alone; null is allowed.
        unsafe { ffi::sqlite3_close(self.0) };
    }
}

/// What a script counts down or up, held still: what the suite and the engine read between the script's
/// calls is none of its business.
pub(crate) struct Paused {
    pending: [i32; 2],
    counted: [i32; COUNTERS],
}

const COUNTERS: usize = 5;

unsafe extern "C" {
    static mut sqlite3_io_error_pending: i32;
    static mut sqlite3_diskfull_pending: i32;
    static mut sqlite3_search_count: i32;
    static mut sqlite3_sort_count: i32;
    static mut sqlite3_found_count: i32;
    static mut sqlite3_like_count: i32;
    static mut sqlite3_interrupt_count: i32;
}

/// Of scans, sorts, matches, and instructions until an interrupt.
fn counters() -> [*mut i32; COUNTERS] {
    [
        &raw mut sqlite3_search_count,
        &raw mut sqlite3_sort_count,
        &raw mut sqlite3_found_count,
        &raw mut sqlite3_like_count,
        &raw mut sqlite3_interrupt_count,
    ]
}

impl Paused {
    pub(crate) fn new() -> Paused {
        // SAFETY: plain counters, which the script's thread sets.
        unsafe {
            let pending = [sqlite3_io_error_pending, sqlite3_diskfull_pending];
            (sqlite3_io_error_pending, sqlite3_diskfull_pending) = (0, 0);
            let counted = counters().map(|counter| *counter);
            sqlite3_interrupt_count = 0;
            Paused { pending, counted }
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe {
            [sqlite3_io_error_pending, sqlite3_diskfull_pending] = self.pending;
            for (counter, counted) in counters().into_iter().zip(self.counted) {
                *counter = counted;
            }
        }
    }
}
