//! The sequencer's side: a log whose last writes are lost in a crash unless they were synced.

use std::{collections::BTreeMap, rc::Rc};

use lz4_flex::block::decompress_into;
use sha2::{Digest, Sha256};
use synddb_core::{
    Epoch, SeqNo, SnapshotId, StreamId,
    receiver::{Admission, FragmentAdmission, Receiver, Session},
    wire::{
        EntryKind, EntryMeta, Message, SnapshotNote,
        message::{
            Ack, Compression, Fragment, Head, HelloAck, Limits, Nack, Refusal, SnapshotChunk,
            SnapshotProgress, TooLarge, feature,
        },
    },
};

use crate::{
    app::MAX_FRAME,
    disk::{Health, Synced},
    rows::{self, Rows, Write, numbers},
    sabotage::Sabotage,
};

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[derive(Debug, Clone)]
struct LogEntry {
    kind: EntryKind,
    payload: Vec<u8>,
    chain: synddb_core::Chain,
}

#[derive(Debug, Clone)]
struct Store {
    receiver: Receiver,
    log: BTreeMap<(Epoch, SeqNo), Rc<LogEntry>>,
    staged: Vec<u8>,
    snapshots: BTreeMap<SnapshotId, (Rc<Vec<u8>>, bool)>,
}

pub(crate) struct Sequencer {
    /// As a crash leaves it.
    disk: Store,
    /// As it is now; the same after every sync.
    memory: Store,
    /// As it was before a sync that failed and of which `disk` holds what it wrote.
    known: Option<Store>,
    /// Requests that the disk failed.
    pub(crate) failed_syncs: u64,
    session: Option<Session>,
    sabotage: Option<Sabotage>,
    pub(crate) health: Health,
    pub(crate) busy: bool,
    /// Whether it is of a version that can decompress.
    pub(crate) knows_lz4: bool,
    /// Compressed frames that came, and those of them that came where nobody knew what they were.
    pub(crate) compressed: u64,
    pub(crate) not_understood: u64,
}

const LIMITS: Limits = Limits {
    max_frame: MAX_FRAME as u32,
    max_entry: 1 << 20,
    max_snapshot: 1 << 20,
    credit: 3 * MAX_FRAME as u64,
};

impl Sequencer {
    pub(crate) fn new(sabotage: Option<Sabotage>) -> Self {
        let store = Store {
            receiver: Receiver::new(StreamId::from_name("simulated")),
            log: BTreeMap::new(),
            staged: Vec::new(),
            snapshots: BTreeMap::new(),
        };
        Self {
            disk: store.clone(),
            memory: store,
            known: None,
            failed_syncs: 0,
            session: None,
            sabotage,
            health: Health::default(),
            busy: false,
            knows_lz4: true,
            compressed: 0,
            not_understood: 0,
        }
    }

    /// Where the disk fails nothing of the request is stored, as far as this process knows.
    fn sync(&mut self) -> Result<(), Refusal> {
        if self.sabotage == Some(Sabotage::AckBeforeFsync) {
            return Ok(());
        }
        match self.health.sync() {
            Synced::Yes => {
                self.disk = self.memory.clone();
                Ok(())
            }
            failed => {
                self.failed_syncs += 1;
                let known = self.known.as_ref().unwrap_or(&self.disk).clone();
                if failed == Synced::Perhaps {
                    self.known = Some(known.clone());
                    self.disk = std::mem::replace(&mut self.memory, known);
                } else {
                    self.memory = known;
                }
                Err(Refusal::StorageFailed)
            }
        }
    }

    /// What a lazy disk does some time later by itself.
    pub(crate) fn late_sync(&mut self) {
        self.disk = self.memory.clone();
    }

    pub(crate) fn crash(&mut self) {
        self.health.mend();
        self.known = None;
        self.memory = self.disk.clone();
        self.session = None;
    }

