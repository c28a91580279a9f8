//! Copies of a database on their way to an image.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::image::{ImageFile, SnapshotImage};
use super::library::{
    Access, Backup, Db, OwnedDb, SQLITE_BUSY, SQLITE_FULL, SQLITE_LOCKED, SqliteError, sqlite_path,
};
use super::{CopyControl, SnapshotError, image_path, sqlite};

/// How long one step on the app's thread may copy.
const STEP_TIME: Duration = Duration::from_millis(2);

/// Pages between two looks at the clock: 256 KiB of the usual size, some tens of microseconds.
const STEP_PAGES: i32 = 64;

/// How often a copy in steps may start over before it is made at once.
const RESTARTS: u32 = 8;

/// What a copy is written to: a new file, or memory.
pub(super) struct Target {
    // Closed before the file is removed.
    db: OwnedDb,
    file: Option<ImageFile>,
}

impl Target {
    /// Creates the file, which only the user may read.
    pub(super) fn file(path: &Path) -> Result<Target, SnapshotError> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path).map_err(|error| SnapshotError::io("create", path, &error))?;
        let file = ImageFile::new(path.to_owned());

        let open = sqlite("open the snapshot's file");
        let name = sqlite_path(path).ok_or_else(|| SnapshotError::Io {
            doing: "name",
            path: path.to_owned(),
            kind: std::io::ErrorKind::InvalidInput,
        })?;
        let db = OwnedDb::open(&name, None, Access::ReadWrite).map_err(&open)?;
        // Nobody reads it before it is complete, and one sync at the end is enough.
        db.exec(
            c"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE",
        )
        .map_err(&open)?;
        Ok(Target { db, file: Some(file) })
    }

    fn memory() -> Result<Target, SnapshotError> {
        let db = OwnedDb::open(c":memory:", None, Access::ReadWrite)
            .map_err(sqlite("open memory for the snapshot"))?;
        Ok(Target { db, file: None })
    }

    pub(super) fn db(&self) -> Db {
        *self.db
    }

    /// What a failed step means.
    pub(super) fn error(&self, error: SqliteError) -> SnapshotError {
        match &self.file {
            Some(file) if error.primary() == SQLITE_FULL => {
                SnapshotError::NoSpace { path: file.path().to_owned() }
            }
            _ => SnapshotError::Sqlite { doing: "copy the database", error },
        }
    }

    /// Ends the writing. Every backup into it is dropped before.
    pub(super) fn close(self) -> Result<Copied, SnapshotError> {
        Ok(match self.file {
            Some(file) => Copied::File(file),
            None => Copied::Memory(self.db),
        })
    }
}

/// A complete copy that is not sealed yet.
pub(crate) enum Copied {
    /// Written, closed, and neither synced nor hashed.
    File(ImageFile),
    /// A private in-memory database.
    Memory(OwnedDb),
}

impl Copied {
    /// Gives a file its final name; memory has none.
    pub(super) fn moved_to(self, path: &Path) -> Result<Copied, SnapshotError> {
        match self {
            Copied::File(file) => file.renamed(path).map(Copied::File),
            memory => Ok(memory),
        }
    }

    pub(super) fn seal(
        self,
        schema_version: u32,
        control: &CopyControl,
    ) -> Result<SnapshotImage, SnapshotError> {
        match self {
            Copied::File(file) => SnapshotImage::of_file(file, schema_version, control),
            Copied::Memory(db) => {
                let bytes = db.serialize().map_err(sqlite("serialize the snapshot"))?;
                SnapshotImage::of_memory(bytes, schema_version, control)
            }
        }
    }
}

/// A copy made step by step with the app's own connection as its source.
///
/// What the connection writes to a file between two steps SQLite writes to the copy as well; so
/// the copy shows the state at the moment of its last step. In memory SQLite starts the copy
/// over at every commit, as it does for commits of other connections anywhere.
pub(crate) struct ForegroundCopy {
    // Finished before the target closes.
    backup: Backup,
    target: Target,
    /// Pages copied when it was left the last time.
    copied: u32,
    /// Times SQLite has started over.
    restarts: u32,
}

/// How far [`ForegroundCopy::advance`] came.
pub(crate) enum Advance {
    Complete(Copied),
    Unfinished(ForegroundCopy),
}

impl ForegroundCopy {
    /// Begins a copy of `db`: to a file in `dir` if it is one, else to memory.
    ///
    /// # Safety
    /// `db` stays open until the copy is complete or dropped.
    pub(crate) unsafe fn start(
        db: Db,
        dir: &Path,
        prefix: &str,
    ) -> Result<ForegroundCopy, SnapshotError> {
        let target = match db.location() {
            Some(_) => Target::file(&image_path(dir, prefix))?,
            None => Target::memory()?,
        };
        // SAFETY: the caller keeps `db` open, this value the target.
        let backup = unsafe { Backup::start(*target.db, db) };
        let backup = backup.map_err(|error| target.error(error))?;
        Ok(ForegroundCopy { backup, target, copied: 0, restarts: 0 })
    }

    /// Copies on: to the end, or for about two milliseconds. Between two transactions only.
    /// A copy that was started over too often is copied to the end as well.
    ///
    /// # Errors
    /// Those of the disk; and `SQLITE_BUSY` if another process keeps the database locked and
    /// the copy was to be completed.
    pub(crate) fn advance(mut self, complete: bool) -> Result<Advance, SnapshotError> {
        let start = Instant::now();
        let complete = complete || self.restarts >= RESTARTS;
        loop {
            kill_point!("snapshot-copy");
            // All at once: then nobody can write and make it start over.
            match self.backup.step(if complete { -1 } else { STEP_PAGES }) {
                Ok(true) => {
                    let ForegroundCopy { backup, target, .. } = self;
                    drop(backup);
                    return Ok(Advance::Complete(target.close()?));
                }
                Ok(false) if start.elapsed() < STEP_TIME => {}
                Ok(false) => {
                    let (total, left) = self.backup.pages();
                    let copied = total.saturating_sub(left);
                    self.restarts += u32::from(copied <= self.copied);
                    self.copied = copied;
                    return Ok(Advance::Unfinished(self));
                }
                Err(error)
                    if !complete && [SQLITE_BUSY, SQLITE_LOCKED].contains(&error.primary()) =>
                {
                    return Ok(Advance::Unfinished(self));
                }
                Err(error) => return Err(self.target.error(error)),
            }
        }
    }
}

impl ImageFile {
    fn renamed(mut self, path: &Path) -> Result<ImageFile, SnapshotError> {
        std::fs::rename(self.path(), path)
            .map_err(|error| SnapshotError::io("rename the snapshot to", path, &error))?;
        self.set_path(PathBuf::from(path));
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let target = Target::file(&path).unwrap();
        let error = |code| target.error(SqliteError { code, message: String::new() });
        assert_eq!(error(SQLITE_FULL), SnapshotError::NoSpace { path: path.clone() });
        assert!(matches!(error(SQLITE_BUSY), SnapshotError::Sqlite { .. }));
        drop(target);
        assert!(!path.exists());
    }
}
