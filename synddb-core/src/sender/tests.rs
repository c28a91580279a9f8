extern crate alloc;

use alloc::{vec, vec::Vec};
use core::time::Duration;

use super::*;
use crate::wire::{
    EntriesWriter, Entry, Message,
    message::{Ack, Bye, Farewell, HelloAck, Nack, Refusal, SnapshotProgress, feature},
};

const RESPONSE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

fn config() -> SenderConfig {
    SenderConfig {
        stream: StreamId::from_name("test"),
        instance: Nonce([1; 16]),
        batch: BatchConfig { max_entries: 1, ..BatchConfig::default() },
        backoff: BackoffConfig::default(),
        response_timeout: RESPONSE,
        keep_alive: KEEP_ALIVE,
        on_divergence: OnDivergence::Resync,
        compression: Compression::None,
    }
}

fn head(epoch: u64, next_seq: u64, chain: u8) -> Head {
    Head {
        epoch: Epoch(epoch),
        open_id: OpenId([epoch as u8; 16]),
        next_seq: SeqNo(next_seq),
        chain: Chain([chain; 32]),
        base_complete: true,
    }
}

fn position(head: Head) -> Position {
    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain }
}

fn hello_ack(head: Head) -> HelloAck {
    HelloAck {
        version: 1,
        features: 0,
        nonce: Nonce([9; 16]),
        ticket: 1,
        head,
        genesis: Chain([0; 32]),
        chain_at_next: None,
        staged: None,
        snapshot: None,
        limits: Limits {
            max_frame: 4096,
            max_entry: 1 << 20,
            max_snapshot: 1 << 20,
            credit: 1 << 20,
        },
        time_ms: 0,
    }
}

fn ack(head: Head) -> Message<'static> {
    Message::Ack(Ack { head, staged: None, credit: 1 << 20, time_ms: 0, signature: b"" })
}

fn nack(refusal: Refusal) -> Message<'static> {
    Message::Nack(Nack { refusal, text: "" })
}

/// A sender with its clock.
struct Bench {
    sender: Sender<4>,
    now: Instant,
}

impl Bench {
    fn new(config: SenderConfig, position: Position) -> Self {
        Self { sender: Sender::new(config, position, 1), now: Instant::from_micros(1) }
    }

    /// One that stands where the receiver stands.
    fn streaming(at: Head) -> Self {
        let mut bench = Self::new(config(), position(at));
        bench.greet(hello_ack(at));
        assert!(bench.events().contains(&Event::LinkUp));
        bench
    }

    fn action(&mut self) -> Option<Action> {
        self.sender.poll_action(self.now)
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.sender.poll_event()).collect()
    }

    fn wait(&mut self, wait: Duration) {
        self.now = self.now + wait;
    }

    fn answer(&mut self, tag: u32, message: Message<'_>) {
        let mut buffer = vec![0; 4096];
        let len = message.encode(tag, &mut buffer).unwrap();
        self.sender.handle_frame(self.now, &buffer[..len]).unwrap();
    }

    /// Connects, whatever the wait, up to the Hello; returns its tag.
    fn hello(&mut self) -> u32 {
        self.sender.handle_flush(self.now);
        assert_eq!(self.action(), Some(Action::Connect));
        self.sender.handle_connected(self.now, Nonce([9; 16]), 4);
        match self.action() {
            Some(Action::SendHello { tag, .. }) => tag,
            other => panic!("not a Hello: {other:?}"),
        }
    }

    fn greet(&mut self, ack: HelloAck) {
        let tag = self.hello();
        self.answer(tag, Message::HelloAck(ack));
    }

    fn queue(&mut self, last_seq: u64) {
        self.sender.handle_queued(self.now, SeqNo(last_seq), 100);
        self.sender.handle_flush(self.now);
    }

    /// Sends the next frame, with one entry; returns its tag and where the stream is after it.
    fn send(&mut self) -> Option<(u32, Position)> {
        match self.action()? {
            Action::SendEntries { tag, epoch, first, chain_before, .. } => {
                let mut buffer = vec![0; 4096];
                let mut writer =
                    EntriesWriter::new(&mut buffer, epoch, first, chain_before).unwrap();
                writer.push(Entry { meta: b"meta", payload: &[7; 500] }).unwrap();
                let written = writer.finish(tag).unwrap();
                self.sender.handle_sent_entries(self.now, tag, &written);
                Some((tag, Position { epoch, next_seq: first.next(), chain: written.chain }))
            }
            other => panic!("not entries: {other:?}"),
        }
    }
}

