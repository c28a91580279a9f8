//! The bodies of frames.
//!
//! Bodies grow only at their end: what a newer version appended is ignored. Variants of enums are
//! only appended. Hello's layout never changes.

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    WireError,
    header::{self, Header, Kind},
};
use crate::{Chain, Epoch, Nonce, OpenId, SeqNo, SnapshotId, StreamId};

/// Longest frame that is not [`Entries`](Kind::Entries), [`Fragment`](Kind::Fragment) or
/// [`SnapshotChunk`](Kind::SnapshotChunk), in bytes. Every peer accepts frames of this length.
pub const MAX_CONTROL_FRAME: usize = 16 * 1024;
/// Longest token in a Hello, in bytes.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
/// Longest stream name in bytes.
pub const MAX_NAME_LEN: usize = 128;

/// Bits of [`Hello::features`] and [`HelloAck::features`].
pub mod feature {
    /// Data may be compressed with [`Compression::Lz4`](super::Compression::Lz4).
    pub const LZ4: u32 = 1;
}

/// How the data of a frame is compressed: the region of [`Entries`](Kind::Entries), the `data` of
/// [`Fragment`] and [`SnapshotChunk`]. Anything but `None` only where both sides said in Hello and
/// HelloAck that they have the [`feature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Compression {
    /// As it is.
    None,
    /// One block in the [LZ4 block format], without a dictionary.
    ///
    /// [LZ4 block format]: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md
    Lz4,
}

impl Compression {
    /// The bits of [`feature`] that both sides need for it.
    pub(crate) fn features(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => feature::LZ4,
        }
    }
}

/// The first frame of a connection. Its layout never changes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// Oldest protocol version that the sender speaks.
    pub version_min: u8,
    /// Newest protocol version that the sender speaks.
    pub version_max: u8,
    /// See [`feature`].
    pub features: u32,
    /// The stream to append to.
    pub stream: StreamId,
    /// The user's name for it; empty where there is none.
    pub name: &'a str,
    /// One running sender: drawn at start.
    pub instance: Nonce,
    /// Drawn for this connection.
    pub nonce: Nonce,
    /// 0 where the connection begins. Otherwise the ticket of an earlier HelloAck: the session goes
    /// on and the Hello is not answered unless refused. HTTP uses it, where every request begins
    /// with a Hello.
    pub ticket: u64,
    /// Epoch that the sender is in; 0 where it has none.
    pub epoch: Epoch,
    /// First entry that the sender knows no acknowledgement of.
    pub next_seq: SeqNo,
    /// Chain before `next_seq`.
    pub chain: Chain,
    /// Longest frame in bytes that the sender accepts as an answer.
    pub max_frame: u32,
    /// Proof of the right to append; empty where none is needed.
    #[serde(borrow)]
    pub token: &'a [u8],
}

impl fmt::Debug for Hello<'_> {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &(self.version_min..=self.version_max))
            .field("features", &self.features)
            .field("stream", &self.stream)
            .field("name", &self.name)
            .field("ticket", &self.ticket)
            .field("epoch", &self.epoch)
            .field("next_seq", &self.next_seq)
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// Where a stream stands at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Current epoch; 0 where the stream is unknown.
    pub epoch: Epoch,
    /// The wish that this epoch was opened for.
    pub open_id: OpenId,
    /// The entry that is expected next.
    pub next_seq: SeqNo,
    /// Chain before `next_seq`.
    pub chain: Chain,
    /// Whether a complete snapshot of this epoch is stored: without one nothing can be restored.
    pub base_complete: bool,
}

/// How much of a fragmented entry is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Staged {
    /// The entry.
    pub seq: SeqNo,
    /// Chain after it: tells it from another entry of the same number.
    pub chain_after: Chain,
    /// Bytes of its payload that are stored.
    pub offset: u64,
}

/// How much of a snapshot is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SnapshotProgress {
    /// The snapshot.
    pub id: SnapshotId,
    /// Bytes that are stored.
    pub offset: u64,
    /// Whether all of it is stored and its hash was found right.
    pub complete: bool,
}

