//! The link: drives the core's `Sender` over a [`Carrier`].
//!
//! It is the only one that talks to the network, and nobody waits for it but those who ask to: the
//! application's commits go into the outbox whatever the link does.
//!
//! It is written once, as a future. Over a transport that blocks that future never waits, and is the
//! whole of a thread; over one that waits it runs in whatever runtime it is given to.

mod carrier;
#[cfg(feature = "hyper")]
mod future;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant as Clock, SystemTime, UNIX_EPOCH},
};

use synddb_core::{
    Chain, Instant, Nonce, SeqNo, SnapshotId, StreamId,
    content::ContentSum,
    sender::{Action, Event, Sender, SenderConfig, SenderStats, SnapshotOffer, StopReason},
    transport::{Transport, TransportErrorKind},
    wire::{
        EntriesWriter, Entry, EntryKind, Message, SnapshotNote, WireError,
        header::VERSION,
        message::{
            Bye, Farewell, Fragment, Head, Hello, MAX_CONTROL_FRAME, Refusal, SnapshotBegin,
            SnapshotChunk, SnapshotEnd,
        },
    },
};

#[cfg(feature = "hyper")]
pub(crate) use self::carrier::InRuntime;
pub(crate) use self::carrier::{Blocking, Carrier};
use self::carrier::{Failed, finish};
#[cfg(feature = "hyper")]
pub use self::future::LinkFuture;
use crate::{
    compress::Compressor,
    outbox::{NewEntry, Outbox, OutboxError, State, StoredSnapshot},
    shared::{Orders, Queued, Shared},
    token::{TokenProvider, TokenRequest},
};

/// Frames on their way at once, at most.
const WINDOW: usize = 8;
/// How long the link listens before it looks for new commits again, while answers are to come.
const LISTEN: Duration = Duration::from_millis(5);
/// How long the link waits before it tries a failed outbox again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);
/// How often the sequencer is asked anew how large a snapshot may be, while one was too large.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a frame that is not data: a piece of an entry or a snapshot comes on top.
const FRAME_EXTRA: usize = 1024;

/// The bytes of a snapshot.
pub(crate) trait Image: Send {
    /// Fills `buffer` with what begins at `offset`.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A snapshot to upload, and the entry that is to say so.
pub(crate) struct Base {
    /// The generation of the outbox whose epoch it belongs to.
    pub(crate) generation: i64,
    /// Names it.
    pub(crate) id: SnapshotId,
    /// The entry of that generation that it holds the database as of; 0 where the epoch begins
    /// from it.
    pub(crate) as_of: SeqNo,
    /// The commit that it holds the database as of.
    pub(crate) as_of_commit: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// SHA-256 of all of it.
    pub(crate) sha256: [u8; 32],
    /// Hash of its content, where that could be read.
    pub(crate) content_hash: Option<ContentSum>,
    /// Bytes of payloads that had been appended as of it.
    pub(crate) as_of_bytes: u64,
    /// The bytes.
    pub(crate) image: Box<dyn Image>,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, id, as_of, len, .. } = self;
        write!(f, "Base {id:?} of generation {generation} as of {as_of}, {len} bytes")
    }
}

/// What the sequencer has stored durably, as far as it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The stream.
    pub stream: StreamId,
    /// Where it stands.
    pub head: Head,
    /// The last commit that can be restored there.
    pub commit: u64,
    /// The sequencer's clock when it stored it, milliseconds since 1970; 0 where it did not say.
    pub time_ms: u64,
    /// What it signed, where it signs: an existing SyndDB sequencer, over CBOR. `None` of a message
    /// whose answer was lost.
    pub signed: Option<Arc<Signed>>,
}

/// What an existing SyndDB sequencer says of a message, as it says it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signed {
    /// The number that it gave the message.
    pub sequence: u64,
    /// Hash of the message.
    pub message_hash: String,
    /// Its signature.
    pub signature: String,
    /// Who signed.
    pub signer: String,
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
    /// The link is a future, and nobody drives it: it was not spawned yet, or it was dropped.
    /// Commits queue; after a drop they go once the database is attached again.
    NotDriven,
}

