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
