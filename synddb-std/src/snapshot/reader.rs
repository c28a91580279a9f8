//! A second connection whose read transaction holds a state of the database.

use std::path::Path;
use std::time::Duration;

use super::copy::{Copied, Target};
use super::library::{Access, Backup, Location, OwnedDb, WalIndexHeader};
use super::{CopyControl, SnapshotError, sqlite};

/// Pages per step of a background copy: between two steps it can be cancelled.
const STEP_PAGES: i32 = 256;

/// Locks that a reader in WAL mode may meet are held for moments only.
const BUSY_TIMEOUT: Duration = Duration::from_millis(20);

/// Holds the state of the database at the moment it was opened, while the app goes on writing.
pub(crate) struct Reader {
    db: OwnedDb,
    schema_version: u32,
}

impl Reader {
    /// Opens the state after the last commit. In WAL mode only.
    pub(crate) fn open(location: &Location) -> Result<Reader, SnapshotError> {
        let db = connect(location)?;
        let open = sqlite("open a read transaction for the snapshot");
        // BEGIN alone takes no snapshot; the first read does.
        db.exec(c"BEGIN").map_err(&open)?;
        let schema_version = db.query_i64(c"PRAGMA main.schema_version").map_err(&open)? as u32;
        Ok(Reader { db, schema_version })
    }

    /// Opens the state that `header` names, None if the log is in another one by now.
    ///
    /// The header was the log's at some time before this call. It never returns to an earlier
    /// value; so if it still is the log's after the transaction began, it was all along.
    pub(crate) fn open_at(
        location: &Location,
        header: WalIndexHeader,
    ) -> Result<Option<Reader>, SnapshotError> {
        let reader = Reader::open(location)?;
        Ok((reader.db.wal_index_header() == Some(header)).then_some(reader))
    }

    pub(super) fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Copies the whole database to a new file.
    pub(super) fn copy_to(
        self,
        file: &Path,
        control: &CopyControl,
    ) -> Result<Copied, SnapshotError> {
        let target = Target::file(file)?;
        {
            // SAFETY: both connections outlive the block.
            let backup = unsafe { Backup::start(target.db(), *self.db) };
            let mut backup = backup.map_err(|error| target.error(error))?;
            loop {
                control.check()?;
                kill_point!("snapshot-copy");
                let done = backup.step(STEP_PAGES).map_err(|error| target.error(error))?;
                control.report(backup.pages());
                if done {
                    break;
                }
            }
        }
        target.close()
    }
}

/// Opens the database again and reads from it once, by which SQLite learns its journal mode and
/// maps the WAL-index.
fn connect(location: &Location) -> Result<OwnedDb, SnapshotError> {
    let open = sqlite("open the database for a snapshot");
    let db = OwnedDb::open(&location.open_name, location.vfs.as_deref(), Access::ReadOnly)
        .map_err(&open)?;
    db.busy_timeout(BUSY_TIMEOUT);
    db.query_i64(c"PRAGMA main.schema_version").map_err(&open)?;
    if db.query_text(c"PRAGMA main.journal_mode").map_err(&open)? != "wal" {
        return Err(SnapshotError::NotWal);
    }
    Ok(db)
}
