//! What to store, what was stored already, what to refuse and why.
//!
//! A [`Receiver`] is the whole state of one stream at the sequencer, small enough to be stored
//! with every append. It never stores anything itself; its driver does, in this order:
//!
//! 1. [`handle_hello`](Receiver::handle_hello) welcomes a connection, and with its first other
//!    frame it [claims](Receiver::claim) the stream;
//! 2. [`handle_open`](Receiver::handle_open) decides on a new epoch;
//! 3. [`admit`](Receiver::admit) decides on a frame of entries, [`admit_fragment`](Receiver::admit_fragment)
//!    on a piece of one. What is admitted is stored **durably**, on the condition that the stream
//!    still stands at the head that the decision was made on;
//! 4. only then [`appended`](Receiver::appended) moves the head, and [`Receiver::head`] goes into
//!    the Ack.
//!
//! Every decision is made before anything changes: a refused frame leaves no trace.

use heapless::Deque;
use serde::{Deserialize, Serialize};

use crate::{
    Chain, Epoch, Nonce, SeqNo, StreamId,
    wire::{
        EntriesFrame, EntryKind, EntryMeta,
        header::VERSION,
        message::{Fragment, Head, Hello, OpenEpoch, Refusal, Staged},
    },
};

/// How many senders that lost the stream are remembered, so that a late Hello of theirs does not
/// take it back.
pub const REMEMBERED: usize = 16;

/// The connection that holds a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Session {
    /// The running sender.
    pub instance: Nonce,
    /// Drawn by the sender for this connection.
    pub nonce: Nonce,
    /// Drawn by the receiver for this connection: its count of Hellos.
    pub ticket: u64,
}

impl Session {
    /// The session that a Hello with a ticket goes on with.
    pub fn resumed(hello: &Hello<'_>) -> Self {
        Self { instance: hello.instance, nonce: hello.nonce, ticket: hello.ticket }
    }

    /// Whether this session began with this very Hello: the link repeated it.
    pub fn began_with(&self, hello: &Hello<'_>) -> bool {
        self.ticket > 0 && self.instance == hello.instance && self.nonce == hello.nonce
    }
}

/// What to do with a frame of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Store the entries from the `skip`th on, then call [`Receiver::appended`] with `head`.
    Append {
        /// How many entries at the front are stored already.
        skip: u32,
        /// Where the stream will stand.
        head: Head,
    },
    /// All of them are stored already: acknowledge once more.
    AlreadyHave,
}

/// What to do with a piece of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentAdmission {
    /// Stage the piece at its offset; the entry is not complete.
    Stage(Staged),
    /// Stage the piece; the entry is complete with it. Hash the whole payload, check it, and call
    /// [`Receiver::complete`].
    Complete,
    /// The piece, or the whole entry, is here already: acknowledge once more.
    AlreadyHave,
}

/// One stream as the sequencer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    stream: StreamId,
    head: Head,
    genesis: Chain,
    staged: Option<Staged>,
    issued: u64,
    session: Session,
    superseded: Deque<Nonce, REMEMBERED>,
}

impl Receiver {
    /// A stream that nothing is known of.
    pub const fn new(stream: StreamId) -> Self {
        Self {
            stream,
            head: Head {
                epoch: Epoch(0),
                open_id: crate::OpenId([0; 16]),
                next_seq: SeqNo(0),
                chain: Chain([0; 32]),
                base_complete: false,
            },
            genesis: Chain([0; 32]),
            staged: None,
            issued: 0,
            session: Session { instance: Nonce([0; 16]), nonce: Nonce([0; 16]), ticket: 0 },
            superseded: Deque::new(),
        }
    }

    /// The stream.
    pub const fn stream(&self) -> StreamId {
        self.stream
    }

    /// Where it stands.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Chain before the first entry of the current epoch.
    pub const fn genesis(&self) -> Chain {
        self.genesis
    }

    /// The fragmented entry that is partly here.
    pub const fn staged(&self) -> Option<Staged> {
        self.staged
    }

    /// The connection that holds it.
    pub const fn session(&self) -> Session {
        self.session
    }

