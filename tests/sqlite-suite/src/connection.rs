//! One connection of a script, from its opening to its end.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi::{self, sqlite3};
use synddb_std::suite::{Captor, Captured};

use crate::image::Paused;
use crate::log::{self, Kind};
use crate::{image, sentinel};

/// When a connection is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The next statement is likely to end what changesets lead up to.
    BeforeLoss,
    Closing,
    Other,
}

pub(crate) struct Connection {
    id: u32,
    db: *mut sqlite3,
    /// None without capture, and after its end.
    captor: Mutex<Option<Captor>>,
    follows: Arc<Follows>,
    /// Something may have been lost that only a flush finds.
    unsettled: AtomicBool,
    /// The sentinel is gone.
    ended: AtomicBool,
    /// Rows changed when looked at last, without capture.
    changes: AtomicI64,
}

// SAFETY: the pointer is used by whoever calls SQLite on the connection, which SQLite orders.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

/// Whether an image and the changesets since lead to the database.
#[derive(Default)]
struct Follows {
    base: AtomicBool,
    commits: AtomicU32,
    failed_images: AtomicU32,
}

/// Images that failed in a row before it is given up.
const ATTEMPTS: u32 = 4;
/// Commits after which to compare in any case.
const COMMITS: u32 = 32;

static OPEN: Mutex<Option<HashMap<usize, Arc<Connection>>>> = Mutex::new(None);

fn with_open<T>(use_them: impl FnOnce(&mut HashMap<usize, Arc<Connection>>) -> T) -> T {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    use_them(open.get_or_insert_default())
}

/// Whether the same images are to be taken of connections that nothing is attached to.
fn images_only() -> bool {
    std::env::var_os("SYNDDB_SUITE_IMAGES_ONLY").is_some()
}

/// Whether no image is to be taken: what is left is what an application does that pushes after
/// changes of its schema.
fn is_bare() -> bool {
    std::env::var_os("SYNDDB_SUITE_BARE").is_some()
}

pub(crate) fn find(db: *mut sqlite3) -> Option<Arc<Connection>> {
    with_open(|open| open.get(&db.addr()).cloned())
}

/// Takes capture off a connection: at once, or after the call of ours that this comes in. Besides
/// `sqlite3_close` it is `sqlite3_drop_modules` that makes SQLite disconnect the sentinel, at the
/// next statement that is prepared, whosever that is.
pub(crate) fn end(db: *mut sqlite3) {
    let Some(connection) = with_open(|open| open.remove(&db.addr())) else { return };
    connection.ended.store(true, Relaxed);
    if let Ok(captor) = connection.captor.try_lock() {
        connection.detach(captor);
    }
}

