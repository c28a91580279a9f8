//! The writer: a thread that puts captured commits into the outbox, and sees to snapshots.
//!
//! ```text
//!  following ── lost, queue full ──▶ behind ── the link is up ──▶ wants a boundary
//!      ▲                                                               │
//!      └── the outbox begins the next generation ◀── boundary ◀────────┘
//!                        └─▶ a thread copies ─▶ the link uploads
//! ```
//!
//! While the stream is behind nothing is queued, so nothing grows; and a snapshot is taken only
//! once there is somebody to send it to.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant as Clock},
};

use synddb_core::{
    OpenId, SeqNo, SnapshotId,
    content::ContentSum,
    wire::{EntryKind, message::ResyncReason},
};

use crate::{
    capture::{Commit, CommitSink, IdleBoundary, Position},
    content::Content,
    link::{Base, queued, random},
    outbox::{NewEntry, Outbox, OutboxError, State, Wish},
    shared::{Item, Mode, Shared, Work, size},
    snapshot::{Boundary, CopyControl, SnapshotError, SnapshotImage, image_path},
    stats::Divergence,
};

/// How long the writer waits before it tries a failed outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);
/// How long after a loss a snapshot is taken at the earliest, unless somebody waits: changes of
/// the schema come in groups. The time that the last copy took comes on top.
const SETTLE: Duration = Duration::from_millis(50);
/// The longest that losses put off a snapshot.
const MAX_SETTLE: Duration = Duration::from_secs(10);
/// How often a boundary is tried while the application is idle, at first and at last.
const IDLE_TRIES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// Items that room is kept for.
const SPARE_ITEMS: usize = 16 << 10;
/// A snapshot that weighs less counts as so many bytes: small ones are not taken all the time.
const SMALLEST: u64 = 4 << 20;
/// How long to wait after a snapshot failed, at first and at last.
const FAILED_TRIES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where snapshots are copied to.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotPlace {
    pub(crate) dir: PathBuf,
    pub(crate) prefix: String,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) idle: IdleBoundary,
    pub(crate) place: SnapshotPlace,
    pub(crate) max_outbox_bytes: u64,
    /// Changesets between snapshots; 0 for none by count.
    pub(crate) snapshot_interval: u64,
    /// Bytes of changesets for each of the last snapshot's before there is another; 0 for any.
    pub(crate) snapshot_factor: f64,
    /// Where the sequencer takes changesets and snapshots only, in one line: what is neither is carried
    /// by a snapshot, and each snapshot begins a generation. So many bytes at most; one that may be
    /// larger is not taken without need.
    pub(crate) in_line: Option<u64>,
    pub(crate) state: State,
    pub(crate) pending: Pending,
}

/// What the writer has begun and not ended.
#[derive(Default)]
pub(crate) struct Pending {
    /// Empty, to be filled next.
    spare: VecDeque<Item>,
    /// Commits that the outbox has not taken yet.
    entries: Vec<NewEntry>,
    /// What they take in memory.
    bytes: usize,
    /// Where the database is after the last of them, or of those before; `None` where that is not
    /// known.
    place: Option<Position>,
    /// The outbox does not know that place yet.
    moved: bool,
    /// The outbox is to forget every place: the stream fell behind.
    forget: bool,
    retry_at: Option<Clock>,
    /// A commit had no changeset: nothing that follows it is of use before the next epoch.
    gap: bool,
    copy: Option<Copy>,
    last_copy: Duration,
    snapshot_failures: u32,
    /// The last copy's rows could not be read.
    unreadable: bool,
    next_snapshot: Option<Clock>,
    idle_wait: Duration,
}

/// A snapshot that is being copied.
struct Copy {
    control: Arc<CopyControl>,
    began: Clock,
    generation: i64,
    as_of: SeqNo,
    as_of_commit: u64,
    as_of_bytes: u64,
    /// What the entries up to `as_of` lead to.
    expected: Option<ContentSum>,
}

/// What a copying thread hands back.
pub(crate) type Copied = Result<(SnapshotImage, Option<Content>), SnapshotError>;

