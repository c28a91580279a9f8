//! Whether a log is what was sent, and a replica what a log leads to.
//!
//! ```text
//!  chain      genesis ─▶ every entry ─▶ next epoch's genesis, or the stream's head
//!  images     every snapshot ─▶ length, SHA-256
//!  contents   the earliest snapshot's rows ─▶ every entry's hash ─▶ later snapshots' ─▶ all rows
//! ```
//!
//! In each epoch the chain and the contents are followed to the first thing that does not fit: what
//! comes behind it stands on it.

use std::{fmt, io::Read, ops::ControlFlow, path::Path};

use rusqlite::Connection;
use sha2::{Digest, Sha256};
use synddb_core::{
    Chain, Epoch, SeqNo, StreamId, changeset,
    content::ContentKey,
    wire::{EntryKind, EntryMeta, SnapshotNote, message::Head, schema::SchemaChange},
};

use crate::{
    replica::{
        Difference, EntryFault, Progress, Restore, RestoreError, SnapshotFault, content_of,
        differences,
    },
    store::{EpochInfo, LogStore, StoreError, StoredEntry},
};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// Something that is not as it should be.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The stream.
    pub stream: StreamId,
    /// The epoch.
    pub epoch: Epoch,
    /// The first entry that shows it; 0 for what an epoch begins from.
    pub seq: SeqNo,
    /// What it is.
    pub fault: Fault,
}

/// What is not as it should be.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The entry is missing, or not as it was sent.
    Entry(EntryFault),
    /// The entry is as it was sent, but its payload is none.
    Payload(String),
    /// The epoch does not begin where the one before it ended, or as it was opened.
    Genesis,
    /// The stream's head speaks of another entry than the last one.
    Head,
    /// The image of the snapshot that the entry tells of.
    Snapshot(SnapshotFault),
    /// Replaying the entries fails.
    Replay(Box<RestoreError>),
    /// The log's file cannot be read there.
    Unreadable(StoreError),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, epoch, seq, fault } = self;
        write!(f, "stream {stream} epoch {epoch} entry {seq}: ")?;
        match fault {
            Fault::Entry(fault) => fault.fmt(f),
            Fault::Payload(why) => write!(f, "its payload cannot be used: {why}"),
            Fault::Genesis => f.write_str("the epoch does not begin where the one before it ended"),
            Fault::Head => f.write_str("the stream's head is not that of its last entry"),
            Fault::Snapshot(fault) => write!(f, "the snapshot that it tells of: {fault}"),
            Fault::Replay(error) => error.fmt(f),
            Fault::Unreadable(error) => error.fmt(f),
        }
    }
}

/// What was looked at.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Epochs.
    pub epochs: u64,
    /// Entries whose place in the chain was checked.
    pub entries: u64,
    /// Snapshots whose bytes were hashed.
    pub snapshots: u64,
    /// Epochs that were replayed, every row of their ends read.
    pub replayed: u64,
    /// Epochs without a snapshot that is stored whole, of which nothing can be replayed.
    pub without_base: u64,
    /// What was found, by epoch.
    pub findings: Vec<Finding>,
}

/// Checks a stream, epoch by epoch. Replays in a folder of its own in `work`, where there is one.
/// `goes_on` is asked now and then.
///
/// # Errors
/// The log cannot be read at all, or `goes_on` said no ([`RestoreError::Cancelled`]).
pub fn verify_stream(
    store: &dyn LogStore,
    stream: StreamId,
    work: Option<&Path>,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Report, RestoreError> {
    let head = store.receiver(stream)?.head();
    let epochs = store.epochs(stream)?;
    let mut verifier = Verifier { store, stream, head, goes_on, report: Report::default() };
    let mut before = None;
    for (at, epoch) in epochs.iter().enumerate() {
        verifier.report.epochs += 1;
        let is_sound = verifier.chain(epoch, before, epochs.get(at + 1))?;
        before = is_sound;
        verifier.images(epoch)?;
        // What is not as it was sent is never replayed.
        if let (Some(work), Some(_)) = (work, is_sound) {
            verifier.replay(epoch, work)?;
        }
    }
    if epochs.last().map_or(Epoch(0), |last| last.epoch) != head.epoch {
        verifier.found(head.epoch, SeqNo(0), Fault::Head);
    }
    Ok(verifier.report)
}

struct Verifier<'s> {
    store: &'s dyn LogStore,
    stream: StreamId,
    head: Head,
    goes_on: &'s mut dyn FnMut() -> bool,
    report: Report,
}

