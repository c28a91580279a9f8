//! Every call that capture and snapshots make into the SQLite library.
//!
//! The rest of the capture code sees [`Db`], [`OwnedDb`], [`Stmt`] and [`Backup`]; a function
//! table of a foreign host's library would replace `rusqlite::ffi` in this file alone. The
//! session and hook calls, whose order matters, are used by `sessions.rs` only.

pub(crate) mod join;
pub(crate) mod rows;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rusqlite::ffi;
use synddb_core::changeset;

use super::journal;

pub(crate) use ffi::{
    SQLITE_ABORT, SQLITE_AUTH, SQLITE_BUSY, SQLITE_CORRUPT, SQLITE_FULL, SQLITE_INTERRUPT,
    SQLITE_LOCKED, SQLITE_MISUSE, SQLITE_NOMEM, SQLITE_TOOBIG, sqlite3, sqlite3_session,
};

/// What SQLite answered: its extended result code and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteError {
    /// The [extended result code](https://www.sqlite.org/rescode.html).
    pub code: i32,
    /// SQLite's own words.
    pub message: String,
}

impl SqliteError {
    /// An error without a connection to ask for its text.
    pub(crate) fn from_code(code: c_int) -> SqliteError {
        // SAFETY: sqlite3_errstr returns a static string for any code.
        let message = unsafe { CStr::from_ptr(ffi::sqlite3_errstr(code)) };
        SqliteError { code, message: message.to_string_lossy().into_owned() }
    }

    /// The primary result code: the low eight bits.
    pub(crate) fn primary(&self) -> c_int {
        self.code & 0xff
    }
}

impl fmt::Display for SqliteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLite result code {})", self.message, self.code)
    }
}

impl std::error::Error for SqliteError {}

/// False where the library was built for one thread only; then nothing may be left to another.
pub(crate) fn library_is_threadsafe() -> bool {
    // SAFETY: no arguments, no preconditions.
    unsafe { ffi::sqlite3_threadsafe() != 0 }
}

/// A borrowed database connection.
///
/// Invariant: the handle is open as long as this value is used. Whoever makes one by
/// [`Db::from_raw`] promises it; every `SAFETY` line below rests on that promise.
#[derive(Clone, Copy)]
pub(crate) struct Db(NonNull<ffi::sqlite3>);

/// Held while several calls must not be interleaved with another thread's on a serialized
/// connection. Connections opened without a mutex have nothing to hold.
pub(crate) struct DbLock(*mut ffi::sqlite3_mutex);

impl Drop for DbLock {
    fn drop(&mut self) {
        // SAFETY: entered in `Db::lock`; a null mutex is a no-op by SQLite's contract.
        unsafe { ffi::sqlite3_mutex_leave(self.0) }
    }
}

/// The type of a [write-ahead log hook](https://www.sqlite.org/c3ref/wal_hook.html).
pub(crate) type WalHook =
    unsafe extern "C" fn(*mut c_void, *mut ffi::sqlite3, *const c_char, c_int) -> c_int;

/// The type of a session's table filter.
pub(crate) type TableFilter = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;

impl Db {
    /// # Safety
    /// `db` is an open connection and stays open while the value or a copy of it is used; no
    /// other thread uses it at the same time, unless the connection is serialized.
    pub(crate) unsafe fn from_raw(db: *mut ffi::sqlite3) -> Option<Db> {
        NonNull::new(db).map(Db)
    }

    pub(crate) fn raw(self) -> *mut ffi::sqlite3 {
        self.0.as_ptr()
    }

    pub(crate) fn lock(self) -> DbLock {
        // SAFETY: the handle is open; its mutex lives as long as it does.
        unsafe {
            let mutex = ffi::sqlite3_db_mutex(self.raw());
            ffi::sqlite3_mutex_enter(mutex);
            DbLock(mutex)
        }
    }

    /// The error of the call that just returned `code`.
    pub(crate) fn error(self, code: c_int) -> SqliteError {
        // SAFETY: the handle is open; the text is copied before the next call on it.
        unsafe {
            let extended = ffi::sqlite3_extended_errcode(self.raw());
            if extended & 0xff != code & 0xff {
                return SqliteError::from_code(code);
            }
            let message = CStr::from_ptr(ffi::sqlite3_errmsg(self.raw()));
            SqliteError { code: extended, message: message.to_string_lossy().into_owned() }
        }
    }