/// Limits that the receiver asks the sender to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest frame in bytes, header included: as it comes, and as it would be uncompressed.
    pub max_frame: u32,
    /// Longest payload of one entry in bytes.
    pub max_entry: u64,
    /// Longest snapshot in bytes.
    pub max_snapshot: u64,
    /// Bytes of frames that may be on their way unacknowledged. One frame always may.
    pub credit: u64,
}

/// Answer to a Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The protocol version to use from now on.
    pub version: u8,
    /// Those of the sender's features that the receiver has too; see [`feature`].
    pub features: u32,
    /// The Hello's nonce.
    pub nonce: Nonce,
    /// Names the session; see [`Hello::ticket`].
    pub ticket: u64,
    /// Where the stream stands.
    pub head: Head,
    /// Chain before the first entry of the current epoch.
    pub genesis: Chain,
    /// The receiver's chain before the Hello's `next_seq`, where it still knows it and the epochs
    /// are equal: tells a fork from entries whose acknowledgement was lost.
    pub chain_at_next: Option<Chain>,
    /// A fragmented entry that is partly here.
    pub staged: Option<Staged>,
    /// The snapshot that is partly here, if any.
    pub snapshot: Option<SnapshotProgress>,
    /// Limits to keep.
    pub limits: Limits,
    /// The receiver's clock, milliseconds since 1970.
    pub time_ms: u64,
}

/// A nonce to be bound into the token of the next Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// 256 random bits.
    pub nonce: [u8; 32],
}

/// Why a new epoch is wanted; for those who read the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ResyncReason {
    /// The stream begins.
    FirstAttach,
    /// The user asked for it.
    Requested,
    /// The outbox lives in memory and begins anew with every start.
    MemoryOutbox,
    /// The application did not stop cleanly, or its database changed while it was not attached.
    UncleanRestart,
    /// The schema changed.
    SchemaChanged,
    /// Another connection or process wrote to the database.
    ForeignWrite,
    /// A row with NULL in its declared key, which changesets cannot carry.
    NullKey,
    /// Capture could not tell what a commit changed.
    CaptureFailed,
    /// The queue reached its limit and became a snapshot.
    QueueFull,
    /// The sequencer no longer has what it had acknowledged.
    SequencerLostData,
    /// The sequencer has other entries than this sender sent.
    Diverged,
    /// The sequencer refused an entry as invalid or too large.
    EntryRefused,
    /// A snapshot holds something else than changesets led to, by their hashes.
    ContentDiffers,
    /// The outbox was damaged, and what it held is lost.
    OutboxDamaged,
}

impl ResyncReason {
    /// Encodes into the start of `buffer`, for an outbox; 5 bytes suffice.
    ///
    /// # Errors
    /// `BufferFull`.
    pub fn encode(self, buffer: &mut [u8]) -> Result<&[u8], WireError> {
        postcard::to_slice(&self, buffer)
            .map(|used| &*used)
            .map_err(|_| WireError::BufferFull { needed: 5 })
    }

    /// Decodes what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Malformed`: written by a newer version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        take(bytes, "reason for a resync")
    }
}

/// Opens a new epoch, if the stream still stands where the sender thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenEpoch {
    /// Where the stream stood: the condition.
    pub previous: Epoch,
    /// Where the stream stood: the condition.
    pub previous_next_seq: SeqNo,
    /// Where the stream stood: the condition.
    pub previous_chain: Chain,
    /// The new epoch is greater than this one too: the sender's last, of which the receiver may
    /// have lost all trace.
    pub floor: Epoch,
    /// Names this wish.
    pub open_id: OpenId,
    /// Why.
    pub reason: ResyncReason,
}

/// Everything before `head.next_seq` is stored durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack<'a> {
    /// Where the stream stands now.
    pub head: Head,
    /// A fragmented entry that is partly here.
    pub staged: Option<Staged>,
    /// Bytes that may be on their way unacknowledged.
    pub credit: u64,
    /// The receiver's clock, milliseconds since 1970.
    pub time_ms: u64,
    /// Room for the sequencer's signature over the head; opaque here.
    #[serde(borrow)]
    pub signature: &'a [u8],
}

