//! The receiver's answers.

use super::{Event, InFlight, Phase, Position, Sender, Slot, StopReason};
use crate::{
    Instant, SeqNo,
    transport::TransportErrorKind,
    wire::{
        Message, WireError,
        message::{Ack, Farewell, Head, Nack, Refusal, ResyncReason, SnapshotProgress, TooLarge},
    },
};

/// How often one snapshot is begun again because the receiver found it damaged.
const MAX_SNAPSHOT_RESTARTS: u8 = 3;

impl<const WINDOW: usize> Sender<WINDOW> {
    /// A frame came. Where it is not a valid answer the connection is given up.
    ///
    /// # Errors
    /// Why the bytes are no frame, for the log; everything was seen to.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Result<(), WireError> {
        let (tag, message) = match Message::decode(frame, frame.len()) {
            Ok(decoded) => decoded,
            Err(error) => {
                let kind = match error {
                    WireError::NotOurs | WireError::Version { .. } => {
                        TransportErrorKind::NotASequencer
                    }
                    _ => TransportErrorKind::Disconnected,
                };
                self.handle_disconnected(now, kind, None);
                return Err(error);
            }
        };
        self.last_heard = now;
        match (self.phase, message) {
            (Phase::Greeting { tag: asked, .. }, Message::HelloAck(ack))
                if tag == asked && ack.nonce == self.nonce =>
            {
                self.handle_hello_ack(&ack);
            }
            (Phase::Greeting { tag: asked, .. }, Message::Challenge(challenge)) if tag == asked => {
                if self.challenge.is_some() {
                    // The token could not be bound, or is refused so: asking again at once is of no use.
                    self.handle_refusal(now, Refusal::Unauthorized);
                } else {
                    self.challenge = Some(challenge.nonce);
                    self.hello_due = true;
                }
            }
            (Phase::Opening { tag: asked, open_id, .. }, Message::Ack(ack))
                if tag == asked && ack.head.open_id == open_id =>
            {
                if ack.head.next_seq == SeqNo::FIRST {
                    self.opened(ack.head);
                } else {
                    self.reconnect();
                }
            }
            (
                Phase::Greeting { tag: asked, .. } | Phase::Opening { tag: asked, .. },
                Message::Nack(nack),
            ) if tag == asked || is_about_the_version(tag, &nack) => {
                self.handle_refusal(now, nack.refusal);
            }
            (Phase::Streaming | Phase::WantBase, Message::Ack(ack)) => {
                self.handle_ack(now, tag, &ack);
            }
            (Phase::Streaming | Phase::WantBase, Message::SnapshotAck(progress)) => {
                self.handle_snapshot_ack(tag, &progress);
            }
            // Of several frames in flight behind a refused one each is refused: the first refusal
            // empties the list, the others find nothing there.
            (Phase::Streaming | Phase::WantBase, Message::Nack(nack))
                if self.in_flight.iter().any(|slot| slot.tag == tag) =>
            {
                self.handle_refusal(now, nack.refusal);
            }
            (_, Message::Nack(nack)) if nack.refusal == Refusal::Superseded => {
                self.stop(StopReason::Superseded);
            }
            (_, Message::Bye(bye)) => {
                let kind = match bye.farewell {
                    Farewell::Busy => TransportErrorKind::Busy,
                    Farewell::Late => TransportErrorKind::TimedOut,
                    Farewell::TlsOnly => TransportErrorKind::Misconfigured,
                    _ => TransportErrorKind::Disconnected,
                };
                self.hung_up(now, kind);
            }
            // Late answers to what was given up in the meantime.
            _ => {}
        }
        Ok(())
    }

    fn handle_ack(&mut self, now: Instant, tag: u32, ack: &Ack<'_>) {
        self.limits.credit = ack.credit;
        let answered = self.in_flight.iter().find(|slot| slot.tag == tag).map(|slot| slot.what);
        if ack.head.epoch != self.position.epoch {
            // Another sender opened an epoch between our Hello and our first frame.
            if answered.is_some() {
                self.reconnect();
            }
            return;
        }
        if answered == Some(InFlight::Ping) {
            self.useful = true;
            self.retain_in_flight(|slot| slot.tag != tag);
            let Position { next_seq, chain, .. } = self.position;
            if ack.head.next_seq < next_seq
                || (ack.head.next_seq == next_seq && ack.head.chain != chain)
            {
                self.reconnect();
                return;
            }
        }
        if let Some(staged) = ack.staged {
            while let Some(&Slot { what: InFlight::Fragment { seq, end }, .. }) =
                self.in_flight.front()
                && staged.seq == seq
                && staged.offset >= end
            {
                self.in_flight.pop_front();
            }
        }
        if self.acknowledge(now, ack.head) {
            self.backoff.reset();
            self.useful = true;
            self.tell(Event::Acked { head: ack.head, time_ms: ack.time_ms });
        }
    }

    /// Takes what `head` covers off the list; false where it covers nothing new.
    fn acknowledge(&mut self, now: Instant, head: Head) -> bool {
        if head.next_seq < self.position.next_seq {
            return false;
        }
        if head.next_seq == self.position.next_seq {
            let base_came = head.base_complete && !self.head.base_complete;
            self.head = head;
            return base_came;
        }
        let proved = self.in_flight.iter().any(|slot| {
            slot.what == InFlight::Entries { next_seq: head.next_seq, chain: head.chain }
        });
        if !proved {
            // It claims entries that were not sent so, or not in this connection: ask anew.
            self.handle_disconnected(now, TransportErrorKind::Disconnected, None);
            return false;
        }
        while let Some(slot) = self.in_flight.front() {
            let covered = match slot.what {
                InFlight::Entries { next_seq, .. } => next_seq <= head.next_seq,
                InFlight::Fragment { seq, .. } => seq < head.next_seq,
                InFlight::Snapshot { .. } | InFlight::Ping => break,
            };
            if !covered {
                break;
            }
            self.in_flight.pop_front();
        }
        // Snapshot pieces between them keep their place; entries behind those are covered too.
        self.retain_in_flight(|slot| match slot.what {
            InFlight::Entries { next_seq, .. } => next_seq > head.next_seq,
            InFlight::Fragment { seq, .. } => seq >= head.next_seq,
            InFlight::Snapshot { .. } | InFlight::Ping => true,
        });
        self.head = head;
        self.position = Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
        true
    }

    fn handle_snapshot_ack(&mut self, tag: u32, progress: &SnapshotProgress) {
        let Some(upload) = &mut self.upload else {
            self.retain_in_flight(|slot| slot.tag != tag);
            return;
        };
        if upload.offer.id != progress.id {
            // Of a snapshot that was replaced: nobody waits for it any more.
            self.retain_in_flight(|slot| slot.tag != tag);
            return;
        }
        let begin = self
            .in_flight
            .iter()
            .any(|slot| slot.tag == tag && slot.what == InFlight::Snapshot { end: 0, last: false });
        if begin {
            // What is there from an earlier connection need not be sent again.
            upload.sent = progress.offset.min(upload.offer.len);
        }
        let id = upload.offer.id;
        self.retain_in_flight(|slot| match slot.what {
            InFlight::Snapshot { end, last } => {
                slot.tag != tag && (end > progress.offset || (last && !progress.complete))
            }
            _ => true,
        });
        self.backoff.reset();
        self.useful = true;
        if progress.complete {
            self.upload = None;
            self.retain_in_flight(|slot| !matches!(slot.what, InFlight::Snapshot { .. }));
            self.tell(Event::SnapshotStored(id));
        }
    }

    fn handle_refusal(&mut self, now: Instant, refusal: Refusal) {
        self.stats.refusals += 1;
        match refusal {
            Refusal::Gap(head) => {
                self.acknowledge(now, head);
                if head.epoch == self.position.epoch && head.next_seq == self.position.next_seq {
                    self.rewind();
                } else {
                    self.handle_disconnected(now, TransportErrorKind::Disconnected, None);
                }
            }
            Refusal::Busy { .. } => {
                let asked = refusal.retry_after().unwrap_or_default();
                let wait = self.backoff.busy_wait(asked);
                self.wait_and_repeat(now, wait);
            }
            Refusal::StorageFailed => {
                let wait = self.backoff.next_wait(None);
                let failures = self.backoff.failures();
                self.wait_and_repeat(now, wait);
                self.tell(Event::LinkFailed { kind: TransportErrorKind::Busy, failures });
            }
            Refusal::TooLarge { what: TooLarge::Frame, limit } => {
                self.shrink(Some(limit));
                self.rewind();
            }
            Refusal::TooLarge { what: TooLarge::Entry, .. } | Refusal::InvalidEntry { .. } => {
                self.resync(ResyncReason::EntryRefused);
            }
            Refusal::TooLarge { what: TooLarge::Snapshot, limit } => {
                self.rewind();
                if let Some(upload) = self.upload.take() {
                    let id = upload.offer.id;
                    self.tell(Event::SnapshotRefused { id, limit: Some(limit) });
                }
            }
            Refusal::SnapshotGap(progress) => {
                self.retain_in_flight(|slot| !matches!(slot.what, InFlight::Snapshot { .. }));
                if let Some(upload) = &mut self.upload {
                    upload.sent = progress.offset.min(upload.offer.len);
                    upload.ended = false;
                }
            }
            Refusal::SnapshotInvalid => {
                self.retain_in_flight(|slot| !matches!(slot.what, InFlight::Snapshot { .. }));
                self.restart_upload();
            }
            Refusal::Fork(head) | Refusal::Fenced(head) => self.diverged(head),
            Refusal::Superseded => self.stop(StopReason::Superseded),
            Refusal::Unauthorized => {
                self.handle_disconnected(now, TransportErrorKind::Unauthorized, None);
            }
            Refusal::Unsupported { .. } => {
                self.handle_disconnected(now, TransportErrorKind::NotASequencer, None);
            }
            Refusal::HeadMoved(_) | Refusal::Corrupt | Refusal::NoHello => {
                self.handle_disconnected(now, TransportErrorKind::Disconnected, None);
            }
        }
    }

    fn restart_upload(&mut self) {
        let Some(upload) = &mut self.upload else { return };
        upload.restarts += 1;
        if upload.restarts > MAX_SNAPSHOT_RESTARTS {
            let id = upload.offer.id;
            self.upload = None;
            self.tell(Event::SnapshotRefused { id, limit: None });
        } else {
            upload.begun = false;
            upload.ended = false;
            upload.sent = 0;
        }
    }

    /// Not now: everything unacknowledged goes out again after `wait`.
    fn wait_and_repeat(&mut self, now: Instant, wait: core::time::Duration) {
        match self.phase {
            Phase::Streaming | Phase::WantBase => {
                self.rewind();
                self.pause_until = Some(now + wait);
            }
            _ => {
                self.drop_connection();
                self.phase = Phase::Idle { retry_at: now + wait };
            }
        }
    }

    fn retain_in_flight(&mut self, mut keep: impl FnMut(&Slot) -> bool) {
        for _ in 0..self.in_flight.len() {
            if let Some(slot) = self.in_flight.pop_front()
                && keep(&slot)
            {
                // As many as were taken out fit in again.
                let _ = self.in_flight.push_back(slot);
            }
        }
    }
}

/// A refusal of what the receiver could not read, not even its tag.
fn is_about_the_version(tag: u32, nack: &Nack<'_>) -> bool {
    tag == 0 && matches!(nack.refusal, Refusal::Unsupported { .. })
}