    fn check(self, code: c_int) -> Result<(), SqliteError> {
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.error(code)) }
    }

    pub(crate) fn exec(self, sql: &CStr) -> Result<(), SqliteError> {
        // SAFETY: the handle is open, the text is terminated, no callback and no message is asked.
        let code = unsafe {
            ffi::sqlite3_exec(self.raw(), sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut())
        };
        self.check(code)
    }

    pub(crate) fn prepare(self, sql: &CStr) -> Result<Stmt, SqliteError> {
        let mut stmt = ptr::null_mut();
        // SAFETY: the handle is open, the text is terminated.
        let code = unsafe {
            ffi::sqlite3_prepare_v3(
                self.raw(),
                sql.as_ptr(),
                -1,
                ffi::SQLITE_PREPARE_PERSISTENT,
                &mut stmt,
                ptr::null_mut(),
            )
        };
        self.check(code)?;
        let stmt = NonNull::new(stmt).expect("the SQL of a prepared statement is not empty");
        Ok(Stmt { db: self, stmt })
    }

    /// Prepares, steps once, and reads the first column as an integer.
    pub(crate) fn query_i64(self, sql: &CStr) -> Result<i64, SqliteError> {
        self.prepare(sql)?.query_i64()
    }

    pub(crate) fn query_text(self, sql: &CStr) -> Result<String, SqliteError> {
        self.prepare(sql)?.query_text()
    }

    /// False inside an explicit transaction or savepoint.
    pub(crate) fn autocommit(self) -> bool {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_get_autocommit(self.raw()) != 0 }
    }

    /// Whether a write transaction of this connection is open on the main database.
    pub(crate) fn writing(self) -> bool {
        // SAFETY: the handle is open; "main" names the first database under any name it has.
        unsafe {
            ffi::sqlite3_txn_state(self.raw(), c"main".as_ptr()) == ffi::SQLITE_TXN_WRITE as c_int
        }
    }

    /// None if there is no main database, else whether it can only be read.
    pub(crate) fn read_only(self) -> Option<bool> {
        // SAFETY: the handle is open.
        match unsafe { ffi::sqlite3_db_readonly(self.raw(), c"main".as_ptr()) } {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// The name the main database has now; `SQLITE_DBCONFIG_MAINDBNAME` changes it.
    pub(crate) fn main_name(self) -> CString {
        // SAFETY: the handle is open; database 0 always exists, its name is terminated.
        unsafe {
            let name = ffi::sqlite3_db_name(self.raw(), 0);
            if name.is_null() { c"main".to_owned() } else { CStr::from_ptr(name).to_owned() }
        }
    }

    /// Whether `name`, as given to a hook, is the main database.
    ///
    /// # Safety
    /// `name` is a terminated string.
    pub(crate) unsafe fn is_main(self, name: *const c_char) -> bool {
        // SAFETY: the handle is open; the caller vouches for `name`.
        unsafe {
            let main = ffi::sqlite3_db_name(self.raw(), 0);
            name == main || (!main.is_null() && CStr::from_ptr(name) == CStr::from_ptr(main))
        }
    }

    /// Makes every statement prepared so far compile again before its next run. A `DELETE`
    /// without `WHERE` compiled while no hook was set would keep its shortcut past the hook.
    pub(crate) fn expire_statements(self) -> Result<(), SqliteError> {
        let set = |value: c_int, now: &mut c_int| {
            // SAFETY: the handle is open; this verb takes an int and a pointer to one.
            self.check(unsafe {
                let now: *mut c_int = now;
                ffi::sqlite3_db_config(self.raw(), ffi::SQLITE_DBCONFIG_ENABLE_QPSG, value, now)
            })
        };
        // Statements expire whenever one of these flags really changes.
        let (mut before, mut ignored) = (0, 0);
        set(-1, &mut before)?;
        set(1 - before, &mut ignored)?;
        set(before, &mut ignored)
    }

    pub(crate) fn busy_timeout(self, timeout: Duration) {
        let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_busy_timeout(self.raw(), millis) };
    }

    /// Sets the hook and returns the argument of the one it replaced.
    ///
    /// # Safety
    /// `arg` is what `hook` expects for as long as the hook is set.
    pub(crate) unsafe fn set_wal_hook(
        self,
        hook: Option<WalHook>,
        arg: *mut c_void,
    ) -> *mut c_void {
        // SAFETY: the handle is open; the caller vouches for the pair.
        unsafe { ffi::sqlite3_wal_hook(self.raw(), hook, arg) }
    }

    /// SQLite's own hook: checkpoints past `frames`; none at all for 0.
    pub(crate) fn set_autocheckpoint(self, frames: c_int) {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_wal_autocheckpoint(self.raw(), frames) };
    }

    /// Whether the column is an AUTOINCREMENT key.
    pub(crate) fn is_autoincrement(self, table: &CStr, column: &CStr) -> Result<bool, SqliteError> {
        let mut autoincrement = 0;
        // SAFETY: the handle is open, the names are terminated; what is not asked for may be null.
        let code = unsafe {
            ffi::sqlite3_table_column_metadata(
                self.raw(),
                c"main".as_ptr(),
                table.as_ptr(),
                column.as_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                &mut autoincrement,
            )
        };
        self.check(code).map(|()| autoincrement != 0)
    }

    /// Rows changed by the last statement that ended.
    pub(crate) fn changes(self) -> i64 {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_changes64(self.raw()) }
    }

    /// Rows changed since the connection was opened, TEMP tables and attached databases included.
    pub(crate) fn total_changes(self) -> i64 {
        // SAFETY: the handle is open.
        unsafe { ffi::sqlite3_total_changes64(self.raw()) }
    }

    /// What SQLite's own hook does: a passive checkpoint whose failure is nobody's concern.
    ///
    /// # Safety
    /// `name` is a terminated string.
    pub(crate) unsafe fn checkpoint_passive(self, name: *const c_char) {
        // SAFETY: the handle is open; the caller vouches for `name`.
        unsafe { ffi::sqlite3_wal_checkpoint(self.raw(), name) };
    }

    /// Checkpoints the main database: frames in the log, frames of them in the database file.
    pub(crate) fn checkpoint(self, mode: Checkpoint) -> Result<(i32, i32), SqliteError> {
        let mode = match mode {
            Checkpoint::Passive => ffi::SQLITE_CHECKPOINT_PASSIVE,
            Checkpoint::Truncate => ffi::SQLITE_CHECKPOINT_TRUNCATE,
        };
        let (mut logged, mut copied) = (0, 0);
        // SAFETY: the handle is open; both outputs are valid.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(
                self.raw(),
                c"main".as_ptr(),
                mode as c_int,
                &mut logged,
                &mut copied,
            )
        };
        self.check(code).map(|()| (logged, copied))
    }

    /// SQLite's count of content changes of the main database, own commits included. `PRAGMA
    /// data_version` is the same count less the own commits, so their difference counts those.
    pub(crate) fn change_count(self) -> u32 {
        let mut count: u32 = 0;
        // SAFETY: the handle is open; this verb writes a 32-bit unsigned integer.
        unsafe {
            ffi::sqlite3_file_control(
                self.raw(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_DATA_VERSION,
                ptr::from_mut(&mut count).cast(),
            );
        }
        count
    }

    /// Whether column `column` of the row that a preupdate hook is being told of is NULL before
    /// or after the change. Outside a preupdate hook: false.
    ///
    /// The hook's caller does not tell the operation, so one of the two questions is out of
    /// place for an insert or a delete; SQLite answers it with `SQLITE_MISUSE`, nothing else.
    pub(crate) fn preupdate_is_null(self, column: c_int) -> bool {
        let mut value = ptr::null_mut();
        // SAFETY: the handle is open; a value is valid until the hook returns and read at once.
        unsafe {
            let is_null = |value| ffi::sqlite3_value_type(value) == ffi::SQLITE_NULL;
            (ffi::sqlite3_preupdate_new(self.raw(), column, &mut value) == ffi::SQLITE_OK
                && is_null(value))
                || (ffi::sqlite3_preupdate_old(self.raw(), column, &mut value) == ffi::SQLITE_OK
                    && is_null(value))
        }
    }

    /// Where the main database lives, None if it is not a file.
    pub(crate) fn location(self) -> Option<Location> {
        // SAFETY: the handle is open; the name is terminated and, being the connection's own,
        // may be asked for its URI parameters and for the name of its log. All of it is copied.
        unsafe {
            let name = ffi::sqlite3_db_filename(self.raw(), c"main".as_ptr());
            if name.is_null() || *name == 0 {
                return None;
            }
            let mut vfs: *mut ffi::sqlite3_vfs = ptr::null_mut();
            ffi::sqlite3_file_control(
                self.raw(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_VFS_POINTER,
                ptr::from_mut(&mut vfs).cast(),
            );
            let vfs = NonNull::new(vfs).map(|vfs| CStr::from_ptr(vfs.as_ref().zName).to_owned());
            let mut parameters = Vec::new();
            for index in 0.. {
                let key = ffi::sqlite3_uri_key(name, index);
                if key.is_null() {
                    break;
                }
                let value = ffi::sqlite3_uri_parameter(name, key);
                parameters.push((
                    CStr::from_ptr(key).to_bytes().to_vec(),
                    CStr::from_ptr(value).to_bytes().to_vec(),
                ));
            }
            let wal = CStr::from_ptr(ffi::sqlite3_filename_wal(name));
            Some(Location {
                open_name: open_name(CStr::from_ptr(name), &parameters),
                database: os_path(CStr::from_ptr(name)),
                wal: os_path(wal),
                vfs,
            })
        }
    }

    fn file(self) -> Option<NonNull<ffi::sqlite3_file>> {
        self.file_of(ffi::SQLITE_FCNTL_FILE_POINTER)
    }

    fn file_of(self, verb: c_int) -> Option<NonNull<ffi::sqlite3_file>> {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        // SAFETY: the handle is open; these verbs write a pointer to a file of the connection.
        let code = unsafe {
            ffi::sqlite3_file_control(
                self.raw(),
                c"main".as_ptr(),
                verb,
                ptr::from_mut(&mut file).cast(),
            )
        };
        let file = NonNull::new(file).filter(|_| code == ffi::SQLITE_OK)?;
        // SAFETY: the file belongs to the open connection; its methods are null until it is open.
        (!unsafe { file.as_ref() }.pMethods.is_null()).then_some(file)
    }

    /// Reads from the database file through the connection's own file handle. Opening and
    /// closing the file ourselves would drop the POSIX locks SQLite holds on it.
    pub(crate) fn read_file(self, offset: i64, buf: &mut [u8]) -> Option<()> {
        Db::read(self.file()?, offset, buf)
    }

    /// Reads from the write-ahead log, the same way. Only in WAL mode.
    pub(crate) fn read_log(self, offset: i64, buf: &mut [u8]) -> Option<()> {
        Db::read(self.file_of(ffi::SQLITE_FCNTL_JOURNAL_POINTER)?, offset, buf)
    }

    /// `file` came from [`Db::file_of`] just now.
    fn read(file: NonNull<ffi::sqlite3_file>, offset: i64, buf: &mut [u8]) -> Option<()> {
        // SAFETY: an open file has methods; xRead fills `buf` and nothing beyond it.
        let code = unsafe {
            let read = (*file.as_ref().pMethods).xRead?;
            read(file.as_ptr(), buf.as_mut_ptr().cast(), buf.len() as c_int, offset)
        };
        (code == ffi::SQLITE_OK).then_some(())
    }

    /// The header of the [WAL-index](https://www.sqlite.org/walformat.html#the_wal_index_header),
    /// None while a writer is changing it or where there is none in shared memory.
    ///
    /// Only for a connection in WAL mode with normal locking: for others SQLite would make a
    /// shared-memory file that nobody wants.
    pub(crate) fn wal_index_header(self) -> Option<WalIndexHeader> {
        self.wal_index().map(|(header, _)| header)
    }

    /// Whether the whole log is in the database file too, so that the next commit may begin it
    /// anew. Only as [`Db::wal_index_header`].
    pub(crate) fn log_may_begin_anew(self) -> bool {
        self.wal_index().is_some_and(|(header, copied)| copied >= header.frames())
    }

    /// Writes what a transaction has changed so far to its journal or log, as SQLite does by
    /// itself when its cache is full.
    pub(crate) fn flush_cache(self) {
        // SAFETY: the handle is open. What cannot be written is written by the commit.
        unsafe { ffi::sqlite3_db_cacheflush(self.raw()) };
    }

    /// The header, and how many frames of the log are in the database file.
    fn wal_index(self) -> Option<(WalIndexHeader, u32)> {
        const REGION: c_int = 32 * 1024;
        let file = self.file()?;
        // SAFETY: an open file has methods; from version 2 on they include the shared memory's.
        // Region 0 is at least 136 bytes and stays mapped while the connection is in WAL mode,
        // which the caller vouches for. Other processes write to it: hence volatile reads, and
        // the comparison of both copies, which is SQLite's own protocol.
        unsafe {
            let methods = &*file.as_ref().pMethods;
            if methods.iVersion < 2 {
                return None;
            }
            let (map, barrier) = (methods.xShmMap?, methods.xShmBarrier?);
            let mut region: *mut c_void = ptr::null_mut();
            let code = map(file.as_ptr(), 0, REGION, 0, &mut region);
            let words: *const u32 = region.cast_const().cast();
            if code != ffi::SQLITE_OK || words.is_null() {
                return None;
            }
            let copy = |from: usize| -> [u32; WalIndexHeader::WORDS] {
                std::array::from_fn(|word| words.add(from + word).read_volatile())
            };
            let first = copy(0);
            barrier(file.as_ptr());
            let second = copy(WalIndexHeader::WORDS);
            let copied = words.add(2 * WalIndexHeader::WORDS).read_volatile();
            (first == second && first[0] == WalIndexHeader::VERSION)
                .then_some((WalIndexHeader(first), copied))
        }
    }
}

/// A connection opened here and closed when dropped.
pub(crate) struct OwnedDb(Db);

// SAFETY: opened by `OwnedDb::open` in a library that `library_is_threadsafe`, and used by one
// thread at a time, since the value is not Sync.
unsafe impl Send for OwnedDb {}

/// How [`OwnedDb::open`] opens a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

impl OwnedDb {
    /// Opens `name` as [`Location::open_name`] spells it, through the VFS of that name.
    pub(crate) fn open(
        name: &CStr,
        vfs: Option<&CStr>,
        access: Access,
    ) -> Result<OwnedDb, SqliteError> {
        let access = match access {
            Access::ReadOnly => ffi::SQLITE_OPEN_READONLY,
            Access::ReadWrite => ffi::SQLITE_OPEN_READWRITE,
        };
        let flags = access | ffi::SQLITE_OPEN_NOMUTEX | ffi::SQLITE_OPEN_URI;
        let mut db = ptr::null_mut();
        // SAFETY: both names are terminated; the handle is closed by `drop` even after an error.
        let code = unsafe {
            let vfs = vfs.map_or(ptr::null(), CStr::as_ptr);
            ffi::sqlite3_open_v2(name.as_ptr(), &mut db, flags, vfs)
        };
        // SAFETY: the handle is open until `drop`.
        let Some(db) = (unsafe { Db::from_raw(db) }) else {
            return Err(SqliteError::from_code(SQLITE_NOMEM));
        };
        let db = OwnedDb(db);
        db.check(code).map(|()| db)
    }

    /// Reads a database that was serialized, from where it is in memory.
    pub(crate) fn of_serialized(bytes: &SerializedDb) -> Result<SerializedReader<'_>, SqliteError> {
        let db = OwnedDb::open(c":memory:", None, Access::ReadWrite)?;
        let len = ffi::sqlite3_int64::try_from(bytes.len).unwrap_or(0);
        // SAFETY: read only, so SQLite neither writes to nor frees the bytes, which the result
        // borrows.
        let code = unsafe {
            ffi::sqlite3_deserialize(
                db.raw(),
                c"main".as_ptr(),
                bytes.data.as_ptr(),
                len,
                len,
                ffi::SQLITE_DESERIALIZE_READONLY,
            )
        };
        db.check(code)?;
        Ok(SerializedReader { db, _bytes: PhantomData })
    }

    /// The whole database as SQLite would write it to a file.
    pub(crate) fn serialize(&self) -> Result<SerializedDb, SqliteError> {
        let mut len: ffi::sqlite3_int64 = 0;
        // SAFETY: the handle is open; the result is ours to free.
        let data = unsafe { ffi::sqlite3_serialize(self.raw(), c"main".as_ptr(), &mut len, 0) };
        let data = NonNull::new(data).ok_or_else(|| SqliteError::from_code(SQLITE_NOMEM))?;
        let len = usize::try_from(len).unwrap_or(0);
        Ok(SerializedDb { data, len })
    }
}