/// What was too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TooLarge {
    /// The frame: send smaller ones.
    Frame,
    /// An entry's payload.
    Entry,
    /// The snapshot.
    Snapshot,
}

/// Why a frame was refused. Nothing of it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// Entries before these are missing; send from the head's `next_seq`.
    Gap(Head),
    /// Well, but not now.
    Busy {
        /// Wait this many milliseconds.
        retry_after_ms: u32,
    },
    /// Over a limit.
    TooLarge {
        /// What.
        what: TooLarge,
        /// The limit in bytes.
        limit: u64,
    },
    /// The token or certificate does not give the right to do this.
    Unauthorized,
    /// The epoch is over; carries where the stream stands.
    Fenced(Head),
    /// Another sender, or a newer connection, has taken the stream.
    Superseded,
    /// Other bytes are stored under a known number; carries where the stream stands.
    Fork(Head),
    /// Damaged on the way; send again.
    Corrupt,
    /// A kind of frame or a version that the receiver does not speak.
    Unsupported {
        /// Oldest version the receiver speaks.
        version_min: u8,
        /// Newest version the receiver speaks.
        version_max: u8,
    },
    /// The stream does not stand where OpenEpoch said; carries where it does.
    HeadMoved(Head),
    /// The entry is not what its meta says, and no resending will mend it.
    InvalidEntry {
        /// The entry.
        seq: SeqNo,
    },
    /// The receiver stores another part of this snapshot; continue from its offset.
    SnapshotGap(SnapshotProgress),
    /// The snapshot's hash is wrong, or it is not known: begin again.
    SnapshotInvalid,
    /// A frame that needs a Hello before it came without one.
    NoHello,
    /// The receiver could not store: a full or failing disk.
    StorageFailed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap(head) => {
                write!(f, "entries before these are missing, expected {}", head.next_seq)
            }
            Self::Busy { retry_after_ms } => write!(f, "busy, retry after {retry_after_ms} ms"),
            Self::TooLarge { what, limit } => {
                let what = match what {
                    TooLarge::Frame => "frame",
                    TooLarge::Entry => "entry",
                    TooLarge::Snapshot => "snapshot",
                };
                write!(f, "{what} over the limit of {limit} bytes")
            }
            Self::Unauthorized => f.write_str("not authorized for this stream"),
            Self::Fenced(head) => {
                write!(f, "the epoch is over, the stream is in epoch {}", head.epoch)
            }
            Self::Superseded => f.write_str("another sender has taken the stream"),
            Self::Fork(head) => write!(
                f,
                "other entries are stored before {} of epoch {}",
                head.next_seq, head.epoch
            ),
            Self::Corrupt => f.write_str("the frame was damaged on the way"),
            Self::Unsupported { version_min, version_max } => {
                write!(
                    f,
                    "unsupported, the receiver speaks versions {version_min} to {version_max}"
                )
            }
            Self::HeadMoved(head) => {
                write!(f, "the stream stands at entry {} of epoch {}", head.next_seq, head.epoch)
            }
            Self::InvalidEntry { seq } => write!(f, "entry {seq} is invalid"),
            Self::SnapshotGap(at) => write!(f, "the snapshot is stored up to byte {}", at.offset),
            Self::SnapshotInvalid => f.write_str("the snapshot's hash is wrong or it is unknown"),
            Self::NoHello => f.write_str("the connection did not begin with a Hello"),
            Self::StorageFailed => f.write_str("the receiver could not store"),
        }
    }
}

/// A refusal, and a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack<'a> {
    /// Why.
    pub refusal: Refusal,
    /// What to tell the user; may be empty.
    pub text: &'a str,
}