/// See the module's documentation.
pub(crate) struct Link<C> {
    carrier: C,
    sender: Sender<WINDOW>,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    stream: StreamId,
    name: String,
    token: Option<TokenProvider>,
    /// The sequencer refused the last token.
    token_refused: bool,
    config: SenderConfig,
    started: Clock,
    /// What the sender was last told of the outbox.
    told: State,
    /// Snapshots whose epoch has not begun yet, and the one that is under way.
    bases: Vec<Base>,
    /// The entry that says that a snapshot is stored, and as of which commit; not acknowledged.
    noted: Option<(SeqNo, u64)>,
    /// The entry that is being sent in pieces.
    large: Option<(SeqNo, Vec<u8>, Vec<u8>)>,
    frame: Vec<u8>,
    /// The piece of a snapshot that is being sent.
    chunk: Vec<u8>,
    compressor: Compressor,
    flushes_seen: u64,
    /// Counts of the senders before this one.
    past: SenderStats,
    /// The token was to be bound to a nonce of the sequencer's on this connection.
    challenged: bool,
    /// What the sequencer said before it refused or hung up, for people.
    last_words: Option<String>,
    /// The outbox failed: the sender's numbers and the outbox's may have parted.
    broken: bool,
    /// When the sequencer last told its limits.
    greeted: Clock,
}

impl<T: Transport + Send> Link<Blocking<T>> {
    /// Runs until told to stop.
    pub(crate) fn run_here(self) {
        let _span = self.span().entered();
        finish(self.run());
    }
}

impl<C: Carrier> Link<C> {
    /// A link that goes on where the outbox stands.
    ///
    /// # Errors
    /// The outbox cannot be read, or the operating system gives no randomness.
    pub(crate) fn new(
        carrier: C,
        mut config: SenderConfig,
        name: String,
        token: Option<TokenProvider>,
        outbox: Arc<Outbox>,
        shared: Arc<Shared>,
    ) -> Result<Self, OutboxError> {
        let state = outbox.state()?;
        config.stream = state.stream;
        config.instance = Nonce(random()?);
        let room = config.batch.max_bytes as usize + FRAME_EXTRA;
        let mut link = Self {
            carrier,
            sender: Sender::new(config, state.position, 0),
            outbox,
            shared,
            stream: state.stream,
            name,
            token,
            token_refused: false,
            config,
            started: Clock::now(),
            told: state,
            bases: Vec::new(),
            noted: None,
            large: None,
            frame: vec![0; room.max(MAX_CONTROL_FRAME)],
            chunk: Vec::new(),
            compressor: Compressor::new(),
            flushes_seen: 0,
            past: SenderStats::default(),
            challenged: false,
            last_words: None,
            broken: false,
            greeted: Clock::now(),
        };
        link.start_over()?;
        Ok(link)
    }

    /// As after a crash: what the outbox holds is what counts.
    fn start_over(&mut self) -> Result<(), OutboxError> {
        let state = self.outbox.state()?;
        let seed = u64::from_le_bytes(random()?);
        self.past = sum(self.past, self.sender.stats());
        self.sender = Sender::new(self.config, state.position, seed);
        self.large = None;
        for open_id in &state.asked {
            self.sender.handle_wish_withdrawn(*open_id);
        }
        self.forget_told(&state);
        self.tell(&state);
        self.offer_base();
        self.broken = false;
        Ok(())
    }

    pub(crate) fn span(&self) -> tracing::Span {
        tracing::info_span!("synddb_link", stream = %self.stream)
    }