impl Deref for OwnedDb {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.0
    }
}

impl Drop for OwnedDb {
    fn drop(&mut self) {
        // SAFETY: ours alone, and its statements and backups are gone before.
        unsafe { ffi::sqlite3_close(self.raw()) };
    }
}

/// A connection that reads a serialized database.
pub(crate) struct SerializedReader<'a> {
    db: OwnedDb,
    _bytes: PhantomData<&'a SerializedDb>,
}

impl Deref for SerializedReader<'_> {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

/// Memory that `sqlite3_serialize` allocated.
pub(crate) struct SerializedDb {
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner; sqlite3_free may be called on any thread.
unsafe impl Send for SerializedDb {}
// SAFETY: shared references only read it.
unsafe impl Sync for SerializedDb {}

impl SerializedDb {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `data` holds `len` initialised bytes until `drop`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for SerializedDb {
    fn drop(&mut self) {
        // SAFETY: allocated by SQLite, freed once.
        unsafe { ffi::sqlite3_free(self.data.as_ptr().cast()) };
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Checkpoint {
    /// What can be copied without waiting for anybody.
    Passive,
    /// All of it; waits for readers by the connection's busy handler, then empties the log.
    Truncate,
}

/// Where a database file lives, and how to open it once more the same way.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    /// A path, or a URI where the connection was opened with parameters.
    pub(crate) open_name: CString,
    pub(crate) database: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) vfs: Option<CString>,
}

/// The name under which to open the file of another connection again.
fn open_name(path: &CStr, parameters: &[(Vec<u8>, Vec<u8>)]) -> CString {
    // These say how the other connection uses the file; or are passed by other means.
    const NOT_OURS: [&[u8]; 4] = [b"mode", b"cache", b"immutable", b"vfs"];
    let mut kept = parameters.iter().filter(|(key, _)| !NOT_OURS.contains(&key.as_slice()));
    let Some(first) = kept.next() else { return path.to_owned() };
    let mut uri = b"file:".to_vec();
    escape(&mut uri, path.to_bytes());
    for (index, (key, value)) in std::iter::once(first).chain(kept).enumerate() {
        uri.push(if index == 0 { b'?' } else { b'&' });
        escape(&mut uri, key);
        uri.push(b'=');
        escape(&mut uri, value);
    }
    CString::new(uri).expect("the pieces of a C string hold no NUL")
}

fn escape(uri: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(byte);
        } else {
            uri.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

#[cfg(unix)]
fn os_path(path: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

#[cfg(not(unix))]
fn os_path(path: &CStr) -> PathBuf {
    PathBuf::from(path.to_string_lossy().into_owned())
}

/// `path` as SQLite takes it.
pub(crate) fn sqlite_path(path: &Path) -> Option<CString> {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    #[cfg(not(unix))]
    let bytes = path.to_str()?.as_bytes().to_vec();
    CString::new(bytes).ok()
}

/// One copy of the WAL-index header, 48 bytes: it names one state of the log and by it one state
/// of the database. Every commit of any connection changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalIndexHeader([u32; WalIndexHeader::WORDS]);

impl WalIndexHeader {
    const WORDS: usize = 12;
    const VERSION: u32 = 3_007_000;

    /// Grows by one with every commit that wrote to the log; a checkpoint leaves it alone.
    pub(crate) fn commit_counter(&self) -> u32 {
        self.0[2]
    }

    /// Frames in the log, up to its last commit.
    pub(crate) fn frames(&self) -> u32 {
        self.0[4]
    }

    /// Checksum of the last of them, and by it of all before.
    pub(crate) fn frame_checksum(&self) -> [u32; 2] {
        [self.0[6], self.0[7]]
    }

    /// As they stand in the log's header.
    pub(crate) fn salts(&self) -> [u8; 8] {
        let (one, two) = (self.0[8].to_ne_bytes(), self.0[9].to_ne_bytes());
        [one[0], one[1], one[2], one[3], two[0], two[1], two[2], two[3]]
    }

    /// Pages of the database.
    pub(crate) fn pages(&self) -> u32 {
        self.0[5]
    }

    /// Frames that were written to the log between an earlier state and this one.
    pub(crate) fn frames_since(&self, earlier: &WalIndexHeader) -> u32 {
        // A log that begins anew gets another salt.
        let same_log = self.salts() == earlier.salts();
        self.frames().wrapping_sub(if same_log { earlier.frames() } else { 0 })
    }
}

/// A prepared statement, finalized when dropped.
pub(crate) struct Stmt {
    db: Db,
    stmt: NonNull<ffi::sqlite3_stmt>,
}

impl Stmt {
    /// True for a row. At the end and after an error the statement is reset, so that it holds
    /// no read transaction.
    pub(crate) fn step(&mut self) -> Result<bool, SqliteError> {
        // SAFETY: the statement lives until `drop`, its connection outlives it.
        match unsafe { ffi::sqlite3_step(self.stmt.as_ptr()) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => {
                self.reset();
                Ok(false)
            }
            code => {
                let error = self.db.error(code);
                self.reset();
                Err(error)
            }
        }
    }

    pub(crate) fn reset(&mut self) {
        // SAFETY: as in `step`. The code repeats that of the last step.
        unsafe { ffi::sqlite3_reset(self.stmt.as_ptr()) };
    }

    /// Steps once, reads the first column as an integer (0 without a row), resets.
    pub(crate) fn query_i64(&mut self) -> Result<i64, SqliteError> {
        let value = if self.step()? { self.column_i64(0) } else { 0 };
        self.reset();
        Ok(value)
    }

    /// Steps once, reads the first column as text (empty without a row), resets.
    pub(crate) fn query_text(&mut self) -> Result<String, SqliteError> {
        let value = if self.step()? { self.column_text(0) } else { String::new() };
        self.reset();
        Ok(value)
    }

    /// Whether there is a row; resets.
    pub(crate) fn exists(&mut self) -> Result<bool, SqliteError> {
        let found = self.step()?;
        self.reset();
        Ok(found)
    }

    /// Whether the next step will have to compile the statement again.
    pub(crate) fn expired(&self) -> bool {
        // SAFETY: as in `step`.
        unsafe { ffi::sqlite3_expired(self.stmt.as_ptr()) != 0 }
    }

    /// Sets the first parameter.
    pub(crate) fn bind_i64(&mut self, value: i64) -> Result<(), SqliteError> {
        // SAFETY: as in `step`; the statement is reset.
        let code = unsafe { ffi::sqlite3_bind_int64(self.stmt.as_ptr(), 1, value) };
        self.db.check(code)
    }

    pub(crate) fn column_i64(&self, column: c_int) -> i64 {
        // SAFETY: any column index is allowed; one out of range reads as NULL.
        unsafe { ffi::sqlite3_column_int64(self.stmt.as_ptr(), column) }
    }

    /// The column as UTF-8 text; empty for NULL.
    pub(crate) fn column_text(&self, column: c_int) -> String {
        String::from_utf8_lossy(&self.column_bytes(column)).into_owned()
    }

    fn column_bytes(&self, column: c_int) -> Vec<u8> {
        // SAFETY: the pointer is valid for `len` bytes until the next call on the statement;
        // text is asked for first so that the length is that of the UTF-8 form.
        unsafe {
            let stmt = self.stmt.as_ptr();
            let data = match ffi::sqlite3_column_type(stmt, column) {
                ffi::SQLITE_BLOB => ffi::sqlite3_column_blob(stmt, column).cast(),
                _ => ffi::sqlite3_column_text(stmt, column),
            };
            let len = ffi::sqlite3_column_bytes(stmt, column);
            match usize::try_from(len) {
                Ok(len) if !data.is_null() => std::slice::from_raw_parts(data, len).to_vec(),
                _ => Vec::new(),
            }
        }
    }

    /// The column as it is stored, text as UTF-8. Good until the next step.
    pub(crate) fn column_ref(&self, column: c_int) -> changeset::Value<'_> {
        // SAFETY: the pointers are valid until the next step, which takes the statement mutably, or
        // until the same column is converted, which none is twice.
        unsafe {
            let stmt = self.stmt.as_ptr();
            let bytes = |data: *const u8| {
                let len = ffi::sqlite3_column_bytes(stmt, column);
                match usize::try_from(len) {
                    Ok(len) if !data.is_null() => std::slice::from_raw_parts(data, len),
                    _ => &[],
                }
            };
            match ffi::sqlite3_column_type(stmt, column) {
                ffi::SQLITE_INTEGER => {
                    changeset::Value::Integer(ffi::sqlite3_column_int64(stmt, column))
                }
                ffi::SQLITE_FLOAT => {
                    changeset::Value::Real(ffi::sqlite3_column_double(stmt, column))
                }
                ffi::SQLITE_TEXT => {
                    changeset::Value::Text(bytes(ffi::sqlite3_column_text(stmt, column)))
                }
                ffi::SQLITE_BLOB => {
                    changeset::Value::Blob(bytes(ffi::sqlite3_column_blob(stmt, column).cast()))
                }
                _ => changeset::Value::Null,
            }
        }
    }

    pub(crate) fn column_value(&self, column: c_int) -> Value {
        // SAFETY: as in `column_i64`.
        unsafe {
            match ffi::sqlite3_column_type(self.stmt.as_ptr(), column) {
                ffi::SQLITE_INTEGER => Value::Integer(self.column_i64(column)),
                ffi::SQLITE_FLOAT => {
                    Value::Real(ffi::sqlite3_column_double(self.stmt.as_ptr(), column))
                }
                ffi::SQLITE_TEXT => Value::Text(self.column_bytes(column)),
                ffi::SQLITE_BLOB => Value::Blob(self.column_bytes(column)),
                _ => Value::Null,
            }
        }
    }
}

impl Drop for Stmt {
    fn drop(&mut self) {
        // SAFETY: finalized once; the connection is open, or a zombie waiting for just this.
        unsafe { ffi::sqlite3_finalize(self.stmt.as_ptr()) };
    }
}

/// A value of any storage class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Value {
    /// Appends it to a journal.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => journal::put_null(out),
            Value::Integer(value) => journal::put_integer(out, *value),
            Value::Real(value) => journal::put_real(out, *value),
            Value::Text(text) => journal::put_text(out, text),
            Value::Blob(blob) => journal::put_blob(out, blob),
        }
    }
}

