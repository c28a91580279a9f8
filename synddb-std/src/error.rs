//! What can go wrong between an application and its stream.

use core::fmt;

use synddb_core::wire::message::ResyncReason;

use crate::{capture::CaptureError, outbox::OutboxError};

/// Why something could not be done. Whatever it is, the application's database is unharmed and
/// nothing that was committed is lost: it is queued, or a snapshot will hold it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be honoured.
    Config {
        /// The field of [`Config`](crate::Config), or the variable of the environment.
        setting: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The connection cannot be captured, or not now.
    Capture(CaptureError),
    /// The outbox cannot be used.
    Outbox(OutboxError),
    /// The sequencer has not stored everything; all of it stays queued and goes on its way by
    /// itself.
    NotStored(NotStored),
    /// SQLite refused a statement.
    Sqlite(rusqlite::Error),
    /// The operating system refused a thread or randomness.
    System(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { setting, problem } => write!(f, "{setting}: {problem}"),
            Self::Capture(error) => error.fmt(f),
            Self::Outbox(error) => error.fmt(f),
            Self::NotStored(error) => error.fmt(f),
            Self::Sqlite(error) => error.fmt(f),
            Self::System(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Capture(error) => error.source(),
            Self::Sqlite(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<CaptureError> for Error {
    fn from(error: CaptureError) -> Self {
        Self::Capture(error)
    }
}

impl From<OutboxError> for Error {
    fn from(error: OutboxError) -> Self {
        Self::Outbox(error)
    }
}

/// What waiting for the sequencer ended with, and how much is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStored {
    /// Why the waiting ended.
    pub reason: Reason,
    /// Commits that the sequencer has not acknowledged.
    pub commits: u64,
    /// Bytes of them in memory and in the outbox.
    pub queued_bytes: u64,
    /// Why a snapshot has to hold them, where it has to.
    pub behind: Option<ResyncReason>,
}

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, commits, queued_bytes, behind } = self;
        write!(f, "{reason}; ")?;
        match behind {
            None => write!(f, "{commits} commits ({queued_bytes} bytes) stay queued"),
            Some(behind) => {
                write!(f, "{commits} commits will be in the snapshot that is due ({behind:?})")
            }
        }
    }
}

/// Why waiting for the sequencer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The time to wait was over; with the link's last error, where it has one.
    TimedOut(Option<String>),
    /// The link is down: `max_retries` attempts in a row failed, the last one made for this wait.
    LinkDown(String),
    /// Another process, or a copy of this database, has taken the stream. Give the copy a stream
    /// of its own, or call [`resync`](crate::SyndDB::resync) here to take it back.
    Superseded,
    /// The sequencer holds other entries than this database sent, and
    /// [`Config::on_divergence`](crate::Config::on_divergence) is to halt. Find out why, then call
    /// [`resync`](crate::SyndDB::resync).
    Diverged,
    /// The outbox cannot be written: its place, its permissions, free space.
    Outbox(String),
    /// The snapshot that is due could not be made or is refused.
    Snapshot(String),
    /// The sequencer takes no snapshot as large as the one that is due. None is tried again before its
    /// limit changes or [`resync`](crate::SyndDB::resync) is called.
    SnapshotTooLarge {
        /// Its length in bytes.
        len: u64,
        /// The largest that the sequencer takes, in bytes.
        limit: u64,
    },
    /// A thread of synddb panicked; its name. Nothing more is shipped by this process.
    Panicked(String),
    /// The stream was shut down.
    ShutDown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(None) => f.write_str("the sequencer has not stored everything in time"),
            Self::TimedOut(Some(error)) => {
                write!(f, "the sequencer has not stored everything in time: {error}")
            }
            Self::LinkDown(error) => write!(f, "the link is down: {error}"),
            Self::Superseded => f.write_str(
                "another process or a copy of this database has taken the stream; resync() takes \
                 it back",
            ),
            Self::Diverged => f.write_str(
                "the sequencer holds other entries than this database sent; resync() begins anew \
                 from a snapshot",
            ),
            Self::Outbox(error) => f.write_str(error),
            Self::Snapshot(error) => write!(f, "no snapshot: {error}"),
            Self::SnapshotTooLarge { len, limit } => write!(
                f,
                "no snapshot: it has {len} bytes, and the sequencer takes up to {limit}: raise its \
                 limit, or make the database smaller (VACUUM) and call resync()"
            ),
            Self::Panicked(thread) => write!(
                f,
                "the thread {thread} panicked, which is a fault of synddb: nothing more is shipped \
                 before the application starts anew"
            ),
            Self::ShutDown => f.write_str("the stream was shut down"),
        }
    }
}