impl Writer {
    /// Runs until the stream is closed and everything that was taken in is written. False where
    /// the outbox refused some of it: the next start takes a snapshot.
    pub(crate) fn run(mut self) -> bool {
        let _span = tracing::info_span!("synddb_writer", stream = %self.state.stream).entered();
        while !self.shared.drained() {
            let spare = core::mem::take(&mut self.pending.spare);
            let work = self.shared.work(self.wake_at(), spare);
            self.step(work);
        }
        self.cancel_copy();
        self.pending.entries.is_empty()
    }

    fn wake_at(&self) -> Option<Clock> {
        [self.pending.retry_at, self.pending.next_snapshot].into_iter().flatten().min()
    }

    fn step(&mut self, mut work: Work) {
        if work.outbox_damaged {
            self.replace_outbox();
        }
        if work.overflowed {
            self.give_up_entries();
        }
        if work.closing {
            // The last try.
            self.pending.retry_at = None;
        }
        if work.refused {
            self.put_off_snapshot();
        }
        if let Some(copied) = work.copied.take() {
            work.uploads += usize::from(self.copied(copied));
        }
        let mut items = core::mem::take(&mut work.items);
        self.take_in(&mut items);
        items.shrink_to(SPARE_ITEMS);
        self.pending.spare = items;
        self.write();
        self.snapshot(&work);
    }

    fn take_in(&mut self, items: &mut VecDeque<Item>) {
        for item in items.drain(..) {
            match item {
                Item::Commit { commit, first, last } => self.take_commit(commit, first, last),
                // What is being copied is a state that the stream has left.
                Item::Lost => {
                    self.cancel_copy();
                    self.write();
                    self.pending.forget = true;
                    self.set_place(None);
                }
                Item::Named(position) => {
                    self.set_place(Some(position).filter(|_| !self.pending.gap))
                }
                Item::Boundary { boundary, as_of, resync } => {
                    self.write();
                    self.begin_snapshot(boundary, as_of, resync);
                }
            }
        }
    }

    fn take_commit(&mut self, commit: Commit, first: u64, last: u64) {
        let held = size(&commit);
        let Commit { changes, schema_version, wall_time_ms, position, .. } = commit;
        if self.pending.gap {
            self.shared.let_go(held);
            return;
        }
        match changes.into_payload() {
            Ok((kind, _)) if self.in_line.is_some() && kind != EntryKind::Changeset => {
                self.shared.let_go(held);
                self.pending.gap = true;
                self.shared.lose(ResyncReason::SchemaChanged);
            }
            Ok((kind, payload)) => {
                self.pending.bytes += held;
                self.set_place(position);
                self.pending.entries.push(NewEntry {
                    kind,
                    first_commit: first,
                    last_commit: last,
                    time_ms: wall_time_ms,
                    schema_version,
                    payload,
                });
            }
            Err(lost) => {
                self.shared.let_go(held);
                self.pending.gap = true;
                self.shared.lost(lost);
            }
        }
    }

    fn set_place(&mut self, place: Option<Position>) {
        self.pending.moved |= self.pending.place != place;
        self.pending.place = place;
    }

    /// Appends what waits. What the outbox does not take stays, and holds up what follows.
    fn write(&mut self) {
        if self.state.collapsed && self.state.wish.is_none() {
            // Committed before the loss was known: the snapshot holds them too.
            self.give_up_entries();
        }
        if self.pending.retry_at.is_some_and(|at| at > Clock::now()) {
            return;
        }
        let failed_before = self.pending.retry_at.take().is_some();
        let written = self.write_place().and_then(|()| {
            if failed_before { self.outbox.state().map(|state| self.know(state)) } else { Ok(()) }
        });
        if let Err(error) = written {
            return self.failed(&error);
        }
        if self.pending.entries.is_empty() {
            return;
        }
        match self.outbox.append(&self.pending.entries, self.pending.place) {
            Ok(state) => {
                self.pending.moved = false;
                self.pending.entries.clear();
                self.know(state);
                if self.state.bytes > self.max_outbox_bytes {
                    self.collapse();
                }
                self.shared.let_go(core::mem::take(&mut self.pending.bytes));
            }
            Err(error) => self.failed(&error),
        }
    }