impl Verifier<'_> {
    fn found(&mut self, epoch: Epoch, seq: SeqNo, fault: Fault) {
        self.report.findings.push(Finding { stream: self.stream, epoch, seq, fault });
    }

    fn go_on(&mut self) -> Result<(), RestoreError> {
        if (self.goes_on)() { Ok(()) } else { Err(RestoreError::Cancelled) }
    }

    /// Follows the chain of an epoch. Its last value, if all of it holds. `before` is that of the
    /// epoch before, where it is known.
    fn chain(
        &mut self,
        epoch: &EpochInfo,
        before: Option<Chain>,
        next: Option<&EpochInfo>,
    ) -> Result<Option<Chain>, RestoreError> {
        let number = epoch.epoch;
        // What was there before may have been pruned.
        let before = if number == Epoch(1) { Some(Chain::default()) } else { before };
        let genesis =
            before.map(|before| Chain::genesis(self.stream, number, epoch.open_id, before));
        if genesis.is_some_and(|genesis| genesis != epoch.genesis) {
            self.found(number, SeqNo(0), Fault::Genesis);
            return Ok(None);
        }
        let mut chain = match self.store.chain_at(self.stream, number, epoch.pruned) {
            _ if epoch.pruned == SeqNo(0) => epoch.genesis,
            Ok(Some(chain)) => chain,
            Ok(None) => {
                self.found(number, epoch.pruned, Fault::Entry(EntryFault::Missing));
                return Ok(None);
            }
            Err(error) => {
                self.found(number, epoch.pruned, Fault::Unreadable(error));
                return Ok(None);
            }
        };
        let mut seq = epoch.pruned;
        loop {
            self.go_on()?;
            let entries = match self.store.entries(self.stream, number, seq.next(), CHUNK) {
                Ok(entries) => entries,
                Err(error) => {
                    self.found(number, seq.next(), Fault::Unreadable(error));
                    return Ok(None);
                }
            };
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                seq = seq.next();
                if let Err(fault) = check(entry, seq, &mut chain) {
                    self.found(number, seq, fault);
                    return Ok(None);
                }
                self.report.entries += 1;
            }
        }
        let end = match next {
            None if number == self.head.epoch => {
                // It may have grown meanwhile.
                let grown = seq >= self.head.next_seq;
                let at_head =
                    self.store.chain_at(self.stream, number, self.head.next_seq.previous())?;
                let same = chain == self.head.chain && seq.next() == self.head.next_seq;
                if same || (grown && at_head == Some(self.head.chain)) {
                    Ok(())
                } else if seq.next() < self.head.next_seq {
                    Err(Fault::Entry(EntryFault::End))
                } else {
                    Err(Fault::Head)
                }
            }
            None => Ok(()),
            Some(next) => {
                let genesis = Chain::genesis(self.stream, next.epoch, next.open_id, chain);
                if genesis == next.genesis { Ok(()) } else { Err(Fault::Entry(EntryFault::End)) }
            }
        };
        match end {
            Ok(()) => Ok(Some(chain)),
            Err(fault) => {
                self.found(number, seq, fault);
                Ok(None)
            }
        }
    }

    /// Reads the images of all snapshots that the epoch tells of.
    fn images(&mut self, epoch: &EpochInfo) -> Result<(), RestoreError> {
        let number = epoch.epoch;
        let notes = match self.store.snapshot_notes(self.stream, number) {
            Ok(notes) => notes,
            Err(error) => {
                self.found(number, epoch.pruned, Fault::Unreadable(error));
                return Ok(());
            }
        };
        for entry in notes.iter().rev() {
            // One that does not decode was found in the chain.
            let Ok(note) = SnapshotNote::decode(&entry.payload) else { continue };
            if note.as_of < epoch.pruned {
                continue;
            }
            if let Err(fault) = self.image(&note)? {
                self.found(number, entry.seq, Fault::Snapshot(fault));
            }
            self.report.snapshots += 1;
        }
        Ok(())
    }

    fn image(&mut self, note: &SnapshotNote) -> Result<Result<(), SnapshotFault>, RestoreError> {
        let stored = self.store.snapshots(self.stream)?;
        if !stored.iter().any(|info| info.id == note.id && info.sha256.is_some()) {
            return Ok(Err(SnapshotFault::Missing));
        }
        let mut image = match self.store.open_snapshot(self.stream, note.id) {
            Ok(image) => image,
            Err(error) => return Ok(Err(SnapshotFault::Unreadable(error.to_string()))),
        };
        let (mut hash, mut found, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            self.go_on()?;
            match image.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    found += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(SnapshotFault::Unreadable(error.to_string()))),
            }
        }
        let expected = note.len;
        Ok(if found != expected {
            Err(SnapshotFault::Length { expected, found })
        } else if <[u8; 32]>::from(hash.finalize()) != note.sha256 {
            Err(SnapshotFault::Hash)
        } else {
            Ok(())
        })
    }

    /// Rebuilds the epoch's last state from its earliest snapshot, checking hashes on the way.
    fn replay(&mut self, epoch: &EpochInfo, work: &Path) -> Result<(), RestoreError> {
        let number = epoch.epoch;
        let earliest = self
            .store
            .snapshot_notes(self.stream, number)?
            .iter()
            .filter_map(|entry| {
                let note = SnapshotNote::decode(&entry.payload).ok()?;
                (note.as_of >= epoch.pruned).then_some(note.as_of)
            })
            .min();
        let Some(earliest) = earliest else {
            self.report.without_base += 1;
            return Ok(());
        };
        let out = work.join(format!("synddb-verify-{}.db", std::process::id()));
        let goes_on = &mut self.goes_on;
        let restored = Restore::new(self.store, self.stream)
            .epoch(number)
            .base(earliest)
            .check_base(true)
            .replace(true)
            .run(&out, |_: Progress| match goes_on() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            });
        let _ = std::fs::remove_file(&out);
        let (seq, fault) = match restored {
            Ok(_) => {
                self.report.replayed += 1;
                return Ok(());
            }
            // Told with the images.
            Err(RestoreError::Snapshot { fault: SnapshotFault::NotADatabase(_), .. })
            | Err(RestoreError::Check { .. }) => (epoch.pruned, restored),
            Err(RestoreError::Snapshot { .. }) => return Ok(()),
            Err(
                RestoreError::Entry { seq, .. }
                | RestoreError::Apply { seq, .. }
                | RestoreError::Content { seq, .. },
            ) => (seq, restored),
            // Of this machine: no space, no permission.
            Err(error) => return Err(error),
        };
        if let Err(error) = fault {
            self.found(number, seq, Fault::Replay(Box::new(error)));
        }
        Ok(())
    }
}

