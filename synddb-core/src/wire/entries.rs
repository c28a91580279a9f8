//! A run of entries in one frame.
//!
//! ```text
//!  count u32 LE │ raw length u32 LE │ postcard EntriesHead │ region
//!  region, raw:  (meta length varint │ meta │ payload length varint │ payload) × count
//! ```
//!
//! The region may be compressed as a whole; `raw length` is its length before. The frame carries
//! the chain before its first entry, so that a receiver can tell whether the entries it knows
//! already are the same.

use serde::{Deserialize, Serialize};

use super::{
    EntryMeta, WireError,
    entry::MAX_META_LEN,
    header::{self, Kind},
    message::Compression,
};
use crate::{Chain, Epoch, SeqNo};

/// Most bytes that an entry takes in a frame beside its meta and payload.
const ENTRY_OVERHEAD: usize = 2 + 10;
/// Most bytes of a frame that are not entries.
pub const FRAME_OVERHEAD: usize = header::LEN + 8 + HEAD_MAX;
const HEAD_MAX: usize = 10 + 10 + 32 + 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct EntriesHead {
    epoch: Epoch,
    first_seq: SeqNo,
    chain_before: Chain,
    compression: Compression,
}

/// An entry as it is stored and hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The encoded [`EntryMeta`].
    pub meta: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// A decoded frame of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntriesFrame<'a> {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of the first entry.
    pub first_seq: SeqNo,
    /// How many entries.
    pub count: u32,
    /// Chain before the first entry.
    pub chain_before: Chain,
    /// How the region is compressed.
    pub compression: Compression,
    /// Length of the region in bytes, uncompressed.
    pub raw_len: u32,
    region: &'a [u8],
}

impl<'a> EntriesFrame<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let malformed = WireError::Malformed("Entries");
        let (count, rest) = body.split_first_chunk::<4>().ok_or(malformed)?;
        let (raw_len, rest) = rest.split_first_chunk::<4>().ok_or(malformed)?;
        let (head, region) =
            postcard::take_from_bytes::<EntriesHead>(rest).map_err(|_| malformed)?;
        let frame = Self {
            epoch: head.epoch,
            first_seq: head.first_seq,
            count: u32::from_le_bytes(*count),
            chain_before: head.chain_before,
            compression: head.compression,
            raw_len: u32::from_le_bytes(*raw_len),
            region,
        };
        if frame.count == 0 || frame.first_seq < SeqNo::FIRST {
            return Err(WireError::Malformed("Entries without entries"));
        }
        if frame.first_seq.0.checked_add(u64::from(frame.count)).is_none() {
            return Err(WireError::Malformed("Entries past the last number"));
        }
        Ok(frame)
    }

    /// The last entry's number.
    pub fn last_seq(&self) -> SeqNo {
        SeqNo(self.first_seq.0 + u64::from(self.count) - 1)
    }

    /// The region as it came, perhaps compressed.
    pub fn region(&self) -> &'a [u8] {
        self.region
    }

    /// The same frame with its region decompressed by the caller.
    ///
    /// # Errors
    /// `Malformed` where the length is not the announced one.
    pub fn with_raw_region<'r>(&self, raw: &'r [u8]) -> Result<EntriesFrame<'r>, WireError> {
        if raw.len() != self.raw_len as usize {
            return Err(WireError::Malformed("length of the decompressed entries"));
        }
        let Self { epoch, first_seq, count, chain_before, raw_len, .. } = *self;
        Ok(EntriesFrame {
            epoch,
            first_seq,
            count,
            chain_before,
            compression: Compression::None,
            raw_len,
            region: raw,
        })
    }

    /// The entries in order. Ends with an error at the first thing that does not decode; bytes
    /// behind the last entry are ignored.
    pub fn entries(&self) -> Entries<'a> {
        Entries {
            rest: if self.compression == Compression::None { self.region } else { &[] },
            seq: self.first_seq,
            left: self.count,
        }
    }
}

/// Iterator over the entries of a frame.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
    seq: SeqNo,
    left: u32,
}

impl<'a> Entries<'a> {
    fn read(&mut self) -> Result<(EntryMeta, Entry<'a>), WireError> {
        let meta = self.piece()?;
        let payload = self.piece()?;
        let decoded = EntryMeta::decode(meta)?;
        if decoded.seq != self.seq {
            return Err(WireError::Malformed("entries out of order"));
        }
        self.seq = self.seq.next();
        Ok((decoded, Entry { meta, payload }))
    }

    fn piece(&mut self) -> Result<&'a [u8], WireError> {
        let (piece, rest) = postcard::take_from_bytes::<&[u8]>(self.rest)
            .map_err(|_| WireError::Malformed("an entry's bytes"))?;
        self.rest = rest;
        Ok(piece)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(EntryMeta, Entry<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let entry = self.read();
        self.left = if entry.is_ok() { self.left - 1 } else { 0 };
        Some(entry)
    }
}

