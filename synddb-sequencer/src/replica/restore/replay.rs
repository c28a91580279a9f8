//! The snapshot becomes a file, and the entries after it are applied.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};
use synddb_core::{
    Chain, SeqNo, StreamId,
    content::{ContentKey, ContentSum},
    wire::{EntryKind, EntryMeta},
};

use super::{
    EntryFault, Progress, Restore, RestoreError, SnapshotFault,
    output::failed,
    plan::{End, Plan},
};
use crate::{
    replica::{Applier, content_of},
    store::StoredEntry,
};

/// Bytes of payload that are read and applied at a time, and in one transaction. Small entries take
/// several times as much memory.
const CHUNK: usize = 1 << 20;
/// Entries between two reports.
const REPORT_EVERY: u64 = 1 << 10;
/// Page cache while entries are applied, in KiB.
const CACHE_KIB: i64 = 64 << 10;

type Report<'r> = &'r mut dyn FnMut(Progress) -> Result<(), RestoreError>;

impl Restore<'_> {
    /// Writes the snapshot to `db`, and finds that it is the one that was sent.
    pub(super) fn write_image(
        &self,
        plan: &Plan,
        db: &Path,
        report: Report<'_>,
    ) -> Result<(), RestoreError> {
        let note = &plan.note;
        let fault = |fault| plan.snapshot_fault(fault);
        let stored = self.store.snapshots(self.stream)?;
        let stored = stored.iter().find(|info| info.id == note.id && info.sha256.is_some());
        if stored.is_none() {
            return Err(fault(SnapshotFault::Missing));
        }
        let unreadable = |message: String| fault(SnapshotFault::Unreadable(message));
        let image = self.store.open_snapshot(self.stream, note.id);
        let mut image = image.map_err(|error| unreadable(error.to_string()))?;
        let mut file = File::create_new(db).map_err(|error| failed(db, &error))?;
        let (mut hash, mut done) = (Sha256::new(), 0);
        let mut buffer = vec![0; CHUNK];
        loop {
            report(Progress::Snapshot { done, total: note.len })?;
            let count = match image.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error.to_string())),
            };
            done += count as u64;
            if done > note.len {
                break;
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(|error| failed(db, &error))?;
        }
        if done != note.len {
            return Err(fault(SnapshotFault::Length { expected: note.len, found: done }));
        }
        if <[u8; 32]>::from(hash.finalize()) != note.sha256 {
            return Err(fault(SnapshotFault::Hash));
        }
        Ok(())
    }

    /// Applies the entries after the snapshot's to the database at `db`, checks and closes it.
    /// Gives the bytes of their payloads.
    pub(super) fn replay(
        &self,
        plan: &Plan,
        db: &Path,
        report: Report<'_>,
    ) -> Result<u64, RestoreError> {
        let connection = open(db)
            .map_err(|error| plan.snapshot_fault(SnapshotFault::NotADatabase(error.to_string())))?;
        if let Some(prepare) = &self.prepare {
            prepare(&connection).map_err(doing("prepare the connection"))?;
        }
        let (bytes, content) = self.apply_entries(plan, &connection, report)?;
        report(Progress::Check)?;
        if self.check {
            let finding: String = connection
                .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                .map_err(doing("check the restored database"))?;
            if finding != "ok" {
                return Err(RestoreError::Check { finding });
            }
            report(Progress::Check)?;
            self.check_content(plan, plan.to, &connection, content)?;
        }
        connection.close().map_err(|(_, error)| doing("close the restored database")(error))?;
        Ok(bytes)
    }

    fn apply_entries(
        &self,
        plan: &Plan,
        connection: &Connection,
        report: Report<'_>,
    ) -> Result<(u64, Option<ContentSum>), RestoreError> {
        let mut applier = Applier::new(connection).map_err(doing("prepare the database"))?;
        if let Some(hash) = plan.note.content_hash {
            applier
                .follow_content(ContentKey::of(self.stream), hash)
                .map_err(doing("read the database"))?;
        }
        let total = plan.entries();
        if self.check_base {
            self.check_content(plan, plan.note.as_of, connection, plan.note.content_hash)?;
        }
        let mut chain = self.chain_after(&plan.epoch, plan.note.as_of)?;
        let (mut next, mut bytes) = (plan.note.as_of.next(), 0);
        while next <= plan.to {
            let entries = self.store.entries(self.stream, plan.epoch.epoch, next, CHUNK)?;
            if entries.is_empty() {
                return Err(plan.entry_fault(next, EntryFault::Missing));
            }
            connection.execute_batch("BEGIN").map_err(doing("begin a transaction"))?;
            for entry in entries.iter().take_while(|entry| entry.seq <= plan.to) {
                let done = next.0 - plan.note.as_of.next().0;
                if done.is_multiple_of(REPORT_EVERY) {
                    report(Progress::Entries { done, total })?;
                }
                let meta = plan.check(entry, next, &mut chain)?;
                let applied = match meta.kind {
                    EntryKind::Schema => applier.apply_schema(&entry.payload),
                    EntryKind::Changeset => applier.apply(&entry.payload),
                    _ => Ok(()),
                };
                applied.map_err(|error| RestoreError::Apply {
                    epoch: plan.epoch.epoch,
                    seq: next,
                    error: Box::new(error),
                })?;
                let told = [meta.content_hash, plan.snapshots.get(&next).copied()];
                if let Some(found) = applier.content()
                    && let Some(other) = told.into_iter().flatten().find(|told| *told != found)
                {
                    return Err(plan.content_differs(next, other, found));
                }
                bytes += entry.payload.len() as u64;
                next = next.next();
            }
            connection.execute_batch("COMMIT").map_err(doing("write the database"))?;
        }
        report(Progress::Entries { done: total, total })?;
        plan.check_end(self.stream, chain)?;
        Ok((bytes, applier.content()))
    }

    /// Whether all rows together have the hash that the log tells.
    fn check_content(
        &self,
        plan: &Plan,
        seq: SeqNo,
        connection: &Connection,
        expected: Option<ContentSum>,
    ) -> Result<(), RestoreError> {
        let Some(expected) = expected else { return Ok(()) };
        match content_of(connection, ContentKey::of(self.stream)) {
            Ok(found) if found != expected => Err(plan.content_differs(seq, expected, found)),
            Ok(_) => Ok(()),
            Err(error) => {
                // As a collation that is not registered here.
                tracing::warn!(%error, "not all rows can be read: their hash is not checked");
                Ok(())
            }
        }
    }
}