    /// What the outbox should know beside entries. Before them: what it forgets is older.
    fn write_place(&mut self) -> Result<(), OutboxError> {
        if self.pending.forget {
            self.outbox.forget_place()?;
            self.pending.forget = false;
            self.pending.moved = self.pending.place.is_some();
        }
        if self.pending.moved && self.pending.entries.is_empty() {
            self.outbox.be_at(self.pending.place)?;
            self.pending.moved = false;
        }
        Ok(())
    }

    fn failed(&mut self, error: &OutboxError) {
        tracing::error!(%error, "the outbox failed");
        if error.is_damage() {
            return self.replace_outbox();
        }
        if matches!(error, OutboxError::Corrupt(_)) {
            // It will never take them: a snapshot has to hold them.
            self.give_up_entries();
            self.shared.lose(ResyncReason::OutboxDamaged);
        }
        self.pending.retry_at = Some(Clock::now() + OUTBOX_RETRY);
        self.shared.outbox_failed(error.to_string());
    }

    /// The outbox's file is damaged. What it held is in the database: a snapshot has to hold it.
    fn replace_outbox(&mut self) {
        self.cancel_copy();
        match self.outbox.begin_anew() {
            Ok(state) => {
                tracing::error!(
                    "the outbox was damaged: it is put aside, and a snapshot begins a new epoch"
                );
                self.give_up_entries();
                self.pending.retry_at = None;
                self.pending.moved = false;
                self.pending.forget = false;
                self.shared.outbox_replaced();
                self.know(state);
            }
            Err(error) => {
                tracing::error!(%error, "the damaged outbox cannot be replaced");
                self.pending.retry_at = Some(Clock::now() + OUTBOX_RETRY);
                self.shared.outbox_failed(error.to_string());
            }
        }
    }

    fn know(&mut self, state: State) {
        self.shared.outbox_changed(queued(&state));
        self.state = state;
    }

    fn give_up_entries(&mut self) {
        self.pending.entries.clear();
        self.set_place(None);
        self.shared.let_go(core::mem::take(&mut self.pending.bytes));
    }

    /// The outbox is over its limit: a snapshot stands for what it holds.
    fn collapse(&mut self) {
        tracing::warn!(
            bytes = self.state.bytes,
            limit = self.max_outbox_bytes,
            "the outbox reached its limit: its entries are given up for a snapshot"
        );
        self.shared.lose(ResyncReason::QueueFull);
        let collapsed = self.outbox.collapse().and_then(|()| self.outbox.state());
        match collapsed {
            Ok(state) => self.know(state),
            // Tried again after the next append; nothing more is taken in until then.
            Err(error) => self.failed(&error),
        }
    }

    fn begin_snapshot(
        &mut self,
        boundary: Boundary,
        as_of_commit: u64,
        resync: Option<ResyncReason>,
    ) {
        let place = boundary.position();
        let expected = self.outbox.content().ok().flatten();
        // Where hashes were lost, a new epoch has them again; one that is wished for will.
        let established = self.state.wish.is_none() && self.state.base_noted;
        let unknown = expected.is_none() && !self.pending.unreadable && established;
        let resync = resync.or(unknown.then_some(ResyncReason::SchemaChanged));
        let resync = resync.or(self.in_line.map(|_| ResyncReason::Requested));
        let begun = if !self.pending.entries.is_empty() || self.pending.copy.is_some() {
            // The commits before it are not written; or what is being copied would be taken for it.
            Ok(None)
        } else if let Some(reason) = resync {
            self.begin_epoch(reason, as_of_commit).map(Some)
        } else if self.pending.gap {
            Ok(None)
        } else {
            self.outbox.state().map(|state| {
                let goes_on = state.wish.is_none() && state.base_noted;
                goes_on.then_some((state.generation, state.last_seq))
            })
        };
        self.shared.snapshot_begun(resync.filter(|_| matches!(begun, Ok(Some(_)))));
        match begun {
            Ok(Some((generation, as_of))) => {
                if resync.is_some() {
                    // The outbox has forgotten the one before.
                    self.pending.place = place;
                    self.pending.moved = place.is_some();
                }
                let expected = expected.filter(|_| resync.is_none());
                self.copy(boundary, generation, as_of, as_of_commit, expected);
            }
            Ok(None) | Err(_) => {
                if let Err(error) = begun {
                    self.failed(&error);
                }
                if let Some(reason) = resync {
                    // What follows it would continue a log that lacks what it was to mend.
                    self.pending.gap = true;
                    self.put_off_snapshot();
                    self.shared.lose(reason);
                }
            }
        }
    }

