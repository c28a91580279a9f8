//! Where a sequencer keeps what it acknowledged.
//!
//! A [`LogStore`] changes a stream only by [`commit`](LogStore::commit): compare-and-set on the
//! whole [`Receiver`]. Whoever decided on a state that has moved meanwhile gets
//! [`StoreError::Conflict`], reads the state again and decides anew. So any number of connections,
//! and of processes where the store allows them, can serve the same stream without a lock.

mod sqlite;

use std::fmt;

use synddb_core::{
    Chain, Epoch, OpenId, SeqNo, SnapshotId, StreamId,
    receiver::Receiver,
    wire::{
        EntryMeta,
        message::{ResyncReason, SnapshotProgress},
    },
};

pub use sqlite::SqliteStore;

/// The largest number of an epoch or entry that stores must be able to hold.
pub const MAX_NUMBER: u64 = i64::MAX as u64;

/// Why the store could not do what was asked. Nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// The stream does not stand where the caller thinks: read its state again.
    Conflict,
    /// SQLite could not read or write the log: place, permissions, space.
    Sqlite(String),
    /// A file or folder of the data directory could not be used.
    Io {
        /// The file or folder.
        path: String,
        /// What the operating system said.
        message: String,
    },
    /// Another process serves this data directory.
    InUse {
        /// The directory.
        path: String,
    },
    /// There is no log in the directory.
    NoLog {
        /// The directory.
        path: String,
    },
    /// `log.db` is a database of something else.
    NotALog,
    /// The log was written by an older version of synddb, and is open for reading only.
    OlderFormat {
        /// Its version.
        found: i64,
    },
    /// The log was written by a newer version of synddb.
    NewerFormat {
        /// Its version.
        found: i64,
    },
    /// What is stored does not decode.
    Corrupt(&'static str),
    /// The store was opened for reading.
    ReadOnly,
    /// An earlier write failed in a way that leaves unknown what reached the disk. Restart the
    /// sequencer once the disk is well; what was acknowledged is safe.
    Failed,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict => f.write_str("the stream moved on meanwhile"),
            Self::Sqlite(message) => write!(f, "the log cannot be read or written: {message}"),
            Self::Io { path, message } => write!(f, "{path}: {message}"),
            Self::InUse { path } => write!(
                f,
                "another process serves {path}; stop it first, or choose another directory"
            ),
            Self::NoLog { path } => {
                write!(f, "{path} holds no log.db; is it a sequencer's data directory?")
            }
            Self::NotALog => f.write_str("log.db is not the log of a synddb sequencer"),
            Self::OlderFormat { found } => write!(
                f,
                "log.db is of format {found}, of an older synddb: start a sequencer on it once"
            ),
            Self::NewerFormat { found } => write!(
                f,
                "log.db is of format {found}, newer than this program knows; use a newer synddb"
            ),
            Self::Corrupt(part) => write!(f, "the log is damaged: {part} does not decode"),
            Self::ReadOnly => f.write_str("the log was opened for reading"),
            Self::Failed => f.write_str(
                "an earlier write to the log failed; restart the sequencer once the disk is well",
            ),
        }
    }
}

impl std::error::Error for StoreError {}

/// What goes into the log together with a new state of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The stream's first session was issued.
    Create {
        /// The user's name for the stream; empty where the sender told none.
        name: String,
        /// The principal whose stream it is; empty where nobody's access is checked.
        owner: String,
    },
    /// A session was issued or has claimed the stream.
    Session {
        /// The user's name for the stream, where the sender told one.
        name: Option<String>,
    },
    /// The epoch of the new state begins.
    OpenEpoch {
        /// Why.
        reason: ResyncReason,
    },
    /// These entries follow the last one. Staged pieces, if any, are done with.
    Append(Vec<NewEntry>),
    /// A piece of a large entry, at the end of those that are staged.
    Stage {
        /// Where the piece begins; 0 drops what was staged before.
        offset: u64,
        /// The piece.
        data: Vec<u8>,
    },
    /// What was staged is of no use.
    Unstage,
}