impl Connection {
    /// # Safety
    /// `db` is a connection that is being opened.
    pub(crate) unsafe fn open(db: *mut sqlite3) {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Relaxed);
        let follows = Arc::new(Follows::default());
        let captor = if images_only() {
            None
        } else {
            let told = {
                let follows = Arc::clone(&follows);
                move |captured| follows.told(id, captured)
            };
            // SAFETY: open; the sentinel drops it before it is freed.
            match unsafe { Captor::attach(db, told) } {
                Ok(captor) => Some(captor),
                Err(error) => return log::put(Kind::Refused, id, error.to_string().as_bytes()),
            }
        };
        // SAFETY: promised by the caller.
        if captor.is_some() && !unsafe { sentinel::post(db) } {
            drop(captor);
            return log::put(Kind::Refused, id, b"no sentinel");
        }
        // SAFETY: as above; the name is terminated or null.
        let name = unsafe {
            let name = ffi::sqlite3_db_filename(db, c"main".as_ptr());
            if name.is_null() { c"" } else { CStr::from_ptr(name) }
        };
        log::put(Kind::Attached, id, name.to_bytes());
        let captor = Mutex::new(captor);
        let unsettled = AtomicBool::new(false);
        let (ended, changes) = (AtomicBool::new(false), AtomicI64::new(0));
        let connection = Connection { id, db, captor, follows, unsettled, ended, changes };
        let connection = Arc::new(connection);
        with_open(|open| open.insert(db.addr(), connection));
    }

    pub(crate) fn look(&self, moment: Moment) {
        let _paused = Paused::new();
        // Taken: in a callback of a statement of ours.
        let Ok(mut guard) = self.captor.try_lock() else { return };
        // SAFETY: the script is about to use the connection, which is thus open.
        let idle = unsafe { self.is_idle() };
        let Some(captor) = guard.as_mut() else {
            let due = self.unsettled.swap(moment != Moment::Other, Relaxed);
            // SAFETY: as above.
            let changes = unsafe { ffi::sqlite3_total_changes64(self.db) };
            let due = self.changes.swap(changes, Relaxed) != changes || due;
            if images_only() && idle && (due || moment != Moment::Other) {
                let _ = self.image(Kind::Base);
            }
            return;
        };
        if idle {
            self.look_idle(captor, moment);
        }
        if moment != Moment::Other {
            self.unsettled.store(true, Relaxed);
        }
        if moment == Moment::Closing {
            // SAFETY: as above.
            let changes = unsafe { ffi::sqlite3_total_changes64(self.db) };
            log::put(Kind::Closing, self.id, &changes.to_le_bytes());
        }
        if self.ended.load(Relaxed) {
            self.detach(guard);
        }
    }

    fn detach(&self, mut captor: MutexGuard<'_, Option<Captor>>) {
        drop(captor.take());
        log::put(Kind::Detached, self.id, &[]);
    }

    /// Where there is no sentinel.
    pub(crate) fn closing(&self) {
        if images_only() {
            end(self.db);
        }
    }

    fn look_idle(&self, captor: &mut Captor, moment: Moment) {
        let Follows { base, commits, failed_images } = &*self.follows;
        if self.unsettled.swap(false, Relaxed)
            && let Err(error) = captor.flush()
        {
            log::put(Kind::NoImage, self.id, error.to_string().as_bytes());
            return self.unsettled.store(true, Relaxed);
        }
        if is_bare() {
            return;
        }
        let due = moment != Moment::Other || commits.load(Relaxed) >= COMMITS;
        if base.load(Relaxed) {
            if due && commits.load(Relaxed) > 0 {
                self.compare(captor);
            }
        } else if moment != Moment::Closing && failed_images.load(Relaxed) < ATTEMPTS {
            self.begin(captor);
        }
    }

    fn begin(&self, captor: &mut Captor) {
        // What was lost so far is told by this; what comes later counts.
        let begun = captor.flush().map_err(|error| error.to_string()).and_then(|()| {
            self.follows.base.store(true, Relaxed);
            self.follows.commits.store(0, Relaxed);
            self.image(Kind::Base)
        });
        match begun {
            Ok(()) => self.follows.failed_images.store(0, Relaxed),
            Err(why) => self.give_up(&why),
        }
    }

    fn compare(&self, captor: &mut Captor) {
        let flushed = captor.flush().map_err(|error| error.to_string());
        if !self.follows.base.load(Relaxed) {
            return;
        }
        match flushed.and_then(|()| self.image(Kind::Compare)) {
            Ok(()) => self.follows.commits.store(0, Relaxed),
            Err(why) => self.give_up(&why),
        }
    }

    fn give_up(&self, why: &str) {
        self.follows.base.store(false, Relaxed);
        self.follows.failed_images.fetch_add(1, Relaxed);
        log::put(Kind::NoImage, self.id, why.as_bytes());
    }

    fn image(&self, kind: Kind) -> Result<(), String> {
        // SAFETY: as in `look`.
        let image = unsafe { image::take(self.db) }?;
        if log::put_image(kind, self.id, &image) {
            Ok(())
        } else {
            // There will be none from now on.
            self.follows.failed_images.store(ATTEMPTS, Relaxed);
            Err("enough was written down".into())
        }
    }

    /// Between two transactions, with no statement running.
    ///
    /// # Safety
    /// The connection is open.
    unsafe fn is_idle(&self) -> bool {
        // SAFETY: promised by the caller; a null name asks for all databases.
        unsafe {
            if ffi::sqlite3_get_autocommit(self.db) == 0
                || ffi::sqlite3_txn_state(self.db, std::ptr::null()) != 0
            {
                return false;
            }
            let mut stmt = ffi::sqlite3_next_stmt(self.db, std::ptr::null_mut());
            while !stmt.is_null() {
                if ffi::sqlite3_stmt_busy(stmt) != 0 {
                    return false;
                }
                stmt = ffi::sqlite3_next_stmt(self.db, stmt);
            }
            true
        }
    }
}

impl Follows {
    fn told(&self, id: u32, captured: Captured) {
        match captured {
            Captured::Committed(changeset) => self.committed(Kind::Changeset, id, &changeset),
            Captured::Schema(payload) => self.committed(Kind::Schema, id, &payload),
            Captured::Lost(reason) => {
                self.base.store(false, Relaxed);
                self.failed_images.store(0, Relaxed);
                log::put(Kind::Lost, id, reason.to_string().as_bytes());
            }
        }
    }

    fn committed(&self, kind: Kind, id: u32, payload: &[u8]) {
        self.commits.fetch_add(1, Relaxed);
        // Small where it does not build on anything.
        let base = self.base.load(Relaxed);
        if !log::put_commit(kind, id, if base { payload } else { &[] }) {
            self.base.store(false, Relaxed);
        }
    }
}
