//! Decisions: what to ask next, and what an answer means. No I/O, no clock.
//!
//! ```text
//!            ┌─────────── lost ────────────┐
//!            ▼                             │
//!  start ─▶ UNSURE ── GET /status ──▶ READY ── POST ──▶ 201 ──▶ stored, where it need not be flushed
//!            ▲ ▲                                         └─▶ FLUSHING ── POST /batch/flush ──┐
//!            │ └── a while without work                                                     │
//!            └────────── stored, if it still is there ◀────────────────────────────────────┘
//! ```
//!
//! The far side numbers messages, and tells the number of the last one; it recognises no message that
//! comes twice, and forgets what it had confirmed where it stops before a flush. So one request is on
//! its way at a time, and before another one its fate is known:
//!
//! | `current_sequence` | the request |
//! |---|---|
//! | as before it | did not arrive, where what was before is flushed: it is sent again |
//! | one more | arrived, where nobody else writes there |
//! | less | and others before it are forgotten: resync |
//! | else | nobody can tell: [`OnDoubt`] |
//!
//! What is sent again may have been late, not lost. Then it is there twice, and the numbers of
//! receipts jump: a snapshot mends it. For a minute after one was sent again, *one more* is a doubt
//! too. Where others write too, numbers jump for them as well, and
//! neither this nor a far side that forgot can be told for sure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use synddb_core::{
    Instant,
    backoff::{Backoff, BackoffConfig},
    wire::message::ResyncReason,
};

use crate::{CborStats, OnDoubt};

/// Where the limit that is learned stops.
const SMALLEST_LIMIT: usize = 16 << 10;
/// Bodies up to this are not what connections are reset for.
const HARMLESS: usize = 64 << 10;
/// Resets in a row after which the body's size is blamed.
const RESETS: u32 = 2;
/// The same of a snapshot, which cannot be made smaller.
const SNAPSHOT_RESETS: u32 = 5;

/// How long a request that was given up may still arrive.
const LATE: Duration = Duration::from_secs(60);

/// What is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) on_doubt: OnDoubt,
    /// Nothing counts as stored before a flush.
    pub(crate) flush: bool,
    pub(crate) max_body: usize,
    /// How long without work before the far side is looked at; 0 for never.
    pub(crate) keep_alive: Duration,
    pub(crate) backoff: BackoffConfig,
}

/// What is known of the far side; outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The outbox's generation whose snapshot is there.
    pub(crate) generation: Option<i64>,
    /// The entry of that generation that goes next.
    pub(crate) next_seq: u64,
    /// How much of it is there: see [`super::split`].
    pub(crate) part: u64,
    /// Number of the last changeset that was sent.
    pub(crate) number: u64,
    /// Who signs there; empty where that is not known.
    signer: String,
    /// What `current_sequence` is if nobody else writes.
    expected: Option<u64>,
    /// A receipt's number less the `current_sequence` after it.
    offset: Option<i64>,
    /// The request whose fate is not known.
    flight: Option<Flight>,
    /// A request was sent again, and the first one may come late.
    suspect: bool,
    /// Others write there.
    shared: bool,
}

/// A request on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Flight {
    load: Load,
    /// Bytes of the body.
    len: usize,
    /// `current_sequence` before it.
    before: u64,
    /// It was answered with 201, or found there.
    arrived: bool,
    /// A flush came after it.
    flushed: bool,
}

/// What a request carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Load {
    Changesets {
        /// What [`Known::next_seq`] is once it is there.
        next_seq: u64,
        /// What [`Known::part`] is.
        part: u64,
        /// How many.
        count: u64,
    },
    /// That a generation begins with.
    Snapshot { generation: i64 },
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `GET /status`.
    Look,
    /// `POST /batch/flush`.
    Flush,
    /// Post what there is.
    Send,
    /// Nothing before then.
    Wait(Option<Instant>),
}

/// What came of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub(crate) struct Verdict {
    /// This is stored there.
    pub(crate) stored: Option<Load>,
    /// The log there leads nowhere: a snapshot is needed.
    pub(crate) resync: Option<ResyncReason>,
}

/// Why something was not stored for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLarge,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unsure,
    Ready,
    Flushing,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Machine {
    policy: Policy,
    known: Known,
    phase: Phase,
    limit: Limit,
    backoff: Backoff,
    wait_until: Option<Instant>,
    looked: Instant,
    resets: u32,
    /// What `current_sequence` was before the last post, and the receipt's number: until a look.
    numbered: Option<(u64, u64)>,
    /// Until when a request that was given up may come; from when it is looked at.
    suspect_until: Option<Instant>,
    stats: CborStats,
}

