//! What a database file looked like when everything in it had been captured.

use std::time::{Duration, SystemTime};

use super::ffi::{Db, Location, sqlite3};

/// Equal fingerprints mean: nobody has written to the database file in between.
///
/// Made of the file's inode, size and modification time, and of the change counter and schema
/// cookie in its header. It speaks of a file that is complete in itself, with an empty or no
/// write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; Fingerprint::LEN]);

impl Fingerprint {
    /// Length of [`Fingerprint::to_bytes`].
    pub(crate) const LEN: usize = 49;
    const VERSION: u8 = 1;
    /// From the change counter to the schema cookie, inclusive:
    /// <https://www.sqlite.org/fileformat.html#the_database_header>.
    const HEADER: std::ops::Range<usize> = 24..44;
    /// Where it stands in the fingerprint.
    const HEADER_AT: usize = Fingerprint::LEN - 20;
    /// Two writes further apart than this have different times.
    const TICK: Duration = Duration::from_millis(25);

    /// For storing.
    pub(crate) fn to_bytes(self) -> [u8; Fingerprint::LEN] {
        self.0
    }

    /// None for bytes of another length or version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Fingerprint> {
        let bytes = bytes.try_into().ok()?;
        let fingerprint = Fingerprint(bytes);
        (fingerprint.0[0] == Fingerprint::VERSION).then_some(fingerprint)
    }

    /// Looks at the file by stat, and at its header through the connection's own handle: for
    /// opening and closing the file ourselves would drop SQLite's locks on it.
    #[cfg(unix)]
    fn look_at_file(db: Db, location: &Location) -> Option<Look> {
        use std::os::unix::fs::MetadataExt;

        let file = std::fs::metadata(&location.database).ok()?;
        let mut header = [0; Fingerprint::HEADER.end - Fingerprint::HEADER.start];
        db.read_file(Fingerprint::HEADER.start as i64, &mut header)?;
        let mut bytes = [Fingerprint::VERSION; Fingerprint::LEN];
        bytes[1..9].copy_from_slice(&file.ino().to_le_bytes());
        bytes[9..17].copy_from_slice(&file.size().to_le_bytes());
        bytes[17..25].copy_from_slice(&file.mtime().to_le_bytes());
        bytes[25..29].copy_from_slice(&u32::try_from(file.mtime_nsec()).ok()?.to_le_bytes());
        bytes[Fingerprint::HEADER_AT..].copy_from_slice(&header);
        Some(Look {
            fingerprint: Fingerprint(bytes),
            modified: file.modified().ok()?,
            fine_grained: file.mtime_nsec() != 0,
        })
    }

    #[cfg(not(unix))]
    fn look_at_file(_: Db, _: &Location) -> Option<Look> {
        None
    }

    /// None where the log holds anything.
    fn look(db: Db) -> Option<Look> {
        let location = db.location()?;
        if std::fs::metadata(&location.wal).is_ok_and(|wal| wal.len() > 0) {
            return None;
        }
        Fingerprint::look_at_file(db, &location)
    }

    /// The file as it is, whatever the log holds.
    pub(super) fn look_at(db: Db, location: &Location) -> Option<Fingerprint> {
        Fingerprint::look_at_file(db, location).map(|look| look.fingerprint)
    }

    /// The file's fingerprint, if it was left alone for so long that a later write will show.
    pub(super) fn at_rest(db: Db) -> Option<Fingerprint> {
        let look = Fingerprint::look(db)?;
        let age = SystemTime::now().duration_since(look.modified).ok()?;
        (look.fine_grained && age >= Fingerprint::TICK).then_some(look.fingerprint)
    }

    /// The [change counter](https://www.sqlite.org/fileformat.html#file_change_counter).
    pub(super) fn change_counter(&self) -> u32 {
        u32::from_be_bytes([0, 1, 2, 3].map(|byte| self.0[Fingerprint::HEADER_AT + byte]))
    }

    /// The fingerprint of a file that is left alone from now on, once its modification time is
    /// certain to tell a later write from this one.
    ///
    /// File systems stamp by a clock that ticks every 1 to 10 ms; a write within the tick of the
    /// last one would leave no trace. So this waits the tick out. Where times have whole
    /// seconds only, the answer is None.
    pub(super) fn settled(db: Db) -> Option<Fingerprint> {
        let look = Fingerprint::look(db)?;
        // A time in the future is a clock set back; nothing can be said then.
        let age = SystemTime::now().duration_since(look.modified).ok()?;
        if !look.fine_grained {
            return None;
        }
        if let Some(left) = Fingerprint::TICK.checked_sub(age) {
            std::thread::sleep(left);
        }
        Fingerprint::look(db).map(|again| again.fingerprint).filter(|f| *f == look.fingerprint)
    }
}

struct Look {
    fingerprint: Fingerprint,
    modified: SystemTime,
    fine_grained: bool,
}

/// The fingerprint of the connection's database now, to be compared with a clean mark before
/// anything is written. None in memory, and while the write-ahead log holds anything.
///
/// # Safety
/// As for [`super::Capture::attach`], for the time of the call.
pub(crate) unsafe fn current_fingerprint(db: *mut sqlite3) -> Option<Fingerprint> {
    // SAFETY: promised by the caller.
    let db = unsafe { Db::from_raw(db) }?;
    // A first read rolls back what a crash left half written.
    db.query_i64(c"PRAGMA main.schema_version").ok()?;
    Fingerprint::look(db).map(|look| look.fingerprint)
}