fn resync(reason: ResyncReason) -> Vec<Event> {
    vec![Event::ResyncNeeded(reason)]
}

#[test]
fn a_receiver_restored_from_a_backup_is_told_everything_anew() {
    for behind in [head(3, 4, 1), head(2, 90, 1)] {
        let mut bench = Bench::new(config(), position(head(3, 5, 5)));
        bench.greet(hello_ack(behind));
        assert_eq!(bench.events(), resync(ResyncReason::SequencerLostData));
        bench.sender.handle_next_epoch(OpenId([8; 16]), ResyncReason::SequencerLostData);
        let Some(Action::SendOpenEpoch { open, .. }) = bench.action() else {
            panic!("the next epoch is not opened");
        };
        assert_eq!(
            (open.previous, open.previous_next_seq, open.previous_chain, open.floor),
            (behind.epoch, behind.next_seq, behind.chain, Epoch(3)),
        );
    }
}

#[test]
fn a_fork_after_a_restored_backup_is_met_as_the_user_chose() {
    let ours = head(1, 5, 5);
    for choice in [OnDivergence::Resync, OnDivergence::Halt] {
        let met = match choice {
            OnDivergence::Resync => resync(ResyncReason::Diverged),
            OnDivergence::Halt => vec![Event::Stopped(StopReason::Diverged)],
        };
        let config = SenderConfig { on_divergence: choice, ..config() };
        // As far as we are, with other entries; in an epoch of somebody else.
        for theirs in [head(1, 5, 6), head(2, 1, 6)] {
            let mut bench = Bench::new(config, position(ours));
            bench.greet(hello_ack(theirs));
            assert_eq!(bench.events(), met);
        }
        // Further than we are: the outbox's entries do not lead there.
        let mut bench = Bench::new(config, position(ours));
        bench.queue(6);
        let theirs = head(1, 7, 7);
        bench.greet(hello_ack(theirs));
        let verify = Action::Verify { first: SeqNo(5), chain: ours.chain, end: SeqNo(7) };
        assert_eq!(bench.action(), Some(verify));
        bench.sender.handle_verified(Some(Chain([6; 32])));
        assert_eq!(bench.events(), met);
    }
}

#[test]
fn entries_whose_acknowledgement_was_lost_are_recognised() {
    let ours = head(1, 5, 5);
    let mut bench = Bench::new(config(), position(ours));
    bench.queue(7);
    let theirs = head(1, 7, 7);
    bench.greet(HelloAck { chain_at_next: Some(ours.chain), ..hello_ack(theirs) });
    assert!(matches!(bench.action(), Some(Action::Verify { .. })));
    bench.sender.handle_verified(Some(theirs.chain));
    assert_eq!(bench.events(), [Event::Acked { head: theirs, time_ms: 0 }, Event::LinkUp]);
    let (_, after) = bench.send().unwrap();
    assert_eq!(after.next_seq, SeqNo(8), "entry 7 is the first that is sent");
}

#[test]
fn an_epoch_number_granted_twice_does_not_match() {
    let stream = StreamId::from_name("test");
    let genesis = |id| Chain::genesis(stream, Epoch(2), OpenId([id; 16]), Chain([1; 32]));
    let granted = |id| Head { open_id: OpenId([id; 16]), chain: genesis(id), ..head(2, 1, 0) };
    let mut bench = Bench::new(config(), position(granted(1)));
    bench.greet(hello_ack(granted(2)));
    assert_eq!(bench.events(), resync(ResyncReason::Diverged));
}

