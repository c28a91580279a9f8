//! What a log can do without.
//!
//! ```text
//!  epoch 1 ──── epoch 2: 1 2 3 … as_of ┊ … note … end
//!  └─ goes ─┘            └─── goes ───┘┊└── stays ──┘   and the snapshot as of `as_of`
//! ```
//!
//! A state can be restored from any snapshot before it. So what is before the snapshot that the newest
//! state, or the state of some moment, is restored from can go, once that snapshot and everything behind
//! it is found to be whole.

use synddb_core::{SeqNo, StreamId, wire::SnapshotNote};

use crate::{
    Moment,
    replica::{Restore, RestoreError},
    store::{LogStore, Prunable},
    verify::{Fault, Report, verify_stream},
};

/// What would go, and how much it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What goes.
    pub prunable: Prunable,
    /// Epochs of it.
    pub epochs: u64,
    /// Bytes of its snapshots.
    pub snapshot_bytes: u64,
}

impl Plan {
    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.epochs == 0 && self.prunable.seq == SeqNo(0) && self.prunable.snapshots.is_empty()
    }
}

/// Why nothing is pruned.
#[derive(Debug)]
#[non_exhaustive]
pub enum PruneError {
    /// Nothing can be restored, or not of that moment: everything is needed.
    Restore(RestoreError),
    /// What would stay is not sound.
    Damaged(Report),
}

impl std::fmt::Display for PruneError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Restore(error) => error.fmt(f),
            Self::Damaged(report) => {
                f.write_str("what would stay is damaged, so nothing is removed:")?;
                report.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
            }
        }
    }
}

impl std::error::Error for PruneError {}

impl From<RestoreError> for PruneError {
    fn from(error: RestoreError) -> Self {
        Self::Restore(error)
    }
}

/// What the stream can do without if the newest state and, where `since` is given, every state from
/// that moment on must stay restorable. Reads everything that would stay.
///
/// # Errors
/// See [`PruneError`].
pub fn plan(
    store: &dyn LogStore,
    stream: StreamId,
    since: Option<Moment>,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Plan, PruneError> {
    let mut restore = Restore::new(store, stream);
    if let Some(since) = since {
        restore = restore.to_moment(since);
    }
    let plan = restore.plan()?;
    let (epoch, seq) = (plan.epoch.epoch, plan.note.as_of);
    let notes = store.snapshot_notes(stream, epoch).map_err(RestoreError::from)?;
    let superseded = notes.iter().filter_map(|entry| {
        let note = SnapshotNote::decode(&entry.payload).ok()?;
        (note.as_of < seq).then_some((entry.seq, note.id))
    });
    let superseded: Vec<_> = superseded.collect();
    // Whatever is wrong with what goes is no reason to keep it; but nothing is known of entries
    // behind the first that does not fit.
    let mut report = verify_stream(store, stream, None, goes_on)?;
    report.findings.retain(|finding| {
        let goes = matches!(finding.fault, Fault::Snapshot(_))
            && superseded.iter().any(|(noted, _)| *noted == finding.seq);
        finding.epoch > epoch || (finding.epoch == epoch && !goes)
    });
    if !report.findings.is_empty() {
        return Err(PruneError::Damaged(report));
    }
    let stored = store.snapshots(stream).map_err(RestoreError::from)?;
    let goes = stored.iter().filter(|info| {
        // One that no entry tells of yet may be on its way.
        info.sha256.is_some()
            && (info.epoch < epoch || superseded.iter().any(|(_, id)| *id == info.id))
    });
    let (snapshots, lengths): (Vec<_>, Vec<_>) = goes.map(|info| (info.id, info.len)).unzip();
    let epochs = store.epochs(stream).map_err(RestoreError::from)?;
    Ok(Plan {
        epochs: epochs.iter().filter(|info| info.epoch < epoch).count() as u64,
        prunable: Prunable {
            epoch,
            seq: if plan.epoch.pruned < seq { seq } else { SeqNo(0) },
            snapshots,
        },
        snapshot_bytes: lengths.iter().sum(),
    })
}
