//! Which epoch, which snapshot, up to which entry.

use std::collections::HashMap;

use synddb_core::{
    Chain, Epoch, SeqNo,
    content::ContentSum,
    wire::{SnapshotNote, message::Head},
};

use super::{EntryFault, Restore, RestoreError, SnapshotFault, Until};
use crate::{
    moment::Moment,
    store::{EpochInfo, MAX_NUMBER, StoredEntry},
};

/// What to do, decided before anything is written.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) epoch: EpochInfo,
    /// The entry that tells of the snapshot.
    pub(super) note_seq: SeqNo,
    pub(crate) note: SnapshotNote,
    /// The last entry to apply.
    pub(super) to: SeqNo,
    pub(super) moment: Moment,
    /// What has to hold at the end, where `to` is the end of the epoch.
    pub(super) end: End,
    pub(super) pending: Option<Epoch>,
    /// The content hashes of snapshots, by the last entry that they hold.
    pub(super) snapshots: HashMap<SeqNo, ContentSum>,
}

/// What proves that no entries are missing at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing: there is more, or the user said where to stop.
    Unproven,
    /// The stream's own head.
    Head(Chain),
    /// The next epoch's first chain value was made from this one's last.
    Next(EpochInfo),
}

/// An epoch of which there is a snapshot.
struct Restorable {
    epoch: EpochInfo,
    /// The entries that tell of snapshots, newest first; `None` where one does not decode.
    notes: Vec<(StoredEntry, Option<SnapshotNote>)>,
}

/// Where a stream stood when the restore began.
struct Stream {
    head: Head,
    /// Oldest first.
    epochs: Vec<EpochInfo>,
}

impl Plan {
    pub(super) fn entries(&self) -> u64 {
        self.to.0 - self.note.as_of.0
    }
}

impl Restorable {
    /// The earliest state of which there is a snapshot. Where no note decodes it is 0: what is
    /// wrong shows when one is chosen.
    fn earliest(&self) -> SeqNo {
        let states = self.notes.iter().filter_map(|(_, note)| note.map(|note| note.as_of));
        states.min().unwrap_or(self.epoch.pruned)
    }
}