/// An entry that is larger than a frame, piece by piece. The receiver stages the pieces and
/// appends the entry with the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment<'a> {
    /// The epoch.
    pub epoch: Epoch,
    /// The entry.
    pub seq: SeqNo,
    /// Chain before the entry.
    pub chain_before: Chain,
    /// Chain after the entry, which the pieces together must give.
    pub chain_after: Chain,
    /// The entry's encoded [`EntryMeta`](super::EntryMeta).
    #[serde(borrow)]
    pub meta: &'a [u8],
    /// Length of the whole payload in bytes.
    pub total: u64,
    /// Where this piece begins.
    pub offset: u64,
    /// How `data` is compressed.
    pub compression: Compression,
    /// Length of this piece in bytes, uncompressed.
    pub len: u32,
    /// The piece.
    #[serde(borrow)]
    pub data: &'a [u8],
}

/// Announces a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBegin {
    /// The epoch that it belongs to.
    pub epoch: Epoch,
    /// Names it.
    pub id: SnapshotId,
    /// Length in bytes.
    pub len: u64,
}

/// A piece of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk<'a> {
    /// The epoch.
    pub epoch: Epoch,
    /// The snapshot.
    pub id: SnapshotId,
    /// Where this piece begins.
    pub offset: u64,
    /// How `data` is compressed.
    pub compression: Compression,
    /// Length of this piece in bytes, uncompressed.
    pub len: u32,
    /// The piece.
    #[serde(borrow)]
    pub data: &'a [u8],
}

/// All of a snapshot was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEnd {
    /// The epoch.
    pub epoch: Epoch,
    /// The snapshot.
    pub id: SnapshotId,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of all of it.
    pub sha256: [u8; 32],
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Farewell {
    /// Nothing more to send.
    Done,
    /// The process stops; come back later.
    Shutdown,
    /// There are as many connections as are allowed; come back later.
    Busy,
    /// Nothing came for too long.
    Idle,
    /// The rest of a frame took too long.
    Late,
    /// Only TLS is spoken at this address, and this came in the clear.
    TlsOnly,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub farewell: Farewell,
}