    fn begin_epoch(
        &mut self,
        reason: ResyncReason,
        as_of_commit: u64,
    ) -> Result<(i64, SeqNo), OutboxError> {
        let wish = Wish { open_id: OpenId(random()?), reason };
        let generation = self.outbox.begin_next(wish, as_of_commit)?;
        self.pending.gap = false;
        tracing::info!(?reason, commit = as_of_commit, "a snapshot begins a new epoch");
        let state = self.outbox.state()?;
        self.know(state);
        Ok((generation, SeqNo(0)))
    }

    fn copy(
        &mut self,
        boundary: Boundary,
        generation: i64,
        as_of: SeqNo,
        as_of_commit: u64,
        expected: Option<ContentSum>,
    ) {
        let control = Arc::new(CopyControl::default());
        let path = image_path(&self.place.dir, &self.place.prefix);
        let (shared, watched) = (Arc::clone(&self.shared), Arc::clone(&control));
        let key = self.outbox.content_key();
        let copy = move || {
            let image = boundary.copy_to(&path, &watched)?;
            let content = image.content(key, &watched)?;
            Ok((image, content))
        };
        let thread = thread::Builder::new().name("synddb-snapshot".into()).spawn(move || {
            // Whoever waits for it is told even so.
            let copied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(copy));
            shared.copied(copied.unwrap_or(Err(SnapshotError::Panicked)));
        });
        match thread {
            Ok(_) => {
                let began = Clock::now();
                let as_of_bytes = self.state.appended_bytes;
                self.pending.copy = Some(Copy {
                    control,
                    began,
                    generation,
                    as_of,
                    as_of_commit,
                    as_of_bytes,
                    expected,
                });
            }
            Err(error) => self.snapshot_failed(&format!("no thread to copy it: {error}"), as_of),
        }
    }

    /// A copy that is cancelled still ends with [`Shared::copied`]; until then no other begins.
    fn cancel_copy(&self) {
        if let Some(copy) = &self.pending.copy {
            copy.control.cancel();
        }
    }

    /// True where it goes to the link.
    fn copied(&mut self, copied: Copied) -> bool {
        let Some(copy) = self.pending.copy.take() else { return false };
        self.pending.last_copy = copy.began.elapsed();
        let as_of = copy.as_of;
        match copied {
            Ok((image, content)) => match self.offer(copy, image, content) {
                Ok(offered) => {
                    self.pending.snapshot_failures = 0;
                    return offered;
                }
                Err(error) => self.snapshot_failed(&error.to_string(), as_of),
            },
            // Because of a loss, which asks for another one.
            Err(SnapshotError::Cancelled) => {}
            Err(error) => self.snapshot_failed(&error.to_string(), as_of),
        }
        false
    }

    /// Hands a copy to the link. False where it is of no use any more.
    fn offer(
        &mut self,
        copy: Copy,
        image: SnapshotImage,
        content: Option<Content>,
    ) -> Result<bool, OutboxError> {
        let Copy { generation, as_of, as_of_commit, as_of_bytes, expected, .. } = copy;
        self.pending.unreadable = content.is_none();
        let content_hash = content.as_ref().map(Content::total);
        if as_of == SeqNo(0) {
            let Some(state) = self.outbox.establish(generation, content)? else {
                return Ok(false);
            };
            self.know(state);
        } else if let (Some(expected), Some(found)) = (expected, content_hash)
            && expected != found
        {
            tracing::error!(
                entry = as_of.0, %expected, %found,
                "the database is not what its changesets lead to: a new epoch begins"
            );
            self.shared.content_differs(Divergence {
                epoch: self.state.position.epoch,
                seq: as_of,
                commit: as_of_commit,
                expected,
                found,
            });
            return Ok(false);
        }
        self.shared.base(Base {
            generation,
            id: SnapshotId(random()?),
            as_of,
            as_of_commit,
            as_of_bytes,
            len: image.len(),
            sha256: image.sha256(),
            content_hash,
            image: Box::new(image),
        });
        Ok(true)
    }

    fn snapshot_failed(&mut self, error: &str, as_of: SeqNo) {
        tracing::error!(error, "no snapshot");
        self.put_off_snapshot();
        self.shared.snapshot_failed(error.into());
        // Without an epoch's base nothing of it can be restored; of any other the log tells as well.
        if as_of == SeqNo(0) {
            self.shared.lose(self.state.wish.map_or(ResyncReason::CaptureFailed, |w| w.reason));
        }
    }

    fn put_off_snapshot(&mut self) {
        let (first, last) = FAILED_TRIES;
        let wait = first * (1 << self.pending.snapshot_failures.min(6));
        self.pending.snapshot_failures += 1;
        self.pending.next_snapshot = Some(Clock::now() + wait.min(last));
    }

    /// Sees that a boundary is taken where one is due.
    fn snapshot(&mut self, work: &Work) {
        let now = Clock::now();
        if self.pending.next_snapshot.is_some_and(|at| at > now) && !self.shared.snapshot_wanted() {
            return;
        }
        self.pending.next_snapshot = None;
        let due = match work.mode {
            // Not by what the work said: a loss may have come since.
            _ if work.closing || work.blocked || self.pending.copy.is_some() => None,
            Mode::Behind { since, .. } if work.link_up => {
                let settle = (SETTLE + self.pending.last_copy).min(MAX_SETTLE);
                Some(if work.urgent { now } else { since + settle })
            }
            Mode::Following if self.periodic_is_due(work) => Some(now),
            _ => None,
        };
        let Some(due) = due else {
            self.pending.idle_wait = IDLE_TRIES.0;
            return;
        };
        if due > now {
            self.pending.next_snapshot = Some(due);
            return;
        }
        self.shared.want_snapshot();
        // An application that commits takes the boundary itself.
        match self.idle.try_take() {
            Ok(true) => self.pending.idle_wait = IDLE_TRIES.0,
            Ok(false) => {
                self.pending.next_snapshot = Some(now + self.pending.idle_wait);
                self.pending.idle_wait = (self.pending.idle_wait * 2).min(IDLE_TRIES.1);
            }
            Err(error) => {
                self.put_off_snapshot();
                self.shared.snapshot_failed(error.to_string());
            }
        }
    }

    fn periodic_is_due(&mut self, work: &Work) -> bool {
        let due = |state: &State| {
            let commits = state.last_commit.saturating_sub(state.snapshot_commit);
            let bytes = state.appended_bytes.saturating_sub(state.snapshot_at) as f64;
            let weight = state.snapshot_len.max(SMALLEST) as f64;
            (self.snapshot_interval > 0 && commits >= self.snapshot_interval)
                || (self.snapshot_factor > 0.0 && bytes > weight * self.snapshot_factor)
        };
        let asked = work.snapshot_asked;
        if !work.link_up || work.uploads > 0 || !(asked || due(&self.state)) {
            return false;
        }
        // What the link has noted since is in the outbox.
        let Ok(state) = self.outbox.state() else { return false };
        let due = state.wish.is_none() && state.base_noted && (asked || due(&state));
        // Rows and what indexes add to them, about. Nothing would go on without it once it is begun.
        let since = state.appended_bytes.saturating_sub(state.snapshot_at);
        let len = state.snapshot_len + 2 * since;
        self.state = state;
        if due && self.in_line.is_some_and(|limit| len > limit) {
            if asked {
                tracing::warn!(len, "a snapshot was asked for, and may be too large: not taken");
                self.shared.snapshot_begun(None);
            }
            return false;
        }
        due
    }
}
