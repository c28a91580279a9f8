//! The link: drives the core's `Sender` over a transport, on a thread of its own.
//!
//! It is the only one that talks to the network, and nobody waits for it but those who ask to: the
//! application's commits go into the outbox whatever the link does.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as Clock, SystemTime, UNIX_EPOCH},
};

use synddb_core::{
    Chain, Instant, Nonce, OpenId, SeqNo, SnapshotId, StreamId,
    sender::{Action, Event, Sender, SenderConfig, SenderStats, SnapshotOffer, StopReason},
    transport::{Transport, TransportError, TransportErrorKind},
    wire::{
        EntriesWriter, Entry, EntryKind, Message, SnapshotNote, WireError,
        header::VERSION,
        message::{
            Fragment, Head, Hello, MAX_CONTROL_FRAME, ResyncReason, SnapshotBegin, SnapshotChunk,
            SnapshotEnd,
        },
    },
};

use crate::{
    compress::Compressor,
    outbox::{NewEntry, Outbox, OutboxError, State},
};

/// Frames on their way at once, at most.
const WINDOW: usize = 8;
/// How long the link listens before it looks for new commits again, while answers are to come.
const LISTEN: Duration = Duration::from_millis(5);
/// How long the link waits before it tries a failed outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);
/// Bytes of a frame that is not data: a piece of an entry or a snapshot comes on top.
const FRAME_EXTRA: usize = 1024;

/// The bytes of a snapshot.
#[derive(Debug, Clone)]
pub enum Image {
    /// A file, removed when the last holder lets go of it.
    File(Arc<ImageFile>),
    /// In memory: nothing that the application kept off the disk reaches it through us.
    Memory(Arc<[u8]>),
}

/// A snapshot's file.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: File,
}

impl ImageFile {
    /// Takes over the file at `path`.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        // What cannot be removed now is found and removed at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(image) => image.file.read_exact_at(buffer, offset),
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let piece = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// A snapshot that an epoch begins from.
#[derive(Debug, Clone)]
pub struct Base {
    /// The wish of the epoch that it belongs to.
    pub open_id: OpenId,
    /// Names it.
    pub id: SnapshotId,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of all of it.
    pub sha256: [u8; 32],
    /// The bytes.
    pub image: Image,
}

/// What the sequencer has stored durably, as far as it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The stream.
    pub stream: StreamId,
    /// Where it stands.
    pub head: Head,
    /// The last commit that can be restored there.
    pub commit: u64,
    /// The sequencer's clock when it stored it, milliseconds since 1970; 0 where it did not say.
    pub time_ms: u64,
}

/// State of the link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    /// No attempt has ended yet.
    #[default]
    Connecting,
    /// The sequencer answers.
    Up,
    /// The last attempt failed.
    Failing {
        /// Failures in a row.
        failures: u32,
        /// What happened, for people.
        error: String,
    },
    /// No more attempts are made.
    Stopped(StopReason),
}

/// What others see of the link, and what they ask of it.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    /// Something changed that somebody waits for: the link, or who waits for a receipt.
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    queued: bool,
    bases: VecDeque<Base>,
    flushes: u64,
    stopping: Option<Clock>,
    restart: bool,
    resync: Option<ResyncReason>,
    receipt: Option<Receipt>,
    link: LinkState,
    attempts: u64,
    stats: SenderStats,
    finished: bool,
}

impl Shared {
    /// Of a link that has not started.
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                queued: false,
                bases: VecDeque::new(),
                flushes: 0,
                stopping: None,
                restart: false,
                resync: None,
                receipt: None,
                link: LinkState::Connecting,
                attempts: 0,
                stats: SenderStats::default(),
                finished: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The outbox changed. The link looks by itself at what is in it: a state that was read
    /// earlier may be older than what the link knows.
    pub fn queued(&self) {
        self.change(|inner| inner.queued = true);
    }

    /// A snapshot is ready.
    pub fn base(&self, base: Base) {
        self.change(|inner| inner.bases.push_back(base));
    }

    /// Somebody waits: send now.
    pub fn flush(&self) {
        self.change(|inner| inner.flushes += 1);
    }

