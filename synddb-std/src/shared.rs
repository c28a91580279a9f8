//! What the application's thread, the writer, the link and those who wait share: one mutex, held
//! for moments only.
//!
//! ```text
//!  app thread ─ items ─▶ writer ─ "the outbox changed", bases ─▶ link ─ receipts ─▶ who waits
//!      ▲                   │
//!      └── wants a snapshot┘
//! ```
//!
//! The stream is *following* while every commit goes into the outbox, and *behind* from a loss to
//! the next snapshot: what is committed in between is in the snapshot, so it is counted and dropped.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant as Clock},
};

use synddb_core::{
    sender::{SenderStats, StopReason},
    wire::message::ResyncReason,
};

use crate::{
    capture::{Changes, Commit, CommitSink, Lost, Position, Prepared},
    error::{NotStored, Reason},
    link::{Base, LinkState, Receipt},
    outbox::{Outbox, PreparedCommit},
    snapshot::Boundary,
    stats::Divergence,
    writer::Copied,
};

/// What the application's thread hands to the writer, in the order of the commits.
pub(crate) enum Item {
    Commit {
        commit: Commit,
        /// Number of the first commit in it.
        first: u64,
        /// Number of the last.
        last: u64,
    },
    /// The state after the last commit is found to have this name.
    Named(Position),
    /// The stream fell behind. Commits that were queued before this are still good.
    Lost,
    Boundary {
        boundary: Boundary,
        /// The last commit that the state at the boundary holds.
        as_of: u64,
        /// Why the stream was behind; `None` where it was not.
        resync: Option<ResyncReason>,
    },
}

/// Whether commits go into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Following,
    Behind {
        reason: ResyncReason,
        /// The last loss.
        since: Clock,
    },
}

/// What the writer is to do.
pub(crate) struct Work {
    pub(crate) items: VecDeque<Item>,
    pub(crate) mode: Mode,
    /// Commits did not fit in memory: those that could not be written yet are given up.
    pub(crate) overflowed: bool,
    pub(crate) link_up: bool,
    /// Somebody waits for a commit.
    pub(crate) urgent: bool,
    /// A snapshot was asked for by the user.
    pub(crate) snapshot_asked: bool,
    /// Snapshots that the link has not dealt with yet.
    pub(crate) uploads: usize,
    pub(crate) copied: Option<Copied>,
    /// The sequencer refused a snapshot.
    pub(crate) refused: bool,
    /// It takes none as large as that; until somebody decides, none is taken.
    pub(crate) blocked: bool,
    /// The link found the outbox's file damaged.
    pub(crate) outbox_damaged: bool,
    pub(crate) closing: bool,
}

/// A snapshot that the sequencer refused for its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooLarge {
    len: u64,
    limit: u64,
    /// Nothing goes on without it.
    is_base: bool,
}

/// What the link is to do.
pub(crate) struct Orders {
    pub(crate) outbox_changed: bool,
    pub(crate) bases: VecDeque<Base>,
    pub(crate) flushes: u64,
    pub(crate) restart: bool,
    /// The outbox is another one.
    pub(crate) outbox_replaced: bool,
    /// A snapshot is due that is too large for the sequencer.
    pub(crate) blocked: bool,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The commit that is to be stored.
    pub(crate) commit: u64,
    /// A snapshot has to hold it.
    pub(crate) by_snapshot: bool,
    pub(crate) deadline: Clock,
    /// Attempts of the link that had ended before.
    attempts: u64,
}

/// How the waiting goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Progress {
    Stored(Receipt),
    /// The thread that uses the connection should flush it: a snapshot is wanted.
    SnapshotWanted,
    GaveUp(NotStored),
    Pending,
}

const NOT_WANTED: u8 = 0;
const WANTED: u8 = 1;

/// See the module's documentation.
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    writer: Condvar,
    link: Condvar,
    waiting: Condvar,
    /// Whether the next boundary is to be taken. Read at every commit, hence outside the mutex.
    wanted: AtomicU8,
    /// Where commits are kept before they happen.
    keeper: OnceLock<Arc<Outbox>>,
    limits: Limits,
}

/// Limits that commits are taken in within.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Commits that wait for the writer before it must not linger any more.
    pub(crate) buffer_size: usize,
    /// How long the first of them may wait.
    pub(crate) linger: Duration,
    /// Bytes of commits in memory.
    pub(crate) max_memory: usize,
    /// Failed attempts in a row after which the link counts as down.
    pub(crate) max_retries: u32,
}