#[test]
fn a_wish_whose_grant_was_lost_is_recognised_by_its_name_only() {
    let granted = Head { base_complete: false, ..head(4, 1, 4) };
    for (wished, ours) in [(granted.open_id, true), (OpenId([77; 16]), false)] {
        let mut bench = Bench::new(config(), position(head(3, 5, 5)));
        bench.sender.handle_next_epoch(wished, ResyncReason::Requested);
        bench.greet(HelloAck { genesis: granted.chain, ..hello_ack(granted) });
        assert_eq!(bench.events().contains(&Event::EpochOpened { head: granted }), ours);
    }
}

#[test]
fn a_wish_that_was_given_up_may_have_been_granted() {
    let halting = SenderConfig { on_divergence: OnDivergence::Halt, ..config() };
    // Nothing of it was sent yet, or a part.
    for next_seq in [1, 3] {
        let granted = Head { base_complete: false, ..head(4, next_seq, 4) };
        let mut bench = Bench::new(halting, position(head(3, 5, 5)));
        bench.sender.handle_next_epoch(granted.open_id, ResyncReason::Requested);
        bench.sender.handle_next_epoch(OpenId([77; 16]), ResyncReason::SchemaChanged);
        bench.greet(HelloAck { genesis: granted.chain, ..hello_ack(granted) });
        assert!(bench.events().contains(&Event::EpochOpened { head: granted }));
        let Some(Action::SendOpenEpoch { open, .. }) = bench.action() else { panic!("no wish") };
        assert_eq!((open.open_id, open.previous), (OpenId([77; 16]), Epoch(4)));
    }
    let granted = Head { base_complete: false, ..head(4, 2, 4) };
    let mut bench = Bench::new(halting, position(head(3, 5, 5)));
    bench.sender.handle_wish_withdrawn(granted.open_id);
    bench.greet(hello_ack(granted));
    let events = bench.events();
    assert_eq!(events[0], Event::EpochOpened { head: granted });
    assert!(matches!(events[1], Event::ResyncNeeded(_)), "{events:?}");
}

#[test]
fn a_pause_is_longer_than_the_time_for_a_sign_of_life() {
    let keep_alive = Duration::from_millis(1);
    let mut bench = Bench::new(SenderConfig { keep_alive, ..config() }, position(head(1, 5, 5)));
    bench.greet(hello_ack(head(1, 5, 5)));
    bench.wait(keep_alive);
    let Some(Action::SendPing { mut tag }) = bench.action() else { panic!("no ping") };
    for _ in 0..5 {
        bench.answer(tag, nack(Refusal::StorageFailed));
        bench.events();
        assert_eq!(bench.action(), None);
        bench.now = bench.sender.poll_timeout().unwrap();
        let Some(Action::SendPing { tag: next }) = bench.action() else {
            panic!("woken for nothing");
        };
        tag = next;
    }
}

#[test]
fn what_was_sent_before_it_was_given_up_is_no_fork() {
    let halting = SenderConfig { on_divergence: OnDivergence::Halt, ..config() };
    let ours = head(1, 5, 5);
    let mut bench = Bench::new(halting, position(ours));
    bench.sender.handle_abandoned();
    let ahead = head(1, 9, 9);
    bench.greet(HelloAck { chain_at_next: Some(ours.chain), ..hello_ack(ahead) });
    assert_eq!(bench.events(), resync(ResyncReason::QueueFull));
    let mut bench = Bench::new(halting, position(ours));
    bench.sender.handle_abandoned();
    bench.greet(HelloAck { chain_at_next: Some(Chain([6; 32])), ..hello_ack(ahead) });
    assert_eq!(bench.events(), [Event::Stopped(StopReason::Diverged)], "that is one");
}