    /// Drain, at the longest until `deadline`, then end.
    pub fn stop(&self, deadline: Clock) {
        self.change(|inner| {
            inner.stopping = Some(deadline);
            inner.flushes += 1;
        });
    }

    /// Start again after a stop: the user asked for a resync.
    pub fn restart(&self) {
        self.change(|inner| inner.restart = true);
    }

    /// The resync that the link needs, once.
    pub fn take_resync(&self) -> Option<ResyncReason> {
        self.lock().resync.take()
    }

    /// What the sequencer has.
    pub fn receipt(&self) -> Option<Receipt> {
        self.lock().receipt
    }

    /// State of the link, and how many attempts have ended so far.
    pub fn link(&self) -> (LinkState, u64) {
        let inner = self.lock();
        (inner.link.clone(), inner.attempts)
    }

    /// Counters.
    pub fn stats(&self) -> SenderStats {
        self.lock().stats
    }

    /// Waits until `commit` can be restored at the sequencer, until `give_up` says so of the
    /// link's state and count of attempts, or until `deadline`. True where it can.
    pub fn wait_for(
        &self,
        commit: u64,
        deadline: Clock,
        mut give_up: impl FnMut(&LinkState, u64) -> bool,
    ) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.receipt.is_some_and(|receipt| receipt.commit >= commit) {
                return true;
            }
            let left = deadline.saturating_duration_since(Clock::now());
            if left.is_zero() || inner.finished || give_up(&inner.link, inner.attempts) {
                return false;
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a single assignment: a panic leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Link<T> {
    transport: T,
    sender: Sender<WINDOW>,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    stream: StreamId,
    name: String,
    config: SenderConfig,
    started: Clock,
    /// What the sender was last told of the outbox.
    told: State,
    /// Snapshots whose epoch has not begun yet, and the one that is under way.
    bases: Vec<Base>,
    current_open_id: Option<OpenId>,
    /// The entry that is being sent in pieces.
    large: Option<(SeqNo, Vec<u8>, Vec<u8>)>,
    frame: Vec<u8>,
    /// The piece of a snapshot that is being sent.
    chunk: Vec<u8>,
    compressor: Compressor,
    flushes_seen: u64,
    /// The outbox failed: the sender's numbers and the outbox's may have parted.
    broken: bool,
}

impl<T: Transport> Link<T> {
    /// A link that goes on where the outbox stands.
    ///
    /// # Errors
    /// The outbox cannot be read, or the operating system gives no randomness.
    pub fn new(
        transport: T,
        mut config: SenderConfig,
        name: String,
        outbox: Arc<Outbox>,
        shared: Arc<Shared>,
    ) -> Result<Self, OutboxError> {
        let state = outbox.state()?;
        config.stream = state.stream;
        config.instance = Nonce(random()?);
        let seed = u64::from_le_bytes(random()?);
        let room = config.batch.max_bytes as usize + FRAME_EXTRA;
        let mut link = Self {
            transport,
            sender: Sender::new(config, state.position, seed),
            outbox,
            shared,
            stream: state.stream,
            name,
            config,
            started: Clock::now(),
            told: State { last_seq: state.position.next_seq.previous(), wish: None, ..state },
            bases: Vec::new(),
            current_open_id: None,
            large: None,
            frame: vec![0; room.max(MAX_CONTROL_FRAME)],
            chunk: Vec::new(),
            compressor: Compressor::new(),
            flushes_seen: 0,
            broken: false,
        };
        link.tell(&state);
        Ok(link)
    }

    /// As after a crash: what the outbox holds is what counts.
    fn start_over(&mut self) -> Result<(), OutboxError> {
        let state = self.outbox.state()?;
        let seed = u64::from_le_bytes(random()?);
        self.sender = Sender::new(self.config, state.position, seed);
        self.large = None;
        self.told = State { last_seq: state.position.next_seq.previous(), wish: None, ..state };
        self.tell(&state);
        self.offer_base();
        self.broken = false;
        Ok(())
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut reply = vec![0; MAX_CONTROL_FRAME];
        loop {
            self.take_orders();
            if self.broken && self.start_over().is_err() {
                self.pause(OUTBOX_RETRY);
            }
            self.act();
            let now = self.now();
            if !self.broken && self.sender.awaits_reply() {
                let due = self.sender.poll_timeout().map_or(LISTEN, |due| due.since(now));
                match self.transport.recv(&mut reply, due.min(LISTEN)) {
                    Ok(Some(len)) => {
                        let now = self.now();
                        if let Err(error) = self.sender.handle_frame(now, &reply[..len]) {
                            self.failed(error.to_string());
                        }
                    }
                    Ok(None) => {}
                    Err(error) => self.disconnected(&error),
                }
                self.act();
            }
            if self.should_end() {
                break;
            }
            if !self.broken && !self.sender.awaits_reply() {
                self.sleep();
            }
        }
        self.transport.close();
        self.shared.change(|inner| inner.finished = true);
    }

    fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// What others asked for since the last time.
    fn take_orders(&mut self) {
        let now = self.now();
        let (queued, bases, flushes, restart) = {
            let mut inner = self.shared.lock();
            inner.stats = self.sender.stats();
            (
                core::mem::take(&mut inner.queued),
                core::mem::take(&mut inner.bases),
                inner.flushes,
                core::mem::take(&mut inner.restart),
            )
        };
        if restart && let Ok(instance) = random() {
            self.config.instance = Nonce(instance);
            self.sender.handle_restart(now, self.config.instance);
        }
        if queued {
            match self.outbox.state() {
                Ok(state) => self.tell(&state),
                Err(error) => self.outbox_failed(&error),
            }
        }
        for base in bases {
            self.bases.push(base);
            self.offer_base();
        }
        if flushes != self.flushes_seen {
            self.flushes_seen = flushes;
            self.sender.handle_flush(now);
        }
    }

    fn tell(&mut self, state: &State) {
        let now = self.now();
        if state.position.epoch == self.told.position.epoch {
            let bytes = state.bytes.saturating_sub(self.told.bytes);
            self.sender.handle_queued(now, state.last_seq, bytes);
        }
        if let Some(wish) = state.wish
            && self.told.wish != state.wish
        {
            self.sender.handle_next_epoch(wish.open_id, wish.reason);
        }
        self.told = state.clone();
    }

    fn offer_base(&mut self) {
        let base = self.bases.iter().find(|base| Some(base.open_id) == self.current_open_id);
        if let Some(Base { id, len, sha256, .. }) = base {
            self.sender.handle_snapshot(SnapshotOffer { id: *id, len: *len, sha256: *sha256 });
        }
    }

    /// Does all that the sender wants done now.
    fn act(&mut self) {
        while !self.broken {
            while let Some(event) = self.sender.poll_event() {
                if let Err(error) = self.on_event(event) {
                    self.outbox_failed(&error);
                    return;
                }
            }
            let now = self.now();
            let Some(action) = self.sender.poll_action(now) else { return };
            if let Err(error) = self.on_action(action) {
                self.outbox_failed(&error);
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), OutboxError> {
        match event {
            Event::Acked { head, time_ms } => {
                let state = self.outbox.trim(head)?;
                self.tell(&state);
                let stream = self.stream;
                self.shared.change(|inner| {
                    let before = inner.receipt.map_or(0, |receipt| receipt.commit);
                    let stored = state.acked_commit.max(state.from_commit);
                    // Without a complete snapshot nothing of the epoch can be restored.
                    let commit = if head.base_complete { before.max(stored) } else { before };
                    inner.receipt = Some(Receipt { stream, head, commit, time_ms });
                });
            }
            Event::EpochOpened { head } => {
                let ours = self.outbox.opened(head)?;
                tracing::info!(epoch = head.epoch.0, ours, "epoch opened");
                self.large = None;
                self.current_open_id = Some(head.open_id);
                self.bases.retain(|base| !ours || base.open_id == head.open_id);
                let state = self.outbox.state()?;
                self.told = State {
                    last_seq: state.position.next_seq.previous(),
                    bytes: 0,
                    wish: None,
                    ..state
                };
                self.tell(&state);
                self.offer_base();
            }
            Event::ResyncNeeded(reason) => {
                tracing::warn!(?reason, "a resync is needed");
                self.shared.change(|inner| inner.resync = Some(reason));
            }
            Event::SnapshotStored(id) => self.note_snapshot(id)?,
            Event::SnapshotRefused { id, limit } => {
                self.bases.retain(|base| base.id != id);
                self.failed(match limit {
                    Some(limit) => format!(
                        "the sequencer takes snapshots of up to {limit} bytes: raise its limit"
                    ),
                    None => "the sequencer finds the snapshot damaged".into(),
                });
            }
            Event::LinkUp => self.shared.change(|inner| inner.link = LinkState::Up),
            Event::LinkFailed { kind, failures } => self.shared.change(|inner| {
                inner.attempts += 1;
                let error = match &inner.link {
                    LinkState::Failing { error, .. } => error.clone(),
                    _ => describe(kind).into(),
                };
                inner.link = LinkState::Failing { failures, error };
            }),
            Event::Stopped(reason) => {
                tracing::error!(?reason, "the link stopped; commits keep queueing");
                self.shared.change(|inner| inner.link = LinkState::Stopped(reason));
            }
            _ => {}
        }
        Ok(())
    }

    /// The snapshot is stored: an entry says so, and which state it holds.
    fn note_snapshot(&mut self, id: SnapshotId) -> Result<(), OutboxError> {
        let Some(base) = self.bases.iter().find(|base| base.id == id) else { return Ok(()) };
        let note = SnapshotNote { id, as_of: SeqNo(0), len: base.len, sha256: base.sha256 };
        let mut buffer = [0; SnapshotNote::MAX_LEN];
        let payload = note.encode(&mut buffer).map_err(|_| OutboxError::Corrupt("note"))?.to_vec();
        let last_commit = self.outbox.state()?.last_commit;
        let entry = NewEntry {
            kind: EntryKind::Snapshot,
            first_commit: last_commit,
            last_commit,
            time_ms: wall_clock_ms(),
            schema_version: 0,
            payload,
        };
        let appended = self.outbox.append_to_current(entry)?;
        self.bases.retain(|base| base.id != id);
        if let Some(state) = appended {
            self.tell(&state);
            let now = self.now();
            self.sender.handle_flush(now);
        }
        Ok(())
    }

    fn on_action(&mut self, action: Action) -> Result<(), OutboxError> {
        let len = match action {
            Action::Connect => {
                match self.transport.connect() {
                    Ok(()) => {
                        let nonce = Nonce(random()?);
                        let now = self.now();
                        let window = self.transport.max_in_flight();
                        self.sender.handle_connected(now, nonce, window);
                    }
                    Err(error) => self.disconnected(&error),
                }
                return Ok(());
            }
            Action::Close => {
                self.transport.close();
                return Ok(());
            }
            Action::Verify { first, chain, end } => {
                let chain = self.chain_over(first, chain, end)?;
                self.sender.handle_verified(chain);
                return Ok(());
            }
            Action::SendEntries { tag, epoch, first, chain_before, max_entries, max_frame } => {
                match self.write_entries(tag, epoch, first, chain_before, max_entries, max_frame)? {
                    Some(len) => Ok(len),
                    None => return Ok(()),
                }
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
                self.load_large(seq)?;
                let Some((_, meta, payload)) = &self.large else { return Ok(()) };
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
                let data = &payload[from..payload.len().min(from.saturating_add(max_len))];
                let (sent, total) = (data.len(), payload.len() as u64);
                let (compression, data) = self.compressor.pack(self.sender.compression(), data);
                let fragment = Fragment {
                    epoch,
                    seq,
                    chain_before,
                    chain_after,
                    meta,
                    total,
                    offset,
                    compression,
                    len: sent as u32,
                    data,
                };
                let len = Message::Fragment(fragment).encode(tag, &mut self.frame);
                let now = self.now();
                self.sender.handle_sent_fragment(now, tag, sent, total);
                len
            }
            Action::SendSnapshotChunk { tag, epoch, id, offset, len } => {
                let Some(base) = self.bases.iter().find(|base| base.id == id) else {
                    return Ok(());
                };
                self.chunk.resize(len, 0);
                if let Err(error) = base.image.read(offset, &mut self.chunk) {
                    return Err(OutboxError::Sqlite(format!("the snapshot's file: {error}")));
                }
                let (compression, data) =
                    self.compressor.pack(self.sender.compression(), &self.chunk);
                let len = len as u32;
                let chunk = SnapshotChunk { epoch, id, offset, compression, len, data };
                Message::SnapshotChunk(chunk).encode(tag, &mut self.frame)
            }
            other => self.write_control(other),
        };
        match len {
            Ok(len) => {
                if let Err(error) = self.transport.send(&self.frame[..len]) {
                    self.disconnected(&error);
                }
                Ok(())
            }
            Err(_) => Err(OutboxError::Corrupt("an entry does not fit its frame")),
        }
    }

    fn write_control(&mut self, action: Action) -> Result<usize, WireError> {
        match action {
            Action::SendHello { tag, features, nonce, position, .. } => {
                let hello = Hello {
                    version_min: VERSION,
                    version_max: VERSION,
                    features,
                    stream: self.stream,
                    name: &self.name,
                    instance: self.config.instance,
                    nonce,
                    ticket: 0,
                    epoch: position.epoch,
                    next_seq: position.next_seq,
                    chain: position.chain,
                    max_frame: MAX_CONTROL_FRAME as u32,
                    token: b"",
                };
                Message::Hello(hello).encode(tag, &mut self.frame)
            }
            Action::SendOpenEpoch { tag, open } => {
                Message::OpenEpoch(open).encode(tag, &mut self.frame)
            }
            Action::SendSnapshotBegin { tag, epoch, snapshot: SnapshotOffer { id, len, .. } } => {
                let begin = SnapshotBegin { epoch, id, len };
                Message::SnapshotBegin(begin).encode(tag, &mut self.frame)
            }
            Action::SendSnapshotEnd { tag, epoch, snapshot } => {
                let SnapshotOffer { id, len, sha256 } = snapshot;
                let end = SnapshotEnd { epoch, id, len, sha256 };
                Message::SnapshotEnd(end).encode(tag, &mut self.frame)
            }
            Action::SendPing { tag } => Message::Ping.encode(tag, &mut self.frame),
            _ => Err(WireError::Malformed("an action of a newer core")),
        }
    }

    /// Writes a frame of entries; `None` where the first one has to go in pieces.
    fn write_entries(
        &mut self,
        tag: u32,
        epoch: synddb_core::Epoch,
        first: SeqNo,
        chain_before: Chain,
        max_entries: u32,
        max_frame: usize,
    ) -> Result<Option<usize>, OutboxError> {
        let room = max_frame.min(self.frame.len());
        let mut writer = EntriesWriter::new(&mut self.frame[..room], epoch, first, chain_before)
            .map_err(|_| OutboxError::Corrupt("the frame's room"))?;
        let mut oversized = None;
        let mut expected = first;
        self.outbox.read(first, |seq, meta, payload| {
            if seq != expected || writer.count() >= max_entries {
                return false;
            }
            expected = expected.next();
            if writer.push(Entry { meta, payload }).is_err() {
                if writer.count() == 0 {
                    oversized = Some((seq, meta.to_vec(), payload.to_vec()));
                }
                return false;
            }
            true
        })?;
        if let Some((seq, meta, payload)) = oversized {
            self.sender.handle_oversized(chain_before.next(&meta, &payload));
            self.large = Some((seq, meta, payload));
            return Ok(None);
        }
        let agreed = self.sender.compression();
        let written = match self.compressor.compress(agreed, writer.region()) {
            Some(compressed) => writer.finish_compressed(tag, agreed, compressed),
            None => writer.finish(tag),
        }
        .map_err(|_| OutboxError::Corrupt("entries are missing"))?;
        let now = self.now();
        self.sender.handle_sent_entries(now, tag, &written);
        Ok(Some(written.frame_len))
    }

    fn load_large(&mut self, wanted: SeqNo) -> Result<(), OutboxError> {
        if self.large.as_ref().is_some_and(|(seq, ..)| *seq == wanted) {
            return Ok(());
        }
        self.large = None;
        self.outbox.read(wanted, |seq, meta, payload| {
            if seq == wanted {
                self.large = Some((seq, meta.to_vec(), payload.to_vec()));
            }
            false
        })?;
        if self.large.is_none() {
            return Err(OutboxError::Corrupt("entries are missing"));
        }
        Ok(())
    }

    fn chain_over(
        &self,
        first: SeqNo,
        chain: Chain,
        end: SeqNo,
    ) -> Result<Option<Chain>, OutboxError> {
        let (mut expected, mut chain) = (first, chain);
        self.outbox.read(first, |seq, meta, payload| {
            if seq != expected || seq >= end {
                return false;
            }
            chain = chain.next(meta, payload);
            expected = expected.next();
            true
        })?;
        Ok((expected == end).then_some(chain))
    }

    fn disconnected(&mut self, error: &T::Error) {
        self.failed(error.to_string());
        let now = self.now();
        self.sender.handle_disconnected(now, error.kind(), error.retry_after());
    }

    /// The outbox, or a snapshot's file, cannot be read or written now: a disk that fails or is
    /// full. What was to be noted is not, so the link starts over from what the outbox holds.
    fn outbox_failed(&mut self, error: &OutboxError) {
        tracing::error!(%error, "the outbox failed");
        self.failed(error.to_string());
        self.transport.close();
        self.broken = true;
    }

    fn failed(&self, error: String) {
        self.shared.change(|inner| {
            let failures = match inner.link {
                LinkState::Failing { failures, .. } => failures,
                _ => 0,
            };
            inner.link = LinkState::Failing { failures, error };
        });
    }

    fn should_end(&self) -> bool {
        let inner = self.shared.lock();
        let Some(deadline) = inner.stopping else { return false };
        let stored = inner.receipt.map(|receipt| receipt.commit);
        let drained = self.told.entries == 0
            && self.told.wish.is_none()
            && !inner.queued
            && stored >= Some(self.told.last_commit);
        drained || Clock::now() >= deadline || matches!(inner.link, LinkState::Stopped(_))
    }

    /// For `wait`, or until something changes.
    fn pause(&self, wait: Duration) {
        let inner = self.shared.lock();
        drop(self.shared.changed.wait_timeout(inner, wait));
    }

    /// Until something is asked for or due.
    fn sleep(&self) {
        let now = self.now();
        let due = self.sender.poll_timeout().map(|due| due.since(now));
        let inner = self.shared.lock();
        let asked = inner.queued
            || !inner.bases.is_empty()
            || inner.flushes != self.flushes_seen
            || inner.restart;
        if asked {
            return;
        }
        let until_stop =
            inner.stopping.map(|deadline| deadline.saturating_duration_since(Clock::now()));
        let wait = [due, until_stop].into_iter().flatten().min();
        let changed = &self.shared.changed;
        match wait {
            Some(wait) => drop(changed.wait_timeout(inner, wait)),
            None => drop(changed.wait(inner)),
        }
    }
}

fn describe(kind: TransportErrorKind) -> &'static str {
    match kind {
        TransportErrorKind::Unreachable => "the sequencer cannot be reached",
        TransportErrorKind::TimedOut => "the sequencer does not answer in time",
        TransportErrorKind::Disconnected => "the connection ended",
        TransportErrorKind::Busy => "the sequencer is busy or cannot store",
        TransportErrorKind::Unauthorized => "the sequencer refuses this client",
        TransportErrorKind::TooLarge => "what was sent is too large",
        TransportErrorKind::NotASequencer => "what answers is not a synddb sequencer",
        TransportErrorKind::Misconfigured => "the transport's configuration cannot work",
        _ => "the link failed",
    }
}

fn random<const N: usize>() -> Result<[u8; N], OutboxError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|_| OutboxError::Sqlite("the operating system gives no randomness".into()))?;
    Ok(bytes)
}

pub(crate) fn wall_clock_ms() -> u64 {
    // A clock before 1970 is wrong anyhow; times are advisory.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