/// A decoded frame, borrowing from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // lives on the stack for the length of one call
pub enum Message<'a> {
    /// See [`Hello`].
    Hello(Hello<'a>),
    /// See [`HelloAck`].
    HelloAck(HelloAck),
    /// See [`Challenge`].
    Challenge(Challenge),
    /// See [`OpenEpoch`].
    OpenEpoch(OpenEpoch),
    /// See [`EntriesFrame`](super::EntriesFrame).
    Entries(super::EntriesFrame<'a>),
    /// See [`Fragment`].
    Fragment(Fragment<'a>),
    /// See [`Ack`].
    Ack(Ack<'a>),
    /// See [`Nack`].
    Nack(Nack<'a>),
    /// See [`SnapshotBegin`].
    SnapshotBegin(SnapshotBegin),
    /// See [`SnapshotChunk`].
    SnapshotChunk(SnapshotChunk<'a>),
    /// See [`SnapshotEnd`].
    SnapshotEnd(SnapshotEnd),
    /// See [`SnapshotProgress`].
    SnapshotAck(SnapshotProgress),
    /// Are you there? Answered by an [`Ack`], since the stream may have moved on meanwhile.
    Ping,
    /// See [`Bye`].
    Bye(Bye),
}

impl<'a> Message<'a> {
    /// Decodes one whole frame of at most `limit` bytes; gives its tag too.
    ///
    /// # Errors
    /// Any [`WireError`] but `BufferFull`.
    pub fn decode(frame: &'a [u8], limit: usize) -> Result<(u32, Self), WireError> {
        let (header, body) = header::open(frame, limit)?;
        Ok((header.tag, Self::decode_body(&header, body)?))
    }

    /// Decodes the body of a frame whose header was opened.
    ///
    /// # Errors
    /// `UnknownKind`, `Malformed`.
    pub fn decode_body(header: &Header, body: &'a [u8]) -> Result<Self, WireError> {
        let kind = header.kind()?;
        if body.len() + header::LEN > MAX_CONTROL_FRAME
            && !matches!(kind, Kind::Entries | Kind::Fragment | Kind::SnapshotChunk)
        {
            return Err(WireError::Malformed("control frame over 16 KiB"));
        }
        Ok(match kind {
            Kind::Hello => {
                let hello: Hello<'_> = take(body, "Hello")?;
                if hello.name.len() > MAX_NAME_LEN {
                    return Err(WireError::Malformed("stream name over 128 bytes"));
                }
                if hello.token.len() > MAX_TOKEN_LEN {
                    return Err(WireError::Malformed("token over 8 KiB"));
                }
                Self::Hello(hello)
            }
            Kind::HelloAck => Self::HelloAck(take(body, "HelloAck")?),
            Kind::Challenge => Self::Challenge(take(body, "Challenge")?),
            Kind::OpenEpoch => Self::OpenEpoch(take(body, "OpenEpoch")?),
            Kind::Entries => Self::Entries(super::EntriesFrame::decode(body)?),
            Kind::Fragment => Self::Fragment(take(body, "Fragment")?),
            Kind::Ack => Self::Ack(take(body, "Ack")?),
            Kind::Nack => Self::Nack(take(body, "Nack")?),
            Kind::SnapshotBegin => Self::SnapshotBegin(take(body, "SnapshotBegin")?),
            Kind::SnapshotChunk => Self::SnapshotChunk(take(body, "SnapshotChunk")?),
            Kind::SnapshotEnd => Self::SnapshotEnd(take(body, "SnapshotEnd")?),
            Kind::SnapshotAck => Self::SnapshotAck(take(body, "SnapshotAck")?),
            Kind::Ping => Self::Ping,
            Kind::Bye => Self::Bye(take(body, "Bye")?),
        })
    }

    /// Encodes as a frame with this tag into the start of `buffer`; returns its length.
    ///
    /// # Errors
    /// `BufferFull`. [`Entries`](Self::Entries) are written by
    /// [`EntriesWriter`](super::EntriesWriter) and give `Malformed` here.
    pub fn encode(&self, tag: u32, buffer: &mut [u8]) -> Result<usize, WireError> {
        let (kind, body_len) = match self {
            Self::Hello(body) => (Kind::Hello, put(body, buffer)?),
            Self::HelloAck(body) => (Kind::HelloAck, put(body, buffer)?),
            Self::Challenge(body) => (Kind::Challenge, put(body, buffer)?),
            Self::OpenEpoch(body) => (Kind::OpenEpoch, put(body, buffer)?),
            Self::Entries(_) => {
                return Err(WireError::Malformed("Entries is written by EntriesWriter"));
            }
            Self::Fragment(body) => (Kind::Fragment, put(body, buffer)?),
            Self::Ack(body) => (Kind::Ack, put(body, buffer)?),
            Self::Nack(body) => (Kind::Nack, put(body, buffer)?),
            Self::SnapshotBegin(body) => (Kind::SnapshotBegin, put(body, buffer)?),
            Self::SnapshotChunk(body) => (Kind::SnapshotChunk, put(body, buffer)?),
            Self::SnapshotEnd(body) => (Kind::SnapshotEnd, put(body, buffer)?),
            Self::SnapshotAck(body) => (Kind::SnapshotAck, put(body, buffer)?),
            Self::Ping => (Kind::Ping, 0),
            Self::Bye(body) => (Kind::Bye, put(body, buffer)?),
        };
        let len = header::LEN + body_len;
        let frame = buffer.get_mut(..len).ok_or(WireError::BufferFull { needed: len as u64 })?;
        header::seal(frame, kind, tag)?;
        Ok(len)
    }
}

impl Refusal {
    /// How long to wait, where the refusal says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after_ms } => Some(Duration::from_millis((*retry_after_ms).into())),
            _ => None,
        }
    }
}

fn take<'a, T: Deserialize<'a>>(body: &'a [u8], part: &'static str) -> Result<T, WireError> {
    postcard::take_from_bytes(body).map(|(value, _)| value).map_err(|_| WireError::Malformed(part))
}

fn put<T: Serialize>(body: &T, buffer: &mut [u8]) -> Result<usize, WireError> {
    let room = buffer.get_mut(header::LEN..).unwrap_or_default();
    match postcard::to_slice(body, room) {
        Ok(used) => Ok(used.len()),
        Err(_) => Err(WireError::BufferFull { needed: MAX_CONTROL_FRAME as u64 }),
    }
}