    pub(crate) fn backup(&self) -> impl FnOnce(&mut Self) + use<> {
        let copy = self.disk.clone();
        move |sequencer| {
            sequencer.disk = copy.clone();
            sequencer.memory = copy;
            sequencer.session = None;
        }
    }

    /// What follows comes over the connection that `session` greeted.
    pub(crate) fn resume(&mut self, session: Option<Session>) {
        self.session = session;
    }

    pub(crate) fn session(&self) -> Option<Session> {
        self.session
    }

    /// Where the stream stands, and who holds it.
    pub(crate) fn stands(&self) -> (Head, Session) {
        (self.memory.receiver.head(), self.memory.receiver.session())
    }

    pub(crate) fn durable_head(&self) -> Head {
        self.disk.receiver.head()
    }

    /// The answer to a frame; `None` where the connection must end.
    pub(crate) fn handle(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (tag, message) = Message::decode(frame, 2 * MAX_FRAME).ok()?;
        let mut raw = [0; 2 * MAX_FRAME];
        let reply = match self.unpack(message, &mut raw).and_then(|plain| self.answer(&plain)) {
            Ok(reply) => reply,
            Err(refusal) => Reply::Nack(refusal),
        };
        let message = match reply {
            Reply::HelloAck(ack) => Message::HelloAck(*ack),
            Reply::Ack => Message::Ack(Ack {
                head: self.memory.receiver.head(),
                staged: self.memory.receiver.staged(),
                credit: LIMITS.credit,
                time_ms: 0,
                signature: b"",
            }),
            Reply::Snapshot(progress) => Message::SnapshotAck(progress),
            Reply::Nack(refusal) => Message::Nack(Nack { refusal, text: "" }),
        };
        let mut buffer = vec![0; 1024];
        let len = message.encode(tag, &mut buffer).expect("answers are small");
        buffer.truncate(len);
        Some(buffer)
    }