    /// A connection begins: the ticket for it goes into the HelloAck. The state changed and must
    /// be stored before the answer goes out.
    ///
    /// A Hello takes nothing from anybody: it may be a late one of a process that is long gone.
    /// Only who uses the ticket, and so lives, [claims](Self::claim) the stream.
    ///
    /// Where the connection's session [began with](Session::began_with) this very Hello, answer
    /// with that session instead: late frames of a connection that is long gone would take the
    /// stream with a new ticket.
    ///
    /// # Errors
    /// `Unsupported` where no version is shared; `Superseded` where the sender has lost the stream
    /// to another one.
    pub fn handle_hello(&mut self, hello: &Hello<'_>) -> Result<Session, Refusal> {
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            return Err(Refusal::Unsupported { version_min: VERSION, version_max: VERSION });
        }
        self.check_not_superseded(hello.instance)?;
        self.issued = self.issued.saturating_add(1);
        Ok(Session { instance: hello.instance, nonce: hello.nonce, ticket: self.issued })
    }

    /// A frame other than a Hello came from `session`: it holds the stream, or takes it now.
    /// `Ok(true)`: the state changed and must be stored with what the frame brings.
    ///
    /// # Errors
    /// `Superseded` where a newer session holds the stream; `NoHello` where the ticket was never
    /// given (the receiver was restored from a backup).
    pub fn claim(&mut self, session: &Session) -> Result<bool, Refusal> {
        if *session == self.session {
            return Ok(false);
        }
        if session.ticket > self.issued || session.ticket == 0 {
            return Err(Refusal::NoHello);
        }
        if session.ticket <= self.session.ticket {
            return Err(Refusal::Superseded);
        }
        self.check_not_superseded(session.instance)?;
        if self.session.ticket > 0 && session.instance != self.session.instance {
            if self.superseded.is_full() {
                self.superseded.pop_front();
            }
            // There is room: a full queue just lost its oldest.
            let _ = self.superseded.push_back(self.session.instance);
        }
        self.session = *session;
        Ok(true)
    }

    fn check_not_superseded(&self, instance: Nonce) -> Result<(), Refusal> {
        if self.superseded.iter().any(|lost| *lost == instance) {
            return Err(Refusal::Superseded);
        }
        Ok(())
    }

    /// Decides on a new epoch. `Ok(Some(head))`: store that the epoch begins, durably, then call
    /// [`opened`](Self::opened). `Ok(None)`: this very wish was granted before.
    ///
    /// # Errors
    /// `HeadMoved` where the stream does not stand where the sender thinks.
    pub fn handle_open(&self, open: &OpenEpoch) -> Result<Option<Head>, Refusal> {
        if self.head.epoch.0 > 0 && open.open_id == self.head.open_id {
            return Ok(None);
        }
        let stands = open.previous == self.head.epoch
            && open.previous_next_seq == self.head.next_seq
            && open.previous_chain == self.head.chain;
        // An epoch of u64::MAX would leave no number for the next one.
        if !stands || open.floor.0 == u64::MAX || self.head.epoch.0 == u64::MAX {
            return Err(Refusal::HeadMoved(self.head));
        }
        let epoch = Epoch(self.head.epoch.max(open.floor).0 + 1);
        Ok(Some(Head {
            epoch,
            open_id: open.open_id,
            next_seq: SeqNo::FIRST,
            chain: Chain::genesis(self.stream, epoch, open.open_id, self.head.chain),
            base_complete: false,
        }))
    }

    /// The epoch of `head` has begun, durably.
    pub fn opened(&mut self, head: Head) {
        self.head = head;
        self.genesis = head.chain;
        self.staged = None;
    }

    /// Decides on a frame of entries, uncompressed. `known` gives the stored chain after an entry
    /// of the current epoch.
    ///
    /// # Errors
    /// `Fenced`, `Gap`, `Fork`, `Corrupt` (the entries do not decode).
    pub fn admit(
        &self,
        frame: &EntriesFrame<'_>,
        known: impl FnOnce(SeqNo) -> Option<Chain>,
    ) -> Result<Admission, Refusal> {
        self.check_epoch(frame.epoch)?;
        let next = self.head.next_seq;
        if frame.first_seq > next {
            return Err(Refusal::Gap(self.head));
        }
        let known_entries = next.0 - frame.first_seq.0;
        let mut chain = frame.chain_before;
        let mut base = self.head.base_complete;
        for (at, entry) in (0..).zip(frame.entries()) {
            // What is known already must be the same, to the last byte of it: chains tell.
            if at == known_entries && chain != self.head.chain {
                return Err(Refusal::Fork(self.head));
            }
            let (meta, entry) = entry.map_err(|_| Refusal::Corrupt)?;
            chain = chain.next(entry.meta, entry.payload);
            base |= at >= known_entries && meta.kind == EntryKind::Snapshot;
        }
        if frame.last_seq() >= next {
            let head =
                Head { next_seq: frame.last_seq().next(), chain, base_complete: base, ..self.head };
            // At most `count`, which is a u32: the last entry is new.
            return Ok(Admission::Append { skip: known_entries as u32, head });
        }
        if known(frame.last_seq()) == Some(chain) {
            Ok(Admission::AlreadyHave)
        } else {
            Err(Refusal::Fork(self.head))
        }
    }

    /// The entries that an [`Admission::Append`] told are stored, durably.
    pub fn appended(&mut self, head: Head) {
        self.head = head;
        self.staged = None;
    }

    /// Decides on a piece of an entry.
    ///
    /// # Errors
    /// `Fenced`, `Gap` (pieces or entries before it are missing; [`staged`](Self::staged) tells
    /// how far it is here), `Fork`, `Corrupt`.
    pub fn admit_fragment(&self, fragment: &Fragment<'_>) -> Result<FragmentAdmission, Refusal> {
        self.check_epoch(fragment.epoch)?;
        if fragment.seq < self.head.next_seq {
            return Ok(FragmentAdmission::AlreadyHave);
        }
        if fragment.seq > self.head.next_seq {
            return Err(Refusal::Gap(self.head));
        }
        if fragment.chain_before != self.head.chain {
            return Err(Refusal::Fork(self.head));
        }
        let meta = EntryMeta::decode(fragment.meta).map_err(|_| Refusal::Corrupt)?;
        let end = fragment.offset.checked_add(fragment.len.into()).ok_or(Refusal::Corrupt)?;
        if meta.seq != fragment.seq || end > fragment.total || fragment.len == 0 {
            return Err(Refusal::Corrupt);
        }
        let here = match self.staged {
            Some(staged)
                if staged.seq == fragment.seq && staged.chain_after == fragment.chain_after =>
            {
                staged.offset
            }
            _ => 0,
        };
        if fragment.offset > here {
            return Err(Refusal::Gap(self.head));
        }
        if end == fragment.total && end > here {
            return Ok(FragmentAdmission::Complete);
        }
        if end > here {
            let Fragment { seq, chain_after, .. } = *fragment;
            return Ok(FragmentAdmission::Stage(Staged { seq, chain_after, offset: end }));
        }
        Ok(FragmentAdmission::AlreadyHave)
    }

    /// A piece is staged, durably.
    pub fn staged_up_to(&mut self, staged: Staged) {
        self.staged = Some(staged);
    }

    /// Where the stream will stand once the complete entry, whose chain over the whole payload is
    /// `chain`, is stored; call [`appended`](Self::appended) with it then.
    ///
    /// # Errors
    /// `Corrupt` where the pieces are not the entry that was announced: [`unstage`](Self::unstage)
    /// them.
    pub fn complete(&self, fragment: &Fragment<'_>, chain: Chain) -> Result<Head, Refusal> {
        let meta = EntryMeta::decode(fragment.meta).map_err(|_| Refusal::Corrupt)?;
        if chain != fragment.chain_after {
            return Err(Refusal::Corrupt);
        }
        Ok(Head {
            next_seq: fragment.seq.next(),
            chain,
            base_complete: self.head.base_complete || meta.kind == EntryKind::Snapshot,
            ..self.head
        })
    }

    /// What is staged turned out to be of no use.
    pub fn unstage(&mut self) {
        self.staged = None;
    }

    fn check_epoch(&self, epoch: Epoch) -> Result<(), Refusal> {
        match epoch.cmp(&self.head.epoch) {
            core::cmp::Ordering::Equal if epoch.0 > 0 => Ok(()),
            core::cmp::Ordering::Greater => Err(Refusal::Gap(self.head)),
            _ => Err(Refusal::Fenced(self.head)),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::{collections::BTreeMap, vec, vec::Vec};

    use super::*;
    use crate::{
        OpenId,
        wire::{
            EntriesWriter, Entry, Message,
            entry::MAX_META_LEN,
            message::{Compression, ResyncReason},
        },
    };

    fn hello(instance: u8, nonce: u8) -> Hello<'static> {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            stream: StreamId::from_name("test"),
            name: "test",
            instance: Nonce([instance; 16]),
            nonce: Nonce([nonce; 16]),
            ticket: 0,
            epoch: Epoch(0),
            next_seq: SeqNo(0),
            chain: Chain([0; 32]),
            max_frame: 4096,
            token: b"",
        }
    }

    fn receiver() -> Receiver {
        Receiver::new(StreamId::from_name("test"))
    }

    /// Greets and sends a first frame.
    fn take(receiver: &mut Receiver, instance: u8, nonce: u8) -> Session {
        let session = receiver.handle_hello(&hello(instance, nonce)).unwrap();
        assert_eq!(receiver.claim(&session), Ok(true));
        session
    }

    fn wish(receiver: &Receiver, id: u8) -> OpenEpoch {
        let head = receiver.head();
        OpenEpoch {
            previous: head.epoch,
            previous_next_seq: head.next_seq,
            previous_chain: head.chain,
            floor: Epoch(0),
            open_id: OpenId([id; 16]),
            reason: ResyncReason::Requested,
        }
    }

    fn open(receiver: &mut Receiver, id: u8) -> Head {
        let head = receiver.handle_open(&wish(receiver, id)).unwrap().unwrap();
        receiver.opened(head);
        head
    }

    fn meta(seq: SeqNo) -> Vec<u8> {
        let meta = EntryMeta {
            seq,
            kind: EntryKind::Changeset,
            first_commit: seq.0,
            last_commit: seq.0,
            time_ms: 0,
            schema_version: 1,
            content_hash: None,
        };
        meta.encode(&mut [0; MAX_META_LEN]).unwrap().to_vec()
    }

    /// A frame that follows `before`, as a sender there would write it.
    fn frame(before: Head, payloads: &[&[u8]]) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let mut writer =
            EntriesWriter::new(&mut buffer, before.epoch, before.next_seq, before.chain).unwrap();
        for (seq, payload) in (before.next_seq.0..).zip(payloads) {
            writer.push(Entry { meta: &meta(SeqNo(seq)), payload }).unwrap();
        }
        let len = writer.finish(1).unwrap().frame_len;
        buffer.truncate(len);
        buffer
    }

    /// A receiver with what its driver stores.
    #[derive(Clone)]
    struct Stored {
        receiver: Receiver,
        chains: BTreeMap<SeqNo, Chain>,
    }

    impl Stored {
        fn new() -> Self {
            let mut receiver = receiver();
            open(&mut receiver, 1);
            Self { receiver, chains: BTreeMap::new() }
        }

        fn append(&mut self, frame: &[u8]) -> Result<Admission, Refusal> {
            let (_, Message::Entries(entries)) = Message::decode(frame, frame.len()).unwrap()
            else {
                panic!("not a frame of entries");
            };
            let known = |seq| self.chains.get(&seq).copied();
            let admission = self.receiver.admit(&entries, known)?;
            if let Admission::Append { head, .. } = admission {
                let mut chain = entries.chain_before;
                for entry in entries.entries() {
                    let (meta, entry) = entry.unwrap();
                    chain = chain.next(entry.meta, entry.payload);
                    self.chains.insert(meta.seq, chain);
                }
                self.receiver.appended(head);
            }
            Ok(admission)
        }

        fn head(&self) -> Head {
            self.receiver.head()
        }
    }

    #[test]
    fn a_late_hello_of_a_dead_process_does_not_take_the_stream() {
        let mut receiver = receiver();
        take(&mut receiver, 1, 1);
        let alive = take(&mut receiver, 2, 2);
        assert_eq!(receiver.handle_hello(&hello(1, 3)), Err(Refusal::Superseded));
        // One that never held it is welcomed, and takes nothing as long as it is silent.
        receiver.handle_hello(&hello(3, 4)).unwrap();
        assert_eq!(receiver.claim(&alive), Ok(false));
        assert_eq!(receiver.session(), alive);
    }

    #[test]
    fn a_process_that_was_greeted_before_the_holder_cannot_take_the_stream_after_it() {
        let mut receiver = receiver();
        let slow = receiver.handle_hello(&hello(1, 1)).unwrap();
        let alive = take(&mut receiver, 2, 2);
        assert_eq!(receiver.claim(&slow), Err(Refusal::Superseded));
        assert_eq!(receiver.session(), alive);
    }

    #[test]
    fn a_repeated_hello_of_a_dead_connection_does_not_take_the_stream() {
        let mut receiver = receiver();
        let dead = take(&mut receiver, 1, 1);
        let alive = take(&mut receiver, 1, 2);
        assert!(dead.began_with(&hello(1, 1)), "its driver answers with the old session");
        assert!(!dead.began_with(&hello(1, 2)) && !dead.began_with(&hello(2, 1)));
        assert_eq!(receiver.claim(&dead), Err(Refusal::Superseded));
        assert_eq!(receiver.claim(&alive), Ok(false));
    }

    #[test]
    fn a_ticket_from_after_the_backup_is_not_known_once_the_backup_is_restored() {
        let mut receiver = receiver();
        take(&mut receiver, 1, 1);
        let backup = receiver.clone();
        let session = take(&mut receiver, 1, 2);
        receiver = backup;
        assert_eq!(receiver.claim(&session), Err(Refusal::NoHello));
    }

    #[test]
    fn the_oldest_of_too_many_lost_senders_is_forgotten_first() {
        let mut receiver = receiver();
        let holders = REMEMBERED as u8 + 2;
        for instance in 1..=holders {
            take(&mut receiver, instance, instance);
        }
        assert!(receiver.handle_hello(&hello(1, 99)).is_ok());
        for instance in 2..holders {
            assert_eq!(receiver.handle_hello(&hello(instance, 99)), Err(Refusal::Superseded));
        }
    }

    #[test]
    fn a_repeated_frame_is_stored_once_and_an_overlapping_one_from_its_first_new_entry() {
        let mut stored = Stored::new();
        let start = stored.head();
        let one = frame(start, &[b"1", b"2"]);
        assert!(matches!(stored.append(&one), Ok(Admission::Append { skip: 0, .. })));
        let head = stored.head();
        assert_eq!(stored.append(&one), Ok(Admission::AlreadyHave));
        assert_eq!(stored.head(), head);
        let longer = frame(start, &[b"1", b"2", b"3"]);
        assert!(matches!(stored.append(&longer), Ok(Admission::Append { skip: 2, .. })));
        assert_eq!(stored.head().next_seq, SeqNo(4));
    }

    #[test]
    fn other_bytes_under_a_known_number_are_a_fork() {
        let mut stored = Stored::new();
        let start = stored.head();
        stored.append(&frame(start, &[b"1", b"2"])).unwrap();
        let head = stored.head();
        for other in [&[b"x".as_slice()][..], &[b"1", b"x"], &[b"x", b"2", b"3"]] {
            assert_eq!(stored.append(&frame(start, other)), Err(Refusal::Fork(head)));
        }
        assert_eq!(stored.head(), head);
    }

    #[test]
    fn a_sender_ahead_of_a_restored_backup_forks_from_who_wrote_there_meanwhile() {
        let mut stored = Stored::new();
        stored.append(&frame(stored.head(), &[b"1"])).unwrap();
        let backup = stored.clone();
        stored.append(&frame(stored.head(), &[b"2"])).unwrap();
        let ours = stored.head();

        stored = backup;
        let behind = stored.head();
        assert_eq!(stored.append(&frame(ours, &[b"3"])), Err(Refusal::Gap(behind)));
        stored.append(&frame(behind, &[b"other 2"])).unwrap();
        let theirs = stored.head();
        assert_eq!(stored.append(&frame(ours, &[b"3"])), Err(Refusal::Fork(theirs)));
    }

    #[test]
    fn an_epoch_number_granted_twice_does_not_match() {
        let mut stored = Stored::new();
        let backup = stored.clone();
        let first = open(&mut stored.receiver, 2);
        stored = backup;
        let second = open(&mut stored.receiver, 3);
        assert_eq!(first.epoch, second.epoch);
        assert_ne!(first.chain, second.chain);
        assert_eq!(stored.append(&frame(first, &[b"1"])), Err(Refusal::Fork(second)));
        assert!(stored.append(&frame(second, &[b"1"])).is_ok());
    }

    #[test]
    fn frames_of_another_epoch_are_refused() {
        let mut stored = Stored::new();
        let old = stored.head();
        let current = open(&mut stored.receiver, 2);
        assert_eq!(stored.append(&frame(old, &[b"1"])), Err(Refusal::Fenced(current)));
        let later = Head { epoch: Epoch(9), ..current };
        assert_eq!(stored.append(&frame(later, &[b"1"])), Err(Refusal::Gap(current)));
    }

    #[test]
    fn a_wish_is_granted_once_and_only_where_the_stream_stands() {
        let mut stored = Stored::new();
        let stale = wish(&stored.receiver, 2);
        stored.append(&frame(stored.head(), &[b"1"])).unwrap();
        let head = stored.head();
        assert_eq!(stored.receiver.handle_open(&stale), Err(Refusal::HeadMoved(head)));

        let wish = OpenEpoch { floor: Epoch(7), ..wish(&stored.receiver, 2) };
        let granted = stored.receiver.handle_open(&wish).unwrap().unwrap();
        assert_eq!(granted.epoch, Epoch(8), "over the sender's own last one");
        stored.receiver.opened(granted);
        assert_eq!(stored.receiver.handle_open(&wish), Ok(None));
    }

    #[test]
    fn staged_pieces_of_another_entry_are_not_built_upon() {
        let mut stored = Stored::new();
        let head = stored.head();
        let meta = meta(head.next_seq);
        let piece = |payload: &'static [u8], offset: usize| Fragment {
            epoch: head.epoch,
            seq: head.next_seq,
            chain_before: head.chain,
            chain_after: head.chain.next(&meta, payload),
            meta: &meta,
            total: payload.len() as u64,
            offset: offset as u64,
            compression: Compression::None,
            len: 4,
            data: &payload[offset..offset + 4],
        };
        let receiver = &mut stored.receiver;
        let Ok(FragmentAdmission::Stage(staged)) =
            receiver.admit_fragment(&piece(b"ours 1234567", 0))
        else {
            panic!("the first piece is to be staged");
        };
        receiver.staged_up_to(staged);
        let other = b"theirs 12345";
        assert_eq!(receiver.admit_fragment(&piece(other, 4)), Err(Refusal::Gap(head)));
        assert!(matches!(
            receiver.admit_fragment(&piece(other, 0)),
            Ok(FragmentAdmission::Stage(Staged { offset: 4, .. }))
        ));
        // The right ones go on, and pieces that do not give the announced entry are refused.
        let last = piece(b"ours 1234567", 8);
        receiver.staged_up_to(Staged { offset: 8, ..staged });
        assert_eq!(receiver.admit_fragment(&last), Ok(FragmentAdmission::Complete));
        let damaged = head.chain.next(&meta, b"ours 1234568");
        assert_eq!(receiver.complete(&last, damaged), Err(Refusal::Corrupt));
        let whole = receiver.complete(&last, last.chain_after).unwrap();
        assert_eq!(whole.next_seq, head.next_seq.next());
    }
}