#[test]
fn an_answer_about_a_replaced_snapshot_is_an_answer() {
    let mut bench = Bench::streaming(head(1, 5, 5));
    let offer = |id| SnapshotOffer { id: SnapshotId([id; 16]), len: 10, sha256: [0; 32] };
    bench.sender.handle_snapshot(offer(1));
    let Some(Action::SendSnapshotBegin { tag, .. }) = bench.action() else { panic!("no begin") };
    bench.sender.handle_snapshot(offer(2));
    let progress = SnapshotProgress { id: offer(1).id, offset: 0, complete: false };
    bench.answer(tag, Message::SnapshotAck(progress));
    assert!(!bench.sender.awaits_reply());
    let next = bench.action();
    assert!(
        matches!(next, Some(Action::SendSnapshotBegin { snapshot, .. }) if snapshot == offer(2)),
        "{next:?}"
    );
}

#[test]
fn a_ping_learns_that_the_stream_moved_on() {
    let ours = head(1, 5, 5);
    for moved in [head(2, 1, 9), head(1, 4, 9), head(1, 5, 9)] {
        let mut bench = Bench::streaming(ours);
        assert_eq!(bench.action(), None);
        bench.wait(KEEP_ALIVE);
        let Some(Action::SendPing { tag }) = bench.action() else { panic!("no Ping") };
        bench.answer(tag, ack(moved));
        assert_eq!(bench.action(), Some(Action::Close));
        assert_eq!(bench.action(), Some(Action::Connect), "the next Hello will tell");
    }
    let mut bench = Bench::streaming(ours);
    bench.wait(KEEP_ALIVE);
    let Some(Action::SendPing { tag }) = bench.action() else { panic!("no Ping") };
    bench.answer(tag, ack(ours));
    assert_eq!(bench.action(), None, "nothing moved");
}

#[test]
fn a_superseded_sender_does_not_come_back_by_itself() {
    let mut bench = Bench::streaming(head(1, 5, 5));
    bench.queue(5);
    let (tag, _) = bench.send().unwrap();
    bench.answer(tag, nack(Refusal::Superseded));
    assert_eq!(bench.events(), [Event::Stopped(StopReason::Superseded)]);
    assert_eq!(bench.action(), Some(Action::Close));
    bench.wait(Duration::from_secs(3600));
    bench.sender.handle_flush(bench.now);
    assert_eq!((bench.action(), bench.sender.poll_timeout()), (None, None));
    bench.sender.handle_restart(bench.now, Nonce([2; 16]));
    assert_eq!(bench.action(), Some(Action::Close));
    assert_eq!(bench.action(), Some(Action::Connect));
}

#[test]
fn staged_pieces_of_another_entry_are_not_resumed() {
    let at = head(1, 5, 5);
    let ours = Chain([6; 32]);
    let cases = [(5, ours, 100), (5, Chain([7; 32]), 0), (4, ours, 0)];
    for (seq, chain_after, from) in cases {
        let mut bench = Bench::new(config(), position(at));
        let staged = Some(Staged { seq: SeqNo(seq), chain_after, offset: 100 });
        bench.greet(HelloAck { staged, ..hello_ack(at) });
        bench.queue(5);
        assert!(matches!(bench.action(), Some(Action::SendEntries { .. })));
        bench.sender.handle_oversized(ours);
        let Some(Action::SendFragment { offset, .. }) = bench.action() else {
            panic!("not a piece");
        };
        assert_eq!(offset, from);
    }
}

#[test]
fn no_more_is_on_its_way_than_the_receiver_gave_credit_for() {
    let at = head(1, 5, 5);
    let mut bench = Bench::new(config(), position(at));
    let limits = Limits { credit: 600, ..hello_ack(at).limits };
    bench.greet(HelloAck { limits, ..hello_ack(at) });
    bench.queue(9);
    let (first, after) = bench.send().unwrap();
    let (second, _) = bench.send().unwrap();
    assert_eq!(bench.send(), None, "two frames are over 600 bytes");
    // Without any credit one frame still may.
    let Position { next_seq, chain, .. } = after;
    let stored = Head { next_seq, chain, ..at };
    let no_credit = Ack { head: stored, staged: None, credit: 0, time_ms: 0, signature: b"" };
    bench.answer(first, Message::Ack(no_credit));
    assert_eq!(bench.send(), None);
    bench.answer(second, nack(Refusal::Gap(stored)));
    assert!(bench.send().is_some());
    assert_eq!(bench.send(), None);
}

