use serde::{Deserialize, Serialize};

use super::storage::MAX_RECORD;
use crate::{
    Epoch, OpenId, SeqNo, StreamId, content::ContentSum, sender::Position,
    wire::message::ResyncReason,
};

/// Version of the record's layout.
const VERSION: u8 = 2;

/// What a device knows beside its entries; written before anything is sent that rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) version: u8,
    pub(super) stream: StreamId,
    /// Tells whether the declared tables are those of before: the start of their image's hash.
    pub(super) tables: [u8; 8],
    /// How often the device started, so that what it draws is never drawn twice.
    pub(super) starts: u32,
    /// The granted epoch, and where it was acknowledged when this was written.
    pub(super) position: Position,
    /// The wish that the granted epoch was opened for.
    pub(super) opened: OpenId,
    /// Number of the entry that is the granted epoch's second: the first is the note of its base.
    pub(super) first: u64,
    /// Whether the receiver said that it has the epoch's base.
    pub(super) base_stored: bool,
    /// The epoch that is wanted.
    pub(super) wish: Option<Wish>,
    /// The sum of the changes of all entries that there were when this was written, in whatever epoch.
    pub(super) changes: ContentSum,
    /// The same before entry `first`, with empty tables: what the epoch's hashes begin from.
    pub(super) first_changes: ContentSum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) open_id: OpenId,
    pub(super) reason: ResyncReason,
    /// Number of the entry that will be its second.
    pub(super) first: u64,
    /// The sum of the changes before it.
    pub(super) first_changes: ContentSum,
}

impl State {
    /// A device that was never here.
    pub(super) fn fresh(stream: StreamId, tables: [u8; 8]) -> Self {
        Self {
            version: VERSION,
            stream,
            tables,
            starts: 0,
            position: Position::default(),
            opened: OpenId([0; 16]),
            first: 1,
            base_stored: false,
            wish: None,
            changes: ContentSum::default(),
            first_changes: ContentSum::default(),
        }
    }

    pub(super) fn encode<'b>(&self, buffer: &'b mut [u8; MAX_RECORD]) -> &'b [u8] {
        // 1 + 16 + 8 + 5 + (10 + 10 + 32) + 16 + 10 + 1 + (1 + 16 + 5 + 10 + 16) + 32 bytes at most.
        postcard::to_slice(self, buffer).map_or(&[], |used| used)
    }

    /// `None` where it is damaged, or of a version that this one does not know.
    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let state: Self = postcard::from_bytes(record).ok()?;
        (state.version == VERSION).then_some(state)
    }

    /// Number of the oldest entry that is not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        match self.wish {
            Some(wish) => wish.first,
            None => self.number(self.position.next_seq.max(SeqNo(2))),
        }
    }

    /// The entry's number in the storage; only for what is not the note.
    pub(super) fn number(&self, seq: SeqNo) -> u64 {
        self.first.saturating_add(seq.0.saturating_sub(2))
    }

    /// The place of an entry in the granted epoch; 1, the note's, for the number before the first.
    pub(super) fn seq(&self, number: u64) -> SeqNo {
        SeqNo(number.saturating_add(2).saturating_sub(self.first))
    }

    /// The epoch of this position begins.
    pub(super) fn opened(&mut self, open_id: OpenId, position: Position) {
        if let Some(wish) = self.wish.take() {
            (self.first, self.first_changes) = (wish.first, wish.first_changes);
        }
        self.opened = open_id;
        self.position = position;
        self.base_stored = false;
    }

    pub(super) fn has_epoch(&self) -> bool {
        self.position.epoch > Epoch(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chain;

    #[test]
    fn the_longest_state_fits_into_a_record() {
        let position =
            Position { epoch: Epoch(u64::MAX), next_seq: SeqNo(u64::MAX), chain: Chain([255; 32]) };
        let open_id = OpenId([255; 16]);
        let reason = ResyncReason::OutboxDamaged;
        let changes = ContentSum::from_bytes([255; 16]);
        let state = State {
            starts: u32::MAX,
            position,
            opened: open_id,
            first: u64::MAX,
            base_stored: true,
            wish: Some(Wish { open_id, reason, first: u64::MAX, first_changes: changes }),
            changes,
            first_changes: changes,
            ..State::fresh(StreamId::from_bytes([255; 16]), [255; 8])
        };
        let mut buffer = [0; MAX_RECORD];
        assert_eq!(State::decode(state.encode(&mut buffer)), Some(state));
        assert_eq!(State::decode(b""), None);
    }
}