    fn unpack<'m>(
        &mut self,
        message: Message<'m>,
        raw: &'m mut [u8],
    ) -> Result<Message<'m>, Refusal> {
        let (compression, data) = match message {
            Message::Entries(frame) => (frame.compression, frame.region()),
            Message::Fragment(fragment) => (fragment.compression, fragment.data),
            Message::SnapshotChunk(chunk) => (chunk.compression, chunk.data),
            _ => return Ok(message),
        };
        if compression == Compression::None {
            return Ok(message);
        }
        self.compressed += 1;
        if !self.knows_lz4 {
            self.not_understood += 1;
            return Err(Refusal::Unsupported { version_min: 1, version_max: 1 });
        }
        let len = decompress_into(data, raw).expect("checksums keep damaged blocks away");
        let (compression, data) = (Compression::None, &raw[..len]);
        Ok(match message {
            Message::Entries(frame) => {
                Message::Entries(frame.with_raw_region(data).expect("the announced length"))
            }
            Message::Fragment(fragment) => {
                assert_eq!(fragment.len as usize, len, "the announced length");
                Message::Fragment(Fragment { compression, data, ..fragment })
            }
            Message::SnapshotChunk(chunk) => {
                assert_eq!(chunk.len as usize, len, "the announced length");
                Message::SnapshotChunk(SnapshotChunk { compression, data, ..chunk })
            }
            other => other,
        })
    }

    fn answer(&mut self, message: &Message<'_>) -> Result<Reply, Refusal> {
        if frame_len_over(message) {
            return Err(Refusal::TooLarge { what: TooLarge::Frame, limit: MAX_FRAME as u64 });
        }
        if let Message::Hello(hello) = message {
            let session = match self.session {
                Some(session) if session.began_with(hello) => session,
                _ => {
                    let session = self.memory.receiver.handle_hello(hello)?;
                    self.sync()?;
                    session
                }
            };
            self.session = Some(session);
            let head = self.memory.receiver.head();
            let chain_at_next = (hello.epoch == head.epoch)
                .then(|| self.chain_at(hello.next_seq.previous()))
                .flatten();
            return Ok(Reply::HelloAck(Box::new(HelloAck {
                version: 1,
                features: if self.knows_lz4 { hello.features & feature::LZ4 } else { 0 },
                nonce: hello.nonce,
                ticket: session.ticket,
                head,
                genesis: self.memory.receiver.genesis(),
                chain_at_next,
                staged: self.memory.receiver.staged(),
                snapshot: None,
                limits: LIMITS,
                time_ms: 0,
            })));
        }
        let session = self.session.ok_or(Refusal::NoHello)?;
        if self.memory.receiver.claim(&session)? {
            self.sync()?;
        }
        if self.busy {
            return Err(Refusal::Busy { retry_after_ms: 50 });
        }
        match message {
            Message::OpenEpoch(open) => {
                if let Some(head) = self.memory.receiver.handle_open(open)? {
                    self.memory.receiver.opened(head);
                    self.memory.staged.clear();
                    self.sync()?;
                }
                Ok(Reply::Ack)
            }
            Message::Entries(frame) => self.entries(*frame),
            Message::Fragment(fragment) => {
                match self.memory.receiver.admit_fragment(fragment)? {
                    FragmentAdmission::AlreadyHave => return Ok(Reply::Ack),
                    FragmentAdmission::Stage(staged) => {
                        self.memory.staged.truncate(fragment.offset as usize);
                        self.memory.staged.extend_from_slice(fragment.data);
                        self.memory.receiver.staged_up_to(staged);
                    }
                    FragmentAdmission::Complete => {
                        self.memory.staged.truncate(fragment.offset as usize);
                        self.memory.staged.extend_from_slice(fragment.data);
                        let payload = std::mem::take(&mut self.memory.staged);
                        let chain = self.memory.receiver.head().chain.next(fragment.meta, &payload);
                        let head = self.memory.receiver.complete(fragment, chain)?;
                        let meta =
                            EntryMeta::decode(fragment.meta).map_err(|_| Refusal::Corrupt)?;
                        self.check_note(&meta, &payload)?;
                        let kind = meta.kind;
                        self.memory.log.insert(
                            (fragment.epoch, fragment.seq),
                            Rc::new(LogEntry { kind, payload, chain }),
                        );
                        self.memory.receiver.appended(head);
                    }
                }
                self.sync()?;
                Ok(Reply::Ack)
            }
            Message::SnapshotBegin(begin) => {
                let (bytes, complete) =
                    self.memory.snapshots.entry(begin.id).or_insert_with(|| (Rc::default(), false));
                Ok(Reply::Snapshot(SnapshotProgress {
                    id: begin.id,
                    offset: bytes.len() as u64,
                    complete: *complete,
                }))
            }
            Message::SnapshotChunk(chunk) => {
                let (bytes, complete) =
                    self.memory.snapshots.get_mut(&chunk.id).ok_or(Refusal::SnapshotInvalid)?;
                if chunk.offset > bytes.len() as u64 {
                    return Err(Refusal::SnapshotGap(SnapshotProgress {
                        id: chunk.id,
                        offset: bytes.len() as u64,
                        complete: false,
                    }));
                }
                let known = bytes.len() - chunk.offset as usize;
                if !*complete && known < chunk.data.len() {
                    Rc::make_mut(bytes).extend_from_slice(&chunk.data[known..]);
                }
                let progress = SnapshotProgress {
                    id: chunk.id,
                    offset: bytes.len() as u64,
                    complete: *complete,
                };
                self.sync()?;
                Ok(Reply::Snapshot(progress))
            }
            Message::SnapshotEnd(end) => {
                let (bytes, complete) =
                    self.memory.snapshots.get_mut(&end.id).ok_or(Refusal::SnapshotInvalid)?;
                if (bytes.len() as u64) < end.len {
                    return Err(Refusal::SnapshotGap(SnapshotProgress {
                        id: end.id,
                        offset: bytes.len() as u64,
                        complete: false,
                    }));
                }
                if sha256(bytes) != end.sha256 {
                    Rc::make_mut(bytes).clear();
                    return Err(Refusal::SnapshotInvalid);
                }
                *complete = true;
                let progress = SnapshotProgress { id: end.id, offset: end.len, complete: true };
                self.sync()?;
                Ok(Reply::Snapshot(progress))
            }
            Message::Ping => Ok(Reply::Ack),
            _ => Err(Refusal::Unsupported { version_min: 1, version_max: 1 }),
        }
    }

    fn entries(&mut self, frame: synddb_core::wire::EntriesFrame<'_>) -> Result<Reply, Refusal> {
        let head = self.memory.receiver.head();
        if self.sabotage == Some(Sabotage::IgnoredEpoch) && frame.epoch != head.epoch {
            return self.append_from_elsewhere(frame);
        }
        let admission = self.memory.receiver.admit(&frame, |seq| self.chain_at(seq))?;
        let (mut skip, mut head_after) = match admission {
            Admission::AlreadyHave if self.sabotage != Some(Sabotage::NoDedupe) => {
                return Ok(Reply::Ack);
            }
            Admission::AlreadyHave => (0, head),
            Admission::Append { skip, head } => (skip, head),
        };
        let mut shift = 0;
        if self.sabotage == Some(Sabotage::NoDedupe) {
            shift = u64::from(skip);
            if admission == Admission::AlreadyHave {
                shift = head.next_seq.0 - frame.first_seq.0;
            }
            skip = 0;
        }
        for entry in frame.entries() {
            let (meta, entry) = entry.map_err(|_| Refusal::Corrupt)?;
            self.check_note(&meta, entry.payload)?;
        }
        let mut chain = frame.chain_before;
        for (at, entry) in (0..).zip(frame.entries()) {
            let (meta, entry) = entry.map_err(|_| Refusal::Corrupt)?;
            chain = chain.next(entry.meta, entry.payload);
            if at >= skip {
                let place = (frame.epoch, SeqNo(meta.seq.0 + shift));
                let stored = LogEntry { kind: meta.kind, payload: entry.payload.to_vec(), chain };
                self.memory.log.insert(place, Rc::new(stored));
                head_after.next_seq = head_after.next_seq.max(place.1.next());
            }
        }
        self.memory.receiver.appended(head_after);
        self.memory.staged.clear();
        self.sync()?;
        Ok(Reply::Ack)
    }

    /// A note must not promise a snapshot that is not there.
    fn check_note(&self, meta: &EntryMeta, payload: &[u8]) -> Result<(), Refusal> {
        let invalid = Refusal::InvalidEntry { seq: meta.seq };
        if meta.kind == EntryKind::Snapshot {
            let note = SnapshotNote::decode(payload).map_err(|_| invalid)?;
            if !self.memory.snapshots.get(&note.id).is_some_and(|(_, complete)| *complete) {
                return Err(invalid);
            }
        }
        Ok(())
    }

    /// The sabotage: entries of another epoch are taken as if they were of this one.
    fn append_from_elsewhere(
        &mut self,
        frame: synddb_core::wire::EntriesFrame<'_>,
    ) -> Result<Reply, Refusal> {
        let mut head = self.memory.receiver.head();
        for entry in frame.entries() {
            let (meta, entry) = entry.map_err(|_| Refusal::Corrupt)?;
            head.chain = head.chain.next(entry.meta, entry.payload);
            let stored =
                LogEntry { kind: meta.kind, payload: entry.payload.to_vec(), chain: head.chain };
            self.memory.log.insert((head.epoch, head.next_seq), Rc::new(stored));
            head.next_seq = head.next_seq.next();
        }
        self.memory.receiver.appended(head);
        self.sync()?;
        Ok(Reply::Ack)
    }

    fn chain_at(&self, seq: SeqNo) -> Option<synddb_core::Chain> {
        self.memory.log.get(&(self.memory.receiver.head().epoch, seq)).map(|entry| entry.chain)
    }

    /// What the durable log of `epoch` restores to: the snapshot's commit and lineage, and the
    /// commits after it in the order of the log; `None` while no snapshot is complete.
    pub(crate) fn restore(&self, epoch: Epoch) -> Result<Option<Restored>, String> {
        let mut restored = None;
        let mut changes = Vec::new();
        for ((_, seq), entry) in self.disk.log.range((epoch, SeqNo(0))..=(epoch, SeqNo(u64::MAX))) {
            match entry.kind {
                EntryKind::Changeset => {
                    let (commit, lineage) = numbers(&entry.payload);
                    let writes = rows::writes(&entry.payload);
                    changes.push((*seq, Change { commit, lineage, writes }));
                }
                EntryKind::Snapshot => {
                    let note =
                        SnapshotNote::decode(&entry.payload).map_err(|error| error.to_string())?;
                    let (bytes, complete) =
                        self.disk.snapshots.get(&note.id).ok_or_else(|| {
                            format!("entry {seq} names a snapshot that is not there")
                        })?;
                    if !complete || sha256(bytes) != note.sha256 {
                        return Err(format!("entry {seq} names a snapshot that is not whole"));
                    }
                    restored = Some((numbers(bytes), rows::rows(bytes)));
                }
                other => return Err(format!("entry {seq} is a {other:?}")),
            }
        }
        for pair in changes.windows(2) {
            let [(before, first), (seq, second)] = pair else { continue };
            if second.commit != first.commit + 1 {
                return Err(format!(
                    "epoch {epoch}: entry {seq} is commit {}, entry {before} commit {}",
                    second.commit, first.commit
                ));
            }
        }
        Ok(restored.map(|(base, rows)| Restored {
            base,
            rows,
            changes: changes.into_iter().map(|(_, change)| change).collect(),
        }))
    }

    /// The last commit that the durable log of `epoch` restores to.
    pub(crate) fn last_commit(&self, epoch: Epoch) -> Option<u64> {
        let log = self.disk.log.range((epoch, SeqNo(0))..=(epoch, SeqNo(u64::MAX)));
        // Commits may come before the note that their base is stored.
        let (mut last, mut base) = (None, None);
        for (_, entry) in log {
            match entry.kind {
                EntryKind::Changeset => last = Some(numbers(&entry.payload).0),
                _ => {
                    let note = SnapshotNote::decode(&entry.payload).ok()?;
                    base = self.disk.snapshots.get(&note.id).map(|(bytes, _)| numbers(bytes).0);
                }
            }
        }
        base.map(|base| last.unwrap_or(base))
    }

    pub(crate) fn epochs(&self) -> Vec<Epoch> {
        let mut epochs: Vec<_> = self.disk.log.keys().map(|(epoch, _)| *epoch).collect();
        epochs.dedup();
        epochs
    }
}

/// A snapshot, and what follows it.
pub(crate) struct Restored {
    /// Commit and lineage of the snapshot.
    pub(crate) base: (u64, u64),
    pub(crate) rows: Rows,
    pub(crate) changes: Vec<Change>,
}

pub(crate) struct Change {
    pub(crate) commit: u64,
    pub(crate) lineage: u64,
    pub(crate) writes: Vec<Write>,
}

enum Reply {
    HelloAck(Box<HelloAck>),
    Ack,
    Snapshot(SnapshotProgress),
    Nack(Refusal),
}

fn frame_len_over(message: &Message<'_>) -> bool {
    match message {
        Message::Entries(frame) => frame.region().len() > MAX_FRAME,
        Message::Fragment(fragment) => fragment.data.len() > MAX_FRAME,
        Message::SnapshotChunk(chunk) => chunk.data.len() > MAX_FRAME,
        _ => false,
    }
}
