//! The application's side: transactions with rollbacks, a bounded queue to the outbox, an outbox whose
//! disk may fail, a `Sender` that survives nothing.

use std::{borrow::Cow, collections::BTreeMap, rc::Rc, time::Duration};

use lz4_flex::block::compress;
use synddb_core::{
    Chain, Instant, Nonce, OpenId, Rng, SeqNo, SnapshotId, StreamId,
    sender::{Action, Event, OnDivergence, Position, Sender, SenderConfig, SnapshotOffer},
    transport::TransportErrorKind,
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Message, SnapshotNote,
        entry::MAX_META_LEN,
        message::{
            Compression, Fragment, Head, Hello, ResyncReason, SnapshotBegin, SnapshotChunk,
            SnapshotEnd,
        },
    },
};

use crate::{
    disk::{Health, Synced},
    rows::{Rows, Write, apply, image, payload, writes},
    sabotage::Sabotage,
};

/// Longest frame in bytes: small, so that fragments are common.
pub(crate) const MAX_FRAME: usize = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) commit: u64,
    pub(crate) meta: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// One epoch in the outbox: granted, or waiting to be.
#[derive(Debug, Clone, Default)]
struct Generation {
    position: Position,
    last_seq: SeqNo,
    entries: BTreeMap<SeqNo, Rc<Stored>>,
    open_id: OpenId,
    reason: Option<ResyncReason>,
    /// The commit that its snapshot holds the database as of.
    from_commit: u64,
    base_noted: bool,
    /// The snapshot that it begins from; its file goes with the process.
    base: Option<Rc<Snapshot>>,
}

#[derive(Debug)]
struct Snapshot {
    id: SnapshotId,
    bytes: Vec<u8>,
}

/// A commit that is about to happen, or has happened, and is not in the outbox.
#[derive(Debug, Clone)]
struct Captured {
    commit: u64,
    /// The database before it and after it.
    before: u64,
    after: u64,
    payload: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Outbox {
    current: Generation,
    next: Option<Generation>,
    /// Wishes that were replaced or given up.
    asked: Vec<OpenId>,
    last_commit: u64,
    acked_commit: u64,
    /// The database after `last_commit`, where that proves something.
    place: Option<u64>,
    /// What is kept before it happens, until it is appended.
    prepared: Vec<Captured>,
    collapsed: bool,
}

/// The application's database: its rows, a name of its state, and the states before it that a power
/// cut may bring back.
#[derive(Debug, Clone, Default)]
struct Database {
    place: u64,
    rows: Rows,
    before: Vec<(u64, Rows)>,
}

/// What survives a kill of the application.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    database: Database,
    outbox: Outbox,
}

/// How an application ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// What was written is there.
    Kill,
    /// What was synced is there.
    PowerCut,
}

pub(crate) struct App {
    pub(crate) lineage: u64,
    pub(crate) disk: Disk,
    /// The outbox as a power cut leaves it.
    durable: Outbox,
    pub(crate) health: Health,
    /// Rows after each commit, by its number.
    pub(crate) history: Vec<Rows>,
    /// Where this application's history left the original's: lineage and commit.
    pub(crate) forked: Option<(u64, u64)>,
    /// Number of the last commit or loss.
    pub(crate) commits: u64,
    /// Commits that wait for the writer.
    queue: Vec<Captured>,
    /// Why a snapshot is needed.
    behind: Option<ResyncReason>,
    before_commit: bool,
    /// The disk is at work until then.
    writing_until: Instant,
    /// The outbox failed: the link tries again then.
    broken_until: Option<Instant>,
    sender: Sender<4>,
    stream: StreamId,
    rng: Rng,
    pub(crate) base_complete: bool,
    pub(crate) stopped: bool,
    sabotage: Option<Sabotage>,
    pub(crate) counts: Counts,
}

/// What happened, beside what the world knows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) rollbacks: u64,
    pub(crate) overflows: u64,
    pub(crate) collapses: u64,
    pub(crate) failed_writes: u64,
    pub(crate) unclean: u64,
    pub(crate) clean: u64,
    pub(crate) settled: u64,
}

/// Commits in memory, at most.
const MAX_QUEUE: usize = 16;
/// Entries in the outbox, at most but for those of one write.
const MAX_OUTBOX: usize = 80;

