use std::fmt;

use synddb_core::{Epoch, SeqNo, StreamId, content::ContentSum, wire::EntryKind};

use crate::{moment::Moment, replica::ApplyError, store::StoreError};

/// Why nothing was restored.
#[derive(Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// The log cannot be read.
    Store(StoreError),
    /// The log has no entries of the stream.
    NoStream {
        /// The stream.
        stream: StreamId,
    },
    /// The stream has no such epoch.
    NoEpoch {
        /// The epoch.
        epoch: Epoch,
        /// The stream's newest.
        newest: Epoch,
    },
    /// No epoch of the stream has a snapshot that is stored whole.
    NothingYet {
        /// The stream's newest epoch.
        epoch: Epoch,
    },
    /// The epoch that was asked for has no snapshot that is stored whole.
    BasePending {
        /// The epoch.
        epoch: Epoch,
        /// The stream's newest.
        newest: Epoch,
    },
    /// There is no snapshot to start from.
    NoSnapshot {
        /// The epoch.
        epoch: Epoch,
        /// The latest state that it may be of.
        limit: SeqNo,
        /// The earliest state that the epoch has a snapshot of.
        earliest: SeqNo,
    },
    /// The epoch ends before the entry that was asked for.
    BeyondEnd {
        /// The epoch.
        epoch: Epoch,
        /// The entry that was asked for.
        seq: SeqNo,
        /// The epoch's last.
        last: SeqNo,
    },
    /// The moment that was asked for is before everything that can be restored.
    TooEarly {
        /// The moment that was asked for.
        moment: Moment,
        /// Epoch of the earliest state.
        epoch: Epoch,
        /// Moment of the earliest state.
        earliest: Moment,
    },
    /// The snapshot to start from cannot be used.
    Snapshot {
        /// Its epoch.
        epoch: Epoch,
        /// The entry that tells of it.
        seq: SeqNo,
        /// The last entry whose changes it holds, where that is known.
        as_of: Option<SeqNo>,
        /// What is wrong with it.
        fault: SnapshotFault,
    },
    /// An entry cannot be used.
    Entry {
        /// Its epoch.
        epoch: Epoch,
        /// The entry.
        seq: SeqNo,
        /// What is wrong with it.
        fault: EntryFault,
        /// The last entry before it that can be restored from the same snapshot.
        good: Option<SeqNo>,
    },
    /// An entry that is as it was sent does not fit the database.
    Apply {
        /// Its epoch.
        epoch: Epoch,
        /// The entry.
        seq: SeqNo,
        /// Why.
        error: Box<ApplyError>,
    },
    /// The content is not what its sender had after the entry.
    Content {
        /// Its epoch.
        epoch: Epoch,
        /// The entry: the first that shows it.
        seq: SeqNo,
        /// The hash by the log.
        expected: ContentSum,
        /// The hash of what is there.
        found: ContentSum,
    },
    /// There is a file where the database should go.
    Exists {
        /// The file.
        path: String,
    },
    /// A file or folder could not be written.
    Io {
        /// The file or folder.
        path: String,
        /// What the operating system said.
        message: String,
    },
    /// SQLite could not do something with the new database.
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// Its error.
        error: rusqlite::Error,
    },
    /// `PRAGMA quick_check` found something in the result.
    Check {
        /// The first finding.
        finding: String,
    },
    /// The caller ended it.
    Cancelled,
}

/// What is wrong with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// The entry that tells of it does not decode, or is not as it was sent.
    Note,
    /// The log does not have it, or not whole.
    Missing,
    /// It cannot be read: what the operating system said.
    Unreadable(String),
    /// Its length is not what the entry says.
    Length {
        /// By the entry, in bytes.
        expected: u64,
        /// Bytes found, as far as they were read.
        found: u64,
    },
    /// Its SHA-256 is not what the entry says.
    Hash,
    /// It is no SQLite database, or one that this SQLite cannot read.
    NotADatabase(String),
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryFault {
    /// It is not in the log.
    Missing,
    /// The chain value stored with it is not that of its bytes and what came before it.
    Chain,
    /// It is the last one in the log, and others followed it.
    End,
    /// What it is does not decode: its kind is of a newer version.
    Unknown,
    /// Its kind cannot be applied by this version.
    Kind(EntryKind),
}