/// Whether `entry` is the one that comes next, as it was sent, with a payload that can be used.
fn check(entry: &StoredEntry, seq: SeqNo, chain: &mut Chain) -> Result<(), Fault> {
    if entry.seq != seq {
        return Err(Fault::Entry(EntryFault::Missing));
    }
    *chain = chain.next(&entry.meta, &entry.payload);
    let meta = EntryMeta::decode(&entry.meta);
    if *chain != entry.chain || meta.is_ok_and(|meta| meta.seq != seq) {
        return Err(Fault::Entry(EntryFault::Chain));
    }
    let meta = meta.map_err(|_| Fault::Entry(EntryFault::Unknown))?;
    let payload = |error: &dyn fmt::Display| Fault::Payload(error.to_string());
    match meta.kind {
        EntryKind::Changeset => {
            changeset::validate(&entry.payload).map(drop).map_err(|error| payload(&error))
        }
        EntryKind::Schema => {
            SchemaChange::parse(&entry.payload).map(drop).map_err(|error| payload(&error))
        }
        EntryKind::Snapshot => {
            SnapshotNote::decode(&entry.payload).map(drop).map_err(|error| payload(&error))
        }
        kind => Err(Fault::Entry(EntryFault::Kind(kind))),
    }
}

/// How a database stands to a log.
#[derive(Debug)]
#[non_exhaustive]
pub enum Standing {
    /// It holds exactly what the log leads to after this entry, the newest of which that can be said.
    At {
        /// The epoch.
        epoch: Epoch,
        /// The entry.
        seq: SeqNo,
    },
    /// It holds nothing that the log tells of.
    Differs {
        /// The epoch of the state that it was compared with.
        epoch: Epoch,
        /// The last entry of that state.
        seq: SeqNo,
        /// The differences from that state, the database first.
        differences: Vec<Difference>,
    },
}

/// Where `replica` stands: by its content hash, and where no entry has that, by comparing it with the
/// state that `restore` gives, which is built in a folder of its own in `work`.
///
/// # Errors
/// See [`RestoreError`].
pub fn verify_replica(
    store: &dyn LogStore,
    stream: StreamId,
    replica: &Connection,
    restore: Restore<'_>,
    work: &Path,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Standing, RestoreError> {
    // Rows that cannot be read here leave the comparison.
    let hash = content_of(replica, ContentKey::of(stream)).ok();
    let wanted = restore.is_of_one_state();
    if let (Some(hash), false) = (hash, wanted) {
        for epoch in store.epochs(stream)?.iter().rev() {
            let mut found = None;
            let mut from = epoch.pruned.next();
            loop {
                if !goes_on() {
                    return Err(RestoreError::Cancelled);
                }
                let entries = store.entries(stream, epoch.epoch, from, CHUNK)?;
                let Some(last) = entries.last() else { break };
                from = last.seq.next();
                for entry in &entries {
                    if entry.decoded_meta()?.content_hash == Some(hash) {
                        found = Some(entry.seq);
                    }
                }
            }
            if let Some(seq) = found {
                return Ok(Standing::At { epoch: epoch.epoch, seq });
            }
        }
    }
    let out = work.join(format!("synddb-verify-{}.db", std::process::id()));
    let restored = restore.replace(true).run(&out, |_| match goes_on() {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    })?;
    let compared = Connection::open(&out).and_then(|other| differences(replica, &other));
    let _ = std::fs::remove_file(&out);
    let differences =
        compared.map_err(|error| RestoreError::Sqlite { doing: "compare the databases", error })?;
    let (epoch, seq) = (restored.epoch, restored.seq);
    Ok(if differences.is_empty() {
        Standing::At { epoch, seq }
    } else {
        Standing::Differs { epoch, seq, differences }
    })
}
