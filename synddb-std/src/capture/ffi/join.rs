//! A virtual table without rows, whose only purpose is to be part of transactions.
//!
//! Writing to a virtual table makes it join the connection's transaction, and SQLite then tells it
//! of savepoints, rollbacks and the commit. [`Join::step`] writes to this one. It may be called in
//! the preupdate hook, in the middle of a statement of the app, and must therefore write nothing:
//! if its own statement opened a statement journal, a rollback of that would pull pages from under
//! the app's cursors. So the table promises that its rows are found by a unique key
//! (`SQLITE_INDEX_SCAN_UNIQUE`), with which a DELETE of one row needs no journal.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::*;
use crate::capture::sabotage::{Sabotage, sabotaged};

/// Is told how the transaction goes that the table has joined.
pub(crate) trait Participant {
    fn begin(&self);
    /// A savepoint opens: of the app, or of a statement. Those open when the table joins are told
    /// of by the innermost alone.
    fn savepoint(&self, level: c_int);
    /// The savepoint and those in it are released.
    fn release(&self, level: c_int);
    /// Everything since the savepoint is undone. It stays open, those in it do not.
    fn rollback_to(&self, level: c_int);
    /// About to commit; statements that read are allowed. After one that ended with certain errors
    /// there is nothing left to commit: SQLite has rolled the transaction back, and asks nobody
    /// again. That error has to be the commit's.
    fn sync(&self) -> Result<(), SqliteError>;
    /// Committed. No statements are allowed from here on.
    fn commit(&self);
    /// Rolled back, in most cases.
    fn rollback(&self);
    /// What `changes()` should say where SQLite says `changes`.
    fn corrected_changes(&self, changes: i64) -> i64;
    /// One of the above panicked.
    fn panicked(&self);
}

/// The table of one connection.
pub(crate) struct JoinTable {
    /// None once nobody wants to be told. SQLite may hold the table longer: until the end of a
    /// transaction it is part of, or until the app prepares its next statement.
    participant: RefCell<Option<Rc<dyn Participant>>>,
    /// How often SQLite asked how to find rows: by it a statement on this table is told from one
    /// on a table of the app of that name.
    plans: Cell<u64>,
    /// The join is running: it must not be compiled anew under way.
    running: Cell<bool>,
    /// SQLite tried that.
    stale: Cell<bool>,
    /// Attempts to write; there must be none.
    writes: Cell<u64>,
}

const NAME: &CStr = c"synddb_join";
const COLUMNS: &CStr = c"CREATE TABLE x(of_synddb_join)";
/// Compiles for no table of the app's: none has such a column.
const JOIN: &CStr = c"DELETE FROM synddb_join WHERE of_synddb_join = 1";

impl JoinTable {
    pub(crate) fn new(participant: Rc<dyn Participant>) -> Rc<JoinTable> {
        let participant = RefCell::new(Some(participant));
        let (plans, writes) = (Cell::new(0), Cell::new(0));
        let (running, stale) = (Cell::new(false), Cell::new(false));
        Rc::new(JoinTable { participant, plans, running, stale, writes })
    }

    /// Makes the table known on the connection.
    pub(crate) fn register(self: &Rc<Self>, db: Db) -> Result<(), SqliteError> {
        let table = Rc::into_raw(Rc::clone(self)).cast_mut().cast();
        // SAFETY: the handle is open; the module is static; `table` is given up by `drop_table`,
        // which SQLite calls even if this fails.
        let code = unsafe {
            ffi::sqlite3_create_module_v2(
                db.raw(),
                NAME.as_ptr(),
                &MODULE.0,
                table,
                Some(drop_table),
            )
        };
        db.check(code)
    }

    /// Tells nobody from here on, and has the connection forget the table.
    pub(crate) fn unregister(&self, db: Db) {
        self.participant.take();
        // SAFETY: the handle is open; no module under this name is no error.
        unsafe {
            let none = ptr::null_mut();
            ffi::sqlite3_create_module_v2(db.raw(), NAME.as_ptr(), ptr::null(), none, None);
        }
    }

    /// Puts a `changes()` in front of SQLite's own. Not while statements are running.
    pub(crate) fn overload_changes(self: &Rc<Self>, db: Db) -> Result<(), SqliteError> {
        let table = Rc::into_raw(Rc::clone(self)).cast_mut().cast();
        let flags = ffi::SQLITE_UTF8 | ffi::SQLITE_INNOCUOUS;
        // SAFETY: as in `register`.
        let code = unsafe {
            ffi::sqlite3_create_function_v2(
                db.raw(),
                c"changes".as_ptr(),
                0,
                flags,
                table,
                Some(changes),
                None,
                None,
                Some(drop_table),
            )
        };
        db.check(code)
    }

