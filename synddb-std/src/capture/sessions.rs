//! The two sessions capture keeps on a connection, and what the connection's slots hold.
//!
//! ```text
//! preupdate slot ─▶ session module ─▶ (sessions of the app) ─▶ recorder ─▶ tap
//! ```
//!
//! The *recorder* collects one commit and is made anew after each. The *tap* records nothing:
//! the session module asks a table filter that says no again at every row event, which makes
//! the filter a row hook that lives beside any number of sessions. It counts events, so that a
//! commit without any betrays a replaced hook; it sees rows with NULL in their key, which
//! sessions skip in silence; and it puts the write-ahead log hook back before the commit when
//! `PRAGMA wal_autocheckpoint` has taken its place.
//!
//! SQLite has one preupdate slot. Sessions chain in it; a preupdate hook in the proper sense
//! replaces them all, and walking the chain would then read the stranger's argument as a
//! session. So the chain is walked only after row events came through it, and otherwise the
//! slot is examined first.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;

use super::ffi::{self, Db, SqliteError, Stmt, WalHook, sqlite3_session};
use super::schema::{WatchedTables, is_internal_table};

/// What the row events since the last commit boundary told. Shared with the session module by
/// address, hence cells.
pub(super) struct Tap {
    db: Db,
    pub(super) wal_hook: WalHookSlot,
    /// Row events of any table of the main database.
    pub(super) events: Cell<u64>,
    /// Those of tables a session may record.
    pub(super) recorded: Cell<u64>,
    /// The schema table was written to directly.
    pub(super) schema_edited: Cell<bool>,
    /// A table a row of which has, or had, NULL in its primary key.
    pub(super) null_key: RefCell<Option<String>>,
    pub(super) watched: RefCell<WatchedTables>,
}

impl Tap {
    pub(super) fn new(db: Db, wal_hook: WalHookSlot, watched: WatchedTables) -> Tap {
        Tap {
            db,
            wal_hook,
            events: Cell::new(0),
            recorded: Cell::new(0),
            schema_edited: Cell::new(false),
            null_key: RefCell::new(None),
            watched: RefCell::new(watched),
        }
    }

    /// Forgets the commit that was dealt with.
    pub(super) fn clear(&self) {
        self.events.set(0);
        self.recorded.set(0);
        self.schema_edited.set(false);
        self.null_key.replace(None);
        self.watched.borrow().clear_touched();
    }

    /// One row event. Runs inside SQLite's preupdate hook: no SQL, no call out.
    fn event(&self, table: &CStr) {
        self.events.set(self.events.get() + 1);
        self.wal_hook.reinstall(self.db);
        let name = table.to_bytes();
        if is_internal_table(name) {
            let schema_table = [b"sqlite_master".as_slice(), b"sqlite_schema"]
                .iter()
                .any(|schema| name.eq_ignore_ascii_case(schema));
            self.schema_edited.set(self.schema_edited.get() | schema_table);
            return;
        }
        self.recorded.set(self.recorded.get() + 1);
        let Ok(watched) = self.watched.try_borrow() else { return };
        let Some(watched) = watched.get(name) else { return };
        watched.touched.set(true);
        if watched.look_at_rows.get()
            && watched.key_columns.iter().any(|&column| self.db.preupdate_is_null(column))
            && let Ok(mut null_key) = self.null_key.try_borrow_mut()
        {
            null_key.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
        }
    }
}

unsafe extern "C" fn tap_event(tap: *mut c_void, table: *const c_char) -> c_int {
    // SAFETY: `tap` is the Tap given to `Sessions::new`, which outlives the session; the name is
    // terminated and lives during the call.
    unsafe { (*tap.cast_const().cast::<Tap>()).event(CStr::from_ptr(table)) };
    0
}