    /// Runs until told to stop.
    pub(crate) async fn run(mut self) {
        let mut reply = vec![0; MAX_CONTROL_FRAME];
        loop {
            // A sequencer that stopped has said so in the meantime, or hung up: then there is nothing
            // to be sent over this connection, and who waits now is not told that the link is down.
            if !self.broken && self.sender.is_connected() && !self.sender.awaits_reply() {
                match self.carrier.recv(&mut reply, Duration::ZERO).await {
                    Ok(Some(len)) => self.hear(&reply[..len]),
                    Ok(None) => {}
                    Err(_) => {
                        let now = self.now();
                        self.sender.handle_hung_up(now);
                    }
                }
            }
            self.take_orders();
            if self.broken && self.start_over().is_err() {
                self.carrier.sleep(&self.shared, self.flushes_seen, Some(OUTBOX_RETRY)).await;
            }
            self.act().await;
            let now = self.now();
            if !self.broken && self.sender.awaits_reply() {
                let due = self.sender.poll_timeout().map_or(LISTEN, |due| due.since(now));
                self.listen(&mut reply, due.min(LISTEN)).await;
                self.act().await;
            }
            if self.shared.link_should_end() {
                break;
            }
            if !self.broken && !self.sender.awaits_reply() {
                self.sleep().await;
            }
        }
        self.say_bye().await;
        self.carrier.close();
        self.shared.link_finished();
    }

    /// Takes an answer, if one comes in time.
    async fn listen(&mut self, reply: &mut [u8], timeout: Duration) {
        match self.carrier.recv(reply, timeout).await {
            Ok(Some(len)) => self.hear(&reply[..len]),
            Ok(None) => {}
            Err(failed) => self.disconnected(failed),
        }
    }

    fn hear(&mut self, frame: &[u8]) {
        if let Some(words) = words(frame, self.challenged) {
            self.last_words = Some(words);
        }
        if let Ok((_, Message::HelloAck(ack))) = Message::decode(frame, frame.len()) {
            self.greeted = Clock::now();
            self.shared.snapshot_limit(ack.limits.max_snapshot);
        }
        let now = self.now();
        if let Err(error) = self.sender.handle_frame(now, frame) {
            self.failed(error.to_string());
        }
    }

    /// Who hung up may have said why before.
    async fn hear_why(&mut self) {
        let mut reply = vec![0; MAX_CONTROL_FRAME];
        while self.sender.is_connected()
            && let Ok(Some(len)) = self.carrier.recv(&mut reply, Duration::ZERO).await
        {
            self.hear(&reply[..len]);
        }
    }

