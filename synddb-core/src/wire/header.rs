//! The fixed header that every frame begins with.
//!
//! ```text
//!  0       4   5   6     8        12        16        20
//!  ┌───────┬───┬───┬─────┬────────┬─────────┬─────────┬── … ──┐
//!  │ SYDB  │ver│knd│flags│  tag   │ bodylen │ CRC32C  │ body  │
//!  └───────┴───┴───┴─────┴────────┴─────────┴─────────┴── … ──┘
//! ```
//!
//! Numbers are little-endian. The checksum covers the header's first 16 bytes and the body.

use super::WireError;

/// Length of the header in bytes.
pub const LEN: usize = 20;
/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SYDB";
/// The protocol version of frames that this crate writes.
pub const VERSION: u8 = 1;

#[cfg(feature = "std")]
pub(crate) static CRC: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
#[cfg(not(feature = "std"))]
pub(crate) static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Sender to receiver: who I am and what I have.
    Hello = 1,
    /// Receiver to sender: what I have of it.
    HelloAck = 2,
    /// Receiver to sender: a nonce to be bound into the token.
    Challenge = 3,
    /// Sender to receiver: begin a new epoch.
    OpenEpoch = 4,
    /// Sender to receiver: a run of entries.
    Entries = 5,
    /// Sender to receiver: a piece of an entry that is larger than a frame.
    Fragment = 6,
    /// Receiver to sender: stored, durably.
    Ack = 7,
    /// Receiver to sender: refused, and why.
    Nack = 8,
    /// Sender to receiver: a snapshot follows.
    SnapshotBegin = 9,
    /// Sender to receiver: a piece of a snapshot.
    SnapshotChunk = 10,
    /// Sender to receiver: the snapshot is complete.
    SnapshotEnd = 11,
    /// Receiver to sender: how much of a snapshot is stored.
    SnapshotAck = 12,
    /// Sender to receiver: are you there? Answered by an Ack.
    Ping = 13,
    /// Either way: this connection ends in order.
    Bye = 14,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Hello,
        Self::HelloAck,
        Self::Challenge,
        Self::OpenEpoch,
        Self::Entries,
        Self::Fragment,
        Self::Ack,
        Self::Nack,
        Self::SnapshotBegin,
        Self::SnapshotChunk,
        Self::SnapshotEnd,
        Self::SnapshotAck,
        Self::Ping,
        Self::Bye,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is; kept as a byte so that a kind this side does not know can be refused
    /// with its tag.
    pub kind: u8,
    /// None is defined yet; unknown flags are ignored.
    pub flags: u16,
    /// Chosen by the sender of a frame, repeated in the answer to it.
    pub tag: u32,
    /// Length of the body in bytes.
    pub body_len: u32,
    crc: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may hold less or more than the frame.
    ///
    /// # Errors
    /// `NotOurs` as soon as a byte of the magic differs, `Version`, `TooLarge` where the whole
    /// frame would exceed `limit` bytes, and `Truncated` where more bytes are needed.
    pub fn read(bytes: &[u8], limit: usize) -> Result<Self, WireError> {
        let magic = bytes.len().min(4);
        if bytes[..magic] != MAGIC[..magic] {
            return Err(WireError::NotOurs);
        }
        let Some((head, _)) = bytes.split_first_chunk::<LEN>() else {
            return Err(WireError::Truncated);
        };
        if head[4] != VERSION {
            return Err(WireError::Version { theirs: head[4] });
        }
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let header = Self {
            kind: head[5],
            flags: u16::from_le_bytes([head[6], head[7]]),
            tag: u32_at(8),
            body_len: u32_at(12),
            crc: u32_at(16),
        };
        let len = u64::from(header.body_len) + LEN as u64;
        if len > limit as u64 {
            return Err(WireError::TooLarge { len, limit: limit as u64 });
        }
        Ok(header)
    }

    /// Length of the whole frame in bytes.
    pub fn frame_len(&self) -> usize {
        LEN + self.body_len as usize
    }

    /// What the frame is.
    ///
    /// # Errors
    /// `UnknownKind`.
    pub fn kind(&self) -> Result<Kind, WireError> {
        Kind::from_byte(self.kind).ok_or(WireError::UnknownKind(self.kind))
    }
}

/// Splits one whole frame into its header and body, and checks the checksum.
///
/// # Errors
/// Those of [`Header::read`], `Truncated` where `frame` is shorter than announced, `Malformed`
/// where it is longer, and `Checksum`.
pub fn open(frame: &[u8], limit: usize) -> Result<(Header, &[u8]), WireError> {
    let header = Header::read(frame, limit)?;
    match frame.len() {
        len if len < header.frame_len() => Err(WireError::Truncated),
        len if len > header.frame_len() => Err(WireError::Malformed("bytes behind the frame")),
        _ => {
            let body = &frame[LEN..];
            if checksum(&frame[..LEN], body) != header.crc {
                return Err(WireError::Checksum);
            }
            Ok((header, body))
        }
    }
}

/// Writes the header of a frame whose body lies behind it in `frame` already.
///
/// # Errors
/// `BufferFull` where `frame` is shorter than a header, `TooLarge` where the body is longer than
/// its length field can say.
pub fn seal(frame: &mut [u8], kind: Kind, tag: u32) -> Result<(), WireError> {
    let Some((head, body)) = frame.split_first_chunk_mut::<LEN>() else {
        return Err(WireError::BufferFull { needed: LEN as u64 });
    };
    let Ok(body_len) = u32::try_from(body.len()) else {
        return Err(WireError::TooLarge { len: body.len() as u64, limit: u32::MAX.into() });
    };
    head[..4].copy_from_slice(&MAGIC);
    head[4] = VERSION;
    head[5] = kind as u8;
    head[6..8].copy_from_slice(&0u16.to_le_bytes());
    head[8..12].copy_from_slice(&tag.to_le_bytes());
    head[12..16].copy_from_slice(&body_len.to_le_bytes());
    let crc = checksum(head, body);
    head[16..].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&head[..16]);
    digest.update(body);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut frame = [0; LEN + 9];
        frame[LEN..].copy_from_slice(b"some body");
        seal(&mut frame, Kind::Ping, 7).expect("fits");
        let (header, body) = open(&frame, 100).expect("whole");
        assert_eq!((header.kind(), header.tag, body), (Ok(Kind::Ping), 7, &b"some body"[..]));
        for bit in 0..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&frame, 100).is_err(), "bit {bit}");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..frame.len() {
            assert_eq!(open(&frame[..len], 100), Err(WireError::Truncated), "{len} bytes");
        }
        assert_eq!(open(&frame, 28), Err(WireError::TooLarge { len: 29, limit: 28 }));
        assert_eq!(open(b"HTTP/1.1 200 OK", 100), Err(WireError::NotOurs));
    }

    #[test]
    fn kinds_are_their_bytes() {
        for (at, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at + 1);
        }
    }
}