/// A running [online backup](https://www.sqlite.org/c3ref/backup_finish.html) of the main
/// database of one connection into that of another.
pub(crate) struct Backup(NonNull<ffi::sqlite3_backup>);

// SAFETY: the connections at both ends may be used on any thread, by one at a time; the owner of
// this value keeps them that way.
unsafe impl Send for Backup {}

impl Backup {
    /// # Safety
    /// Both connections stay open until the backup is dropped.
    pub(crate) unsafe fn start(to: Db, from: Db) -> Result<Backup, SqliteError> {
        let (name, source) = (c"main".as_ptr(), from.raw());
        // SAFETY: both handles are open; "main" is the first database of either.
        let backup = unsafe { ffi::sqlite3_backup_init(to.raw(), name, source, name) };
        NonNull::new(backup).map(Backup).ok_or_else(|| {
            // SAFETY: the handle is open; a failed init leaves its error in the destination.
            to.error(unsafe { ffi::sqlite3_errcode(to.raw()) })
        })
    }

    /// Copies up to `pages` pages, all that remain if negative. True when complete.
    pub(crate) fn step(&mut self, pages: c_int) -> Result<bool, SqliteError> {
        // SAFETY: the backup lives until `drop`.
        match unsafe { ffi::sqlite3_backup_step(self.0.as_ptr(), pages) } {
            ffi::SQLITE_OK => Ok(false),
            ffi::SQLITE_DONE => Ok(true),
            code => Err(SqliteError::from_code(code)),
        }
    }