struct Inner {
    // From the application's thread to the writer.
    items: VecDeque<Item>,
    first_item: Option<Clock>,
    commits: usize,
    /// Of commits that are queued here or that the writer holds.
    bytes: usize,
    last_commit: u64,
    /// Commits that should have been kept before they happened.
    unprepared: u64,
    /// Number under which the last one was kept.
    prepared: u64,
    mode: Mode,
    overflowed: bool,
    writer_sleeps: bool,
    /// A boundary that begins an epoch was taken, and is not in the outbox yet.
    boundary_pending: bool,
    /// Epochs that the outbox began.
    epochs_begun: u64,
    poked: bool,
    closing: bool,
    /// Something was committed after the end, and is not in the outbox.
    missed: bool,
    copied: Option<Copied>,
    outbox_error: Option<String>,
    snapshot_error: Option<String>,
    too_large: Option<TooLarge>,
    outbox_damaged: bool,
    /// A thread that panicked.
    dead: Option<String>,
    // To the link.
    outbox_changed: bool,
    outbox_replaced: bool,
    bases: VecDeque<Base>,
    flushes: u64,
    stopping: bool,
    restart: bool,
    link_waker: Option<Waker>,
    // From the link.
    link: LinkState,
    attempts: u64,
    finished: bool,
    receipt: Option<Receipt>,
    last_ack: Option<Clock>,
    snapshot_commit: Option<u64>,
    uploads: usize,
    refused: bool,
    sender: SenderStats,
    queued: Queued,
    // Of those who wait.
    waiters: usize,
    wakers: Vec<Waker>,
    alarm: Option<Clock>,
    snapshot_asked: bool,
    ages: Ages,
    resyncs: Vec<(ResyncReason, u64)>,
    snapshots: u64,
    #[cfg(feature = "cbor")]
    cbor: Option<crate::CborStats>,
    divergences: u64,
    last_divergence: Option<Divergence>,
}

/// What the outbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// What [`Shared::look`] tells.
pub(crate) struct Look {
    pub(crate) mode: Mode,
    pub(crate) last_commit: u64,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) link: LinkState,
    pub(crate) last_ack: Option<Duration>,
    pub(crate) oldest: Option<Duration>,
    pub(crate) sender: SenderStats,
    pub(crate) queued: Queued,
    pub(crate) memory: usize,
    pub(crate) commits_in_memory: usize,
    pub(crate) unprepared: u64,
    pub(crate) resyncs: Vec<(ResyncReason, u64)>,
    pub(crate) snapshots: u64,
    pub(crate) divergences: u64,
    pub(crate) last_divergence: Option<Divergence>,
    pub(crate) trouble: Option<String>,
    #[cfg(feature = "cbor")]
    pub(crate) cbor: Option<crate::CborStats>,
    pub(crate) stuck: Option<String>,
}

impl TooLarge {
    fn reason(self) -> Reason {
        Reason::SnapshotTooLarge { len: self.len, limit: self.limit }
    }
}