#[test]
fn a_busy_receiver_is_left_alone_for_as_long_as_it_asks() {
    let mut bench = Bench::streaming(head(1, 5, 5));
    bench.queue(6);
    let (first, sent) = bench.send().unwrap();
    let (second, _) = bench.send().unwrap();
    bench.events();
    bench.answer(first, nack(Refusal::Busy { retry_after_ms: 500 }));
    bench.answer(second, nack(Refusal::Busy { retry_after_ms: 500 }));
    bench.wait(Duration::from_millis(499));
    assert_eq!(bench.action(), None);
    assert!(bench.sender.poll_timeout().unwrap() > bench.now);
    // The jitter on top is as long as the first wait at most.
    bench.wait(Duration::from_millis(101));
    assert_eq!(bench.send().unwrap().1, sent, "from the first unacknowledged entry on");
    assert_eq!(bench.events(), [], "busy is no failure");
}

#[test]
fn failures_in_a_row_are_counted_and_nothing_is_dropped_for_them() {
    let at = head(1, 5, 5);
    let mut bench = Bench::new(config(), position(at));
    bench.queue(6);
    for failures in 1..=5 {
        bench.sender.handle_flush(bench.now);
        assert_eq!(bench.action(), Some(Action::Connect));
        bench.sender.handle_disconnected(bench.now, TransportErrorKind::Unreachable, None);
        let kind = TransportErrorKind::Unreachable;
        assert_eq!(bench.events(), [Event::LinkFailed { kind, failures }]);
        assert_eq!(bench.action(), Some(Action::Close));
    }
    bench.greet(hello_ack(at));
    let (tag, after) = bench.send().unwrap();
    assert_eq!(after.next_seq, SeqNo(6));
    let Position { next_seq, chain, .. } = after;
    bench.answer(tag, ack(Head { next_seq, chain, ..at }));
    bench.events();
    bench.sender.handle_disconnected(bench.now, TransportErrorKind::Disconnected, None);
    let kind = TransportErrorKind::Disconnected;
    let again = Event::LinkFailed { kind, failures: 1 };
    assert_eq!(bench.events(), [again], "an acknowledgement begins the count anew");
}

/// A receiver that is restarted is gone back to at once; one that only ever hangs up is not.
#[test]
fn a_bye_is_no_failure_once_something_was_done() {
    let at = head(1, 5, 5);
    let bye = Message::Bye(Bye { farewell: Farewell::Shutdown });
    let mut bench = Bench::streaming(at);
    bench.queue(5);
    let (tag, Position { next_seq, chain, .. }) = bench.send().unwrap();
    let at = Head { next_seq, chain, ..at };
    bench.answer(tag, ack(at));
    bench.events();
    bench.queue(6);
    bench.send().unwrap();
    bench.answer(0, bye);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.action(), Some(Action::Close));
    bench.greet(hello_ack(at));
    assert_eq!(bench.events()[0], Event::LinkUp);
    assert_eq!(bench.send().unwrap().1.next_seq, SeqNo(7), "what was on its way goes again");
    bench.answer(0, bye);
    let kind = TransportErrorKind::Disconnected;
    assert_eq!(bench.events(), [Event::LinkFailed { kind, failures: 1 }]);
}

#[test]
fn hanging_up_in_quiet_times_is_no_failure_once_something_was_done() {
    let at = head(1, 5, 5);
    let mut bench = Bench::streaming(at);
    bench.wait(KEEP_ALIVE);
    let Some(Action::SendPing { tag }) = bench.action() else { panic!("no Ping") };
    bench.answer(tag, ack(at));
    bench.sender.handle_hung_up(bench.now);
    assert_eq!(bench.action(), Some(Action::Close));
    bench.greet(hello_ack(at));
    bench.events();
    bench.sender.handle_hung_up(bench.now);
    let kind = TransportErrorKind::Disconnected;
    assert_eq!(bench.events(), [Event::LinkFailed { kind, failures: 1 }]);
}

