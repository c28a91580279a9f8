//! After the Hello: do the two histories fit?

use super::{Event, NextEpoch, OnDivergence, Phase, Position, Sender, StopReason};
use crate::{
    SeqNo,
    wire::message::{Compression, Head, HelloAck, ResyncReason},
};

impl<const WINDOW: usize> Sender<WINDOW> {
    pub(super) fn handle_hello_ack(&mut self, ack: &HelloAck) {
        self.stats.connections += 1;
        self.limits = ack.limits;
        let offered = self.config.compression;
        let agreed = ack.features & offered.features() == offered.features();
        self.compression = if agreed { offered } else { Compression::None };
        self.head = ack.head;
        self.resumable = ack.staged;
        let head = ack.head;
        if let Some(NextEpoch { open_id, .. }) = self.next
            && head.epoch.0 > 0
            && head.open_id == open_id
        {
            // Granted, and the answer was lost. Entries of it may be stored as well, ours or those
            // of a copy that had the same wish: the next Hello will tell.
            let first = SeqNo::FIRST;
            self.opened(Head { next_seq: first, chain: ack.genesis, base_complete: false, ..head });
            if head.next_seq > first {
                self.reconnect();
            }
            return;
        }
        if head.epoch > self.position.epoch && self.replaced.contains(&head.open_id) {
            // A wish of ours that was given up meanwhile had been granted.
            self.opened_in_vain(head);
            return;
        }
        let Position { epoch, next_seq, chain } = self.position;
        if epoch.0 == 0 {
            let lost_outbox = head.epoch.0 > 0
                && !self.next.is_some_and(|next| next.reason == ResyncReason::MemoryOutbox);
            if lost_outbox && self.halts() {
                self.stop(StopReason::Diverged);
            } else {
                self.resync(ResyncReason::FirstAttach);
            }
        } else if head.epoch < epoch || (head.epoch == epoch && head.next_seq < next_seq) {
            self.resync(ResyncReason::SequencerLostData);
        } else if head.epoch > epoch {
            self.diverged(head);
        } else if head.next_seq == next_seq {
            if head.chain == chain {
                self.start_streaming();
                if head.base_complete {
                    self.tell(Event::Acked { head, time_ms: ack.time_ms });
                }
            } else {
                self.diverged(head);
            }
        } else if ack.chain_at_next.is_some_and(|known| known != chain) {
            self.diverged(head);
        } else if self.abandoned {
            // What is there more than was acknowledged was sent before it was given up.
            self.resync(ResyncReason::QueueFull);
        } else if head.next_seq > self.last_seq.next() {
            self.diverged(head);
        } else {
            // Entries arrived whose acknowledgement was lost, if they are ours: the chain tells.
            self.phase = Phase::Verifying { head, asked: false };
        }
    }

    /// The receiver holds something else. The user chose what that means.
    pub(super) fn diverged(&mut self, head: Head) {
        self.head = head;
        if self.halts() {
            self.stop(StopReason::Diverged);
        } else {
            self.resync(ResyncReason::Diverged);
        }
    }

    fn halts(&self) -> bool {
        self.config.on_divergence == OnDivergence::Halt && !self.overruled
    }

    /// The current epoch cannot go on.
    pub(super) fn resync(&mut self, reason: ResyncReason) {
        self.abandoned = true;
        self.rewind();
        if self.next.is_some() {
            self.start_streaming();
        } else {
            self.phase = Phase::WantBase;
            self.tell(Event::ResyncNeeded(reason));
        }
    }

    pub(super) fn start_streaming(&mut self) {
        self.phase = Phase::Streaming;
        self.tell(Event::LinkUp);
        self.rewind();
    }

    /// Our next epoch has begun.
    pub(super) fn opened(&mut self, head: Head) {
        self.next = None;
        self.replaced.clear();
        self.overruled = false;
        self.abandoned = false;
        self.upload = None;
        self.head = head;
        self.move_to(head);
        self.last_seq = head.next_seq.previous();
        self.highest_sent = SeqNo(0);
        self.backoff.reset();
        self.tell(Event::EpochOpened { head });
        // Nothing can be sent before the driver has said what is queued for it.
        self.start_streaming();
    }

    /// An epoch has begun that was asked for and is not wanted any more: the next one follows it.
    fn opened_in_vain(&mut self, head: Head) {
        self.position = Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
        self.last_seq = head.next_seq.previous();
        self.upload = None;
        self.replaced.clear();
        self.tell(Event::EpochOpened { head });
        self.resync(ResyncReason::QueueFull);
    }

    pub(super) fn move_to(&mut self, head: Head) {
        self.position = Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
        if self.cursor.seq <= head.next_seq {
            self.cursor = super::Cursor { seq: head.next_seq, chain: head.chain, fragment: None };
        }
    }
}