    /// Pages of the source as of the last step, and how many of them are still to be copied.
    pub(crate) fn pages(&self) -> (u32, u32) {
        // SAFETY: as in `step`.
        let (total, left) = unsafe {
            let backup = self.0.as_ptr();
            (ffi::sqlite3_backup_pagecount(backup), ffi::sqlite3_backup_remaining(backup))
        };
        (u32::try_from(total).unwrap_or(0), u32::try_from(left).unwrap_or(0))
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // SAFETY: finished once, both connections still open.
        unsafe { ffi::sqlite3_backup_finish(self.0.as_ptr()) };
    }
}

/// Calls of the [session extension](https://www.sqlite.org/sessionintro.html) and of the
/// preupdate hook it lives on. Their order is a matter of memory safety; see `sessions.rs`.
pub(crate) mod session {
    use super::*;

    /// Makes a session that records what `filter` accepts, tables without a primary key by
    /// their rowid. It becomes the head of the connection's list of sessions.
    ///
    /// # Safety
    /// The preupdate slot of the connection is empty or holds a session. `context` stays what
    /// `filter` expects until the session is deleted.
    pub(crate) unsafe fn create(
        db: Db,
        name: &CStr,
        filter: TableFilter,
        context: *mut c_void,
    ) -> Result<NonNull<sqlite3_session>, SqliteError> {
        let mut session = ptr::null_mut();
        let mut rowids: c_int = 1;
        // SAFETY: the handle is open, the caller vouches for the slot and the filter.
        unsafe {
            let code = ffi::sqlite3session_create(db.raw(), name.as_ptr(), &mut session);
            let session = NonNull::new(session)
                .filter(|_| code == ffi::SQLITE_OK)
                .ok_or_else(|| SqliteError::from_code(code))?;
            let code = ffi::sqlite3session_object_config(
                session.as_ptr(),
                ffi::SQLITE_SESSION_OBJCONFIG_ROWID,
                ptr::from_mut(&mut rowids).cast(),
            );
            if code != ffi::SQLITE_OK {
                ffi::sqlite3session_delete(session.as_ptr());
                return Err(SqliteError::from_code(code));
            }
            ffi::sqlite3session_table_filter(session.as_ptr(), Some(filter), context);
            Ok(session)
        }
    }