impl fmt::Display for SnapshotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note => f.write_str("the entry that tells of it is damaged"),
            Self::Missing => f.write_str("the log does not have it whole"),
            Self::Unreadable(message) => write!(f, "it cannot be read: {message}"),
            Self::Length { expected, found } => {
                write!(f, "it should have {expected} bytes and has {found}")
            }
            Self::Hash => f.write_str("its bytes are not those that were sent (SHA-256 differs)"),
            Self::NotADatabase(message) => {
                write!(f, "it is not a database that can be read: {message}")
            }
        }
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing in the log"),
            Self::Chain => f.write_str("is not as it was sent (its chain value differs)"),
            Self::End => f.write_str("was not the last one; those after it are missing in the log"),
            Self::Unknown => f.write_str("is of a kind that this version does not know"),
            Self::Kind(kind) => {
                write!(f, "is of the kind {kind:?}, which this version cannot apply")
            }
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::NoStream { stream } => write!(f, "the log has nothing of stream {stream}"),
            Self::NoEpoch { epoch, newest } => {
                write!(f, "there is no epoch {epoch}; the newest one is {newest}")
            }
            Self::NothingYet { epoch } => write!(
                f,
                "nothing can be restored yet: the snapshot that epoch {epoch} begins from is not \
                 stored whole; try again once its sender has uploaded it"
            ),
            Self::BasePending { epoch, newest } if epoch == newest => write!(
                f,
                "the snapshot that epoch {epoch} begins from is not stored whole yet; try again \
                 once its sender has uploaded it, or restore an earlier epoch"
            ),
            Self::BasePending { epoch, newest } => write!(
                f,
                "epoch {epoch} was given up before its snapshot was stored whole; restore another \
                 one, of those up to {newest}"
            ),
            Self::NoSnapshot { epoch, limit, earliest } => write!(
                f,
                "epoch {epoch} has no snapshot of entry {limit} or an earlier one; its earliest is \
                 of entry {earliest}"
            ),
            Self::BeyondEnd { epoch, seq, last } => {
                write!(f, "epoch {epoch} has no entry {seq}; its last one is {last}")
            }
            Self::TooEarly { moment, epoch, earliest } => write!(
                f,
                "nothing from {moment} can be restored; the earliest state is that of {earliest}, \
                 in epoch {epoch}"
            ),
            Self::Snapshot { epoch, seq, as_of, fault } => {
                write!(f, "the snapshot of entry {seq} in epoch {epoch} cannot be used: {fault}")?;
                match as_of {
                    Some(SeqNo(0)) => f.write_str("; another epoch may do (--epoch)"),
                    Some(as_of) => write!(f, "; an older one may do (--base {})", as_of.previous()),
                    None => write!(f, "; an older one may do (--base {})", seq.previous()),
                }
            }
            Self::Entry { epoch, seq, fault, good } => {
                write!(f, "entry {seq} of epoch {epoch} {fault}")?;
                if matches!(fault, EntryFault::Unknown | EntryFault::Kind(_)) {
                    f.write_str("; use a newer synddb")?;
                }
                match good {
                    Some(good) => {
                        write!(f, "; up to entry {good} it can be restored ")?;
                        write!(f, "(--epoch {epoch} --to-seq {good})")
                    }
                    None => Ok(()),
                }
            }
            Self::Apply { epoch, seq, error } => write!(
                f,
                "entry {seq} of epoch {epoch} does not fit the database: {error}; the state before \
                 it can be restored (--epoch {epoch} --to-seq {})",
                seq.previous()
            ),
            Self::Content { epoch, seq, expected, found } => write!(
                f,
                "after entry {seq} of epoch {epoch} the content is not what its sender had (its hash \
                 is {found}, not {expected}); `synddb verify` tells more, --no-check restores it as \
                 far as entries tell"
            ),
            Self::Exists { path } => {
                write!(f, "{path} is there already; choose another name, or --force to replace it")
            }
            Self::Io { path, message } => write!(f, "{path}: {message}"),
            Self::Sqlite { doing, error } => write!(f, "cannot {doing}: {error}"),
            Self::Check { finding } => write!(
                f,
                "the restored database is damaged: {finding}; if it was so at its source, \
                 --no-check restores it as it was"
            ),
            Self::Cancelled => f.write_str("interrupted; nothing was restored"),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Apply { error, .. } => Some(&**error),
            Self::Sqlite { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