/// Writes a frame of entries into the caller's buffer, entry by entry.
#[derive(Debug)]
pub struct EntriesWriter<'b> {
    buffer: &'b mut [u8],
    head: EntriesHead,
    region_at: usize,
    len: usize,
    count: u32,
    chain: Chain,
}

/// What was written into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The first entry.
    pub first_seq: SeqNo,
    /// The last entry.
    pub last_seq: SeqNo,
    /// Chain after the last entry.
    pub chain: Chain,
    /// Length of the region in bytes, uncompressed.
    pub region_len: usize,
    /// Length of the frame in bytes, as it goes out.
    pub frame_len: usize,
}

impl<'b> EntriesWriter<'b> {
    /// Begins a frame whose first entry is `first_seq`.
    ///
    /// # Errors
    /// `BufferFull` where not even the head fits.
    pub fn new(
        buffer: &'b mut [u8],
        epoch: Epoch,
        first_seq: SeqNo,
        chain_before: Chain,
    ) -> Result<Self, WireError> {
        let head = EntriesHead { epoch, first_seq, chain_before, compression: Compression::None };
        let region_at = put_head(buffer, &head)?;
        Ok(Self { buffer, head, region_at, len: region_at, count: 0, chain: chain_before })
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// `BufferFull`: the frame stays as it was. `Malformed` where the meta is over its limit.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<(), WireError> {
        if entry.meta.len() > MAX_META_LEN {
            return Err(WireError::Malformed("entry meta over 256 bytes"));
        }
        let needed = entry.meta.len() + entry.payload.len() + ENTRY_OVERHEAD;
        if self.buffer.len() - self.len < needed || self.count == u32::MAX {
            return Err(WireError::BufferFull { needed: (self.len + needed) as u64 });
        }
        for piece in [entry.meta, entry.payload] {
            let used = postcard::to_slice(piece, &mut self.buffer[self.len..])
                .map_err(|_| WireError::BufferFull { needed: (self.len + needed) as u64 })?
                .len();
            self.len += used;
        }
        self.chain = self.chain.next(entry.meta, entry.payload);
        self.count += 1;
        Ok(())
    }

    /// Entries written so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The entries written so far: what a driver compresses, as a whole, before it
    /// [completes](Self::finish_compressed) the frame.
    pub fn region(&self) -> &[u8] {
        &self.buffer[self.region_at..self.len]
    }

    /// Completes the frame.
    ///
    /// # Errors
    /// `Malformed` where it holds no entry.
    pub fn finish(self, tag: u32) -> Result<Written, WireError> {
        let region_len = self.region().len();
        self.seal(tag, region_len)
    }

    /// Completes the frame with `compressed` in the place of the [`region`](Self::region) that it
    /// decompresses to.
    ///
    /// # Errors
    /// `Malformed` where it holds no entry, `BufferFull` where `compressed` is longer than the
    /// buffer has room.
    pub fn finish_compressed(
        mut self,
        tag: u32,
        compression: Compression,
        compressed: &[u8],
    ) -> Result<Written, WireError> {
        let region_len = self.region().len();
        self.head.compression = compression;
        self.region_at = put_head(self.buffer, &self.head)?;
        self.len = self.region_at + compressed.len();
        self.buffer
            .get_mut(self.region_at..self.len)
            .ok_or(WireError::BufferFull { needed: self.len as u64 })?
            .copy_from_slice(compressed);
        self.seal(tag, region_len)
    }

    fn seal(self, tag: u32, region_len: usize) -> Result<Written, WireError> {
        if self.count == 0 {
            return Err(WireError::Malformed("Entries without entries"));
        }
        put_counts(self.buffer, self.count, region_len);
        header::seal(&mut self.buffer[..self.len], Kind::Entries, tag)?;
        let first_seq = self.head.first_seq;
        Ok(Written {
            first_seq,
            last_seq: SeqNo(first_seq.0 + u64::from(self.count) - 1),
            chain: self.chain,
            region_len,
            frame_len: self.len,
        })
    }
}

/// Writes the head where it belongs and gives where the region begins.
fn put_head(buffer: &mut [u8], head: &EntriesHead) -> Result<usize, WireError> {
    let full = WireError::BufferFull { needed: FRAME_OVERHEAD as u64 };
    let room = buffer.get_mut(header::LEN + 8..).ok_or(full)?;
    let used = postcard::to_slice(head, room).map_err(|_| full)?.len();
    Ok(header::LEN + 8 + used)
}

fn put_counts(buffer: &mut [u8], count: u32, raw_len: usize) {
    buffer[header::LEN..header::LEN + 4].copy_from_slice(&count.to_le_bytes());
    // A frame's body length is a u32, so the region's is too.
    buffer[header::LEN + 4..header::LEN + 8].copy_from_slice(&(raw_len as u32).to_le_bytes());
}
