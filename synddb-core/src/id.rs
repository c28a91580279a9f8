use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names one replicated database: 128 bits, random or derived from a name.
///
/// Written as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId([u8; 16]);

impl StreamId {
    /// The identifier with these bytes; they should come from a good random source.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The identifier of the stream that the user named `name`.
    ///
    /// Both sides compute the same one: the first 16 bytes of
    /// SHA-256(`"synddb stream name v1\0"` ‖ name).
    pub fn from_name(name: &str) -> Self {
        let digest =
            Sha256::new().chain_update(b"synddb stream name v1\0").chain_update(name).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidStreamId;

impl fmt::Display for InvalidStreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stream id is 32 hexadecimal digits")
    }
}

impl core::error::Error for InvalidStreamId {}

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<Self, InvalidStreamId> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(InvalidStreamId);
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| (d as char).to_digit(16).ok_or(InvalidStreamId);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(id))
    }
}

/// One unbroken history of a stream. The receiver grants epochs, each one greater than the last;
/// 0 means none yet. An epoch begins from a snapshot, never in the middle of another's changes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of an entry in its epoch, counted from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// The first entry of every epoch.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    ///
    /// Saturates: at a million entries a second the end is 584,000 years away.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number before this one; 0, which no entry has, before the first.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_id!(
    /// 128 random bits drawn anew for every connection, from the operating system: a virtual
    /// machine that was cloned or rolled back repeats everything else.
    Nonce,
    16
);
random_id!(
    /// 128 random bits that name one wish to open an epoch, so that asking again after a lost
    /// answer gets the same epoch.
    OpenId,
    16
);
random_id!(
    /// 128 random bits that name one snapshot, so that an upload can be resumed.
    SnapshotId,
    16
);

pub(crate) fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_id_reads_back_what_it_wrote() {
        let id = StreamId::from_name("orders");
        let mut text = heapless::String::<32>::new();
        core::fmt::write(&mut text, format_args!("{id}")).expect("32 digits");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!("orders".parse::<StreamId>(), Err(InvalidStreamId));
        assert_ne!(id, StreamId::from_name("order"));
    }
}
