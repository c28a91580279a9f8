//! Where a stream keeps its files, and that nobody else uses them.

use std::{
    collections::HashSet,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use synddb_core::StreamId;

use crate::{
    Config, Error,
    config::Durability,
    link::random,
    outbox::{Outbox, OutboxError},
    snapshot::remove_leftovers,
    writer::SnapshotPlace,
};

/// The files of one stream.
#[derive(Debug)]
pub(crate) enum Place {
    /// Beside the database `database`, or where the user chose.
    Disk { database: PathBuf, outbox: PathBuf },
    /// The outbox is not written. Beside a database file there are snapshots on their way all the
    /// same, and so a lock.
    Memory { database: Option<PathBuf> },
}

impl Place {
    /// The place for a database at `database`, `None` for one in memory.
    ///
    /// # Errors
    /// `Config`: an outbox in memory needs a name for its stream.
    pub(crate) fn choose(config: &Config, database: Option<PathBuf>) -> Result<Self, Error> {
        let in_memory = config.durability == Durability::Memory || database.is_none();
        match database {
            Some(database) if !in_memory => {
                let outbox =
                    config.outbox_path.clone().unwrap_or_else(|| beside(&database, "-synddb"));
                Ok(Self::Disk { database, outbox })
            }
            database if config.stream.is_some() => Ok(Self::Memory { database }),
            _ => Err(Error::Config {
                setting: "stream",
                problem: "an outbox in memory needs a name for its stream, since it cannot keep \
                          an id: set Config::stream"
                    .into(),
            }),
        }
    }

    /// Where snapshots are copied to.
    pub(crate) fn snapshots(&self) -> SnapshotPlace {
        let stem = match self {
            Self::Disk { outbox, .. } => beside(outbox, "-snapshot-"),
            Self::Memory { database: Some(database) } => beside(database, "-synddb-snapshot-"),
            Self::Memory { database: None } => PathBuf::from("synddb-snapshot-"),
        };
        let prefix = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The parent of a bare name is the empty path, which is the current directory.
        let dir = match stem.parent() {
            Some(dir) if dir != Path::new("") => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        SnapshotPlace { dir, prefix }
    }

    /// Whether the outbox outlives the process.
    pub(crate) fn lasts(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    /// Removes snapshots that a killed process left; only with a claim, for they may be another's.
    fn clean_up(&self) {
        let SnapshotPlace { dir, prefix } = self.snapshots();
        if let Err(error) = remove_leftovers(&dir, &prefix) {
            tracing::warn!(%error, "old snapshots are left over");
        }
    }

    /// Opens the outbox, and sees that it is this database's and nobody else's; removes what a
    /// killed process left behind.
    pub(crate) fn open(&self, config: &Config) -> Result<(Outbox, Option<Claim>), Error> {
        let named = config.stream.as_deref().map(StreamId::from_name);
        match self {
            Self::Memory { database } => {
                let stream = named.ok_or(OutboxError::Corrupt("a stream without a name"))?;
                let claim = match database {
                    Some(database) => Some(Claim::of(&beside(database, "-synddb"))?),
                    None => None,
                };
                if claim.is_some() {
                    self.clean_up();
                }
                Ok((Outbox::in_memory(stream)?, claim))
            }
            Self::Disk { database, outbox: path } => {
                let claim = Claim::of(path)?;
                let outbox = Outbox::open(path, named, StreamId::from_bytes(random()?))?;
                outbox.belongs_to(&database.to_string_lossy())?;
                self.clean_up();
                Ok((outbox, Some(claim)))
            }
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The outboxes of this process.
static CLAIMED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

/// The sole right to use an outbox: a locked file beside it, which the operating system unlocks
/// when the process ends, and for this process a list.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    locked: File,
}

impl Claim {
    fn of(outbox: &Path) -> Result<Self, OutboxError> {
        let path = beside(outbox, "-lock");
        let in_use = || OutboxError::InUse { path: outbox.display().to_string() };
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| OutboxError::Sqlite(format!("{}: {error}", path.display())))?;
        let path = path.canonicalize().unwrap_or(path);
        if claimed.get_or_insert_default().contains(&path) {
            return Err(in_use());
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(error)) => {
                return Err(OutboxError::Sqlite(format!("{}: {error}", path.display())));
            }
        }
        claimed.get_or_insert_default().insert(path.clone());
        Ok(Self { path, locked: file })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Not by closing alone: a process that was forked meanwhile has the file open too.
        if let Err(error) = self.locked.unlock() {
            tracing::warn!(%error, "the outbox's lock goes when the file is closed");
        }
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claimed) = claimed.as_mut() {
            claimed.remove(&self.path);
        }
    }
}
