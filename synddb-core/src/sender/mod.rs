//! What to send next: in order, exactly once, whatever the link does.
//!
//! ```text
//!            Connect          connected         HelloAck: heads fit
//!  ┌──────┐ ───────▶ ┌──────────┐ ───▶ ┌──────────┐ ─────────▶ ┌───────────┐
//!  │ Idle │          │Connecting│      │ Greeting │  Verifying │ Streaming │◀─┐
//!  └──────┘ ◀─────── └──────────┘      └──────────┘ ─────────▶ └───────────┘  │ Ack
//!      ▲     failed, timed out,             │ no common history     │         │
//!      └──── garbled: wait (Backoff)        ▼                       ▼ next    │
//!                                      ┌──────────┐  OpenEpoch ┌─────────┐    │
//!   Stopped ◀── superseded, halted     │ WantBase │ ─────────▶ │ Opening │ ───┘
//!                                      └──────────┘            └─────────┘
//! ```
//!
//! The [`Sender`] keeps numbers and hashes, never entries: the driver reads those from the outbox
//! when an [`Action`] names them. Nothing is forgotten before it was acknowledged, and nothing is
//! acknowledged that the hash chain does not prove.

mod greeting;
mod replies;
#[cfg(test)]
mod tests;

use core::time::Duration;

use heapless::{Deque, HistoryBuf};
use serde::{Deserialize, Serialize};

use crate::{
    Chain, Epoch, Instant, Nonce, OpenId, SeqNo, SnapshotId, StreamId,
    backoff::{Backoff, BackoffConfig},
    batcher::{BatchConfig, Batcher},
    transport::TransportErrorKind,
    wire::{
        entries::{FRAME_OVERHEAD, Written},
        message::{Compression, Head, Limits, OpenEpoch, ResyncReason, Staged},
    },
};

/// What to do when the receiver holds other entries than this sender sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnDivergence {
    /// Begin a new epoch from a snapshot; the receiver keeps the abandoned branch.
    #[default]
    Resync,
    /// Stop and report; entries queue until somebody decides.
    Halt,
}

/// Settings of a [`Sender`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderConfig {
    /// The stream.
    pub stream: StreamId,
    /// Drawn at start.
    pub instance: Nonce,
    /// When to send.
    pub batch: BatchConfig,
    /// When to try again.
    pub backoff: BackoffConfig,
    /// How long an answer may take before the connection is given up.
    pub response_timeout: Duration,
    /// How long a quiet connection goes without a Ping; zero for never.
    pub keep_alive: Duration,
    /// What to do about a fork.
    pub on_divergence: OnDivergence,
    /// How the driver can compress data. Used where the receiver can decompress it; see
    /// [`Sender::compression`].
    pub compression: Compression,
}

/// What is known to be stored: everything before `next_seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Current epoch, 0 before the first.
    pub epoch: Epoch,
    /// The first entry that is not acknowledged.
    pub next_seq: SeqNo,
    /// Chain before it.
    pub chain: Chain,
}

/// A snapshot that is ready to be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// Names it.
    pub id: SnapshotId,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of all of it.
    pub sha256: [u8; 32],
}

