//! The application's side: commits, an outbox that survives crashes, a `Sender` that does not.

use std::{borrow::Cow, collections::BTreeMap};

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

use crate::world::Sabotage;

/// Longest frame in bytes: small, so that fragments are common.
pub(crate) const MAX_FRAME: usize = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) meta: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// One epoch in the outbox: granted, or waiting to be.
#[derive(Debug, Clone, Default)]
struct Generation {
    position: Position,
    last_seq: SeqNo,
    entries: BTreeMap<SeqNo, Stored>,
    open_id: OpenId,
    reason: Option<ResyncReason>,
    /// The snapshot that it begins from: as of this commit.
    base: Option<Snapshot>,
    base_noted: bool,
}

#[derive(Debug, Clone)]
struct Snapshot {
    id: SnapshotId,
    bytes: Vec<u8>,
}

/// What survives a crash of the application.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    current: Generation,
    next: Option<Generation>,
    pub(crate) commits: u64,
}

pub(crate) struct App {
    pub(crate) lineage: u64,
    pub(crate) disk: Disk,
    /// Where this application's history left the original's: lineage and commit.
    pub(crate) forked: Option<(u64, u64)>,
    sender: Sender<4>,
    stream: StreamId,
    rng: Rng,
    pub(crate) base_complete: bool,
    pub(crate) stopped: bool,
    pub(crate) wants_base: Option<ResyncReason>,
    sabotage: Option<Sabotage>,
}

/// What the application asks of the world.
pub(crate) enum Ask {
    Connect,
    Close,
    Send(Vec<u8>),
    Acked(Head),
}

impl App {
    pub(crate) fn new(lineage: u64, disk: Disk, seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let stream = StreamId::from_name("simulated");
        let sender = Sender::new(config(stream, &mut rng), disk.current.position, rng.next_u64());
        let mut app = Self {
            lineage,
            disk,
            forked: None,
            sender,
            stream,
            rng,
            base_complete: false,
            stopped: false,
            wants_base: None,
            sabotage,
        };
        app.tell_sender(Instant::default());
        app
    }

    /// Starts after a crash; `unclean` where commits may have been missed.
    pub(crate) fn restart(&mut self, now: Instant, unclean: bool) {
        self.sender = Sender::new(
            config(self.stream, &mut self.rng),
            self.disk.current.position,
            self.rng.next_u64(),
        );
        self.base_complete = false;
        self.stopped = false;
        if unclean {
            self.take_base(ResyncReason::UncleanRestart);
        }
        self.tell_sender(now);
    }

    fn tell_sender(&mut self, now: Instant) {
        let current = &self.disk.current;
        let bytes = current.entries.values().map(|entry| entry.payload.len() as u64).sum();
        self.sender.handle_queued(now, current.last_seq, bytes);
        if let Some(next) = &self.disk.next {
            self.sender
                .handle_next_epoch(next.open_id, next.reason.expect("every wish has a reason"));
        } else {
            self.offer_base();
        }
    }

    /// A snapshot of now; what follows is the next epoch.
    pub(crate) fn take_base(&mut self, reason: ResyncReason) {
        let mut bytes = vec![0; 16 + self.rng.up_to(3 * MAX_FRAME as u64) as usize];
        bytes[..8].copy_from_slice(&self.disk.commits.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lineage.to_le_bytes());
        let id = SnapshotId(self.random());
        let open_id = OpenId(self.random());
        self.disk.next = Some(Generation {
            open_id,
            reason: Some(reason),
            base: Some(Snapshot { id, bytes }),
            ..Generation::default()
        });
        self.sender.handle_next_epoch(open_id, reason);
        self.wants_base = None;
    }

    pub(crate) fn commit(&mut self, now: Instant) {
        self.disk.commits += 1;
        let big = self.rng.up_to(20) == 0;
        let len = 16 + self.rng.up_to(if big { 4 * MAX_FRAME as u64 } else { 200 }) as usize;
        let mut payload = vec![0; len];
        payload[..8].copy_from_slice(&self.disk.commits.to_le_bytes());
        payload[8..16].copy_from_slice(&self.lineage.to_le_bytes());
        let commit = self.disk.commits;
        self.queue(now, EntryKind::Changeset, commit, payload);
    }

