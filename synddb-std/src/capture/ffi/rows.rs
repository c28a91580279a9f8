//! The [preupdate hook](https://www.sqlite.org/c3ref/preupdate_count.html) and the rows it tells of.

use super::*;

/// The type of a preupdate hook.
pub(crate) type RowHook = unsafe extern "C" fn(
    *mut c_void,
    *mut ffi::sqlite3,
    c_int,
    *const c_char,
    *const c_char,
    ffi::sqlite3_int64,
    ffi::sqlite3_int64,
);

pub(crate) const INSERT: c_int = ffi::SQLITE_INSERT;
pub(crate) const UPDATE: c_int = ffi::SQLITE_UPDATE;

/// Sets the hook, without an argument, and returns the argument of the one it replaced.
///
/// A session that the app makes later takes the argument it finds for another session, hence
/// none: the hook finds what it needs by [`client_data`].
pub(crate) fn set_hook(db: Db, hook: Option<RowHook>) -> *mut c_void {
    // SAFETY: the handle is open; the hook takes no argument.
    unsafe { ffi::sqlite3_preupdate_hook(db.raw(), hook, ptr::null_mut()) }
}

const CLIENT_DATA: &CStr = c"synddb";

/// Leaves a pointer on the connection; null takes it away.
pub(crate) fn set_client_data(db: Db, data: *mut c_void) -> Result<(), SqliteError> {
    // SAFETY: the handle is open; nothing is called when the pointer goes.
    let code = unsafe { ffi::sqlite3_set_clientdata(db.raw(), CLIENT_DATA.as_ptr(), data, None) };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(SqliteError::from_code(code)) }
}

/// The pointer left by [`set_client_data`], or null.
///
/// # Safety
/// `db` is an open connection.
pub(crate) unsafe fn client_data(db: *mut ffi::sqlite3) -> *mut c_void {
    // SAFETY: promised by the caller.
    unsafe { ffi::sqlite3_get_clientdata(db, CLIENT_DATA.as_ptr()) }
}

/// Why a value was not copied.
pub(crate) enum Refusal {
    /// The journal would exceed its limit.
    Full,
    Sqlite(SqliteError),
}

/// The row that a preupdate hook is being told of. Only to be used until the hook runs anything
/// else on the connection or returns.
pub(crate) struct RowEvent {
    db: Db,
    limit: usize,
}

impl RowEvent {
    /// # Safety
    /// Called in a preupdate hook of `db`, before anything else ran on the connection.
    pub(crate) unsafe fn new(db: Db, limit: usize) -> RowEvent {
        RowEvent { db, limit }
    }

    /// Columns of the table, generated ones included.
    pub(crate) fn width(&self) -> c_int {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_preupdate_count(self.db.raw()) }
    }

    /// 0 for a row that the statement changed itself, more for those of triggers and foreign keys.
    pub(crate) fn depth(&self) -> c_int {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_preupdate_depth(self.db.raw()) }
    }

    /// Incremental blob I/O, told of as a DELETE without the new value.
    pub(crate) fn is_blob_write(&self) -> bool {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_preupdate_blobwrite(self.db.raw()) >= 0 }
    }

    /// Appends the value before the change. True for NULL.
    pub(crate) fn append_old(
        &self,
        column: c_int,
        real: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, Refusal> {
        let mut value = ptr::null_mut();
        // SAFETY: the handle is open; the value is used before the next call.
        unsafe {
            let code = ffi::sqlite3_preupdate_old(self.db.raw(), column, &mut value);
            self.append(code, value, real, out)
        }
    }

    /// Appends the value after the change. True for NULL.
    pub(crate) fn append_new(
        &self,
        column: c_int,
        real: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, Refusal> {
        let mut value = ptr::null_mut();
        // SAFETY: as in `append_old`.
        unsafe {
            let code = ffi::sqlite3_preupdate_new(self.db.raw(), column, &mut value);
            self.append(code, value, real, out)
        }
    }

    /// # Safety
    /// `value` is null, or a value that is protected and valid.
    unsafe fn append(
        &self,
        code: c_int,
        value: *mut ffi::sqlite3_value,
        real: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, Refusal> {
        if code != ffi::SQLITE_OK {
            return Err(Refusal::Sqlite(SqliteError::from_code(code)));
        }
        // Out of memory SQLite may answer OK and leave the pointer alone.
        let no_memory = || Refusal::Sqlite(SqliteError::from_code(SQLITE_NOMEM));
        if value.is_null() {
            return Err(no_memory());
        }
        // SAFETY: the value is valid. Text is asked for before its length, so that both speak of
        // UTF-8; the length of a blob before the blob, for zeroblobs are only then expanded.
        unsafe {
            let kind = ffi::sqlite3_value_type(value);
            let text =
                if kind == ffi::SQLITE_TEXT { ffi::sqlite3_value_text(value) } else { ptr::null() };
            let len = match kind {
                ffi::SQLITE_TEXT | ffi::SQLITE_BLOB => {
                    usize::try_from(ffi::sqlite3_value_bytes(value)).unwrap_or(0)
                }
                _ => 0,
            };
            // A tag and eight bytes, or five of a length.
            const AROUND: usize = 9;
            if len + AROUND > self.limit.saturating_sub(out.len()) {
                return Err(Refusal::Full);
            }
            out.try_reserve(len + AROUND).map_err(|_| no_memory())?;
            let content = match kind {
                ffi::SQLITE_TEXT => text,
                ffi::SQLITE_BLOB => ffi::sqlite3_value_blob(value).cast(),
                _ => ptr::null(),
            };
            if content.is_null() && (len > 0 || kind == ffi::SQLITE_TEXT) {
                return Err(no_memory());
            }
            let content =
                if content.is_null() { &[][..] } else { std::slice::from_raw_parts(content, len) };
            match kind {
                ffi::SQLITE_INTEGER if real => {
                    journal::put_real(out, ffi::sqlite3_value_int64(value) as f64);
                }
                ffi::SQLITE_INTEGER => journal::put_integer(out, ffi::sqlite3_value_int64(value)),
                ffi::SQLITE_FLOAT => journal::put_real(out, ffi::sqlite3_value_double(value)),
                ffi::SQLITE_TEXT => journal::put_text(out, content),
                ffi::SQLITE_BLOB => journal::put_blob(out, content),
                _ => journal::put_null(out),
            }
            Ok(kind == ffi::SQLITE_NULL)
        }
    }
}
