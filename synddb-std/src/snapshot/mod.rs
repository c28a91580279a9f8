//! Snapshots: the whole database as of an exact commit boundary, as a plain SQLite file.
//!
//! ```text
//! WAL mode    app thread: Reader (a second connection's read transaction, 0.2 ms)
//!             any thread: Boundary::copy_to ─▶ SnapshotImage, beside the app's commits
//! otherwise   app thread: ForegroundCopy, in short steps or at once; its end is the boundary
//!             any thread: Boundary::copy_to ─▶ SnapshotImage: seals and hashes the copy
//! ```
//!
//! In rollback-journal mode a reader would keep the app from committing, and an in-memory
//! database has one connection only: hence the copy on the app's thread. What the app writes to
//! a file between two steps is carried over by SQLite. Any commit in memory, and another
//! connection's in a file, makes the copy start over; after eight times it is made at once, which
//! in memory takes about a millisecond per megabyte.

mod copy;
mod image;
mod reader;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::capture::library;
use crate::capture::{Position, SqliteError};

pub(crate) use copy::{Advance, ForegroundCopy};
pub(crate) use image::SnapshotImage;
pub(crate) use reader::Reader;

/// Why there is no snapshot. The database and the log are unharmed; try again later.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The copy does not fit on its disk.
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Its control was told to cancel.
    Cancelled,
    /// The operating system refused a file.
    Io {
        /// What was about to be done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kind of refusal.
        kind: io::ErrorKind,
    },
    /// SQLite refused.
    Sqlite {
        /// What was about to be done.
        doing: &'static str,
        /// SQLite's answer.
        error: SqliteError,
    },
    /// The database left WAL mode; a second reader would block the app's commits.
    NotWal,
    /// The thread that copied it panicked, which is a fault of synddb.
    Panicked,
}

impl SnapshotError {
    fn io(doing: &'static str, path: &Path, error: &io::Error) -> SnapshotError {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull => SnapshotError::NoSpace { path },
            kind => SnapshotError::Io { doing, path, kind },
        }
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::NoSpace { path } => {
                write!(f, "no space left for the snapshot {}", path.display())
            }
            SnapshotError::Cancelled => f.write_str("the snapshot was cancelled"),
            SnapshotError::Io { doing, path, kind } => {
                write!(f, "could not {doing} {}: {kind}", path.display())
            }
            SnapshotError::Sqlite { doing, error } => write!(f, "could not {doing}: {error}"),
            SnapshotError::Panicked => f.write_str("the thread that copied the database panicked"),
            SnapshotError::NotWal => f.write_str("the database is not in WAL mode any more"),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SnapshotError::Sqlite { error, .. } => Some(error),
            _ => None,
        }
    }
}

fn sqlite(doing: &'static str) -> impl Fn(SqliteError) -> SnapshotError {
    move |error| SnapshotError::Sqlite { doing, error }
}

/// A state of the database exactly between two commits, held until it is copied or dropped.
///
/// While it holds a reader, the write-ahead log cannot be emptied and grows: copy it soon.
pub(crate) struct Boundary {
    schema_version: u32,
    state: State,
    position: Option<Position>,
}

enum State {
    Reader(Reader),
    Copied(copy::Copied),
}

impl Boundary {
    pub(crate) fn from_reader(reader: Reader) -> Boundary {
        let schema_version = reader.schema_version();
        Boundary { schema_version, state: State::Reader(reader), position: None }
    }

    pub(crate) fn from_copy(schema_version: u32, copied: copy::Copied) -> Boundary {
        Boundary { schema_version, state: State::Copied(copied), position: None }
    }

    /// Gives the state a name.
    pub(crate) fn at(self, position: Option<Position>) -> Boundary {
        Boundary { position, ..self }
    }

    /// What names the state, where that is known.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    /// `PRAGMA schema_version` at the boundary.
    #[cfg(test)]
    pub(crate) fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Makes the image: copies as far as that is still to be done, hashes, syncs to disk.
    ///
    /// The file must not exist and should be named by [`image_path`]; it is removed again on
    /// failure, and when the image is dropped. An in-memory database's image stays in memory
    /// and makes no file. Call it on a thread of ours: it takes about a second per gigabyte.
    ///
    /// # Errors
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Cancelled`], or what SQLite or the operating
    /// system refused.
    pub(crate) fn copy_to(
        self,
        file: &Path,
        control: &CopyControl,
    ) -> Result<SnapshotImage, SnapshotError> {
        let copied = match self.state {
            State::Reader(reader) => reader.copy_to(file, control)?,
            State::Copied(copied) => copied.moved_to(file)?,
        };
        copied.seal(self.schema_version, control)
    }
}

/// Watches a copy from outside, and stops it.
#[derive(Debug, Default)]
pub(crate) struct CopyControl {
    cancelled: AtomicBool,
    pages_copied: AtomicU64,
    pages_total: AtomicU64,
}

impl CopyControl {
    /// Makes the copy end soon with [`SnapshotError::Cancelled`].
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Pages copied, and pages of the whole database; 0 of 0 before the start.
    #[cfg(test)]
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.pages_copied.load(Ordering::Relaxed), self.pages_total.load(Ordering::Relaxed))
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), SnapshotError> {
        if self.is_cancelled() { Err(SnapshotError::Cancelled) } else { Ok(()) }
    }

    fn report(&self, (total, left): (u32, u32)) {
        self.pages_total.store(u64::from(total), Ordering::Relaxed);
        self.pages_copied.store(u64::from(total - left.min(total)), Ordering::Relaxed);
    }
}

/// A name for a new image in `dir`, beginning with `prefix` and not given out before by this
/// process.
pub(crate) fn image_path(dir: &Path, prefix: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{prefix}{}-{number}.db", std::process::id()))
}

/// Removes the images that a killed process left in `dir`: every file whose name begins with
/// `prefix`. Call it before the first snapshot; the prefix must belong to one database alone.
///
/// # Errors
/// If the directory cannot be read, or a file not be removed. A missing directory is empty.
pub(crate) fn remove_leftovers(dir: &Path, prefix: &str) -> Result<(), SnapshotError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SnapshotError::io("list", dir, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| SnapshotError::io("list", dir, &error))?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let path = entry.path();
            std::fs::remove_file(&path)
                .map_err(|error| SnapshotError::io("remove", &path, &error))?;
        }
    }
    Ok(())
}