    fn queue(&mut self, now: Instant, kind: EntryKind, commit: u64, payload: Vec<u8>) {
        let is_current = self.disk.next.is_none();
        let generation = self.disk.next.as_mut().unwrap_or(&mut self.disk.current);
        let seq = generation.last_seq.next();
        let meta = EntryMeta {
            seq,
            kind,
            first_commit: commit,
            last_commit: commit,
            time_ms: 0,
            schema_version: 1,
            content_hash: None,
        };
        let mut buffer = [0; MAX_META_LEN];
        let meta = meta.encode(&mut buffer).expect("metas fit").to_vec();
        let bytes = payload.len() as u64;
        generation.entries.insert(seq, Stored { meta, payload });
        generation.last_seq = seq;
        if is_current {
            self.sender.handle_queued(now, seq, bytes);
        }
    }

    fn offer_base(&mut self) {
        let current = &self.disk.current;
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
            && self.disk.next.is_none()
            && self.wants_base.is_none()
            && self.sender.position().next_seq > self.disk.current.last_seq
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
        self.sender.poll_timeout()
    }

    /// Does what the sender wants done; what concerns the world is returned.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Ask> {
        loop {
            if let Some(event) = self.sender.poll_event() {
                if let Some(ask) = self.on_event(now, event) {
                    return Some(ask);
                }
                continue;
            }
            let action = self.sender.poll_action(now)?;
            if let Some(ask) = self.on_action(now, action) {
                return Some(ask);
            }
        }
    }

    fn on_event(&mut self, now: Instant, event: Event) -> Option<Ask> {
        match event {
            Event::Acked { head, .. } => {
                let current = &mut self.disk.current;
                current.position =
                    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
                current.entries = current.entries.split_off(&head.next_seq);
                self.base_complete = head.base_complete;
                return Some(Ask::Acked(head));
            }
            Event::EpochOpened { head } => {
                let wished =
                    self.disk.next.as_ref().is_some_and(|next| next.open_id == head.open_id);
                let mut opened = if wished {
                    self.disk.next.take().unwrap_or_default()
                } else {
                    Generation::default()
                };
                opened.position =
                    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
                self.disk.current = opened;
                self.base_complete = false;
                self.tell_sender(now);
            }
            Event::ResyncNeeded(reason) => self.wants_base = Some(reason),
            Event::SnapshotStored(id) => {
                if self.disk.next.is_none()
                    && let Some(base) = self.disk.current.base.clone()
                    && base.id == id
                    && !self.disk.current.base_noted
                {
                    self.disk.current.base_noted = true;
                    let note = SnapshotNote {
                        id,
                        as_of: SeqNo(0),
                        len: base.bytes.len() as u64,
                        sha256: crate::sequencer::sha256(&base.bytes),
                        content_hash: None,
                    };
                    let mut buffer = [0; SnapshotNote::MAX_LEN];
                    let note = note.encode(&mut buffer).expect("notes fit").to_vec();
                    let commit = self.disk.commits;
                    self.queue(now, EntryKind::Snapshot, commit, note);
                }
            }
            Event::Stopped(_) => self.stopped = true,
            _ => {}
        }
        None
    }

    fn on_action(&mut self, now: Instant, action: Action) -> Option<Ask> {
        let mut buffer = vec![0; 2 * MAX_FRAME + 64 * 1024];
        let current = &mut self.disk.current;
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
                let mut stored: Vec<_> =
                    current.entries.range(first..).map(|(_, entry)| entry.clone()).collect();
                assert!(!stored.is_empty(), "entry {first} was trimmed before it was acknowledged");
                if self.sabotage == Some(Sabotage::SwappedOrder) && stored.len() > 1 {
                    let first = stored[0].payload.clone();
                    stored[0].payload = std::mem::replace(&mut stored[1].payload, first);
                }
                for entry in stored.iter().take(max_entries as usize) {
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
            linger: std::time::Duration::from_millis(200),
            idle_linger: std::time::Duration::from_millis(5),
        },
        backoff: Default::default(),
        response_timeout: std::time::Duration::from_secs(2),
        keep_alive: std::time::Duration::from_secs(5),
        on_divergence: OnDivergence::Resync,
        compression: if rng.up_to(2) == 0 { Compression::None } else { Compression::Lz4 },
    }
}