    /// Takes it away again; while statements are running it stays, and says what SQLite says.
    pub(crate) fn restore_changes(db: Db) {
        // SAFETY: the handle is open; without functions this deletes.
        unsafe {
            ffi::sqlite3_create_function_v2(
                db.raw(),
                c"changes".as_ptr(),
                0,
                ffi::SQLITE_UTF8,
                ptr::null_mut(),
                None,
                None,
                None,
                None,
            );
        }
    }

    /// Attempts to write to the table so far.
    #[cfg(test)]
    pub(crate) fn writes(&self) -> u64 {
        self.writes.get()
    }

    fn tell(&self, tell: impl FnOnce(&dyn Participant)) -> c_int {
        self.ask(|participant| {
            tell(participant);
            // Anything else would fail the app's statement.
            Ok(())
        })
    }

    fn ask(&self, ask: impl FnOnce(&dyn Participant) -> Result<(), SqliteError>) -> c_int {
        let Some(participant) = self.participant.borrow().clone() else { return ffi::SQLITE_OK };
        match catch_unwind(AssertUnwindSafe(|| ask(&*participant))) {
            Ok(Ok(())) => ffi::SQLITE_OK,
            Ok(Err(error)) => error.code,
            Err(_) => {
                participant.panicked();
                ffi::SQLITE_OK
            }
        }
    }
}

/// The statement by which the table joins.
pub(crate) struct Join(Stmt);

impl Join {
    pub(crate) fn prepare(db: Db, table: &JoinTable) -> Result<Join, SqliteError> {
        let plans = table.plans.get();
        let stmt = db.prepare(JOIN)?;
        if table.plans.get() == plans {
            // A table of the app has this name. Never to be run.
            return Err(SqliteError {
                code: ffi::SQLITE_ERROR,
                message: "a table of the database is called synddb_join".into(),
            });
        }
        Ok(Join(stmt))
    }

    pub(crate) fn expired(&self) -> bool {
        self.0.expired()
    }

    /// Joins. False if the schema is another than it was prepared under: nothing was done, and it is
    /// to be prepared again.
    pub(crate) fn step(&mut self, table: &JoinTable) -> Result<bool, SqliteError> {
        table.running.set(true);
        // Under PRAGMA count_changes it tells how many rows it has deleted. Left there it would be
        // a running statement, which no transaction can commit beside.
        let stepped = loop {
            match self.0.step() {
                Ok(true) => {}
                stepped => break stepped,
            }
        };
        table.running.set(false);
        match (stepped, table.stale.take()) {
            (Ok(_), _) => Ok(true),
            (Err(_), true) => Ok(false),
            (Err(error), false) => Err(error),
        }
    }
}

struct Module(ffi::sqlite3_module);

// SAFETY: function pointers and integers, never written to.
unsafe impl Sync for Module {}

// Without xCreate there is just the one table, under the module's name.
static MODULE: Module = Module(ffi::sqlite3_module {
    iVersion: 2,
    xCreate: None,
    xConnect: Some(connect),
    xBestIndex: Some(best_index),
    xDisconnect: Some(disconnect),
    xDestroy: None,
    xOpen: Some(open),
    xClose: Some(close),
    xFilter: Some(filter),
    xNext: Some(cursor_ok),
    xEof: Some(at_end),
    xColumn: Some(column),
    xRowid: Some(rowid),
    xUpdate: Some(update),
    xBegin: Some(begin),
    xSync: Some(sync),
    xCommit: Some(commit),
    xRollback: Some(rollback),
    xFindFunction: None,
    xRename: None,
    xSavepoint: Some(savepoint),
    xRelease: Some(release),
    xRollbackTo: Some(rollback_to),
    xShadowName: None,
    xIntegrity: None,
});

/// One connected table, as SQLite holds it.
#[repr(C)]
struct Connected {
    base: ffi::sqlite3_vtab,
    table: Rc<JoinTable>,
    /// For the join, which opens one each time.
    cursor: ffi::sqlite3_vtab_cursor,
    cursor_open: bool,
}

/// # Safety
/// `vtab` was made by `connect` and not yet given to `disconnect`.
unsafe fn table<'a>(vtab: *mut ffi::sqlite3_vtab) -> &'a JoinTable {
    // SAFETY: promised by the caller; the base stands first.
    unsafe { &(*vtab.cast::<Connected>()).table }
}

unsafe extern "C" fn drop_table(table: *mut c_void) {
    // SAFETY: made by `Rc::into_raw`, given up once.
    drop(unsafe { Rc::from_raw(table.cast_const().cast::<JoinTable>()) });
}