/// Something for the driver to do, at once and in order.
///
/// Frames carry the given `tag`. After a frame with data the matching `handle_sent_*` tells what
/// was in it; where sending fails, [`Sender::handle_disconnected`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Open a connection; then `handle_connected` or `handle_disconnected`.
    Connect,
    /// Drop the connection.
    Close,
    /// Send a Hello with this position; the driver adds name and token.
    SendHello {
        /// The frame's tag.
        tag: u32,
        /// What this side can do; see [`feature`](crate::wire::message::feature).
        features: u32,
        /// Nonce of this connection.
        nonce: Nonce,
        /// What is known to be stored.
        position: Position,
        /// A nonce that the token is to be bound to.
        challenge: Option<[u8; 32]>,
    },
    /// Send an OpenEpoch.
    SendOpenEpoch {
        /// The frame's tag.
        tag: u32,
        /// Its body.
        open: OpenEpoch,
    },
    /// Send entries from `first` on, as many as there are and as fit; then `handle_sent_entries`,
    /// or `handle_oversized` where not even the first fits.
    SendEntries {
        /// The frame's tag.
        tag: u32,
        /// The epoch.
        epoch: Epoch,
        /// The first entry.
        first: SeqNo,
        /// Chain before it.
        chain_before: Chain,
        /// At most so many.
        max_entries: u32,
        /// Longest frame in bytes, before compression.
        max_frame: usize,
    },
    /// Send a piece of the entry `seq`; then `handle_sent_fragment`.
    SendFragment {
        /// The frame's tag.
        tag: u32,
        /// The epoch.
        epoch: Epoch,
        /// The entry.
        seq: SeqNo,
        /// Chain before it.
        chain_before: Chain,
        /// Chain after it.
        chain_after: Chain,
        /// Where the piece begins.
        offset: u64,
        /// Longest piece in bytes.
        max_len: usize,
    },
    /// Announce the snapshot.
    SendSnapshotBegin {
        /// The frame's tag.
        tag: u32,
        /// The epoch.
        epoch: Epoch,
        /// The snapshot.
        snapshot: SnapshotOffer,
    },
    /// Send a piece of the snapshot.
    SendSnapshotChunk {
        /// The frame's tag.
        tag: u32,
        /// The epoch.
        epoch: Epoch,
        /// The snapshot.
        id: SnapshotId,
        /// Where the piece begins.
        offset: u64,
        /// Length of the piece in bytes.
        len: usize,
    },
    /// Say that the snapshot is complete.
    SendSnapshotEnd {
        /// The frame's tag.
        tag: u32,
        /// The epoch.
        epoch: Epoch,
        /// The snapshot.
        snapshot: SnapshotOffer,
    },
    /// Compute the chain over the outbox's entries from `first` up to, without, `end`, starting
    /// from `chain`; then `handle_verified`.
    Verify {
        /// The first entry.
        first: SeqNo,
        /// Chain before it.
        chain: Chain,
        /// The entry to stop before.
        end: SeqNo,
    },
    /// Send a Ping.
    SendPing {
        /// The frame's tag.
        tag: u32,
    },
}

/// Why the sender stopped for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// Another sender took the stream: a copy of this database, or a second process.
    Superseded,
    /// The receiver holds other entries, and the user chose to halt.
    Diverged,
}

/// Something that the driver should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Everything before `head.next_seq` is stored: trim the outbox.
    Acked {
        /// Where the stream stands.
        head: Head,
        /// The receiver's clock, milliseconds since 1970.
        time_ms: u64,
    },
    /// The epoch that the wish `head.open_id` asked for has begun.
    EpochOpened {
        /// Where the stream stands.
        head: Head,
    },
    /// The current epoch cannot go on. Take a snapshot, queue what follows it as the next epoch,
    /// and call [`Sender::handle_next_epoch`].
    ResyncNeeded(ResyncReason),
    /// The snapshot is stored.
    SnapshotStored(SnapshotId),
    /// The receiver will not take the snapshot.
    SnapshotRefused {
        /// The snapshot.
        id: SnapshotId,
        /// Its limit in bytes, where the size was the reason.
        limit: Option<u64>,
    },
    /// The receiver answered and the history fits.
    LinkUp,
    /// An attempt failed.
    LinkFailed {
        /// Why.
        kind: TransportErrorKind,
        /// Failures in a row; after how many the link counts as down is the driver's to say.
        failures: u32,
    },
    /// No more attempts are made.
    Stopped(StopReason),
}

/// Counters for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SenderStats {
    /// Connections that were greeted.
    pub connections: u64,
    /// Entries that were sent more than once.
    pub resent_entries: u64,
    /// Frames refused by the receiver.
    pub refusals: u64,
}

/// Replaced wishes that are remembered. Each takes a snapshot, and at most one of them is on its
/// way at a time.
const REMEMBERED_WISHES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle { retry_at: Instant },
    Connecting,
    Greeting { since: Instant, tag: u32 },
    Verifying { head: Head, asked: bool },
    Streaming,
    Opening { since: Instant, tag: u32, open_id: OpenId },
    WantBase,
    Stopped,
}

/// One frame on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    tag: u32,
    sent: Instant,
    bytes: u64,
    what: InFlight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    Entries { next_seq: SeqNo, chain: Chain },
    Fragment { seq: SeqNo, end: u64 },
    Snapshot { end: u64, last: bool },
    Ping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    seq: SeqNo,
    chain: Chain,
    /// Set while `seq` is too large for a frame.
    fragment: Option<Piece>,
}