    /// # Safety
    /// `session` is live, and everything ahead of it in the connection's list is a session.
    pub(crate) unsafe fn delete(session: NonNull<sqlite3_session>) {
        // SAFETY: promised by the caller.
        unsafe { ffi::sqlite3session_delete(session.as_ptr()) };
    }

    /// Empties the preupdate slot and returns the argument of the hook that was in it.
    pub(crate) fn take_preupdate_slot(db: Db) -> *mut c_void {
        // SAFETY: the handle is open; an empty slot needs no argument.
        unsafe { ffi::sqlite3_preupdate_hook(db.raw(), None, ptr::null_mut()) }
    }

    /// Puts `session` at the head of the list again. The hook itself does nothing until the
    /// next [`create`] or [`delete`] sets the session module's.
    ///
    /// # Safety
    /// `session` is live, and one of the two is called next.
    pub(crate) unsafe fn refill_preupdate_slot(db: Db, session: NonNull<sqlite3_session>) {
        unsafe extern "C" fn nothing(
            _: *mut c_void,
            _: *mut ffi::sqlite3,
            _: c_int,
            _: *const c_char,
            _: *const c_char,
            _: ffi::sqlite3_int64,
            _: ffi::sqlite3_int64,
        ) {
        }
        // SAFETY: the handle is open; the hook ignores its argument.
        unsafe { ffi::sqlite3_preupdate_hook(db.raw(), Some(nothing), session.as_ptr().cast()) };
    }

