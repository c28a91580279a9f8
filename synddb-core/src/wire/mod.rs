//! The wire: frames, what is in them, and how they are found in a stream of bytes.
//!
//! A frame is a fixed header ([`header`]) and a body: one postcard value ([`message`]), and for
//! the kinds that carry data ([`entries`]) the data behind it, decoded by borrowing. WIRE.md is
//! the specification; this module follows it.
//!
//! Nothing here panics or allocates, whatever the bytes.

pub mod accumulator;
pub mod entries;
pub mod entry;
pub mod header;
pub mod message;
pub mod schema;
pub mod serial;

use core::fmt;

pub use accumulator::Accumulator;
pub use entries::{EntriesFrame, EntriesWriter, Entry};
pub use entry::{EntryKind, EntryMeta, SnapshotNote};
pub use header::{Header, Kind};
pub use message::Message;
pub use serial::Unpacker;

/// Why bytes are not a frame that this version understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not `SYDB`: the other side speaks something else.
    NotOurs,
    /// The frame is of a protocol version that this side does not speak.
    Version {
        /// The version in the header.
        theirs: u8,
    },
    /// The header announces more bytes than the receiver of the frame accepts.
    TooLarge {
        /// Length of the frame in bytes, header included.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes end before the frame does.
    Truncated,
    /// The checksum does not match: the bytes were damaged on the way.
    Checksum,
    /// A kind of frame that this side does not know.
    UnknownKind(u8),
    /// The checksum matches but the body does not decode; names the part.
    Malformed(&'static str),
    /// The caller's buffer is too small for what was to be written.
    BufferFull {
        /// Bytes needed, as far as known.
        needed: u64,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("the bytes are not a synddb frame"),
            Self::Version { theirs } => write!(
                f,
                "the frame is of protocol version {theirs}, this side speaks version {}",
                header::VERSION
            ),
            Self::TooLarge { len, limit } => {
                write!(f, "a frame of {len} bytes is over the limit of {limit} bytes")
            }
            Self::Truncated => f.write_str("the frame is cut short"),
            Self::Checksum => f.write_str("the frame's checksum does not match its bytes"),
            Self::UnknownKind(kind) => write!(f, "unknown kind of frame {kind}"),
            Self::Malformed(part) => write!(f, "the frame's body does not decode: {part}"),
            Self::BufferFull { needed } => {
                write!(f, "the buffer is too small, {needed} bytes needed")
            }
        }
    }
}

impl core::error::Error for WireError {}