/// An entry on its way into the log, of the epoch of the state that it is committed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Place in the epoch.
    pub seq: SeqNo,
    /// The encoded meta, as it came.
    pub meta: Vec<u8>,
    /// The payload.
    pub payload: Vec<u8>,
    /// Chain after it.
    pub chain: Chain,
    /// When it came, by the sequencer's clock: milliseconds since 1970.
    pub received_ms: u64,
}

/// An entry in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its epoch.
    pub epoch: Epoch,
    /// Place in the epoch.
    pub seq: SeqNo,
    /// The encoded meta, as it came.
    pub meta: Vec<u8>,
    /// The payload.
    pub payload: Vec<u8>,
    /// Chain after it.
    pub chain: Chain,
    /// When it came, by the sequencer's clock: milliseconds since 1970.
    pub received_ms: u64,
}

impl StoredEntry {
    /// The decoded meta.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decoded_meta(&self) -> Result<EntryMeta, StoreError> {
        EntryMeta::decode(&self.meta).map_err(|_| StoreError::Corrupt("an entry's meta"))
    }
}

/// When an entry came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its place in the epoch.
    pub seq: SeqNo,
    /// By the sequencer's clock: milliseconds since 1970.
    pub ms: u64,
}

/// A stream in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// The user's name for it; empty where there is none.
    pub name: String,
    /// The principal that created it; empty where it was created without access control.
    pub owner: String,
    /// Its state.
    pub receiver: Receiver,
    /// When it was first heard of: milliseconds since 1970.
    pub created_ms: u64,
}

/// An epoch in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochInfo {
    /// Its number.
    pub epoch: Epoch,
    /// The wish that it was opened for.
    pub open_id: OpenId,
    /// Chain before its first entry.
    pub genesis: Chain,
    /// Why it was opened.
    pub reason: ResyncReason,
    /// When it was opened: milliseconds since 1970.
    pub opened_ms: u64,
    /// Its entries up to this one were pruned; 0 where it has all.
    pub pruned: SeqNo,
}

/// What a stream can do without: a snapshot holds what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prunable {
    /// All epochs before this one,
    pub epoch: Epoch,
    /// its entries up to this one,
    pub seq: SeqNo,
    /// and these snapshots.
    pub snapshots: Vec<SnapshotId>,
}

/// A snapshot in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Names it.
    pub id: SnapshotId,
    /// The epoch that it was uploaded for.
    pub epoch: Epoch,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of it; `None` until it is complete.
    pub sha256: Option<[u8; 32]>,
}

/// What became of the end of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// This is how much is stored.
    Progress(SnapshotProgress),
    /// The piece lies behind a hole, or the end came too early.
    Gap(SnapshotProgress),
    /// Never begun, or its bytes are not those that were announced; they are dropped.
    Invalid,
}

/// A durable log of many streams. What a method has returned `Ok` for survives a power failure,
/// except the pieces of a snapshot that is not complete.
pub trait LogStore: Send + Sync {
    /// The stream's state; a new [`Receiver`] where nothing is known of it.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn receiver(&self, stream: StreamId) -> Result<Receiver, StoreError>;

    /// The principal that created the stream: empty where it was created without access control,
    /// `None` where it is unknown.
    ///
    /// # Errors
    /// `Sqlite`.
    fn owner(&self, stream: StreamId) -> Result<Option<String>, StoreError>;

    /// Makes `after` the state of the stream and stores `change` with it, durably and as one, if
    /// the state still is `expected`.
    ///
    /// # Errors
    /// `Conflict` where it is not; otherwise whatever kept it from being stored.
    fn commit(
        &self,
        expected: &Receiver,
        after: &Receiver,
        change: Change,
        now_ms: u64,
    ) -> Result<(), StoreError>;