    struct Output {
        bytes: Vec<u8>,
        limit: usize,
    }

    /// The changeset recorded so far, empty without changes. `SQLITE_TOOBIG` past `limit` bytes.
    ///
    /// # Safety
    /// `session` is live.
    pub(crate) unsafe fn changeset(
        session: NonNull<sqlite3_session>,
        limit: usize,
    ) -> Result<Vec<u8>, SqliteError> {
        unsafe extern "C" fn append(out: *mut c_void, data: *const c_void, len: c_int) -> c_int {
            // SAFETY: `out` is the Output below, borrowed by nobody else during the call;
            // `data` is readable for `len` bytes.
            let (out, piece) = unsafe {
                let len = usize::try_from(len).unwrap_or(0);
                (&mut *out.cast::<Output>(), std::slice::from_raw_parts(data.cast::<u8>(), len))
            };
            if piece.len() > out.limit - out.bytes.len() {
                return SQLITE_TOOBIG;
            }
            if out.bytes.try_reserve(piece.len()).is_err() {
                return SQLITE_NOMEM;
            }
            out.bytes.extend_from_slice(piece);
            ffi::SQLITE_OK
        }
        let mut out = Output { bytes: Vec::new(), limit };
        // SAFETY: the session is live; `out` outlives the call.
        let code = unsafe {
            let out = ptr::from_mut(&mut out).cast();
            ffi::sqlite3session_changeset_strm(session.as_ptr(), Some(append), out)
        };
        if code == ffi::SQLITE_OK { Ok(out.bytes) } else { Err(SqliteError::from_code(code)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_parameters_is_opened_as_it_is() {
        let path = c"/tmp/with ? and %20.db";
        assert_eq!(open_name(path, &[]).as_c_str(), path);
        let dropped = [(b"mode".to_vec(), b"rwc".to_vec()), (b"cache".to_vec(), b"x".to_vec())];
        assert_eq!(open_name(path, &dropped).as_c_str(), path);
    }

    #[test]
    fn parameters_of_the_vfs_are_kept_and_escaped() {
        let parameters = [
            (b"mode".to_vec(), b"rw".to_vec()),
            (b"psow".to_vec(), b"0".to_vec()),
            (b"k&y".to_vec(), "ü=1".as_bytes().to_vec()),
        ];
        let name = open_name(c"/tmp/a b?.db", &parameters);
        assert_eq!(name.to_str().unwrap(), "file:/tmp/a%20b%3F.db?psow=0&k%26y=%C3%BC%3D1");
    }
}