impl Machine {
    pub(crate) fn new(policy: Policy, known: Known, seed: u64) -> Self {
        Self {
            known,
            phase: Phase::Unsure,
            limit: Limit { now: policy.max_body, ceiling: policy.max_body },
            backoff: Backoff::new(policy.backoff, seed),
            wait_until: None,
            looked: Instant::from_micros(0),
            resets: 0,
            numbered: None,
            suspect_until: None,
            stats: CborStats { body_limit: policy.max_body, ..CborStats::default() },
            policy,
        }
    }

    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    pub(crate) fn stats(&self) -> &CborStats {
        &self.stats
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Bytes that a body may have.
    pub(crate) fn body_limit(&self, is_snapshot: bool) -> usize {
        if is_snapshot { self.limit.ceiling } else { self.limit.now }
    }

    /// What to do now; `has_work` where there is something to send.
    pub(crate) fn step(&mut self, now: Instant, has_work: bool) -> Step {
        let suspect_until = match self.known.suspect {
            true => Some(*self.suspect_until.get_or_insert(now + LATE)),
            false => None,
        };
        if let Some(until) = self.wait_until
            && until > now
        {
            return Step::Wait(Some(until));
        }
        match self.phase {
            Phase::Unsure => Step::Look,
            Phase::Flushing => Step::Flush,
            // What came late until now is seen before it is taken for somebody else's.
            Phase::Ready if suspect_until.is_some_and(|until| until <= now) => Step::Look,
            Phase::Ready if has_work => Step::Send,
            Phase::Ready => {
                let keep_alive = self.policy.keep_alive;
                let due = (!keep_alive.is_zero()).then(|| self.looked + keep_alive);
                match [due, suspect_until].into_iter().flatten().min() {
                    Some(due) if due <= now => Step::Look,
                    due => Step::Wait(due),
                }
            }
        }
    }

    /// Somebody waits: tries now.
    pub(crate) fn hurry(&mut self) {
        self.wait_until = None;
    }

    /// Where a snapshot is needed whatever there is.
    pub(crate) fn forget_base(&mut self) {
        self.known.generation = None;
        self.known.part = 0;
    }

    /// A body of `len` bytes is about to be posted. What is [known](Self::known) has to be kept
    /// before it is.
    pub(crate) fn sending(&mut self, load: Load, len: usize) {
        let before = self.known.expected.unwrap_or_default();
        self.known.flight = Some(Flight { load, len, before, arrived: false, flushed: false });
    }

    /// `GET /status` was answered.
    pub(crate) fn looked(&mut self, now: Instant, current: u64, signer: &str) -> Verdict {
        let verdict = self.look(now, current, signer);
        if self.suspect_until.is_some_and(|until| until <= now) {
            self.known.suspect = false;
            self.suspect_until = None;
        }
        verdict
    }

    fn look(&mut self, now: Instant, current: u64, signer: &str) -> Verdict {
        self.looked = now;
        self.wait_until = None;
        // Only where nothing but ours came: a message of somebody else's in between would be taken for
        // the other way to number.
        if let Some((before, sequence)) = self.numbered.take()
            && current == before + 1
            && let offset = i128::from(sequence) - i128::from(current)
            && (-1..=0).contains(&offset)
        {
            self.known.offset = Some(offset as i64);
        }
        self.phase = Phase::Ready;
        let flight = self.known.flight.take();
        if flight.is_none() {
            self.backoff.reset();
        }
        let is_other = !self.known.signer.is_empty() && self.known.signer != signer;
        self.known.signer = signer.to_owned();
        let expected = self.known.expected.replace(current);
        if is_other {
            self.known.offset = None;
            self.known.shared = false;
            return self.lost_there(flight);
        }
        match (flight, expected) {
            (None, Some(expected)) if current < expected => self.lost_there(None),
            (None, Some(expected)) => self.jumped(current - expected, None),
            (None, None) => Verdict::default(),
            (Some(flight), _) => self.settle(flight, current),
        }
    }

    /// Whether a message that came can only be the one that was sent.
    fn is_alone(&self) -> bool {
        !self.known.shared && !self.known.suspect
    }

    /// Whether a request arrived.
    fn settle(&mut self, flight: Flight, current: u64) -> Verdict {
        let is_snapshot = matches!(flight.load, Load::Snapshot { .. });
        let more = current.checked_sub(flight.before);
        // What was answered and is gone will not come late.
        if !flight.arrived && (more != Some(1) || !self.is_alone()) {
            self.known.suspect = true;
            self.suspect_until = None;
        }
        match more {
            None => self.lost_there(Some(flight)),
            // An unflushed one before it may be forgotten, and this one have taken its number.
            Some(0) if self.policy.flush || flight.arrived || is_snapshot => {
                self.stats.not_arrived += 1;
                if self.resets >= RESETS && flight.len > HARMLESS && !is_snapshot {
                    self.limit.shrink(flight.len);
                    self.stats.body_limit = self.limit.now;
                }
                Verdict::default()
            }
            Some(1..) if flight.arrived && self.came_twice(more.unwrap_or(1) - 1) => {
                if is_snapshot {
                    // Behind it: it goes again.
                    return Verdict::default();
                }
                self.use_up(&flight.load);
                self.resync(ResyncReason::Diverged)
            }
            Some(1..) if flight.flushed => self.confirmed(flight),
            Some(1..) if flight.arrived => {
                self.known.flight = Some(flight);
                self.phase = Phase::Flushing;
                Verdict::default()
            }
            Some(1) if self.is_alone() => {
                self.stats.arrived += 1;
                self.flushing(Flight { arrived: true, ..flight }, false)
            }
            // Twice the same state does no harm.
            Some(_) if is_snapshot => {
                self.stats.doubts += 1;
                Verdict::default()
            }
            Some(_) => {
                self.stats.doubts += 1;
                match self.policy.on_doubt {
                    OnDoubt::Resend => {
                        self.stats.resent_in_doubt += 1;
                        Verdict::default()
                    }
                    OnDoubt::Resync => {
                        self.stats.resyncs_in_doubt += 1;
                        self.use_up(&flight.load);
                        self.resync(ResyncReason::Diverged)
                    }
                }
            }
        }
    }

    /// A post was answered with 201.
    pub(crate) fn answered(&mut self, sequence: u64, has_warning: bool) -> Verdict {
        let Some(mut flight) = self.known.flight.take() else { return Verdict::default() };
        self.stats.warnings += u64::from(has_warning);
        self.resets = 0;
        self.limit.grow();
        self.stats.body_limit = self.limit.now;
        flight.arrived = true;
        self.numbered = Some((flight.before, sequence));
        let due = flight.before + 1;
        let Some(offset) = self.known.offset else {
            // What the number means shows in a look.
            self.known.expected = Some(due);
            return self.flushing(flight, has_warning);
        };
        let current = sequence.saturating_add_signed(offset.saturating_neg());
        self.known.expected = Some(current);
        if current < due {
            return match flight.load {
                // It holds what was forgotten.
                Load::Snapshot { .. } => {
                    self.known.expected = None;
                    self.flushing(flight, has_warning)
                }
                // What the number means is compared first.
                Load::Changesets { .. } => {
                    let verdict = self.lost_there(Some(flight));
                    self.phase = Phase::Unsure;
                    verdict
                }
            };
        }
        let jumped = self.jumped(current - due, Some(&flight.load));
        if jumped.resync.is_some() {
            return jumped;
        }
        // What a look compares with, and what is no doubt: it was answered.
        flight.before = current - 1;
        self.flushing(flight, has_warning)
    }

    fn flushing(&mut self, flight: Flight, has_warning: bool) -> Verdict {
        if self.policy.flush || has_warning {
            self.known.flight = Some(flight);
            self.phase = Phase::Flushing;
            return Verdict::default();
        }
        self.confirmed(flight)
    }

    /// `POST /batch/flush` was answered with success. What was to be flushed may have been forgotten
    /// before, which a look shows.
    pub(crate) fn flushed(&mut self) {
        self.stats.flushes += 1;
        self.phase = Phase::Unsure;
        if let Some(flight) = &mut self.known.flight {
            flight.flushed = true;
        }
    }

    fn confirmed(&mut self, flight: Flight) -> Verdict {
        self.backoff.reset();
        self.resets = 0;
        // Without a number to compare with, or not knowing what it means, the far side is looked at first.
        // What was flushed was looked at.
        let is_clear = self.known.offset.is_some() || flight.flushed;
        let is_sure = self.known.expected.is_some() && is_clear;
        self.phase = if is_sure { Phase::Ready } else { Phase::Unsure };
        match flight.load {
            Load::Changesets { next_seq, part, .. } => {
                self.use_up(&flight.load);
                self.known.next_seq = next_seq;
                self.known.part = part;
            }
            Load::Snapshot { generation } => {
                self.known.generation = Some(generation);
                self.known.next_seq = 1;
                self.known.part = 0;
            }
        }
        Verdict { stored: Some(flight.load), resync: None }
    }

    /// The far side refused a post: nothing of it is stored.
    pub(crate) fn refused(
        &mut self,
        now: Instant,
        refusal: Refusal,
        retry_after: Option<Duration>,
    ) {
        let flight = self.known.flight.take();
        self.phase = Phase::Ready;
        self.stats.refusals += 1;
        if let (Refusal::TooLarge, Some(flight)) = (refusal, flight)
            && flight.len > SMALLEST_LIMIT
        {
            self.limit.refused(flight.len);
            self.stats.body_limit = self.limit.now;
            return;
        }
        self.wait_until = Some(now + self.backoff.next_wait(retry_after));
    }

    /// No answer, or none that tells anything: to a post, a look or a flush. True where a snapshot's
    /// size is to blame, as far as anybody can tell.
    pub(crate) fn lost(
        &mut self,
        now: Instant,
        was_reset: bool,
        was_sent: bool,
        retry_after: Option<Duration>,
    ) -> bool {
        self.phase = Phase::Unsure;
        self.wait_until = Some(now + self.backoff.next_wait(retry_after));
        let flight = self.known.flight.as_ref().filter(|flight| !flight.arrived);
        let Some(flight) = flight else { return false };
        if !was_sent {
            self.known.flight = None;
            return false;
        }
        if was_reset {
            self.resets += 1;
        }
        let is_snapshot = matches!(flight.load, Load::Snapshot { .. });
        is_snapshot && flight.len > HARMLESS && self.resets >= SNAPSHOT_RESETS
    }

    /// A snapshot will not be tried again.
    pub(crate) fn given_up(&mut self) {
        self.resets = 0;
    }

    /// A changeset was split.
    pub(crate) fn split(&mut self) {
        self.stats.split_changesets += 1;
    }

    /// The far side does not have what it had confirmed.
    fn lost_there(&mut self, flight: Option<Flight>) -> Verdict {
        if let Some(flight) = &flight {
            self.use_up(&flight.load);
        }
        if self.known.generation.is_none() {
            return Verdict::default();
        }
        self.stats.lost_there += 1;
        self.resync(ResyncReason::SequencerLostData)
    }

    /// There are messages that are not ours, or that came twice.
    fn jumped(&mut self, messages: u64, load: Option<&Load>) -> Verdict {
        if self.came_twice(messages)
            && self.known.generation.is_some()
            // It holds what came before it, whatever that was.
            && !matches!(load, Some(Load::Snapshot { .. }))
        {
            if let Some(load) = load {
                self.use_up(load);
            }
            return self.resync(ResyncReason::Diverged);
        }
        Verdict::default()
    }

    /// Whether so many messages that were not expected may be ours; those of others are counted.
    fn came_twice(&mut self, messages: u64) -> bool {
        if messages == 0 {
            return false;
        }
        if self.known.suspect && !self.known.shared {
            self.stats.suspected_twice += 1;
            return true;
        }
        self.known.shared = true;
        self.stats.foreign_messages += messages;
        false
    }

    fn resync(&mut self, reason: ResyncReason) -> Verdict {
        self.forget_base();
        self.known.flight = None;
        self.phase = if self.known.expected.is_some() { Phase::Ready } else { Phase::Unsure };
        Verdict { stored: None, resync: Some(reason) }
    }

    /// Numbers that may be there are not given again.
    fn use_up(&mut self, load: &Load) {
        if let Load::Changesets { count, .. } = load {
            self.known.number += count;
        }
    }
}

/// How large a body may be.
#[derive(Debug)]
struct Limit {
    now: usize,
    /// Nothing above was ever accepted.
    ceiling: usize,
}

impl Limit {
    /// A body of `len` bytes was refused.
    fn refused(&mut self, len: usize) {
        self.ceiling = self.ceiling.min(len - 1).max(SMALLEST_LIMIT);
        self.shrink(len);
    }

    /// A body of `len` bytes may have been too large.
    fn shrink(&mut self, len: usize) {
        self.now = self.now.min(len / 2).max(SMALLEST_LIMIT).min(self.ceiling);
    }

    /// A body was accepted: half way to what may be too much, until that is near.
    fn grow(&mut self) {
        let more = (self.ceiling - self.now) / 2;
        if more > self.ceiling / 16 {
            self.now += more;
        } else if self.ceiling - self.now > self.ceiling / 16 {
            self.now = self.ceiling - self.ceiling / 16;
        }
    }
}

#[cfg(test)]
mod tests;