    /// The pieces of the fragmented entry that is partly here, together.
    ///
    /// # Errors
    /// `Sqlite`.
    fn staged(&self, stream: StreamId) -> Result<Vec<u8>, StoreError>;

    /// Chain after an entry, where it is stored.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn chain_at(
        &self,
        stream: StreamId,
        epoch: Epoch,
        seq: SeqNo,
    ) -> Result<Option<Chain>, StoreError>;

    /// Entries of an epoch from `from` on, in order: as many as fit in `max_bytes` of payload, but
    /// at least one where there is one.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn entries(
        &self,
        stream: StreamId,
        epoch: Epoch,
        from: SeqNo,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError>;

    /// The last entry of an epoch up to `until`, and when it came. Reads no payload.
    ///
    /// # Errors
    /// `Sqlite`.
    fn last_received(
        &self,
        stream: StreamId,
        epoch: Epoch,
        until: SeqNo,
    ) -> Result<Option<Received>, StoreError>;

    /// The [`Snapshot`](synddb_core::wire::EntryKind::Snapshot) entries of
    /// an epoch, newest first.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn snapshot_notes(
        &self,
        stream: StreamId,
        epoch: Epoch,
    ) -> Result<Vec<StoredEntry>, StoreError>;

    /// All streams.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn streams(&self) -> Result<Vec<StreamInfo>, StoreError>;

    /// The epochs of a stream, oldest first.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn epochs(&self, stream: StreamId) -> Result<Vec<EpochInfo>, StoreError>;

    /// The snapshots of a stream, those that are not complete too.
    ///
    /// # Errors
    /// `Sqlite`, `Corrupt`.
    fn snapshots(&self, stream: StreamId) -> Result<Vec<SnapshotInfo>, StoreError>;

    /// Announces a snapshot, or asks how much of it is stored. Drops what is here of other
    /// incomplete ones of the stream: one is uploaded at a time.
    ///
    /// # Errors
    /// `Sqlite`, `Io`.
    fn begin_snapshot(
        &self,
        stream: StreamId,
        epoch: Epoch,
        id: SnapshotId,
        len: u64,
        now_ms: u64,
    ) -> Result<SnapshotOutcome, StoreError>;

    /// Stores a piece of a snapshot.
    ///
    /// # Errors
    /// `Sqlite`, `Io`.
    fn write_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
        offset: u64,
        data: &[u8],
    ) -> Result<SnapshotOutcome, StoreError>;

    /// Checks that the snapshot has this length and hash and makes it durable.
    ///
    /// # Errors
    /// `Sqlite`, `Io`.
    fn end_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
        len: u64,
        sha256: &[u8; 32],
    ) -> Result<SnapshotOutcome, StoreError>;

    /// How much of a snapshot is stored; the incomplete one where `id` is `None`.
    ///
    /// # Errors
    /// `Sqlite`, `Io`.
    fn snapshot_progress(
        &self,
        stream: StreamId,
        id: Option<SnapshotId>,
    ) -> Result<Option<SnapshotProgress>, StoreError>;

    /// What is wrong with the store itself, beneath the entries: the first thing that is found.
    ///
    /// # Errors
    /// `Sqlite`: it cannot even be looked for.
    fn damage(&self) -> Result<Option<String>, StoreError>;

    /// Removes what the stream can do without. The chain after the last entry that goes stays.
    ///
    /// # Errors
    /// `Conflict` where that entry is not there; `Sqlite`, `Io`.
    fn prune(&self, stream: StreamId, prunable: &Prunable) -> Result<(), StoreError>;

    /// Opens the image of a snapshot for reading.
    ///
    /// # Errors
    /// `Io`.
    fn open_snapshot(
        &self,
        stream: StreamId,
        id: SnapshotId,
    ) -> Result<Box<dyn std::io::Read + Send>, StoreError>;
}