unsafe extern "C" fn is_recorded(_: *mut c_void, table: *const c_char) -> c_int {
    // SAFETY: the name is terminated and lives during the call.
    let name = unsafe { CStr::from_ptr(table) };
    c_int::from(!is_internal_table(name.to_bytes()))
}

/// The write-ahead log hook: ours, with the checkpointing it displaced.
pub(super) struct WalHookSlot {
    hook: WalHook,
    arg: Cell<*mut c_void>,
    /// Frames in the log past which a commit checkpoints; 0 for never.
    pub(super) autocheckpoint: Cell<c_int>,
    /// A hook of the app's was displaced since the last look.
    pub(super) displaced: Cell<bool>,
}

impl WalHookSlot {
    pub(super) fn new(hook: WalHook, autocheckpoint: c_int) -> WalHookSlot {
        WalHookSlot {
            hook,
            arg: Cell::new(std::ptr::null_mut()),
            autocheckpoint: Cell::new(autocheckpoint),
            displaced: Cell::new(false),
        }
    }

    /// Sets the hook for the first time.
    ///
    /// # Safety
    /// `arg` is what the hook expects until [`WalHookSlot::remove`].
    pub(super) unsafe fn install(&self, db: Db, arg: *mut c_void) {
        self.arg.set(arg);
        // SAFETY: promised by the caller.
        unsafe { db.set_wal_hook(Some(self.hook), arg) };
    }

    /// Sets the hook again; does nothing where it still is in place, or was never installed.
    pub(super) fn reinstall(&self, db: Db) {
        let ours = self.arg.get();
        if ours.is_null() {
            return;
        }
        // SAFETY: the pair that `install` was given.
        let found = unsafe { db.set_wal_hook(Some(self.hook), ours) };
        if found == ours {
            return;
        }
        // `PRAGMA wal_autocheckpoint = N` leaves N as the argument, and none for 0. Any other
        // value is the argument of a hook.
        match c_int::try_from(found.addr()) {
            Ok(frames) => self.autocheckpoint.set(frames),
            Err(_) => self.displaced.set(true),
        }
    }

    /// Gives the connection back to SQLite's own checkpointing.
    pub(super) fn remove(&self, db: Db) {
        let ours = self.arg.replace(std::ptr::null_mut());
        // SAFETY: an empty slot needs no argument.
        let found = unsafe { db.set_wal_hook(None, std::ptr::null_mut()) };
        let frames = if found == ours {
            self.autocheckpoint.get()
        } else {
            c_int::try_from(found.addr()).unwrap_or(0)
        };
        if frames > 0 {
            db.set_autocheckpoint(frames);
        }
    }
}

/// Recorder and tap of one connection. Dropping it removes both.
pub(super) struct Sessions {
    db: Db,
    /// The name of the main database when the sessions were made: they compare by name.
    name: CString,
    tap_context: *mut c_void,
    recorder: Option<NonNull<sqlite3_session>>,
    tap: Option<NonNull<sqlite3_session>>,
}

impl Sessions {
    /// # Safety
    /// The preupdate slot is empty, and `tap` outlives the value.
    pub(super) unsafe fn new(db: Db, tap: *const Tap) -> Result<Sessions, SqliteError> {
        let tap_context = tap.cast_mut().cast();
        let name = db.main_name();
        let mut sessions = Sessions { db, name, tap_context, recorder: None, tap: None };
        // SAFETY: the slot is empty, as the caller promised.
        unsafe { sessions.create()? };
        Ok(sessions)
    }

    /// # Safety
    /// The preupdate slot is empty or holds a session.
    unsafe fn create(&mut self) -> Result<(), SqliteError> {
        self.name = self.db.main_name();
        let no_context = std::ptr::null_mut();
        // SAFETY: after the first call the slot holds the tap; the tap's context outlives it.
        unsafe {
            let (db, name) = (self.db, &self.name);
            self.tap = Some(ffi::session::create(db, name, tap_event, self.tap_context)?);
            self.recorder = Some(ffi::session::create(db, name, is_recorded, no_context)?);
        }
        Ok(())
    }

