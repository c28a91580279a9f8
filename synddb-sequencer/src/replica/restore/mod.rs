//! Builds a database out of the log, as of any entry or moment.
//!
//! ```text
//!  plan    stream ─▶ epoch ─▶ last entry ─▶ newest snapshot that is not later
//!  image   snapshot ─▶ file, length and hash checked
//!  replay  entries ─▶ chain checked ─▶ [`Applier`](super::Applier) ─▶ content hash checked
//!  output  quick_check, content hash of all rows ─▶ durable ─▶ renamed to where it was wanted
//! ```
//!
//! It stops at the first thing that does not fit, and leaves nothing then.

mod error;
mod output;
mod plan;
mod replay;

use std::{fmt, ops::ControlFlow, path::Path};

use rusqlite::Connection;
use synddb_core::{Epoch, SeqNo, StreamId};

pub use error::{EntryFault, RestoreError, SnapshotFault};

use self::output::Workplace;
use crate::{moment::Moment, store::LogStore};

/// What a database is built from, and as of when.
///
/// ```no_run
/// use std::{ops::ControlFlow, path::Path};
///
/// use synddb_core::{SeqNo, StreamId};
/// use synddb_sequencer::{replica::Restore, store::SqliteStore};
///
/// let log = SqliteStore::open_read_only(Path::new("/var/lib/synddb"))?;
/// let restored = Restore::new(&log, StreamId::from_name("orders"))
///     .to_seq(SeqNo(1000))
///     .run(Path::new("orders.db"), |_progress| ControlFlow::Continue(()))?;
/// println!("as of {}", restored.moment);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is restored before `run`"]
pub struct Restore<'s> {
    store: &'s dyn LogStore,
    stream: StreamId,
    epoch: Option<Epoch>,
    until: Until,
    base: Option<SeqNo>,
    replace: bool,
    check: bool,
    check_base: bool,
    prepare: Option<Box<Prepare<'s>>>,
}

type Prepare<'s> = dyn Fn(&Connection) -> rusqlite::Result<()> + 's;

/// Where to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// At the last entry that was there when the restore began.
    End,
    Seq(SeqNo),
    Moment(Moment),
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The snapshot is being copied.
    Snapshot {
        /// Bytes copied.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Entries are being applied.
    Entries {
        /// Entries applied.
        done: u64,
        /// Entries in all.
        total: u64,
    },
    /// The result is being checked and made durable.
    Check,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The stream.
    pub stream: StreamId,
    /// The epoch.
    pub epoch: Epoch,
    /// The last entry whose changes are in it; 0 where it is the epoch's base.
    pub seq: SeqNo,
    /// When that entry came, or the epoch began, by the sequencer's clock.
    pub moment: Moment,
    /// The last entry whose changes were in the snapshot.
    pub snapshot_as_of: SeqNo,
    /// Length of the snapshot in bytes.
    pub snapshot_bytes: u64,
    /// Entries read after the snapshot's.
    pub entries: u64,
    /// Bytes of their payloads.
    pub entry_bytes: u64,
    /// Length of the database in bytes.
    pub bytes: u64,
    /// A newer epoch of the stream that cannot be restored yet, since its snapshot is not stored
    /// whole.
    pub pending: Option<Epoch>,
}

impl<'s> Restore<'s> {
    /// The newest state of `stream` that can be restored: the last entry of the newest epoch whose
    /// base is complete.
    pub fn new(store: &'s dyn LogStore, stream: StreamId) -> Self {
        Self {
            store,
            stream,
            epoch: None,
            until: Until::End,
            base: None,
            replace: false,
            check: true,
            check_base: false,
            prepare: None,
        }
    }

    /// Of this epoch.
    pub fn epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// As of this entry of the epoch; 0 is the epoch's base.
    pub fn to_seq(mut self, seq: SeqNo) -> Self {
        self.until = Until::Seq(seq);
        self
    }

    /// As of the last entry that came at or before this moment, by the sequencer's clock. Without
    /// an [`epoch`](Self::epoch) it is of the newest one that was open then and can be restored.
    ///
    /// Where that clock was set back, so that a moment came twice, it is one of the two.
    pub fn to_moment(mut self, moment: Moment) -> Self {
        self.until = Until::Moment(moment);
        self
    }

    /// Starts from the newest snapshot of a state up to `seq`, and not from a newer one: for when a
    /// later snapshot is damaged. 0 is the epoch's base.
    pub fn base(mut self, seq: SeqNo) -> Self {
        self.base = Some(seq);
        self
    }

    /// Replaces a database that is there, once the new one is whole. Nobody may have it open.
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Whether `PRAGMA quick_check` has to find nothing at the end, and all rows together must have the
    /// content hash that the log tells, as by default. Without it a database can be restored that was
    /// damaged at its source.
    pub fn check(mut self, check: bool) -> Self {
        self.check = check;
        self
    }

    /// Whether the snapshot's rows must have the hash that the log tells, before anything is applied.
    pub fn check_base(mut self, check: bool) -> Self {
        self.check_base = check;
        self
    }

    /// Runs on the new database's connection before entries are applied: registers the functions
    /// and collations that its schema uses.
    pub fn prepare(mut self, prepare: impl Fn(&Connection) -> rusqlite::Result<()> + 's) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// Whether the user said as of when.
    pub(crate) fn is_of_one_state(&self) -> bool {
        self.until != Until::End || self.epoch.is_some()
    }

    /// Builds the database and puts it at `out`: one file, in rollback-journal mode, durable.
    ///
    /// Works in a folder of its own beside `out`. `progress` hears how far it is, and ends it by
    /// [`ControlFlow::Break`].
    ///
    /// # Errors
    /// See [`RestoreError`]. Nothing is left then, and `out` is as it was.
    pub fn run(
        self,
        out: &Path,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Restored, RestoreError> {
        output::check_free(out, self.replace)?;
        let plan = self.plan()?;
        let workplace = Workplace::create(out)?;
        let mut report = |step| match progress(step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(RestoreError::Cancelled),
        };
        self.write_image(&plan, workplace.db(), &mut report)?;
        let entry_bytes = self.replay(&plan, workplace.db(), &mut report)?;
        let bytes = workplace.publish(out, self.replace)?;
        Ok(Restored {
            stream: self.stream,
            epoch: plan.epoch.epoch,
            seq: plan.to,
            moment: plan.moment,
            snapshot_as_of: plan.note.as_of,
            snapshot_bytes: plan.note.len,
            entries: plan.entries(),
            entry_bytes,
            bytes,
            pending: plan.pending,
        })
    }
}

impl fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("stream", &self.stream)
            .field("epoch", &self.epoch)
            .field("until", &self.until)
            .field("base", &self.base)
            .field("replace", &self.replace)
            .field("check", &self.check)
            .finish_non_exhaustive()
    }
}