/// What the application asks of the world.
pub(crate) enum Ask {
    Connect,
    Close,
    Send(Vec<u8>),
    /// The sequencer says that it stores this, and `push()` would be answered for this commit.
    Acked(Head, Option<u64>),
}

impl App {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let stream = StreamId::from_name("simulated");
        let sender = Sender::new(config(stream, &mut rng), Position::default(), rng.next_u64());
        let mut app = Self {
            lineage: 1,
            disk: Disk::default(),
            durable: Outbox::default(),
            health: Health::default(),
            history: vec![Rows::default()],
            forked: None,
            commits: 0,
            queue: Vec::new(),
            behind: None,
            before_commit: rng.up_to(2) == 0,
            writing_until: Instant::default(),
            broken_until: None,
            sender,
            stream,
            rng,
            base_complete: false,
            stopped: false,
            sabotage,
            counts: Counts::default(),
        };
        app.lose(ResyncReason::FirstAttach);
        app
    }

    /// A copy of its files, started.
    pub(crate) fn copy(&self, now: Instant, lineage: u64, seed: u64) -> Self {
        let mut copy = Self::new(seed, self.sabotage);
        copy.lineage = lineage;
        copy.disk = self.disk.clone();
        copy.durable = self.disk.outbox.clone();
        copy.history = self.history.clone();
        copy.behind = None;
        copy.restart(now, Crash::Kill);
        copy.forked = Some((self.lineage, copy.disk.outbox.last_commit));
        copy
    }

    /// Dies and starts again.
    pub(crate) fn restart(&mut self, now: Instant, crash: Crash) {
        self.queue.clear();
        self.behind = None;
        self.broken_until = None;
        self.writing_until = now;
        self.stopped = false;
        self.health.mend();
        if crash == Crash::PowerCut {
            self.disk.outbox = self.durable.clone();
            for _ in 0..self.rng.up_to(2) {
                if let Some((place, rows)) = self.disk.database.before.pop() {
                    (self.disk.database.place, self.disk.database.rows) = (place, rows);
                }
            }
        }
        self.settle();
        self.start_over(now);
    }

    /// Whether the stream goes on where it was.
    fn settle(&mut self) {
        let Disk { database, outbox } = &mut self.disk;
        outbox.current.base = None;
        let has_base = outbox.next.is_none() && outbox.current.base_noted && !outbox.collapsed;
        // Of the commits that were kept before they happened, those that lead from the outbox's place
        // to where the database is.
        let mut happened = std::mem::take(&mut outbox.prepared);
        happened.retain(|kept| kept.commit > outbox.last_commit);
        let seamless = happened.first().is_some_and(|kept| Some(kept.before) == outbox.place)
            && happened.windows(2).all(|pair| pair[0].after == pair[1].before);
        let until = happened.iter().rposition(|kept| kept.after == database.place);
        happened.truncate(until.filter(|_| seamless).map_or(0, |last| last + 1));
        let goes_on = has_base && (outbox.place == Some(database.place) || !happened.is_empty());
        self.commits = outbox.last_commit;
        if goes_on {
            self.counts.clean += 1;
            self.history.truncate(self.commits as usize + 1);
            if let Some(last) = happened.last() {
                self.counts.settled += 1;
                self.commits = last.commit;
                for kept in &happened {
                    let mut rows = self.history.last().copied().unwrap_or_default();
                    apply(&mut rows, &writes(&kept.payload));
                    self.history.push(rows);
                }
                assert_eq!(self.history.last(), Some(&self.disk.database.rows));
                append(&mut self.disk.outbox, &happened);
            }
        } else {
            self.counts.unclean += 1;
            outbox.place = None;
            if let Some(next) = outbox.next.take() {
                outbox.asked.push(next.open_id);
            }
            self.history.truncate(self.commits as usize + 1);
            self.lose(match outbox_is_new(&self.disk.outbox) {
                true => ResyncReason::FirstAttach,
                false => ResyncReason::UncleanRestart,
            });
        }
        self.durable = self.disk.outbox.clone();
    }

    /// As after a crash: what the outbox holds is what counts.
    fn start_over(&mut self, now: Instant) {
        let position = self.disk.outbox.current.position;
        self.sender =
            Sender::new(config(self.stream, &mut self.rng), position, self.rng.next_u64());
        self.base_complete = false;
        for open_id in &self.disk.outbox.asked {
            self.sender.handle_wish_withdrawn(*open_id);
        }
        self.tell_sender(now);
    }

    fn tell_sender(&mut self, now: Instant) {
        let Outbox { current, next, collapsed, .. } = &self.disk.outbox;
        let bytes = current.entries.values().map(|entry| entry.payload.len() as u64).sum();
        self.sender.handle_queued(now, current.last_seq, bytes);
        if let Some(next) = next {
            self.sender
                .handle_next_epoch(next.open_id, next.reason.expect("every wish has a reason"));
        }
        if *collapsed {
            self.sender.handle_abandoned();
        }
        self.offer_base();
    }

    /// Changes the outbox durably; where its disk fails nothing is changed.
    fn write_durably(&mut self, change: impl FnOnce(&mut Outbox)) -> bool {
        let before = self.disk.outbox.clone();
        change(&mut self.disk.outbox);
        match self.health.sync() {
            Synced::Yes => {
                self.durable = self.disk.outbox.clone();
                true
            }
            failed => {
                self.counts.failed_writes += 1;
                let written = std::mem::replace(&mut self.disk.outbox, before);
                if failed == Synced::Perhaps {
                    self.durable = written;
                }
                false
            }
        }
    }

    /// What was captured since some commit is of no use. A loss counts as a commit.
    pub(crate) fn lose(&mut self, reason: ResyncReason) {
        if self.sabotage == Some(Sabotage::ForgottenResync) && reason != ResyncReason::FirstAttach {
            return;
        }
        self.commits += 1;
        self.history.push(self.disk.database.rows);
        self.behind.get_or_insert(reason);
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// A change that no changeset carries.
    pub(crate) fn change_schema(&mut self) {
        let row = self.rng.up_to(7) as u8;
        let content = self.rng.next_u64() as u32;
        let mut rows = self.disk.database.rows;
        apply(&mut rows, &[(row, content)]);
        self.change_database(rows);
        self.lose(ResyncReason::SchemaChanged);
    }

    fn change_database(&mut self, rows: Rows) {
        let place = self.rng.next_u64();
        self.change_database_to(place, rows);
    }

    fn change_database_to(&mut self, place: u64, rows: Rows) {
        let database = &mut self.disk.database;
        database.before.push((database.place, database.rows));
        if database.before.len() > 3 {
            database.before.remove(0);
        }
        (database.place, database.rows) = (place, rows);
    }

    /// A snapshot of now; what follows is the next epoch. False where the outbox does not take it.
    pub(crate) fn take_base(&mut self, now: Instant) -> bool {
        let Some(reason) = self.behind else { return false };
        self.write(now);
        if !self.queue.is_empty() {
            return false;
        }
        let padding = self.rng.up_to(3 * MAX_FRAME as u64) as usize;
        let bytes = image(self.commits, self.lineage, &self.disk.database.rows, padding);
        let base = Rc::new(Snapshot { id: SnapshotId(self.random()), bytes });
        let open_id = OpenId(self.random());
        let (commits, place) = (self.commits, self.disk.database.place);
        let begun = self.write_durably(|outbox| {
            if let Some(replaced) = outbox.next.take() {
                outbox.asked.push(replaced.open_id);
            }
            outbox.next = Some(Generation {
                open_id,
                reason: Some(reason),
                from_commit: commits,
                base: Some(base),
                ..Generation::default()
            });
            outbox.last_commit = commits;
            outbox.place = Some(place);
            outbox.prepared.clear();
        });
        if begun {
            self.behind = None;
            self.sender.handle_next_epoch(open_id, reason);
        }
        begun
    }

    /// One transaction. Where it `dies` on the way, it does so between keeping the commit and the
    /// commit itself, and false is returned.
    pub(crate) fn commit(&mut self, dies: bool) -> bool {
        let mut rows = self.disk.database.rows;
        let mut journal = Vec::new();
        self.write_rows(&mut rows, &mut journal);
        if self.rng.up_to(3) == 0 {
            self.counts.rollbacks += 1;
            let (savepoint, mark) = (rows, journal.len());
            self.write_rows(&mut rows, &mut journal);
            rows = savepoint;
            if self.sabotage != Some(Sabotage::SkippedRollback) {
                journal.truncate(mark);
            }
        }
        let big = self.rng.up_to(20) == 0;
        let padding = self.rng.up_to(if big { 4 * MAX_FRAME as u64 } else { 200 }) as usize;
        let (before, after) = (self.disk.database.place, self.rng.next_u64());
        let commit = self.commits + 1;
        let payload = payload(commit, self.lineage, &journal, padding);
        let captured = Captured { commit, before, after, payload };
        if self.before_commit && self.behind.is_none() {
            let kept = captured.clone();
            // Where the outbox does not take it, it happens all the same.
            self.write_durably(|outbox| {
                // What was kept under its number did not happen.
                outbox.prepared.retain(|other| other.commit < kept.commit);
                outbox.prepared.push(kept);
            });
        }
        if dies {
            return false;
        }
        self.change_database_to(after, rows);
        self.commits = commit;
        self.history.push(rows);
        if self.behind.is_some() {
            return true;
        }
        if self.queue.len() == MAX_QUEUE {
            self.counts.overflows += 1;
            if self.sabotage != Some(Sabotage::DropOnFull) {
                self.queue.clear();
                self.lose(ResyncReason::QueueFull);
            }
            return true;
        }
        self.queue.push(captured);
        true
    }

    fn write_rows(&mut self, rows: &mut Rows, journal: &mut Vec<Write>) {
        for _ in 0..=self.rng.up_to(2) {
            let write = (self.rng.up_to(7) as u8, self.rng.next_u64() as u32);
            apply(rows, &[write]);
            journal.push(write);
        }
    }

    /// The writer's turn: what waits goes into the outbox, unless the disk is at work still.
    pub(crate) fn write(&mut self, now: Instant) {
        let forget = self.behind.is_some() && self.disk.outbox.place.is_some();
        if now < self.writing_until || (self.queue.is_empty() && !forget) {
            return;
        }
        let takes = self.health.takes(&mut self.rng);
        self.writing_until = now + Duration::from_micros(takes);
        if self.disk.outbox.collapsed && self.disk.outbox.next.is_none() {
            // Committed before the loss was known: the snapshot holds them too.
            self.queue.clear();
        }
        let queue = std::mem::take(&mut self.queue);
        let behind = self.behind.is_some();
        let written = self.write_durably(|outbox| {
            append(outbox, &queue);
            if behind {
                outbox.place = None;
            }
        });
        if !written {
            self.queue = queue;
            return;
        }
        let Outbox { current, next, .. } = &self.disk.outbox;
        if next.is_none() {
            let bytes = queue.iter().map(|captured| captured.payload.len() as u64).sum();
            self.sender.handle_queued(now, current.last_seq, bytes);
        }
        if self.queued() > MAX_OUTBOX {
            self.collapse();
        }
    }

    fn queued(&self) -> usize {
        let Outbox { current, next, .. } = &self.disk.outbox;
        current.entries.len() + next.as_ref().map_or(0, |next| next.entries.len())
    }

    /// The outbox is over its limit: a snapshot stands for what it holds.
    fn collapse(&mut self) {
        let given_up = self.disk.outbox.next.as_ref().map(|next| next.open_id);
        self.lose(ResyncReason::QueueFull);
        let collapsed = self.write_durably(|outbox| {
            outbox.asked.extend(given_up);
            outbox.next = None;
            outbox.current.entries.clear();
            outbox.collapsed = true;
            outbox.place = None;
        });
        if collapsed {
            self.counts.collapses += 1;
            if let Some(open_id) = given_up {
                self.sender.handle_wish_withdrawn(open_id);
            }
            self.sender.handle_abandoned();
        }
    }

    /// What it holds is within its limits.
    pub(crate) fn check_limits(&self) -> Result<(), String> {
        // A write may go past the limit, and a disk that fails then keeps it from collapsing.
        let slack = MAX_QUEUE + 2;
        if self.queue.len() > MAX_QUEUE
            || (self.queued() > MAX_OUTBOX + slack && self.health.writes())
        {
            return Err(format!(
                "{} commits in memory, {} entries in the outbox",
                self.queue.len(),
                self.queued()
            ));
        }
        Ok(())
    }

    fn offer_base(&mut self) {
        let current = &self.disk.outbox.current;
        if let Some(base) = &current.base
            && !current.base_noted
        {
            self.sender.handle_snapshot(SnapshotOffer {
                id: base.id,
                len: base.bytes.len() as u64,
                sha256: crate::sequencer::sha256(&base.bytes),
            });
        }
    }

    /// As far as it knows, everything that was committed is stored.
    pub(crate) fn has_sent_everything(&self) -> bool {
        self.base_complete
            && self.disk.outbox.next.is_none()
            && self.behind.is_none()
            && self.queue.is_empty()
            && self.sender.position().next_seq > self.disk.outbox.current.last_seq
    }

    pub(crate) fn connected(&mut self, now: Instant) {
        let nonce = Nonce(self.random());
        let window = 1 + self.rng.up_to(3) as usize;
        self.sender.handle_connected(now, nonce, window);
    }

    pub(crate) fn disconnected(&mut self, now: Instant, kind: TransportErrorKind) {
        self.sender.handle_disconnected(now, kind, None);
    }

    pub(crate) fn receive(&mut self, now: Instant, frame: &[u8]) {
        // An undecodable frame is the sender's to deal with.
        let _ = self.sender.handle_frame(now, frame);
    }

    pub(crate) fn flush(&mut self, now: Instant) {
        self.sender.handle_flush(now);
    }

    pub(crate) fn timeout(&self) -> Option<Instant> {
        let writer = (!self.queue.is_empty()).then_some(self.writing_until);
        let link = self.broken_until.or_else(|| self.sender.poll_timeout());
        [writer, link].into_iter().flatten().min()
    }

    /// Does what the sender wants done; what concerns the world is returned.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Ask> {
        if self.broken_until.is_some_and(|until| until > now) {
            return None;
        }
        if self.broken_until.take().is_some() {
            self.start_over(now);
        }
        loop {
            if let Some(event) = self.sender.poll_event() {
                match self.on_event(now, event) {
                    Ok(Some(ask)) => return Some(ask),
                    Ok(None) => {}
                    Err(OutboxFailed) => {
                        self.broken_until = Some(now + Duration::from_secs(1));
                        return Some(Ask::Close);
                    }
                }
                continue;
            }
            let action = self.sender.poll_action(now)?;
            if let Some(ask) = self.on_action(now, action) {
                return Some(ask);
            }
        }
    }

    fn on_event(&mut self, now: Instant, event: Event) -> Result<Option<Ask>, OutboxFailed> {
        match event {
            Event::Acked { head, .. } => {
                // Not synced.
                if !self.health.writes() {
                    return Err(OutboxFailed);
                }
                let outbox = &mut self.disk.outbox;
                let current = &mut outbox.current;
                current.position =
                    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
                let kept = current.entries.split_off(&head.next_seq);
                let trimmed = std::mem::replace(&mut current.entries, kept);
                if let Some((_, last)) = trimmed.last_key_value() {
                    outbox.acked_commit = outbox.acked_commit.max(last.commit);
                }
                self.base_complete = head.base_complete;
                let receipt =
                    head.base_complete.then(|| outbox.acked_commit.max(outbox.current.from_commit));
                return Ok(Some(Ask::Acked(head, receipt)));
            }
            Event::EpochOpened { head } => {
                let position =
                    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
                let opened = self.write_durably(|outbox| {
                    let wished = outbox.next.take_if(|next| next.open_id == head.open_id);
                    outbox.collapsed = wished.is_none();
                    if wished.is_some() {
                        outbox.asked.clear();
                    }
                    outbox.current = wished.unwrap_or_default();
                    outbox.current.position = position;
                });
                if !opened {
                    return Err(OutboxFailed);
                }
                self.base_complete = false;
                self.tell_sender(now);
            }
            Event::ResyncNeeded(reason)
                if self.disk.outbox.next.is_none() && self.behind.is_none() =>
            {
                self.lose(reason);
            }
            Event::SnapshotStored(id) => {
                let outbox = &self.disk.outbox;
                if outbox.next.is_none()
                    && !outbox.collapsed
                    && let Some(base) = outbox.current.base.clone()
                    && base.id == id
                    && !outbox.current.base_noted
                {
                    let note = SnapshotNote {
                        id,
                        as_of: SeqNo(0),
                        len: base.bytes.len() as u64,
                        sha256: crate::sequencer::sha256(&base.bytes),
                        content_hash: None,
                    };
                    let mut buffer = [0; SnapshotNote::MAX_LEN];
                    let note = note.encode(&mut buffer).expect("notes fit").to_vec();
                    let commit = outbox.last_commit;
                    let noted = self.write_durably(|outbox| {
                        outbox.current.base_noted = true;
                        insert(&mut outbox.current, EntryKind::Snapshot, commit, note);
                    });
                    if !noted {
                        return Err(OutboxFailed);
                    }
                    let last_seq = self.disk.outbox.current.last_seq;
                    self.sender.handle_queued(now, last_seq, SnapshotNote::MAX_LEN as u64);
                }
            }
            Event::Stopped(_) => self.stopped = true,
            _ => {}
        }
        Ok(None)
    }

    fn on_action(&mut self, now: Instant, action: Action) -> Option<Ask> {
        let mut buffer = vec![0; 2 * MAX_FRAME + 64 * 1024];
        let current = &mut self.disk.outbox.current;
        let len = match action {
            Action::Connect => return Some(Ask::Connect),
            Action::Close => return Some(Ask::Close),
            Action::SendHello { tag, features, nonce, position, .. } => {
                let hello = Hello {
                    version_min: 1,
                    version_max: 1,
                    features,
                    stream: self.stream,
                    name: "simulated",
                    instance: self.sender.instance(),
                    nonce,
                    ticket: 0,
                    epoch: position.epoch,
                    next_seq: position.next_seq,
                    chain: position.chain,
                    max_frame: 16 * 1024,
                    token: b"",
                };
                Message::Hello(hello).encode(tag, &mut buffer)
            }
            Action::SendOpenEpoch { tag, open } => {
                Message::OpenEpoch(open).encode(tag, &mut buffer)
            }
            Action::SendEntries { tag, epoch, first, chain_before, max_entries, max_frame } => {
                let room = max_frame.min(buffer.len());
                let mut writer =
                    EntriesWriter::new(&mut buffer[..room], epoch, first, chain_before)
                        .expect("the head fits");
                let mut stored: Vec<Stored> = current
                    .entries
                    .range(first..)
                    .take(max_entries as usize)
                    .map(|(_, entry)| Stored::clone(entry))
                    .collect();
                assert!(!stored.is_empty(), "entry {first} was trimmed before it was acknowledged");
                if self.sabotage == Some(Sabotage::SwappedOrder) && stored.len() > 1 {
                    let first = stored[0].payload.clone();
                    stored[0].payload = std::mem::replace(&mut stored[1].payload, first);
                }
                for entry in &stored {
                    if writer.push(Entry { meta: &entry.meta, payload: &entry.payload }).is_err() {
                        break;
                    }
                }
                if writer.count() == 0 {
                    let entry = &stored[0];
                    let chain_after = chain_before.next(&entry.meta, &entry.payload);
                    self.sender.handle_oversized(chain_after);
                    return None;
                }
                let written = match pack(self.sender.compression(), writer.region()) {
                    (Compression::None, _) => writer.finish(tag),
                    (compression, block) => {
                        let block = block.into_owned();
                        writer.finish_compressed(tag, compression, &block)
                    }
                };
                let written = written.expect("it holds entries");
                if self.sabotage == Some(Sabotage::EarlyTrim) {
                    current.entries = current.entries.split_off(&written.last_seq.next());
                    current.position =
                        Position { epoch, next_seq: written.last_seq.next(), chain: written.chain };
                }
                self.sender.handle_sent_entries(now, tag, &written);
                Ok(written.frame_len)
            }
            Action::SendFragment {
                tag,
                epoch,
                seq,
                chain_before,
                chain_after,
                offset,
                max_len,
            } => {
                let entry = &current.entries[&seq];
                let total = entry.payload.len() as u64;
                let from = (offset as usize).min(entry.payload.len());
                let data = &entry.payload[from..(from + max_len).min(entry.payload.len())];
                let (compression, packed) = pack(self.sender.compression(), data);
                let fragment = Fragment {
                    epoch,
                    seq,
                    chain_before,
                    chain_after,
                    meta: &entry.meta,
                    total,
                    offset,
                    compression,
                    len: data.len() as u32,
                    data: &packed,
                };
                let len = Message::Fragment(fragment).encode(tag, &mut buffer);
                self.sender.handle_sent_fragment(now, tag, data.len(), total);
                len
            }
            Action::SendSnapshotBegin { tag, epoch, snapshot } => {
                Message::SnapshotBegin(SnapshotBegin { epoch, id: snapshot.id, len: snapshot.len })
                    .encode(tag, &mut buffer)
            }
            Action::SendSnapshotChunk { tag, epoch, id, offset, len } => {
                let bytes = &current.base.as_ref().expect("the offered snapshot is kept").bytes;
                let data = &bytes[offset as usize..offset as usize + len];
                let (compression, data) = pack(self.sender.compression(), data);
                Message::SnapshotChunk(SnapshotChunk {
                    epoch,
                    id,
                    offset,
                    compression,
                    len: len as u32,
                    data: &data,
                })
                .encode(tag, &mut buffer)
            }
            Action::SendSnapshotEnd { tag, epoch, snapshot } => Message::SnapshotEnd(SnapshotEnd {
                epoch,
                id: snapshot.id,
                len: snapshot.len,
                sha256: snapshot.sha256,
            })
            .encode(tag, &mut buffer),
            Action::Verify { first, chain, end } => {
                let mut seq = first;
                let mut chain = Some(chain);
                while seq < end {
                    chain = match (chain, current.entries.get(&seq)) {
                        (Some(chain), Some(entry)) => {
                            Some(Chain::next(&chain, &entry.meta, &entry.payload))
                        }
                        _ => None,
                    };
                    seq = seq.next();
                }
                self.sender.handle_verified(chain);
                return None;
            }
            Action::SendPing { tag } => Message::Ping.encode(tag, &mut buffer),
            other => panic!("an action that the simulation does not know: {other:?}"),
        };
        buffer.truncate(len.expect("frames fit the buffer"));
        Some(Ask::Send(buffer))
    }

    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.rng.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&self.rng.next_u64().to_le_bytes());
        bytes
    }

    pub(crate) fn resent(&self) -> u64 {
        self.sender.stats().resent_entries
    }
}