impl Plan {
    /// Whether `entry` is the one that comes next, as it was sent, and what it is.
    fn check(
        &self,
        entry: &StoredEntry,
        next: SeqNo,
        chain: &mut Chain,
    ) -> Result<EntryMeta, RestoreError> {
        if entry.seq != next {
            return Err(self.entry_fault(next, EntryFault::Missing));
        }
        *chain = chain.next(&entry.meta, &entry.payload);
        if *chain != entry.chain {
            return Err(self.entry_fault(next, EntryFault::Chain));
        }
        match EntryMeta::decode(&entry.meta) {
            Ok(meta) if meta.seq != next => Err(self.entry_fault(next, EntryFault::Chain)),
            Ok(meta) => match meta.kind {
                EntryKind::Changeset | EntryKind::Schema | EntryKind::Snapshot => Ok(meta),
                kind => Err(self.entry_fault(next, EntryFault::Kind(kind))),
            },
            Err(_) => Err(self.entry_fault(next, EntryFault::Unknown)),
        }
    }

    /// Whether the last entry is the one that the epoch ended with.
    fn check_end(&self, stream: StreamId, chain: Chain) -> Result<(), RestoreError> {
        match self.end {
            End::Head(head) if chain != head => Err(self.entry_fault(self.to, EntryFault::Chain)),
            End::Next(next) => {
                let genesis = Chain::genesis(stream, next.epoch, next.open_id, chain);
                if genesis == next.genesis {
                    Ok(())
                } else {
                    Err(self.entry_fault(self.to, EntryFault::End))
                }
            }
            End::Head(_) | End::Unproven => Ok(()),
        }
    }

    fn content_differs(&self, seq: SeqNo, expected: ContentSum, found: ContentSum) -> RestoreError {
        RestoreError::Content { epoch: self.epoch.epoch, seq, expected, found }
    }

    fn entry_fault(&self, seq: SeqNo, fault: EntryFault) -> RestoreError {
        let good = if fault == EntryFault::End { seq } else { seq.previous() };
        let good = (good >= self.note.as_of && seq.0 > 0).then_some(good);
        RestoreError::Entry { epoch: self.epoch.epoch, seq, fault, good }
    }

    fn snapshot_fault(&self, fault: SnapshotFault) -> RestoreError {
        let (epoch, seq, as_of) = (self.epoch.epoch, self.note_seq, Some(self.note.as_of));
        RestoreError::Snapshot { epoch, seq, as_of, fault }
    }
}

/// Opens a snapshot's image, and makes it a database in rollback-journal mode without a journal:
/// what fails is thrown away, and what does not is synced once at the end.
fn open(db: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(db, flags)?;
    // The image comes from elsewhere: what its schema calls must be harmless, and its pages are
    // looked at before they are believed.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

fn doing(doing: &'static str) -> impl Fn(rusqlite::Error) -> RestoreError {
    move |error| RestoreError::Sqlite { doing, error }
}