    /// So that the sequencer need not wonder what became of us.
    async fn say_bye(&mut self) {
        // With answers to come it may not even take this.
        if self.broken || !self.sender.is_connected() || self.sender.awaits_reply() {
            return;
        }
        let bye = Message::Bye(Bye { farewell: Farewell::Done }).encode(0, &mut self.frame);
        if let Ok(len) = bye {
            // It may be gone, too.
            let _ = self.carrier.send(&self.frame[..len]).await;
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// What others asked for since the last time.
    fn take_orders(&mut self) {
        let now = self.now();
        let Orders { outbox_changed, bases, flushes, restart, outbox_replaced, blocked } =
            self.shared.orders(sum(self.past, self.sender.stats()));
        if blocked
            && self.sender.is_connected()
            && !self.sender.awaits_reply()
            && self.greeted.elapsed() >= ASK_LIMIT
        {
            // Only a greeting tells the limits.
            self.greeted = Clock::now();
            self.carrier.close();
            self.sender.handle_hung_up(now);
        }
        if outbox_replaced {
            self.carrier.close();
            self.bases.clear();
            self.noted = None;
            self.broken = true;
        }
        if restart && let Ok(instance) = random() {
            self.config.instance = Nonce(instance);
            self.sender.handle_restart(now, self.config.instance);
        }
        if outbox_changed {
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

    /// The sender knows nothing of what is queued for the current epoch.
    fn forget_told(&mut self, state: &State) {
        self.told = State {
            last_seq: state.position.next_seq.previous(),
            bytes: 0,
            wish: None,
            collapsed: false,
            ..state.clone()
        };
    }

    fn tell(&mut self, state: &State) {
        let now = self.now();
        if state.position.epoch == self.told.position.epoch {
            let bytes = state.bytes.saturating_sub(self.told.bytes);
            self.sender.handle_queued(now, state.last_seq, bytes);
        }
        // An epoch is asked for once its snapshot is ready: entries before that have no hashes yet.
        let told = self.told.wish.filter(|_| self.told.next_ready);
        match (told, state.wish.filter(|_| state.next_ready)) {
            (told, Some(wish)) if told != Some(wish) => {
                self.sender.handle_next_epoch(wish.open_id, wish.reason);
            }
            (Some(given_up), None) => self.sender.handle_wish_withdrawn(given_up.open_id),
            _ => {}
        }
        if state.collapsed && !self.told.collapsed {
            self.sender.handle_abandoned();
        }
        self.told = state.clone();
    }

    /// Offers the newest snapshot of the current generation, and forgets those before it.
    fn offer_base(&mut self) {
        let current = self.told.generation;
        let newest = self.bases.iter().rposition(|base| base.generation == current);
        self.bases.drain(..newest.unwrap_or(0));
        self.bases.retain(|base| base.generation >= current);
        let base = self.bases.iter().find(|base| base.generation == current);
        if let Some(Base { id, len, sha256, .. }) = base {
            self.sender.handle_snapshot(SnapshotOffer { id: *id, len: *len, sha256: *sha256 });
        }
        self.shared.uploads(self.bases.len());
    }

    /// Does all that the sender wants done now.
    async fn act(&mut self) {
        while !self.broken {
            while let Some(event) = self.sender.poll_event() {
                if let Err(error) = self.on_event(event) {
                    self.outbox_failed(&error);
                    return;
                }
            }
            let now = self.now();
            let Some(action) = self.sender.poll_action(now) else { return };
            if let Err(error) = self.on_action(action).await {
                self.outbox_failed(&error);
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), OutboxError> {
        match event {
            Event::Acked { head, time_ms } => {
                let state = self.outbox.trim(head)?;
                self.tell(&state);
                self.acknowledge(head, time_ms, &state);
            }
            Event::EpochOpened { head } => {
                let ours = self.outbox.opened(head)?;
                kill_point!("epoch-opened");
                tracing::info!(epoch = head.epoch.0, ours, "epoch opened");
                self.large = None;
                self.noted = None;
                let state = self.outbox.state()?;
                self.forget_told(&state);
                self.tell(&state);
                self.offer_base();
            }
            Event::ResyncNeeded(reason) => {
                self.link_up();
                // Counted before the look: the writer may begin one behind it.
                let epochs_begun = self.shared.epochs_begun();
                if self.outbox.state()?.wish.is_none() {
                    self.shared.resync_needed(reason, epochs_begun);
                }
            }
            Event::SnapshotStored(id) => self.note_snapshot(id)?,
            Event::SnapshotRefused { id, limit } => {
                let refused = self.bases.iter().find(|base| base.id == id);
                let is_base = refused.is_some_and(|base| base.as_of == SeqNo(0));
                let len = refused.map_or(0, |base| base.len);
                self.bases.retain(|base| base.id != id);
                self.shared.snapshot_refused(len, limit, is_base);
                self.shared.uploads(self.bases.len());
            }
            Event::LinkUp => self.link_up(),
            Event::LinkFailed { kind, failures } => {
                self.token_refused |= kind == TransportErrorKind::Unauthorized;
                self.shared.link_is(|link, attempts| {
                    *attempts += 1;
                    let error = match (self.last_words.take(), &mut *link) {
                        (Some(words), _) => words,
                        (None, LinkState::Failing { error, .. }) => core::mem::take(error),
                        (None, _) => describe(kind).into(),
                    };
                    *link = LinkState::Failing { failures, error };
                });
            }
            Event::Stopped(reason) => {
                tracing::error!(?reason, "the link stopped; commits keep queueing");
                self.shared.link_is(|link, _| *link = LinkState::Stopped(reason));
            }
            _ => {}
        }
        Ok(())
    }

    fn link_up(&self) {
        self.shared.link_is(|link, _| *link = LinkState::Up);
    }

    fn acknowledge(&mut self, head: Head, time_ms: u64, state: &State) {
        if let Some((_, commit)) = self.noted.take_if(|(seq, _)| *seq < head.next_seq) {
            self.shared.snapshot_noted(commit);
        }
        // Without a complete snapshot nothing of the epoch can be restored: what was acknowledged
        // before stays the last word.
        if head.base_complete {
            let commit = state.acked_commit.max(state.from_commit);
            let receipt = Receipt { stream: self.stream, head, commit, time_ms, signed: None };
            self.shared.acknowledged(receipt);
        }
        self.shared.outbox_holds(queued(state));
    }

    /// The snapshot is stored: an entry says so, and which state it holds.
    fn note_snapshot(&mut self, id: SnapshotId) -> Result<(), OutboxError> {
        let Some(at) = self.bases.iter().position(|base| base.id == id) else { return Ok(()) };
        let Base {
            generation, as_of, as_of_commit, as_of_bytes, len, sha256, content_hash, ..
        } = self.bases[at];
        let note = SnapshotNote { id, as_of, len, sha256, content_hash };
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
        let is_base = as_of == SeqNo(0);
        let stored = StoredSnapshot { generation, is_base, as_of_commit, as_of_bytes, len };
        let noted = self.outbox.note_snapshot(&stored, entry)?;
        self.bases.remove(at);
        if let Some(state) = noted {
            self.noted = Some((state.last_seq, as_of_commit));
            self.tell(&state);
            let now = self.now();
            self.sender.handle_flush(now);
        }
        self.shared.uploads(self.bases.len());
        Ok(())
    }

    async fn on_action(&mut self, action: Action) -> Result<(), OutboxError> {
        let len = match action {
            Action::Connect => {
                self.last_words = None;
                self.challenged = false;
                match self.carrier.connect().await {
                    Ok(()) => {
                        let nonce = Nonce(random()?);
                        let now = self.now();
                        let window = self.carrier.max_in_flight();
                        self.sender.handle_connected(now, nonce, window);
                    }
                    Err(failed) => self.disconnected(failed),
                }
                return Ok(());
            }
            Action::Close => {
                self.carrier.close();
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
                let Some(base) = self.bases.iter_mut().find(|base| base.id == id) else {
                    return Ok(());
                };
                self.chunk.resize(len, 0);
                if let Err(error) = base.image.read(offset, &mut self.chunk) {
                    return Err(OutboxError::Sqlite(format!("the snapshot's file: {error}")));
                }
                kill_point!("snapshot-upload");
                let (compression, data) =
                    self.compressor.pack(self.sender.compression(), &self.chunk);
                let len = len as u32;
                let chunk = SnapshotChunk { epoch, id, offset, compression, len, data };
                Message::SnapshotChunk(chunk).encode(tag, &mut self.frame)
            }
            Action::SendHello { tag, features, nonce, position, challenge } => {
                self.challenged = challenge.is_some();
                let request = TokenRequest { challenge, refused: self.token_refused };
                let token = match &self.token {
                    None => Ok(String::new()),
                    Some(provider) => self.carrier.token(provider, request).await,
                };
                let token = match token {
                    Ok(token) => {
                        self.token_refused = false;
                        token
                    }
                    Err(error) => {
                        self.failed(error);
                        let now = self.now();
                        let kind = TransportErrorKind::Unauthorized;
                        self.sender.handle_disconnected(now, kind, None);
                        return Ok(());
                    }
                };
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
                    token: token.as_bytes(),
                };
                Message::Hello(hello).encode(tag, &mut self.frame)
            }
            other => self.write_control(other),
        };
        match len {
            Ok(len) => {
                kill_point!("before-send");
                let sent = self.carrier.send(&self.frame[..len]).await;
                kill_point!("before-ack");
                if let Err(failed) = sent {
                    self.hear_why().await;
                    if self.sender.is_connected() {
                        self.disconnected(failed);
                    }
                }
                Ok(())
            }
            Err(_) => Err(OutboxError::Corrupt("an entry does not fit its frame")),
        }
    }

    fn write_control(&mut self, action: Action) -> Result<usize, WireError> {
        match action {
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

    fn disconnected(&mut self, failed: Failed) {
        let Failed { kind, retry_after, text } = failed;
        self.failed(text);
        let now = self.now();
        self.sender.handle_disconnected(now, kind, retry_after);
    }

    /// The outbox, or a snapshot's file, cannot be read or written now: a disk that fails or is
    /// full. What was to be noted is not, so the link starts over from what the outbox holds.
    fn outbox_failed(&mut self, error: &OutboxError) {
        tracing::error!(%error, "the outbox failed");
        if error.is_damage() {
            self.shared.outbox_damaged();
        }
        self.shared.link_is(|link, attempts| {
            *attempts += 1;
            let failures = match link {
                LinkState::Failing { failures, .. } => *failures + 1,
                _ => 1,
            };
            *link = LinkState::Failing { failures, error: error.to_string() };
        });
        self.carrier.close();
        self.broken = true;
    }

    fn failed(&self, error: String) {
        self.shared.link_is(|link, _| {
            let failures = match link {
                LinkState::Failing { failures, .. } => *failures,
                _ => 0,
            };
            *link = LinkState::Failing { failures, error };
        });
    }

    /// Until something is asked for or due.
    async fn sleep(&mut self) {
        let now = self.now();
        let due = self.sender.poll_timeout().map(|due| due.since(now));
        let due = match self.shared.is_blocked() {
            true => Some(due.map_or(ASK_LIMIT, |due| due.min(ASK_LIMIT))),
            false => due,
        };
        self.carrier.sleep(&self.shared, self.flushes_seen, due).await;
    }
}

/// What a frame says that ends the connection, where that has to be told to people.
fn words(frame: &[u8], challenged: bool) -> Option<String> {
    match Message::decode(frame, frame.len()).ok()?.1 {
        Message::Bye(bye) => Some(
            match bye.farewell {
                Farewell::Shutdown => "the sequencer is being stopped",
                Farewell::Busy => {
                    "the sequencer has as many connections as it allows: raise its limit, or look \
                     for connections that should not be there"
                }
                Farewell::Late => {
                    "the sequencer gave up waiting for the rest of a frame: the link is slower than \
                     64 KiB a second, or hangs"
                }
                Farewell::Idle => "the sequencer ended a connection that was idle for long",
                Farewell::TlsOnly => {
                    "the sequencer speaks only TLS at this address: write vsock+tls://, unix+tls: or \
                     vsock+unix+tls:"
                }
                _ => "the sequencer ended the connection",
            }
            .into(),
        ),
        Message::Challenge(_) if challenged => Some(
            "the sequencer wants a token that is bound to its nonce, and this one is not: it takes a \
             provider that honours TokenRequest::challenge, such as that of Confidential Space"
                .into(),
        ),
        Message::Nack(nack) => match nack.refusal {
            Refusal::Unsupported { version_min, version_max } => Some(format!(
                "the sequencer speaks the protocol's versions {version_min} to {version_max}, and \
                 this program version {VERSION}: update the older of the two"
            )),
            Refusal::Unauthorized if !nack.text.is_empty() => {
                Some(format!("the sequencer refuses this client: {}", nack.text))
            }
            _ => None,
        },
        _ => None,
    }
}

fn sum(one: SenderStats, other: SenderStats) -> SenderStats {
    SenderStats {
        connections: one.connections + other.connections,
        resent_entries: one.resent_entries + other.resent_entries,
        refusals: one.refusals + other.refusals,
    }
}

pub(crate) fn queued(state: &State) -> Queued {
    Queued { entries: state.entries, bytes: state.bytes }
}

fn describe(kind: TransportErrorKind) -> &'static str {
    match kind {
        TransportErrorKind::Unreachable => "the sequencer cannot be reached",
        TransportErrorKind::TimedOut => "the sequencer does not answer in time",
        TransportErrorKind::Disconnected => "the connection ended",
        TransportErrorKind::Busy => "the sequencer is busy or cannot store",
        TransportErrorKind::Unauthorized => "the sequencer refuses this client",
        TransportErrorKind::Untrusted => "what answers is not who it should be",
        TransportErrorKind::TooLarge => "what was sent is too large",
        TransportErrorKind::NotASequencer => "what answers is not a synddb sequencer",
        TransportErrorKind::Misconfigured => "the transport's configuration cannot work",
        _ => "the link failed",
    }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], OutboxError> {
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