    /// What the recorder holds. May leave a savepoint open; see [`Rescue`].
    pub(super) fn changeset(&self, limit: usize) -> Result<Vec<u8>, SqliteError> {
        let recorder = self.recorder.ok_or_else(|| SqliteError::from_code(ffi::SQLITE_NOMEM))?;
        // SAFETY: the recorder is live while it stands here.
        unsafe { ffi::session::changeset(recorder, limit) }
    }

    /// Replaces the recorder by an empty one. Only after row events came through the chain.
    pub(super) fn renew(&mut self) -> Result<(), SqliteError> {
        // SAFETY: events came through the chain, so the slot holds sessions, ours among them.
        unsafe {
            let no_context = std::ptr::null_mut();
            let fresh = ffi::session::create(self.db, &self.name, is_recorded, no_context)?;
            if let Some(old) = self.recorder.replace(fresh) {
                ffi::session::delete(old);
            }
        }
        Ok(())
    }

    /// Looks whether the chain is still in the preupdate slot under the right name, and puts
    /// it there. False if it was not, so that row events were missed.
    ///
    /// A stranger in the slot is displaced, even where it is a session of the app.
    pub(super) fn repair(&mut self) -> Result<bool, SqliteError> {
        let intact = self.evict() && self.name == self.db.main_name();
        // SAFETY: `evict` left the slot empty or with sessions of the app.
        unsafe { self.create()? };
        Ok(intact)
    }

    /// Deletes both sessions. Returns whether the recorder was the head of the chain.
    fn evict(&mut self) -> bool {
        let head = ffi::session::take_preupdate_slot(self.db);
        // SAFETY: either session is live; the slot is filled with one of them before a walk
        // starts from it, so nothing but sessions is walked. What stood before them is dropped
        // from the slot without being looked at.
        unsafe {
            let (recorder, tap) = (self.recorder.take(), self.tap.take());
            let expected = recorder.or(tap);
            if let Some(first) = expected {
                ffi::session::refill_preupdate_slot(self.db, first);
                ffi::session::delete(first);
            }
            if let (Some(_), Some(second)) = (recorder, tap) {
                ffi::session::delete(second);
            }
            expected.is_some_and(|first| first.as_ptr().cast() == head)
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.evict();
    }
}

/// Ends the savepoint that extracting a changeset can leave behind.
///
/// The session module opens it by SQL and ignores the outcome of releasing it. An interrupt or
/// the app's progress handler can stop either, and the app's next transaction would then run
/// inside a savepoint that nobody ever commits.
pub(super) struct Rescue {
    db: Db,
    begin: Stmt,
}

impl Rescue {
    pub(super) fn prepare(db: Db) -> Result<Rescue, SqliteError> {
        Ok(Rescue { db, begin: db.prepare(c"BEGIN IMMEDIATE")? })
    }

    /// Call it before extracting: while an interrupt is pending nothing can be compiled.
    pub(super) fn keep_ready(&mut self) -> Result<(), SqliteError> {
        if self.begin.expired() {
            self.begin = self.db.prepare(c"BEGIN IMMEDIATE")?;
        }
        Ok(())
    }

    /// Call it after extracting, with no statement of ours running.
    pub(super) fn close_savepoint(&mut self) {
        for _ in 0..3 {
            if self.db.autocommit() {
                return;
            }
            if self.db.exec(c"RELEASE changeset").is_ok() || self.db.autocommit() {
                return;
            }
            // While statements of the app are running, a pending interrupt stops every other
            // one too. Stopping one that may write rolls back, here nothing but reads; if it is
            // not stopped, it fails for being inside a transaction.
            let _ = self.begin.step();
        }
        if !self.db.autocommit() {
            tracing::error!("synddb could not end the savepoint it reads a changeset in");
        }
    }
}