impl Restore<'_> {
    pub(crate) fn plan(&self) -> Result<Plan, RestoreError> {
        let head = self.store.receiver(self.stream)?.head();
        if head.epoch == Epoch(0) {
            return Err(RestoreError::NoStream { stream: self.stream });
        }
        let stream = Stream { head, epochs: self.store.epochs(self.stream)? };
        let mut pending = None;
        let (restorable, to) = match self.until {
            Until::Moment(moment) => self.at_moment(&stream, moment, &mut pending)?,
            until => {
                let restorable = match self.epoch {
                    Some(epoch) => self.chosen(&stream, epoch)?,
                    None => self.newest(&stream, &mut pending)?,
                };
                let last = self.last(&stream, &restorable.epoch)?;
                let epoch = restorable.epoch.epoch;
                let to = match until {
                    Until::Seq(seq) if seq > last => {
                        return Err(RestoreError::BeyondEnd { epoch, seq, last });
                    }
                    Until::Seq(seq) => seq,
                    _ => last,
                };
                (restorable, to)
            }
        };
        let (note_entry, note) = self.snapshot_for(&restorable, to)?;
        let epoch = restorable.epoch;
        self.check_note(&epoch, note_entry, &note)?;
        Ok(Plan {
            epoch,
            note_seq: note_entry.seq,
            note,
            to,
            moment: self.moment_of(&epoch, to)?,
            end: self.end(&stream, &epoch, to)?,
            pending,
            snapshots: (restorable.notes.iter())
                .filter_map(|(_, note)| {
                    note.and_then(|note| Some((note.as_of, note.content_hash?)))
                })
                .collect(),
        })
    }

    /// The epoch if it can be restored.
    fn restorable(&self, epoch: EpochInfo) -> Result<Option<Restorable>, RestoreError> {
        let entries = self.store.snapshot_notes(self.stream, epoch.epoch)?;
        let notes = entries.into_iter().map(|entry| {
            let note = SnapshotNote::decode(&entry.payload).ok();
            (entry, note)
        });
        // Of a snapshot of what was pruned only the note is left.
        let is_there = |note: &Option<SnapshotNote>| note.is_none_or(|n| n.as_of >= epoch.pruned);
        let notes: Vec<_> = notes.filter(|(_, note)| is_there(note)).collect();
        Ok((!notes.is_empty()).then_some(Restorable { epoch, notes }))
    }

    fn chosen(&self, stream: &Stream, epoch: Epoch) -> Result<Restorable, RestoreError> {
        let info = stream.epochs.iter().find(|info| info.epoch == epoch);
        let newest = stream.head.epoch;
        let info = *info.ok_or(RestoreError::NoEpoch { epoch, newest })?;
        self.restorable(info)?.ok_or(RestoreError::BasePending { epoch, newest })
    }

    fn newest(
        &self,
        stream: &Stream,
        pending: &mut Option<Epoch>,
    ) -> Result<Restorable, RestoreError> {
        for epoch in stream.epochs.iter().rev() {
            match self.restorable(*epoch)? {
                Some(restorable) => return Ok(restorable),
                None => pending.get_or_insert(epoch.epoch),
            };
        }
        Err(RestoreError::NothingYet { epoch: stream.head.epoch })
    }

    /// The newest state at that moment, in the newest epoch that has one.
    fn at_moment(
        &self,
        stream: &Stream,
        moment: Moment,
        pending: &mut Option<Epoch>,
    ) -> Result<(Restorable, SeqNo), RestoreError> {
        let candidates = match self.epoch {
            Some(epoch) => vec![self.chosen(stream, epoch)?.epoch],
            None => stream.epochs.iter().rev().copied().collect(),
        };
        let mut earliest = None;
        for epoch in candidates {
            let is_open = epoch.opened_ms <= moment.unix_ms();
            let Some(restorable) = self.restorable(epoch)? else {
                if is_open {
                    pending.get_or_insert(epoch.epoch);
                }
                continue;
            };
            let first = restorable.earliest();
            earliest = Some((epoch.epoch, self.moment_of(&epoch, first)?));
            if is_open {
                let to = self.last_until(stream, &epoch, moment)?;
                if first <= to {
                    return Ok((restorable, to));
                }
            }
        }
        match earliest {
            Some((epoch, earliest)) => Err(RestoreError::TooEarly { moment, epoch, earliest }),
            None => Err(RestoreError::NothingYet { epoch: stream.head.epoch }),
        }
    }

    /// The last entry of an epoch that came at or before `moment`; 0 where none did.
    fn last_until(
        &self,
        stream: &Stream,
        epoch: &EpochInfo,
        moment: Moment,
    ) -> Result<SeqNo, RestoreError> {
        let (mut before, mut after) = (SeqNo(0), self.last(stream, epoch)?.next());
        let mut middle = after.previous();
        while before.next() < after {
            let came = self.store.last_received(self.stream, epoch.epoch, middle)?;
            if came.is_none_or(|came| came.ms <= moment.unix_ms()) {
                before = middle;
            } else {
                after = middle;
            }
            middle = SeqNo(before.0 + (after.0 - before.0) / 2);
        }
        Ok(before)
    }

    /// The last entry of an epoch; 0 where it has none.
    fn last(&self, stream: &Stream, epoch: &EpochInfo) -> Result<SeqNo, RestoreError> {
        if epoch.epoch == stream.head.epoch {
            return Ok(stream.head.next_seq.previous());
        }
        let last = self.store.last_received(self.stream, epoch.epoch, SeqNo(MAX_NUMBER))?;
        Ok(last.map_or(SeqNo(0), |last| last.seq))
    }

    fn moment_of(&self, epoch: &EpochInfo, seq: SeqNo) -> Result<Moment, RestoreError> {
        let came = match seq {
            SeqNo(0) => None,
            seq => self.store.last_received(self.stream, epoch.epoch, seq)?,
        };
        Ok(Moment::from_unix_ms(came.map_or(epoch.opened_ms, |came| came.ms)))
    }

    /// The newest snapshot whose state is not later than `to`.
    fn snapshot_for<'n>(
        &self,
        restorable: &'n Restorable,
        to: SeqNo,
    ) -> Result<(&'n StoredEntry, SnapshotNote), RestoreError> {
        let Restorable { epoch, notes } = restorable;
        let limit = self.base.map_or(to, |base| base.min(to));
        for (entry, note) in notes {
            match note {
                Some(note) if note.as_of <= limit => return Ok((entry, *note)),
                // With an older base chosen, a damaged newer note is what is to be avoided.
                None if self.base.is_none() => {
                    let (epoch, seq, fault) = (epoch.epoch, entry.seq, SnapshotFault::Note);
                    return Err(RestoreError::Snapshot { epoch, seq, as_of: None, fault });
                }
                _ => {}
            }
        }
        let earliest = restorable.earliest();
        Err(RestoreError::NoSnapshot { epoch: epoch.epoch, limit, earliest })
    }

    /// The note may lie behind the entries that are read: its own link of the chain is checked.
    fn check_note(
        &self,
        epoch: &EpochInfo,
        entry: &StoredEntry,
        note: &SnapshotNote,
    ) -> Result<(), RestoreError> {
        let before = self.chain_after(epoch, entry.seq.previous())?;
        let is_as_sent = before.next(&entry.meta, &entry.payload) == entry.chain;
        if !is_as_sent || note.as_of >= entry.seq {
            let (epoch, seq, as_of) = (epoch.epoch, entry.seq, Some(note.as_of));
            return Err(RestoreError::Snapshot { epoch, seq, as_of, fault: SnapshotFault::Note });
        }
        Ok(())
    }

    /// The chain after an entry, as it is stored.
    pub(super) fn chain_after(&self, epoch: &EpochInfo, seq: SeqNo) -> Result<Chain, RestoreError> {
        if seq == SeqNo(0) {
            return Ok(epoch.genesis);
        }
        let chain = self.store.chain_at(self.stream, epoch.epoch, seq)?;
        let (epoch, fault) = (epoch.epoch, EntryFault::Missing);
        chain.ok_or(RestoreError::Entry { epoch, seq, fault, good: None })
    }

    fn end(&self, stream: &Stream, epoch: &EpochInfo, to: SeqNo) -> Result<End, RestoreError> {
        if matches!(self.until, Until::Seq(_)) || to != self.last(stream, epoch)? {
            return Ok(End::Unproven);
        }
        if epoch.epoch == stream.head.epoch {
            return Ok(End::Head(stream.head.chain));
        }
        let next = stream.epochs.iter().find(|info| info.epoch > epoch.epoch);
        Ok(next.map_or(End::Unproven, |next| End::Next(*next)))
    }
}
