//! What is known of an entry beside its payload.

use serde::{Deserialize, Serialize};

use super::WireError;
use crate::{SeqNo, SnapshotId, content::ContentSum};

/// Longest encoded [`EntryMeta`] in bytes, with room to grow.
pub const MAX_META_LEN: usize = 256;

/// What an entry's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EntryKind {
    /// A changeset in SQLite's format: the net effect of one or more commits.
    Changeset,
    /// A change of the schema, and of rows with it: a [`SchemaChange`](super::schema::SchemaChange).
    Schema,
    /// A [`SnapshotNote`]: a snapshot was uploaded, and which state it holds.
    Snapshot,
}

/// An entry without its payload. Stored and hashed as encoded, so that fields a newer version
/// appends survive older hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryMeta {
    /// Place in the epoch.
    pub seq: SeqNo,
    /// What the payload is.
    pub kind: EntryKind,
    /// Number of the first commit in it, counted by the application's capture.
    pub first_commit: u64,
    /// Number of the last commit in it.
    pub last_commit: u64,
    /// When the application committed, by its clock: milliseconds since 1970. Advisory; the
    /// receiver stamps its own time.
    pub time_ms: u64,
    /// `PRAGMA schema_version` that the payload belongs to.
    pub schema_version: u32,
    /// Hash of the database's [content](crate::content) after this entry; `None` where the sender does
    /// not know it.
    pub content_hash: Option<ContentSum>,
}

impl EntryMeta {
    /// Encodes into the start of `buffer` and returns the part used. [`MAX_META_LEN`] suffices.
    ///
    /// # Errors
    /// `BufferFull`.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], WireError> {
        postcard::to_slice(self, buffer)
            .map(|used| &*used)
            .map_err(|_| WireError::BufferFull { needed: MAX_META_LEN as u64 })
    }

    /// Decodes; what a newer version appended is ignored.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_META_LEN {
            return Err(WireError::Malformed("entry meta over 256 bytes"));
        }
        let (meta, _) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_| WireError::Malformed("entry meta"))?;
        if meta.first_commit > meta.last_commit {
            return Err(WireError::Malformed("commit range of an entry"));
        }
        Ok(meta)
    }
}

/// Payload of an [`EntryKind::Snapshot`]: the snapshot `id`, uploaded beside the log, holds the
/// database as it was after entry `as_of` of the same epoch (0: before the first).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotNote {
    /// The uploaded snapshot.
    pub id: SnapshotId,
    /// The last entry whose changes it holds.
    pub as_of: SeqNo,
    /// Length of the database image in bytes.
    pub len: u64,
    /// SHA-256 of the database image.
    pub sha256: [u8; 32],
    /// Hash of its [content](crate::content), found by reading all of it; `None` where the sender could
    /// not.
    pub content_hash: Option<ContentSum>,
}

impl SnapshotNote {
    /// Longest encoded note in bytes.
    pub const MAX_LEN: usize = 16 + 10 + 10 + 32 + 17;

    /// Encodes into the start of `buffer` and returns the part used.
    ///
    /// # Errors
    /// `BufferFull`.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], WireError> {
        postcard::to_slice(self, buffer)
            .map(|used| &*used)
            .map_err(|_| WireError::BufferFull { needed: Self::MAX_LEN as u64 })
    }

    /// Decodes; what a newer version appended is ignored, and what an older one did not have is
    /// `None`.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let malformed = |_| WireError::Malformed("snapshot note");
        type Fixed = (SnapshotId, SeqNo, u64, [u8; 32]);
        let (fixed, rest) = postcard::take_from_bytes::<Fixed>(bytes).map_err(malformed)?;
        let (id, as_of, len, sha256) = fixed;
        let content_hash = match rest {
            [] => None,
            rest => postcard::take_from_bytes(rest).map_err(malformed)?.0,
        };
        Ok(Self { id, as_of, len, sha256, content_hash })
    }
}