unsafe extern "C" fn connect(
    db: *mut ffi::sqlite3,
    table: *mut c_void,
    _: c_int,
    _: *const *const c_char,
    vtab: *mut *mut ffi::sqlite3_vtab,
    _: *mut *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes its open connection, the module's argument and a place for the result.
    unsafe {
        let code = ffi::sqlite3_declare_vtab(db, COLUMNS.as_ptr());
        if code != ffi::SQLITE_OK {
            return code;
        }
        // Nothing in a schema may refer to it.
        ffi::sqlite3_vtab_config(db, ffi::SQLITE_VTAB_DIRECTONLY);
        let table = table.cast_const().cast::<JoinTable>();
        Rc::increment_strong_count(table);
        let table = Rc::from_raw(table);
        let (base, cursor) = (std::mem::zeroed(), std::mem::zeroed());
        let connected = Box::new(Connected { base, table, cursor, cursor_open: false });
        *vtab = Box::into_raw(connected).cast();
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn disconnect(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: made by `connect`, given up once.
    drop(unsafe { Box::from_raw(vtab.cast::<Connected>()) });
    ffi::SQLITE_OK
}

unsafe extern "C" fn best_index(
    vtab: *mut ffi::sqlite3_vtab,
    info: *mut ffi::sqlite3_index_info,
) -> c_int {
    // SAFETY: SQLite passes a table of `connect` and a plan with arrays of the lengths it states.
    unsafe {
        let table = table(vtab);
        if table.running.get() && !sabotaged(Sabotage::StaleJoin) {
            table.stale.set(true);
            return ffi::SQLITE_ERROR;
        }
        table.plans.set(table.plans.get() + 1);
        let info = &mut *info;
        info.estimatedCost = 1.0;
        info.estimatedRows = 1;
        if !sabotaged(Sabotage::StaleJoin) {
            info.idxFlags = ffi::SQLITE_INDEX_SCAN_UNIQUE as c_int;
        }
        let constraints = usize::try_from(info.nConstraint).unwrap_or(0);
        for at in 0..constraints {
            if (*info.aConstraint.add(at)).usable != 0 {
                let usage = &mut *info.aConstraintUsage.add(at);
                usage.argvIndex = 1;
                usage.omit = 1;
                break;
            }
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn open(
    vtab: *mut ffi::sqlite3_vtab,
    cursor: *mut *mut ffi::sqlite3_vtab_cursor,
) -> c_int {
    // SAFETY: a table of `connect`; a zeroed cursor is a valid one; SQLite passes a place for it.
    unsafe {
        let vtab = vtab.cast::<Connected>();
        *cursor = if std::mem::replace(&mut (*vtab).cursor_open, true) {
            Box::into_raw(Box::new(std::mem::zeroed::<ffi::sqlite3_vtab_cursor>()))
        } else {
            &raw mut (*vtab).cursor
        };
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: made by `open`, given up once; SQLite has noted its table in it.
    unsafe {
        let vtab = (*cursor).pVtab.cast::<Connected>();
        if cursor == &raw mut (*vtab).cursor {
            (*vtab).cursor_open = false;
        } else {
            drop(Box::from_raw(cursor));
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn filter(
    _: *mut ffi::sqlite3_vtab_cursor,
    _: c_int,
    _: *const c_char,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn cursor_ok(_: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn at_end(_: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    1
}

unsafe extern "C" fn column(
    _: *mut ffi::sqlite3_vtab_cursor,
    _: *mut ffi::sqlite3_context,
    _: c_int,
) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn rowid(
    _: *mut ffi::sqlite3_vtab_cursor,
    rowid: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes a place for it.
    unsafe { *rowid = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn update(
    vtab: *mut ffi::sqlite3_vtab,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
    _: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: a table of `connect`.
    let table = unsafe { table(vtab) };
    table.writes.set(table.writes.get() + 1);
    ffi::SQLITE_READONLY
}

unsafe extern "C" fn begin(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: a table of `connect`, here and in the following.
    unsafe { table(vtab) }.tell(|participant| participant.begin())
}

unsafe extern "C" fn sync(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.ask(|participant| participant.sync())
}

unsafe extern "C" fn commit(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.tell(|participant| participant.commit())
}

unsafe extern "C" fn rollback(vtab: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.tell(|participant| participant.rollback())
}

unsafe extern "C" fn savepoint(vtab: *mut ffi::sqlite3_vtab, level: c_int) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.tell(|participant| participant.savepoint(level))
}

unsafe extern "C" fn release(vtab: *mut ffi::sqlite3_vtab, level: c_int) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.tell(|participant| participant.release(level))
}

unsafe extern "C" fn rollback_to(vtab: *mut ffi::sqlite3_vtab, level: c_int) -> c_int {
    // SAFETY: see `begin`.
    unsafe { table(vtab) }.tell(|participant| participant.rollback_to(level))
}

unsafe extern "C" fn changes(
    context: *mut ffi::sqlite3_context,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: SQLite passes a live context, whose argument is that of `overload_changes`.
    unsafe {
        let table = &*ffi::sqlite3_user_data(context).cast_const().cast::<JoinTable>();
        let changes = ffi::sqlite3_changes64(ffi::sqlite3_context_db_handle(context));
        let participant = table.participant.borrow();
        let changes = participant.as_ref().map_or(changes, |p| p.corrected_changes(changes));
        ffi::sqlite3_result_int64(context, changes);
    }
}