/// How far an entry that is larger than a frame was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    offset: u64,
    chain_after: Chain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Upload {
    offer: SnapshotOffer,
    begun: bool,
    sent: u64,
    ended: bool,
    restarts: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NextEpoch {
    open_id: OpenId,
    reason: ResyncReason,
}

/// The sending side of one stream. `WINDOW` frames at most are on their way at once.
#[derive(Debug)]
pub struct Sender<const WINDOW: usize> {
    config: SenderConfig,
    phase: Phase,
    position: Position,
    cursor: Cursor,
    last_seq: SeqNo,
    /// The receiver's head as last heard: the condition for opening an epoch.
    head: Head,
    in_flight: Deque<Slot, WINDOW>,
    batcher: Batcher,
    backoff: Backoff,
    next: Option<NextEpoch>,
    /// Wishes that were replaced: one of them may have been granted all the same.
    replaced: HistoryBuf<OpenId, REMEMBERED_WISHES>,
    /// The user asked for a new epoch, whatever the receiver holds.
    overruled: bool,
    /// The current epoch is of no use any more: do not wait for its entries.
    abandoned: bool,
    /// What the receiver holds of an entry from an earlier connection.
    resumable: Option<Staged>,
    upload: Option<Upload>,
    snapshot_turn: bool,
    limits: Limits,
    compression: Compression,
    max_frame: usize,
    max_in_flight: usize,
    nonce: Nonce,
    challenge: Option<[u8; 32]>,
    next_tag: u32,
    pause_until: Option<Instant>,
    last_heard: Instant,
    hello_due: bool,
    close_due: bool,
    /// This connection has done something useful.
    useful: bool,
    highest_sent: SeqNo,
    events: Deque<Event, 16>,
    stats: SenderStats,
}

impl<const WINDOW: usize> Sender<WINDOW> {
    /// A sender that goes on from `position`. The same seed draws the same jitter.
    pub fn new(config: SenderConfig, position: Position, seed: u64) -> Self {
        const { assert!(WINDOW > 0, "at least one frame must be able to be on its way") };
        Self {
            config,
            phase: Phase::Idle { retry_at: Instant::default() },
            position,
            cursor: Cursor { seq: position.next_seq, chain: position.chain, fragment: None },
            last_seq: position.next_seq.previous(),
            head: Head::default(),
            in_flight: Deque::new(),
            batcher: Batcher::new(config.batch),
            backoff: Backoff::new(config.backoff, seed),
            next: None,
            replaced: HistoryBuf::new(),
            overruled: false,
            abandoned: false,
            resumable: None,
            upload: None,
            snapshot_turn: false,
            limits: Limits { max_frame: 0, max_entry: 0, max_snapshot: 0, credit: 0 },
            compression: Compression::None,
            max_frame: usize::MAX,
            max_in_flight: 1,
            nonce: Nonce::default(),
            challenge: None,
            next_tag: 1,
            pause_until: None,
            last_heard: Instant::default(),
            hello_due: false,
            close_due: false,
            useful: false,
            highest_sent: position.next_seq.previous(),
            events: Deque::new(),
            stats: SenderStats::default(),
        }
    }

    /// What is known to be stored.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The instance that its Hellos carry.
    pub fn instance(&self) -> Nonce {
        self.config.instance
    }

    /// How the data of frames may be compressed, as agreed on in this connection. Lengths of pieces,
    /// in actions and in `handle_sent_fragment`, are those before compression.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Counters.
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// Whether frames are on their way whose answers are still to come.
    pub fn awaits_reply(&self) -> bool {
        !self.in_flight.is_empty()
            || matches!(self.phase, Phase::Greeting { .. } | Phase::Opening { .. })
    }

    /// Whether there is a connection that frames may come over, asked for or not.
    pub fn is_connected(&self) -> bool {
        !matches!(self.phase, Phase::Idle { .. } | Phase::Connecting | Phase::Stopped)
    }

    // What happened.

    /// The outbox holds the current epoch's entries up to `last_seq`; `bytes` more than before.
    pub fn handle_queued(&mut self, now: Instant, last_seq: SeqNo, bytes: u64) {
        let new = last_seq.0.saturating_sub(self.last_seq.0);
        self.last_seq = self.last_seq.max(last_seq);
        self.batcher.handle_queued(now, new, bytes);
    }

    /// Somebody waits: send what is queued now, and try the link once even in mid-backoff.
    pub fn handle_flush(&mut self, now: Instant) {
        self.batcher.flush();
        if let Phase::Idle { retry_at } = &mut self.phase {
            *retry_at = (*retry_at).min(now);
        }
    }

    /// What was queued after a snapshot waits to become the next epoch. Entries of the current
    /// one are sent first, unless it is of no use any more. Call again to replace the wish.
    pub fn handle_next_epoch(&mut self, open_id: OpenId, reason: ResyncReason) {
        if let Some(before) = self.next.replace(NextEpoch { open_id, reason })
            && before.open_id != open_id
        {
            self.replaced.write(before.open_id);
        }
        if self.phase == Phase::WantBase {
            self.phase = Phase::Streaming;
        }
    }

    /// A wish that was given up, in this process or one before: should it have been granted, the
    /// epoch is ours, and the next one follows it.
    pub fn handle_wish_withdrawn(&mut self, open_id: OpenId) {
        self.next = self.next.filter(|next| next.open_id != open_id);
        self.replaced.write(open_id);
    }

    /// The current epoch's queue was dropped (its limit was reached): do not send the rest.
    pub fn handle_abandoned(&mut self) {
        self.abandoned = true;
        self.rewind();
    }

    /// A snapshot of the current epoch is ready to be uploaded; replaces one that is under way.
    pub fn handle_snapshot(&mut self, offer: SnapshotOffer) {
        self.upload = Some(Upload { offer, begun: false, sent: 0, ended: false, restarts: 0 });
    }

    /// The connection is open. `nonce` is freshly drawn from the operating system;
    /// `max_in_flight` is the transport's.
    pub fn handle_connected(&mut self, now: Instant, nonce: Nonce, max_in_flight: usize) {
        if self.phase != Phase::Connecting {
            return;
        }
        self.nonce = nonce;
        self.max_in_flight = max_in_flight.clamp(1, WINDOW);
        self.challenge = None;
        self.hello_due = true;
        self.useful = false;
        self.last_heard = now;
        self.phase = Phase::Greeting { since: now, tag: 0 };
    }

    /// The connection failed or could not be opened.
    pub fn handle_disconnected(
        &mut self,
        now: Instant,
        kind: TransportErrorKind,
        retry_after: Option<Duration>,
    ) {
        if matches!(self.phase, Phase::Idle { .. } | Phase::Stopped) {
            return;
        }
        if kind == TransportErrorKind::TooLarge {
            self.shrink(None);
        }
        let wait = match (kind, retry_after) {
            (TransportErrorKind::Busy, Some(asked)) => self.backoff.busy_wait(asked),
            _ => self.backoff.next_wait(retry_after),
        };
        self.drop_connection();
        self.phase = Phase::Idle { retry_at: now + wait };
        self.tell(Event::LinkFailed { kind, failures: self.backoff.failures() });
    }

    /// The connection ended while nothing was on its way over it.
    pub fn handle_hung_up(&mut self, now: Instant) {
        self.last_heard = now;
        self.hung_up(now, TransportErrorKind::Disconnected);
    }

    /// The frame of entries that an action asked for was sent.
    pub fn handle_sent_entries(&mut self, now: Instant, tag: u32, written: &Written) {
        let next_seq = written.last_seq.next();
        self.cursor = Cursor { seq: next_seq, chain: written.chain, fragment: None };
        // More may have been queued than was told yet. Once sent it is ours: a receiver that has
        // it must not look like one that is ahead of us.
        self.last_seq = self.last_seq.max(written.last_seq);
        let count = next_seq.0 - written.first_seq.0;
        self.count_resent(written.first_seq, written.last_seq);
        self.batcher.handle_sent(now, count, written.region_len as u64);
        let what = InFlight::Entries { next_seq, chain: written.chain };
        self.put_in_flight(now, tag, written.frame_len as u64, what);
    }

    /// The entry that an action named is too large for a frame; `chain_after` is the chain after
    /// it.
    pub fn handle_oversized(&mut self, chain_after: Chain) {
        // Believed once: after a refusal the pieces start anew, and what is there is skipped.
        let offset = match self.resumable.take() {
            Some(staged) if staged.seq == self.cursor.seq && staged.chain_after == chain_after => {
                staged.offset
            }
            _ => 0,
        };
        self.cursor.fragment = Some(Piece { offset, chain_after });
    }

    /// The piece that an action asked for was sent: `len` bytes, uncompressed, of a payload of
    /// `total`.
    pub fn handle_sent_fragment(&mut self, now: Instant, tag: u32, len: usize, total: u64) {
        let Cursor { seq, fragment: Some(Piece { offset, chain_after }), .. } = self.cursor else {
            return;
        };
        let end = offset + len as u64;
        let what = if end >= total {
            let next_seq = seq.next();
            self.cursor = Cursor { seq: next_seq, chain: chain_after, fragment: None };
            self.count_resent(seq, seq);
            self.batcher.handle_sent(now, 1, total);
            InFlight::Entries { next_seq, chain: chain_after }
        } else {
            self.cursor.fragment = Some(Piece { offset: end, chain_after });
            InFlight::Fragment { seq, end }
        };
        self.put_in_flight(now, tag, len as u64, what);
    }

    /// The chain that [`Action::Verify`] asked for; `None` where the outbox does not hold all of
    /// the entries.
    pub fn handle_verified(&mut self, chain: Option<Chain>) {
        let Phase::Verifying { head, .. } = self.phase else { return };
        if chain == Some(head.chain) {
            self.move_to(head);
            self.tell(Event::Acked { head, time_ms: 0 });
            self.start_streaming();
        } else {
            self.diverged(head);
        }
    }

    /// The user asked for a resync: a sender that stopped starts again, as `instance`, and until the
    /// next epoch begins no divergence halts it.
    pub fn handle_restart(&mut self, now: Instant, instance: Nonce) {
        self.config.instance = instance;
        self.overruled = true;
        if self.phase == Phase::Stopped {
            self.drop_connection();
            self.phase = Phase::Idle { retry_at: now };
        }
    }

    // What to do.

    /// The next thing to do; call until `None`.
    #[must_use]
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if core::mem::take(&mut self.close_due) {
            return Some(Action::Close);
        }
        match self.phase {
            Phase::Idle { retry_at } if retry_at <= now => {
                self.phase = Phase::Connecting;
                Some(Action::Connect)
            }
            Phase::Greeting { .. } if self.hello_due => {
                self.hello_due = false;
                let tag = self.take_tag();
                self.phase = Phase::Greeting { since: now, tag };
                Some(Action::SendHello {
                    tag,
                    features: self.config.compression.features(),
                    nonce: self.nonce,
                    position: self.position,
                    challenge: self.challenge,
                })
            }
            Phase::Greeting { since, .. } | Phase::Opening { since, .. }
                if since + self.config.response_timeout <= now =>
            {
                self.time_out(now)
            }
            Phase::Verifying { head, asked: false } => {
                self.phase = Phase::Verifying { head, asked: true };
                Some(Action::Verify {
                    first: self.position.next_seq,
                    chain: self.position.chain,
                    end: head.next_seq,
                })
            }
            Phase::Streaming | Phase::WantBase => self.poll_streaming(now),
            _ => None,
        }
    }

    fn poll_streaming(&mut self, now: Instant) -> Option<Action> {
        if let Some(oldest) = self.in_flight.front()
            && oldest.sent.max(self.last_heard) + self.config.response_timeout <= now
        {
            return self.time_out(now);
        }
        if self.pause_until.is_some_and(|until| until > now) {
            return None;
        }
        self.pause_until = None;
        if self.in_flight.len() < self.max_in_flight && self.has_credit() {
            let snapshot_first = core::mem::replace(&mut self.snapshot_turn, false);
            let action = if snapshot_first {
                self.poll_upload(now).or_else(|| self.poll_entries(now))
            } else {
                self.poll_entries(now).or_else(|| self.poll_upload(now))
            };
            if action.is_some() {
                // Turn about, so that neither starves the other.
                self.snapshot_turn = !snapshot_first;
                return action;
            }
        }
        if !self.in_flight.is_empty() {
            return None;
        }
        if self.wants_to_open() {
            return self.open_next(now);
        }
        let quiet =
            !self.config.keep_alive.is_zero() && self.last_heard + self.config.keep_alive <= now;
        if quiet {
            let tag = self.take_tag();
            self.put_in_flight(now, tag, 0, InFlight::Ping);
            return Some(Action::SendPing { tag });
        }
        None
    }

    fn poll_entries(&mut self, now: Instant) -> Option<Action> {
        if !self.has_entries() {
            return None;
        }
        let epoch = self.position.epoch;
        let Cursor { seq, chain, fragment } = self.cursor;
        if let Some(Piece { offset, chain_after }) = fragment {
            let tag = self.take_tag();
            let max_len = self.data_room();
            return Some(Action::SendFragment {
                tag,
                epoch,
                seq,
                chain_before: chain,
                chain_after,
                offset,
                max_len,
            });
        }
        // With a new epoch waiting nothing is gained by lingering.
        if !self.batcher.is_due(now, self.in_flight.is_empty()) && self.next.is_none() {
            return None;
        }
        let tag = self.take_tag();
        Some(Action::SendEntries {
            tag,
            epoch,
            first: seq,
            chain_before: chain,
            max_entries: self.config.batch.max_entries,
            max_frame: self.frame_room(),
        })
    }

    fn poll_upload(&mut self, now: Instant) -> Option<Action> {
        if self.abandoned || self.position.epoch.0 == 0 || self.phase == Phase::WantBase {
            return None;
        }
        let epoch = self.position.epoch;
        let max_len = self.data_room() as u64;
        let upload = self.upload.as_mut()?;
        let Upload { offer, begun, sent, ended, .. } = *upload;
        if ended {
            return None;
        }
        let tag = self.next_tag;
        let (action, what, len) = if !begun {
            // What the receiver holds of it is told in the answer: wait for that.
            if self.in_flight.iter().any(|slot| matches!(slot.what, InFlight::Snapshot { .. })) {
                return None;
            }
            upload.begun = true;
            let what = InFlight::Snapshot { end: 0, last: false };
            (Action::SendSnapshotBegin { tag, epoch, snapshot: offer }, what, 0)
        } else if sent < offer.len {
            let len = (offer.len - sent).min(max_len);
            upload.sent += len;
            let what = InFlight::Snapshot { end: upload.sent, last: false };
            let action = Action::SendSnapshotChunk {
                tag,
                epoch,
                id: offer.id,
                offset: sent,
                len: len as usize,
            };
            (action, what, len)
        } else {
            upload.ended = true;
            let what = InFlight::Snapshot { end: offer.len, last: true };
            (Action::SendSnapshotEnd { tag, epoch, snapshot: offer }, what, 0)
        };
        let tag = self.take_tag();
        self.put_in_flight(now, tag, len, what);
        Some(action)
    }

    fn open_next(&mut self, now: Instant) -> Option<Action> {
        let next = self.next?;
        let tag = self.take_tag();
        self.phase = Phase::Opening { since: now, tag, open_id: next.open_id };
        Some(Action::SendOpenEpoch {
            tag,
            open: OpenEpoch {
                previous: self.head.epoch,
                previous_next_seq: self.head.next_seq,
                previous_chain: self.head.chain,
                floor: self.position.epoch,
                open_id: next.open_id,
                reason: next.reason,
            },
        })
    }

    /// What the driver should know; call until `None`.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to poll again if nothing happens; `None`: not before something does.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle { retry_at } => Some(retry_at),
            Phase::Greeting { since, .. } | Phase::Opening { since, .. } => {
                Some(since + self.config.response_timeout)
            }
            Phase::Streaming | Phase::WantBase => {
                let oldest = self.in_flight.front().map(|slot| slot.sent.max(self.last_heard));
                let response = oldest.map(|sent| sent + self.config.response_timeout);
                let room = self.in_flight.len() < self.max_in_flight && self.has_credit();
                // Nothing is sent before a pause is over.
                let after_pause =
                    |due: Instant| self.pause_until.map_or(due, |until| due.max(until));
                let due = (self.has_entries() && room)
                    .then(|| self.batcher.due_at(self.in_flight.is_empty()))
                    .flatten()
                    .map(after_pause);
                let keep_alive = (!self.config.keep_alive.is_zero() && self.in_flight.is_empty())
                    .then(|| after_pause(self.last_heard + self.config.keep_alive));
                [response, due, keep_alive, self.pause_until].into_iter().flatten().min()
            }
            Phase::Connecting | Phase::Verifying { .. } | Phase::Stopped => None,
        }
    }

    // How the parts above and in the other files are put together.

    fn has_entries(&self) -> bool {
        !self.abandoned
            && self.phase == Phase::Streaming
            && self.position.epoch.0 > 0
            && self.cursor.seq <= self.last_seq
    }

    fn wants_to_open(&self) -> bool {
        let drained =
            self.abandoned || self.position.epoch.0 == 0 || self.position.next_seq > self.last_seq;
        self.phase == Phase::Streaming && self.next.is_some() && drained
    }

    fn has_credit(&self) -> bool {
        let on_the_way: u64 = self.in_flight.iter().map(|slot| slot.bytes).sum();
        on_the_way == 0 || on_the_way < self.limits.credit
    }

    /// Longest frame of entries in bytes.
    fn frame_room(&self) -> usize {
        let wished = self.config.batch.max_bytes as usize + FRAME_OVERHEAD;
        wished.min(self.max_frame).min(self.limits.max_frame as usize)
    }

    /// Longest piece of an entry or a snapshot in bytes.
    fn data_room(&self) -> usize {
        // A Fragment's fields and meta take less than 512 bytes beside its data.
        self.frame_room().saturating_sub(512).max(1)
    }

    fn take_tag(&mut self) -> u32 {
        let tag = self.next_tag;
        // 0 is never used, so that it can mean "none".
        self.next_tag = self.next_tag.checked_add(1).unwrap_or(1);
        tag
    }

    fn put_in_flight(&mut self, now: Instant, tag: u32, bytes: u64, what: InFlight) {
        let slot = Slot { tag, sent: now, bytes, what };
        // An action was only given because there was room.
        debug_assert!(!self.in_flight.is_full(), "more frames sent than actions given");
        let _ = self.in_flight.push_back(slot);
    }

    fn count_resent(&mut self, first: SeqNo, last: SeqNo) {
        let again = self.highest_sent.min(last).next().0.saturating_sub(first.0);
        self.stats.resent_entries += again;
        self.highest_sent = self.highest_sent.max(last);
    }

    /// Goes back to what is known to be stored: everything after it is sent again.
    fn rewind(&mut self) {
        self.in_flight.clear();
        self.cursor =
            Cursor { seq: self.position.next_seq, chain: self.position.chain, fragment: None };
        self.batcher.clear();
        let left = self.last_seq.next().0.saturating_sub(self.cursor.seq.0);
        self.batcher.handle_queued(self.last_heard, left, 0);
        self.batcher.flush();
        if let Some(upload) = &mut self.upload {
            upload.begun = false;
            upload.ended = false;
        }
    }

    fn drop_connection(&mut self) {
        self.close_due = true;
        self.hello_due = false;
        self.pause_until = None;
        self.compression = Compression::None;
        self.rewind();
    }

    /// Says Hello anew, at once: not a failure.
    fn reconnect(&mut self) {
        self.drop_connection();
        self.phase = Phase::Idle { retry_at: self.last_heard };
    }

    /// No failure where the connection was of use; but who hangs up before that must not be able to
    /// have us come back at once, and again.
    fn hung_up(&mut self, now: Instant, kind: TransportErrorKind) {
        if self.useful && self.is_connected() {
            self.reconnect();
        } else {
            self.handle_disconnected(now, kind, None);
        }
    }

    fn time_out(&mut self, now: Instant) -> Option<Action> {
        self.handle_disconnected(now, TransportErrorKind::TimedOut, None);
        self.close_due = false;
        Some(Action::Close)
    }

    /// Smaller frames from now on: half of what was, or what the receiver said.
    fn shrink(&mut self, limit: Option<u64>) {
        let half = self.frame_room() / 2;
        let said = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(half);
        self.max_frame = half.min(said).max(4096);
    }

    fn stop(&mut self, reason: StopReason) {
        self.drop_connection();
        self.phase = Phase::Stopped;
        self.tell(Event::Stopped(reason));
    }

    fn tell(&mut self, event: Event) {
        // Acknowledgements are cumulative: the last one says it all.
        if let (Event::Acked { .. }, Some(Event::Acked { .. })) = (event, self.events.back()) {
            self.events.pop_back();
        }
        debug_assert!(!self.events.is_full(), "events are polled after every call");
        let _ = self.events.push_back(event);
    }
}
