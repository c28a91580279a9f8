use core::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Epoch, OpenId, StreamId, id::hex};

/// The running hash of an epoch: two logs with equal chains hold equal entries, all of them.
///
/// `chain(0) = SHA-256("synddb chain v1\0" ‖ stream ‖ epoch ‖ wish ‖ previous head)`,
/// `chain(n) = SHA-256(chain(n-1) ‖ meta length ‖ meta ‖ payload length ‖ payload)`, with the
/// numbers as little-endian u64 and the entry as it is stored: uncompressed and unfragmented.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// The chain before the first entry of `epoch`, which was opened for the wish `open_id` and
    /// follows `previous` (all zero for the first epoch of a stream).
    ///
    /// The wish is part of it because numbers can repeat: a receiver that was restored from a
    /// backup may grant an epoch's number twice.
    pub fn genesis(stream: StreamId, epoch: Epoch, open_id: OpenId, previous: Chain) -> Self {
        let hash = Sha256::new()
            .chain_update(b"synddb chain v1\0")
            .chain_update(stream.as_bytes())
            .chain_update(epoch.0.to_le_bytes())
            .chain_update(open_id.0)
            .chain_update(previous.0);
        Self(hash.finalize().into())
    }

    /// The chain after one more entry.
    #[must_use]
    pub fn next(&self, meta: &[u8], payload: &[u8]) -> Self {
        let mut hasher = self.entry(meta, payload.len() as u64);
        hasher.update(payload);
        hasher.finish()
    }

    /// Starts on one more entry whose payload of `payload_len` bytes comes in pieces.
    #[must_use]
    pub fn entry(&self, meta: &[u8], payload_len: u64) -> ChainHasher {
        ChainHasher(
            Sha256::new()
                .chain_update(self.0)
                .chain_update((meta.len() as u64).to_le_bytes())
                .chain_update(meta)
                .chain_update(payload_len.to_le_bytes()),
        )
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain(")?;
        hex(&self.0[..4], f)?;
        f.write_str("…)")
    }
}

/// A chain value in the making, for an entry that comes in pieces.
#[derive(Clone)]
pub struct ChainHasher(Sha256);

impl ChainHasher {
    /// Adds the next piece of the payload.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The chain after the entry. All of its payload must have been added.
    #[must_use]
    pub fn finish(self) -> Chain {
        Chain(self.0.finalize().into())
    }
}

impl fmt::Debug for ChainHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_the_whole_give_the_same_chain() {
        let start =
            Chain::genesis(StreamId::from_name("s"), Epoch(1), OpenId([7; 16]), Chain::default());
        let mut pieces = start.entry(b"meta", 7);
        pieces.update(b"pay");
        pieces.update(b"load");
        assert_eq!(pieces.finish(), start.next(b"meta", b"payload"));
        assert_ne!(start.next(b"meta", b"payload"), start.next(b"metap", b"ayload"));
    }
}