/// The outbox could not be written: the link starts over from what it holds.
struct OutboxFailed;

fn outbox_is_new(outbox: &Outbox) -> bool {
    outbox.current.position == Position::default()
}

/// Appends to the next generation where one waits, else to the current one.
fn append(outbox: &mut Outbox, commits: &[Captured]) {
    let generation = outbox.next.as_mut().unwrap_or(&mut outbox.current);
    for Captured { commit, payload, .. } in commits {
        insert(generation, EntryKind::Changeset, *commit, payload.clone());
    }
    if let Some(last) = commits.last() {
        outbox.last_commit = last.commit;
        outbox.place = Some(last.after);
        outbox.prepared.retain(|kept| kept.commit >= last.commit);
    }
}

fn insert(generation: &mut Generation, kind: EntryKind, commit: u64, payload: Vec<u8>) {
    let seq = generation.last_seq.next();
    let meta = EntryMeta {
        seq,
        kind,
        first_commit: commit,
        last_commit: commit,
        // A wall clock that jumps, either way.
        time_ms: commit.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (commit % 64),
        schema_version: 1,
        content_hash: None,
    };
    let mut buffer = [0; MAX_META_LEN];
    let meta = meta.encode(&mut buffer).expect("metas fit").to_vec();
    generation.entries.insert(seq, Rc::new(Stored { commit, meta, payload }));
    generation.last_seq = seq;
}

/// The form in which `data` goes out.
fn pack(agreed: Compression, data: &[u8]) -> (Compression, Cow<'_, [u8]>) {
    if agreed == Compression::Lz4 {
        let block = compress(data);
        if block.len() < data.len() {
            return (agreed, block.into());
        }
    }
    (Compression::None, data.into())
}

fn config(stream: StreamId, rng: &mut Rng) -> SenderConfig {
    let mut instance = [0; 16];
    instance[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
    SenderConfig {
        stream,
        instance: Nonce(instance),
        batch: synddb_core::batcher::BatchConfig {
            max_entries: 20,
            max_bytes: MAX_FRAME as u32,
            linger: Duration::from_millis(200),
            idle_linger: Duration::from_millis(5),
        },
        backoff: Default::default(),
        response_timeout: Duration::from_secs(2),
        keep_alive: Duration::from_secs(5),
        on_divergence: OnDivergence::Resync,
        compression: if rng.up_to(2) == 0 { Compression::None } else { Compression::Lz4 },
    }
}