#[test]
fn a_refusal_of_the_version_needs_no_tag() {
    let mut bench = Bench::new(config(), position(head(1, 5, 5)));
    bench.hello();
    bench.answer(0, nack(Refusal::Unsupported { version_min: 2, version_max: 3 }));
    let kind = TransportErrorKind::NotASequencer;
    assert_eq!(bench.events(), [Event::LinkFailed { kind, failures: 1 }]);
}

#[test]
fn a_silent_receiver_is_given_up_after_the_response_timeout() {
    let mut bench = Bench::streaming(head(1, 5, 5));
    bench.queue(5);
    let (_, sent) = bench.send().unwrap();
    bench.wait(RESPONSE);
    assert_eq!(bench.action(), Some(Action::Close));
    bench.greet(hello_ack(head(1, 5, 5)));
    assert_eq!(bench.send().unwrap().1, sent);
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_so_is_not_believed() {
    let at = head(1, 5, 5);
    let mut bench = Bench::streaming(at);
    bench.queue(5);
    let (tag, _) = bench.send().unwrap();
    bench.events();
    bench.answer(tag, ack(head(1, 6, 66)));
    assert!(!bench.events().iter().any(|event| matches!(event, Event::Acked { .. })));
    assert_eq!(bench.sender.position(), position(at));
}

#[test]
fn data_is_compressed_only_where_both_sides_can() {
    let at = head(1, 5, 5);
    for ours in [Compression::None, Compression::Lz4] {
        let config = SenderConfig { compression: ours, ..config() };
        let mut bench = Bench::new(config, position(at));
        let theirs = [(0, false), (feature::LZ4, true), (feature::LZ4 | 2, true), (2, false)];
        for (features, they_can) in theirs {
            let agreed = if they_can { ours } else { Compression::None };
            bench.sender.handle_flush(bench.now);
            assert_eq!(bench.action(), Some(Action::Connect));
            bench.sender.handle_connected(bench.now, Nonce([9; 16]), 4);
            let Some(Action::SendHello { tag, features: offered, .. }) = bench.action() else {
                panic!("no Hello")
            };
            assert_eq!(offered & feature::LZ4 != 0, ours == Compression::Lz4);
            assert_eq!(bench.sender.compression(), Compression::None, "nothing is agreed on yet");
            bench.answer(tag, Message::HelloAck(HelloAck { features, ..hello_ack(at) }));
            assert_eq!(bench.sender.compression(), agreed, "{ours:?}, {features}");
            // Another receiver may answer the next Hello.
            bench.sender.handle_disconnected(bench.now, TransportErrorKind::Disconnected, None);
            assert_eq!(bench.sender.compression(), Compression::None);
            bench.events();
            assert_eq!(bench.action(), Some(Action::Close));
        }
    }
}

/// The driver reads what the outbox holds, and that may be more than it told.
#[test]
fn entries_that_were_sent_before_they_were_told_are_no_divergence() {
    let at = head(1, 5, 5);
    let mut bench = Bench::streaming(at);
    bench.queue(5);
    let tag = match bench.action() {
        Some(Action::SendEntries { tag, .. }) => tag,
        other => panic!("not entries: {other:?}"),
    };
    let mut buffer = vec![0; 4096];
    let mut writer = EntriesWriter::new(&mut buffer, at.epoch, at.next_seq, at.chain).unwrap();
    for _ in 5..=7 {
        writer.push(Entry { meta: b"meta", payload: &[7; 500] }).unwrap();
    }
    let written = writer.finish(tag).unwrap();
    bench.sender.handle_sent_entries(bench.now, tag, &written);
    bench.sender.handle_disconnected(bench.now, TransportErrorKind::Disconnected, None);
    bench.events();
    assert_eq!(bench.action(), Some(Action::Close));
    let stored = Head { next_seq: SeqNo(8), chain: written.chain, ..at };
    bench.greet(hello_ack(stored));
    assert!(matches!(bench.action(), Some(Action::Verify { end: SeqNo(8), .. })));
    bench.sender.handle_verified(Some(written.chain));
    assert!(bench.events().contains(&Event::Acked { head: stored, time_ms: 0 }));
}