impl Shared {
    /// Behind, until [`Shared::start`] says otherwise.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                first_item: None,
                commits: 0,
                bytes: 0,
                last_commit: 0,
                unprepared: 0,
                prepared: 0,
                mode: Mode::Behind { reason: ResyncReason::FirstAttach, since: Clock::now() },
                overflowed: false,
                writer_sleeps: false,
                boundary_pending: false,
                epochs_begun: 0,
                poked: false,
                closing: false,
                missed: false,
                copied: None,
                outbox_error: None,
                snapshot_error: None,
                too_large: None,
                outbox_damaged: false,
                dead: None,
                outbox_changed: false,
                outbox_replaced: false,
                bases: VecDeque::new(),
                flushes: 0,
                stopping: false,
                restart: false,
                link_waker: None,
                link: LinkState::Connecting,
                attempts: 0,
                finished: false,
                receipt: None,
                last_ack: None,
                snapshot_commit: None,
                uploads: 0,
                refused: false,
                sender: SenderStats::default(),
                queued: Queued::default(),
                waiters: 0,
                wakers: Vec::new(),
                alarm: None,
                snapshot_asked: false,
                ages: Ages::default(),
                resyncs: Vec::new(),
                snapshots: 0,
                #[cfg(feature = "cbor")]
                cbor: None,
                divergences: 0,
                last_divergence: None,
            }),
            writer: Condvar::new(),
            link: Condvar::new(),
            waiting: Condvar::new(),
            wanted: AtomicU8::new(NOT_WANTED),
            keeper: OnceLock::new(),
            limits,
        }
    }

    /// Where the outbox stands when the application attaches. A stream that is behind counts a
    /// commit more: whoever pushes waits for the snapshot.
    pub(crate) fn start(&self, last_commit: u64, behind: Option<ResyncReason>, queued: Queued) {
        let mut inner = self.lock();
        inner.last_commit = last_commit;
        inner.queued = queued;
        inner.mode = Mode::Following;
        inner.ages = Ages::default();
        if queued.entries > 0 {
            inner.ages.committed(0);
        }
        if let Some(reason) = behind {
            inner.lose(reason);
        }
    }

    /// From now on commits are kept in `outbox` before they happen.
    pub(crate) fn keep_in(&self, outbox: Arc<Outbox>) {
        // Only asked for once.
        let _ = self.keeper.set(outbox);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Changes are small and cannot panic halfway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Of the thread that uses the connection, and the user's other threads.

    /// Number of the last commit that was captured.
    pub(crate) fn last_commit(&self) -> u64 {
        self.lock().last_commit
    }

    /// Whether the stream is behind, and a flush of the connection could mend it.
    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != NOT_WANTED
    }

    /// Begins to wait for `commit`: what is queued is written and sent now, and the link tries once
    /// more even if it would wait.
    pub(crate) fn expect(&self, commit: u64, by_snapshot: bool, timeout: Duration) -> Target {
        let mut inner = self.lock();
        inner.flushes += 1;
        inner.waiters += 1;
        inner.snapshot_asked |= by_snapshot;
        if by_snapshot {
            inner.snapshot_error = None;
        }
        inner.poke(&self.writer);
        inner.ring(&self.link);
        let now = Clock::now();
        // Far enough for every purpose, and no overflow.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Target { commit, by_snapshot, deadline, attempts: inner.attempts }
    }

    /// The waiting that [`Shared::expect`] began is over.
    pub(crate) fn expected(&self) {
        self.lock().waiters -= 1;
    }

    /// Waits until there is something to say.
    pub(crate) fn wait(&self, target: &Target) -> Progress {
        let mut inner = self.lock();
        loop {
            match self.progress(&inner, target) {
                Progress::Pending => {}
                progress => return progress,
            }
            let left = target.deadline.saturating_duration_since(Clock::now());
            inner =
                self.waiting.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Shared::wait`], for a thread that cannot flush the connection.
    pub(crate) fn wait_elsewhere(&self, target: &Target) -> Progress {
        let mut inner = self.lock();
        loop {
            match self.progress(&inner, target) {
                Progress::Pending | Progress::SnapshotWanted => {}
                progress => return progress,
            }
            let left = target.deadline.saturating_duration_since(Clock::now());
            inner =
                self.waiting.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Shared::wait`], for a future: `waker` is woken when there may be something to say.
    pub(crate) fn poll(&self, target: &Target, waker: &Waker) -> Progress {
        let mut inner = self.lock();
        let progress = self.progress(&inner, target);
        if matches!(progress, Progress::Pending | Progress::SnapshotWanted) {
            self.remember(&mut inner, target.deadline, waker);
        }
        progress
    }

    /// Wakes `waker` when something changes, and at `deadline`.
    fn remember(&self, inner: &mut Inner, deadline: Clock, waker: &Waker) {
        if !inner.wakers.iter().any(|known| known.will_wake(waker)) {
            inner.wakers.push(waker.clone());
        }
        // The writer's thread keeps the time, for a future has none.
        if inner.alarm.is_none_or(|alarm| alarm > deadline) {
            inner.alarm = Some(deadline);
            inner.poke(&self.writer);
        }
    }

    fn progress(&self, inner: &Inner, target: &Target) -> Progress {
        if let Some(receipt) = &inner.receipt
            && receipt.commit >= target.commit
            && (!target.by_snapshot || inner.snapshot_commit >= Some(target.commit))
        {
            return Progress::Stored(receipt.clone());
        }
        if let Some(reason) = inner.give_up(target, self.limits.max_retries) {
            return Progress::GaveUp(NotStored {
                reason,
                commits: inner.unstored(),
                queued_bytes: inner.queued.bytes + inner.bytes as u64,
                behind: inner.behind(),
            });
        }
        if self.snapshot_wanted() { Progress::SnapshotWanted } else { Progress::Pending }
    }

    /// The stream needs a snapshot; a link that stopped starts again.
    pub(crate) fn resync(&self) {
        let mut inner = self.lock();
        inner.too_large = None;
        inner.lose(ResyncReason::Requested);
        inner.snapshot_error = None;
        inner.restart = true;
        inner.poke(&self.writer);
        inner.ring(&self.link);
    }

    /// For statistics.
    pub(crate) fn look(&self) -> Look {
        let inner = self.lock();
        let now = Clock::now();
        let stored = inner.receipt.as_ref().map_or(0, |receipt| receipt.commit);
        Look {
            mode: inner.mode,
            last_commit: inner.last_commit,
            receipt: inner.receipt.clone(),
            link: inner.link.clone(),
            last_ack: inner.last_ack.map(|at| now.saturating_duration_since(at)),
            oldest: (stored < inner.last_commit)
                .then(|| inner.ages.oldest())
                .flatten()
                .map(|at| now.saturating_duration_since(at)),
            sender: inner.sender,
            queued: inner.queued,
            memory: inner.bytes,
            commits_in_memory: inner.commits,
            unprepared: inner.unprepared,
            resyncs: inner.resyncs.clone(),
            snapshots: inner.snapshots,
            divergences: inner.divergences,
            last_divergence: inner.last_divergence,
            trouble: inner.outbox_error.clone().or_else(|| inner.snapshot_error.clone()),
            #[cfg(feature = "cbor")]
            cbor: inner.cbor,
            stuck: (inner.dead.clone().map(Reason::Panicked))
                .or_else(|| inner.too_large.filter(|large| large.is_base).map(TooLarge::reason))
                .map(|reason| reason.to_string()),
        }
    }

    /// No more is taken in: the writer writes what it has and ends.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        self.wanted.store(NOT_WANTED, Ordering::Relaxed);
        inner.poke(&self.writer);
    }

    /// Whether everything that was committed went to the outbox or is in a snapshot that went there.
    pub(crate) fn is_complete(&self) -> bool {
        let inner = self.lock();
        inner.mode == Mode::Following && !inner.boundary_pending && !inner.missed
    }

    /// The link ends as soon as it may.
    pub(crate) fn stop_link(&self) {
        let mut inner = self.lock();
        inner.stopping = true;
        inner.ring(&self.link);
    }

    // Of the writer.

    /// Waits for something to do, at the longest until `until`. `spare` is what items are put into
    /// from then on: emptied, so that the application's thread need not make room anew.
    pub(crate) fn work(&self, until: Option<Clock>, spare: VecDeque<Item>) -> Work {
        let mut inner = self.lock();
        loop {
            let now = Clock::now();
            if let Some(alarm) = inner.alarm
                && alarm <= now
            {
                inner.alarm = None;
                inner.wake(&self.waiting);
            }
            let due = if inner.poked || inner.closing || inner.commits >= self.limits.buffer_size {
                Some(now)
            } else {
                let written_by = inner
                    .first_item
                    .map(|first| if inner.waiters > 0 { now } else { first + self.limits.linger });
                [written_by, until, inner.alarm].into_iter().flatten().min()
            };
            if due.is_some_and(|due| due <= now) {
                break;
            }
            inner.writer_sleeps = true;
            inner = match due {
                Some(due) => {
                    self.writer
                        .wait_timeout(inner, due.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.writer.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            inner.writer_sleeps = false;
        }
        inner.poked = false;
        inner.first_item = None;
        inner.commits = 0;
        Work {
            items: core::mem::replace(&mut inner.items, spare),
            mode: inner.mode,
            overflowed: core::mem::take(&mut inner.overflowed),
            link_up: inner.link == LinkState::Up,
            urgent: inner.waiters > 0,
            snapshot_asked: inner.snapshot_asked,
            uploads: inner.uploads,
            copied: inner.copied.take(),
            refused: core::mem::take(&mut inner.refused),
            blocked: inner.too_large.is_some(),
            outbox_damaged: core::mem::take(&mut inner.outbox_damaged),
            closing: inner.closing,
        }
    }

    /// Whether the stream is closed and nothing is left to take.
    pub(crate) fn drained(&self) -> bool {
        let inner = self.lock();
        inner.closing && inner.items.is_empty()
    }

    /// So many bytes of commits are not in memory any more.
    pub(crate) fn let_go(&self, bytes: usize) {
        let mut inner = self.lock();
        inner.bytes -= bytes;
        if inner.bytes == 0 {
            inner.wake(&self.waiting);
        }
    }

    /// The outbox took something in, and holds so much. The link looks by itself at what is in it:
    /// a state that was read earlier may be older than what the link knows.
    pub(crate) fn outbox_changed(&self, queued: Queued) {
        let mut inner = self.lock();
        inner.outbox_changed = true;
        inner.queued = queued;
        inner.outbox_error = None;
        inner.ring(&self.link);
    }

    /// The outbox was damaged, and is an empty one now: the link starts over from it.
    pub(crate) fn outbox_replaced(&self) {
        let mut inner = self.lock();
        inner.outbox_replaced = true;
        inner.outbox_damaged = false;
        inner.lose(ResyncReason::OutboxDamaged);
        inner.poke(&self.writer);
        inner.ring(&self.link);
    }

    /// The outbox could not be written.
    pub(crate) fn outbox_failed(&self, error: String) {
        let mut inner = self.lock();
        inner.outbox_error = Some(error);
        inner.wake(&self.waiting);
    }

    /// The next boundary is to be taken, unless one was taken that the writer has not seen yet: of two
    /// the second would begin a generation whose snapshot is the first's.
    pub(crate) fn want_snapshot(&self) {
        let mut inner = self.lock();
        let taken = inner.items.iter().any(|item| matches!(item, Item::Boundary { .. }));
        if !inner.closing && !taken {
            self.wanted.store(WANTED, Ordering::Relaxed);
            inner.wake(&self.waiting);
        }
    }

    /// The copy of a snapshot ended; called by the thread that made it.
    pub(crate) fn copied(&self, copied: Copied) {
        let mut inner = self.lock();
        if inner.closing {
            return;
        }
        inner.copied = Some(copied);
        inner.poke(&self.writer);
    }

    /// A snapshot is ready to be uploaded.
    pub(crate) fn base(&self, base: Base) {
        let mut inner = self.lock();
        inner.snapshot_error = None;
        inner.uploads += 1;
        inner.bases.push_back(base);
        inner.ring(&self.link);
    }

    /// The snapshot that somebody may wait for failed.
    pub(crate) fn snapshot_failed(&self, error: String) {
        let mut inner = self.lock();
        inner.snapshot_error = Some(error);
        inner.wake(&self.waiting);
    }

    /// A snapshot holds something else than changesets led to.
    pub(crate) fn content_differs(&self, divergence: Divergence) {
        let mut inner = self.lock();
        inner.divergences += 1;
        inner.last_divergence = Some(divergence);
        inner.lose(ResyncReason::ContentDiffers);
        inner.poke(&self.writer);
    }

    /// A snapshot was asked for, and is on its way.
    pub(crate) fn snapshot_begun(&self, resync: Option<ResyncReason>) {
        let mut inner = self.lock();
        inner.snapshot_asked = false;
        inner.boundary_pending = false;
        if let Some(reason) = resync {
            inner.epochs_begun += 1;
            match inner.resyncs.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, count)) => *count += 1,
                None => inner.resyncs.push((reason, 1)),
            }
        }
    }

    /// What was captured since some commit is of no use: a snapshot has to hold it.
    pub(crate) fn lose(&self, reason: ResyncReason) {
        let mut inner = self.lock();
        inner.lose(reason);
        inner.poke(&self.writer);
    }

    // Of the link.

    /// What others asked for since the last time.
    pub(crate) fn orders(&self, stats: SenderStats) -> Orders {
        let mut inner = self.lock();
        inner.sender = stats;
        Orders {
            outbox_changed: core::mem::take(&mut inner.outbox_changed),
            bases: core::mem::take(&mut inner.bases),
            flushes: inner.flushes,
            restart: core::mem::take(&mut inner.restart),
            outbox_replaced: core::mem::take(&mut inner.outbox_replaced),
            blocked: inner.too_large.is_some(),
        }
    }

    /// The outbox's file is damaged: the writer has to replace it.
    pub(crate) fn outbox_damaged(&self) {
        let mut inner = self.lock();
        inner.outbox_damaged = true;
        inner.poke(&self.writer);
    }

    /// Whether a snapshot was too large for the sequencer.
    pub(crate) fn is_blocked(&self) -> bool {
        self.lock().too_large.is_some()
    }

    /// The sequencer takes snapshots of so many bytes.
    pub(crate) fn snapshot_limit(&self, limit: u64) {
        let mut inner = self.lock();
        if inner.too_large.is_some_and(|large| large.limit != limit) {
            inner.too_large = None;
            inner.snapshot_error = None;
            inner.poke(&self.writer);
        }
    }

    /// Sleeps until something is asked for, or for `wait`.
    pub(crate) fn sleep_link(&self, flushes_seen: u64, wait: Option<Duration>) {
        let inner = self.lock();
        if inner.link_is_asked(flushes_seen) {
            return;
        }
        match wait {
            Some(wait) => drop(self.link.wait_timeout(inner, wait)),
            None => drop(self.link.wait(inner)),
        }
    }

    /// As [`Shared::sleep_link`], for a link that is a future.
    #[cfg(feature = "hyper")]
    pub(crate) fn poll_link(&self, flushes_seen: u64, waker: &Waker) -> Poll<()> {
        let mut inner = self.lock();
        if inner.link_is_asked(flushes_seen) {
            return Poll::Ready(());
        }
        inner.link_waker = Some(waker.clone());
        Poll::Pending
    }

    /// Whether the link is to end.
    pub(crate) fn link_should_end(&self) -> bool {
        self.lock().stopping
    }

    /// The link ended.
    pub(crate) fn link_finished(&self) {
        let mut inner = self.lock();
        inner.finished = true;
        // With their files.
        inner.bases.clear();
        inner.wake(&self.waiting);
    }

    /// The link's future is gone. Where it had not ended, nothing is sent any more.
    #[cfg(feature = "hyper")]
    pub(crate) fn link_dropped(&self) {
        let finished = self.lock().finished;
        if !finished {
            tracing::warn!("the link's future was dropped; commits keep queueing");
            self.link_is(|link, attempts| {
                *attempts += 1;
                *link = LinkState::NotDriven;
            });
            self.link_finished();
        }
    }

    /// As [`Shared::wait_for_link`], for a future.
    pub(crate) fn poll_link_end(&self, deadline: Clock, waker: &Waker) -> Poll<()> {
        let mut inner = self.lock();
        if inner.finished || Clock::now() >= deadline {
            return Poll::Ready(());
        }
        self.remember(&mut inner, deadline, waker);
        Poll::Pending
    }

    /// Waits until the link has ended; false where it has not by `deadline`.
    pub(crate) fn wait_for_link(&self, deadline: Clock) -> bool {
        let mut inner = self.lock();
        while !inner.finished {
            let left = deadline.saturating_duration_since(Clock::now());
            if left.is_zero() {
                return false;
            }
            inner =
                self.waiting.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Epochs that the outbox began since the start.
    pub(crate) fn epochs_begun(&self) -> u64 {
        self.lock().epochs_begun
    }

    /// The sequencer cannot go on from what the outbox held when so many epochs had begun.
    pub(crate) fn resync_needed(&self, reason: ResyncReason, epochs_begun: u64) {
        let mut inner = self.lock();
        // A snapshot that is due already, or that has come since, mends this too.
        let mended = inner.boundary_pending || inner.epochs_begun != epochs_begun;
        if inner.mode == Mode::Following && !mended {
            tracing::warn!(?reason, "the stream needs a snapshot");
            inner.lose(reason);
            inner.poke(&self.writer);
        }
    }

    /// The state of the link changed.
    pub(crate) fn link_is(&self, change: impl FnOnce(&mut LinkState, &mut u64)) {
        let mut inner = self.lock();
        let up = inner.link == LinkState::Up;
        let Inner { link, attempts, .. } = &mut *inner;
        change(link, attempts);
        if !up && inner.link == LinkState::Up {
            inner.poke(&self.writer);
        }
        inner.wake(&self.waiting);
    }

    /// What the link to an existing sequencer has counted.
    #[cfg(all(feature = "cbor", any(feature = "http", feature = "hyper")))]
    pub(crate) fn cbor_stats(&self, stats: crate::CborStats) {
        self.lock().cbor = Some(stats);
    }

    /// So much is left in the outbox.
    pub(crate) fn outbox_holds(&self, queued: Queued) {
        self.lock().queued = queued;
    }

    /// Everything that `receipt` covers is stored.
    pub(crate) fn acknowledged(&self, receipt: Receipt) {
        let mut inner = self.lock();
        inner.last_ack = Some(Clock::now());
        inner.ages.stored(receipt.commit);
        inner.receipt = Some(receipt);
        inner.wake(&self.waiting);
    }

    /// The log says that a snapshot holds the database as of `commit`.
    pub(crate) fn snapshot_noted(&self, commit: u64) {
        let mut inner = self.lock();
        inner.snapshots += 1;
        inner.snapshot_commit = inner.snapshot_commit.max(Some(commit));
        inner.wake(&self.waiting);
    }

    /// The sequencer will not take a snapshot of `len` bytes; `is_base` where an epoch cannot do
    /// without it. `limit` is the largest that it takes, where that is why.
    pub(crate) fn snapshot_refused(&self, len: u64, limit: Option<u64>, is_base: bool) {
        let mut inner = self.lock();
        tracing::error!(len, ?limit, "the sequencer refused a snapshot");
        inner.refused = true;
        if is_base {
            inner.lose(ResyncReason::EntryRefused);
        }
        match limit {
            Some(limit) => inner.too_large = Some(TooLarge { len, limit, is_base }),
            None => inner.snapshot_error = Some("the sequencer finds it damaged".into()),
        }
        inner.poke(&self.writer);
        inner.wake(&self.waiting);
    }

    /// A thread panicked: what it did is not done any more.
    pub(crate) fn died(&self, thread: &str) {
        let mut inner = self.lock();
        tracing::error!(thread, "a thread of synddb panicked");
        inner.dead.get_or_insert_with(|| thread.into());
        inner.wake(&self.waiting);
    }

    /// So many snapshots are left to upload.
    pub(crate) fn uploads(&self, left: usize) {
        let mut inner = self.lock();
        inner.uploads = left + inner.bases.len();
        inner.poke(&self.writer);
    }
}

impl CommitSink for Shared {
    fn committed(&self, commit: Commit) {
        kill_point!("after-commit");
        let mut inner = self.lock();
        let first = inner.last_commit + 1;
        inner.last_commit += commit.commits;
        inner.ages.committed(first);
        inner.missed |= inner.closing;
        if inner.closing || inner.mode != Mode::Following {
            return;
        }
        let unprepared = self.keeper.get().is_some() && !matches!(commit.changes, Changes::Kept(_));
        inner.unprepared += u64::from(unprepared);
        let size = size(&commit);
        if inner.bytes + size > self.limits.max_memory {
            inner.overflow();
            inner.poke(&self.writer);
            return;
        }
        inner.bytes += size;
        inner.commits += 1;
        let last = inner.last_commit;
        inner.items.push_back(Item::Commit { commit, first, last });
        // The writer lingers by itself: it is woken for the first commit, and when it must not
        // linger any more.
        if inner.first_item.is_none() {
            inner.first_item = Some(Clock::now());
            if inner.writer_sleeps {
                self.writer.notify_all();
            }
        } else if inner.commits == self.limits.buffer_size {
            self.writer.notify_all();
        }
    }

    fn lost(&self, lost: Lost) {
        tracing::warn!(%lost, "changes that no changeset carries: a snapshot is needed");
        self.lose(reason(&lost));
    }

    fn wants_snapshot(&self) -> bool {
        self.snapshot_wanted()
    }

    fn prepare(&self, prepared: Prepared<'_>) -> bool {
        let Some(outbox) = self.keeper.get() else { return false };
        let number = {
            let mut inner = self.lock();
            if inner.closing || inner.mode != Mode::Following {
                return false;
            }
            inner.prepared = inner.last_commit + 1;
            inner.prepared
        };
        let Prepared { changeset, position, schema_version, wall_time_ms } = prepared;
        kill_point!("before-commit");
        let kept = outbox.prepare(&PreparedCommit {
            number,
            place: position,
            time_ms: wall_time_ms,
            schema_version,
            payload: changeset,
        });
        if let Err(error) = &kept {
            tracing::error!(%error, "a commit could not be kept before it happened");
            self.outbox_failed(error.to_string());
        }
        kill_point!("kept-before-commit");
        kept.is_ok()
    }

    fn withdraw(&self) {
        let Some(outbox) = self.keeper.get() else { return };
        // Not the next number: a loss may have taken the one it was kept under.
        let number = self.lock().prepared;
        if let Err(error) = outbox.withdraw(number) {
            tracing::error!(%error, "a commit that did not happen could not be forgotten");
            self.outbox_failed(error.to_string());
        }
    }

    fn named(&self, position: Position) {
        let mut inner = self.lock();
        // Only where everything before it is in the outbox, or on its way.
        if !inner.closing && inner.mode == Mode::Following {
            inner.items.push_back(Item::Named(position));
            inner.first_item.get_or_insert_with(Clock::now);
            if inner.writer_sleeps {
                self.writer.notify_all();
            }
        }
    }

    fn boundary(&self, boundary: Boundary) {
        let mut inner = self.lock();
        // Another thread may have taken one in the same moment.
        if self.wanted.swap(NOT_WANTED, Ordering::Relaxed) == NOT_WANTED || inner.closing {
            return;
        }
        let resync = inner.behind();
        inner.boundary_pending |= resync.is_some();
        inner.mode = Mode::Following;
        let as_of = inner.last_commit;
        inner.items.push_back(Item::Boundary { boundary, as_of, resync });
        inner.poke(&self.writer);
    }
}

impl Inner {
    fn poke(&mut self, writer: &Condvar) {
        self.poked = true;
        writer.notify_all();
    }

    fn wake(&mut self, waiting: &Condvar) {
        waiting.notify_all();
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn behind(&self) -> Option<ResyncReason> {
        match self.mode {
            Mode::Following => None,
            Mode::Behind { reason, .. } => Some(reason),
        }
    }

    /// A loss counts as a commit, so that waiting for it means waiting for the snapshot.
    fn lose(&mut self, reason: ResyncReason) {
        self.last_commit += 1;
        let commit = self.last_commit;
        self.ages.committed(commit);
        // What was lost may need a snapshot of another size than one that could be done without.
        self.too_large.take_if(|large| !large.is_base);
        let since = Clock::now();
        match &mut self.mode {
            // The first reason is why the stream is behind.
            Mode::Behind { since: last, .. } => *last = since,
            Mode::Following => {
                self.mode = Mode::Behind { reason, since };
                self.items.push_back(Item::Lost);
            }
        }
    }

    /// Commits that the writer does not keep up with are given up for a snapshot.
    fn overflow(&mut self) {
        let mut freed = 0;
        self.items.retain(|item| match item {
            Item::Commit { commit, .. } => {
                freed += size(commit);
                false
            }
            Item::Named(_) => false,
            _ => true,
        });
        self.bytes -= freed;
        self.commits = 0;
        self.overflowed = true;
        self.lose(ResyncReason::QueueFull);
    }

    fn link_is_asked(&self, flushes_seen: u64) -> bool {
        self.outbox_changed
            || !self.bases.is_empty()
            || self.flushes != flushes_seen
            || self.restart
            || self.outbox_replaced
            || self.stopping
    }

    /// Wakes the link, whichever way it sleeps.
    fn ring(&mut self, link: &Condvar) {
        link.notify_all();
        if let Some(waker) = self.link_waker.take() {
            waker.wake();
        }
    }

    fn unstored(&self) -> u64 {
        let stored = self.receipt.as_ref().map_or(0, |receipt| receipt.commit);
        self.last_commit - stored.min(self.last_commit)
    }

    fn give_up(&self, target: &Target, max_retries: u32) -> Option<Reason> {
        if let Some(thread) = &self.dead {
            return Some(Reason::Panicked(thread.clone()));
        }
        if let Some(large) = self.too_large.filter(|large| large.is_base || target.by_snapshot) {
            return Some(large.reason());
        }
        if let Some(error) = &self.outbox_error {
            return Some(Reason::Outbox(error.clone()));
        }
        if let Some(error) = &self.snapshot_error {
            return Some(Reason::Snapshot(error.clone()));
        }
        match &self.link {
            LinkState::Stopped(StopReason::Superseded) => return Some(Reason::Superseded),
            LinkState::Stopped(_) => return Some(Reason::Diverged),
            LinkState::NotDriven if self.finished => {
                let error = "the future that drives it was dropped; attach again to go on";
                return Some(Reason::LinkDown(error.into()));
            }
            // Whoever asked is told after an attempt of its own, at the earliest.
            LinkState::Failing { failures, error }
                if *failures >= max_retries
                    && self.attempts > target.attempts
                    // What is left is in the outbox by then.
                    && self.bytes == 0 =>
            {
                return Some(Reason::LinkDown(error.clone()));
            }
            _ => {}
        }
        if self.finished {
            return Some(Reason::ShutDown);
        }
        (Clock::now() >= target.deadline).then(|| {
            Reason::TimedOut(match &self.link {
                LinkState::Failing { error, .. } => Some(error.clone()),
                LinkState::NotDriven => Some("the link's future was not spawned".into()),
                _ => None,
            })
        })
    }
}

/// What a commit takes in memory, about, in bytes.
pub(crate) fn size(commit: &Commit) -> usize {
    commit.changes.len() + size_of::<Item>()
}

fn reason(lost: &Lost) -> ResyncReason {
    match lost {
        Lost::SchemaChanged { .. } | Lost::HeaderChanged => ResyncReason::SchemaChanged,
        Lost::ForeignWrite => ResyncReason::ForeignWrite,
        Lost::NullKey { .. } => ResyncReason::NullKey,
        _ => ResyncReason::CaptureFailed,
    }
}

/// How long the oldest commit has waited, without a clock reading for each.
#[derive(Debug, Default)]
struct Ages {
    /// The commits from this number on were captured at this time or later.
    marks: VecDeque<(u64, Clock)>,
    stored: u64,
}

impl Ages {
    const MARKS: usize = 256;
    const RESOLUTION: Duration = Duration::from_millis(10);

    fn committed(&mut self, commit: u64) {
        let now = Clock::now();
        let known = self.marks.back().is_some_and(|(_, at)| now - *at < Self::RESOLUTION);
        // During a long outage only the oldest matter.
        if !known && self.marks.len() < Self::MARKS {
            self.marks.push_back((commit, now));
        }
    }

    fn stored(&mut self, commit: u64) {
        self.stored = commit;
        while self.marks.get(1).is_some_and(|(next, _)| *next <= commit + 1) {
            self.marks.pop_front();
        }
    }

    fn oldest(&self) -> Option<Clock> {
        self.marks.front().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        buffer_size: 3,
        linger: Duration::from_secs(3600),
        max_memory: 1000,
        max_retries: 2,
    };

    fn shared() -> Shared {
        let shared = Shared::new(LIMITS);
        shared.start(10, None, Queued::default());
        shared
    }

    fn commit(bytes: usize) -> Commit {
        Commit {
            changes: Changes::Changeset(vec![7; bytes]),
            commits: 1,
            schema_version: 1,
            wall_time_ms: 0,
            position: None,
        }
    }

    fn receipt(commit: u64) -> Receipt {
        Receipt {
            stream: synddb_core::StreamId::from_name("test"),
            head: synddb_core::wire::message::Head::default(),
            commit,
            time_ms: 0,
            signed: None,
        }
    }

    fn numbers(items: &VecDeque<Item>) -> Vec<u64> {
        items
            .iter()
            .map(|item| match item {
                Item::Commit { last, .. } => *last,
                Item::Lost => 0,
                Item::Named(_) => 1,
                Item::Boundary { as_of, .. } => 1000 + as_of,
            })
            .collect()
    }

    #[test]
    fn the_writer_is_given_a_full_buffer_without_lingering() {
        let shared = shared();
        for _ in 0..3 {
            shared.committed(commit(10));
        }
        assert_eq!(numbers(&shared.work(None, VecDeque::new()).items), [11, 12, 13]);
    }

    #[test]
    fn no_second_boundary_is_wanted_before_the_writer_has_seen_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("app.db");
        let app = rusqlite::Connection::open(&database).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE item(v)").unwrap();
        let location = crate::capture::library::Location {
            open_name: std::ffi::CString::new(database.to_str().unwrap()).unwrap(),
            wal: dir.path().join("app.db-wal"),
            database,
            vfs: None,
        };
        let boundary = || Boundary::from_reader(crate::snapshot::Reader::open(&location).unwrap());
        let shared = shared();
        shared.lose(ResyncReason::FirstAttach);
        shared.want_snapshot();
        shared.boundary(boundary());
        // By what it knew before that.
        shared.want_snapshot();
        assert!(!shared.snapshot_wanted());
        shared.committed(commit(10));
        shared.boundary(boundary());
        let work = shared.work(None, VecDeque::new());
        assert_eq!(numbers(&work.items), [0, 1011, 12]);
        shared.want_snapshot();
        assert!(shared.snapshot_wanted());
    }

    #[test]
    fn a_loss_counts_as_a_commit_and_what_follows_it_is_dropped() {
        let shared = shared();
        shared.committed(commit(10));
        shared.lose(ResyncReason::NullKey);
        shared.committed(commit(10));
        let work = shared.work(None, VecDeque::new());
        assert_eq!(numbers(&work.items), [11, 0]);
        assert_eq!(shared.last_commit(), 13);
        assert!(matches!(work.mode, Mode::Behind { reason: ResyncReason::NullKey, .. }));
    }

    #[test]
    fn what_the_sequencer_lacked_before_an_epoch_began_asks_for_no_other_one() {
        let shared = shared();
        let behind = || shared.look().mode != Mode::Following;
        let seen = shared.epochs_begun();
        shared.snapshot_begun(Some(ResyncReason::FirstAttach));
        shared.resync_needed(ResyncReason::FirstAttach, seen);
        assert!(!behind(), "by a look at the outbox from before");
        shared.resync_needed(ResyncReason::SequencerLostData, shared.epochs_begun());
        assert!(behind());
    }

    #[test]
    fn memory_stays_within_its_limit() {
        let shared = shared();
        shared.committed(commit(600));
        shared.committed(commit(600));
        let work = shared.work(None, VecDeque::new());
        assert_eq!(numbers(&work.items), [0]);
        assert!(work.overflowed);
        assert!(matches!(work.mode, Mode::Behind { reason: ResyncReason::QueueFull, .. }));
        assert_eq!(shared.look().memory, 0);
    }

    #[test]
    fn waiting_ends_with_the_receipt_or_a_probe_of_a_link_that_is_down() {
        let shared = shared();
        let fail = || {
            shared.link_is(|link, attempts| {
                *attempts += 1;
                *link = LinkState::Failing { failures: 5, error: "refused".into() };
            });
        };
        fail();
        let target = shared.expect(10, false, Duration::from_secs(3600));
        let waker = Waker::noop();
        assert_eq!(shared.poll(&target, waker), Progress::Pending, "not before a probe");
        fail();
        assert!(matches!(shared.poll(&target, waker), Progress::GaveUp(_)));
        shared.acknowledged(receipt(9));
        assert!(matches!(shared.wait(&target), Progress::GaveUp(NotStored { commits: 1, .. })));
        shared.acknowledged(receipt(10));
        assert_eq!(shared.wait(&target), Progress::Stored(receipt(10)));
    }

    #[test]
    fn a_future_is_woken_when_its_time_is_over() {
        let shared = shared();
        let target = shared.expect(11, false, Duration::ZERO);
        assert!(matches!(shared.poll(&target, Waker::noop()), Progress::GaveUp(_)));
        let target = shared.expect(11, false, Duration::from_millis(1));
        let _ = shared.poll(&target, Waker::noop());
        let _ = shared.work(None, VecDeque::new());
        let _ = shared.work(Some(target.deadline), VecDeque::new());
        assert!(matches!(shared.wait(&target), Progress::GaveUp(_)));
    }

    #[test]
    fn ages_never_make_the_oldest_commit_younger() {
        let mut ages = Ages::default();
        let start = Clock::now();
        ages.marks = (0..10).map(|at| (at * 10, start + Duration::from_secs(at))).collect();
        ages.stored(35);
        assert_eq!(ages.oldest(), Some(start + Duration::from_secs(3)));
        ages.stored(39);
        assert_eq!(ages.oldest(), Some(start + Duration::from_secs(4)));
    }
}
