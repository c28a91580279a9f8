//! Outbox, link, HTTP and sequencer together: what is appended is acknowledged and stored, whatever
//! stops and starts on the way.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, session::Session};
use sha2::{Digest, Sha256};
use synddb_core::{
    Nonce, OpenId, SnapshotId, StreamId,
    sender::{OnDivergence, SenderConfig},
    transport::Transport,
    wire::{
        EntryKind, Kind, Message,
        message::{Compression, HelloAck, ResyncReason},
    },
};
use synddb_sequencer::{
    Config, Server,
    store::{LogStore, SqliteStore},
};

use super::{Base, Blocking, Image, Link};
use crate::{
    error::{NotStored, Reason},
    outbox::{NewEntry, Outbox, Wish},
    shared::{Limits, Progress, Queued, Shared},
};

const STREAM: StreamId = StreamId::from_bytes([3; 16]);

/// Long enough for a busy machine; only a failure waits so long.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn serve(dir: &Path, address: SocketAddr) -> Server {
    Server::start(Config::new(address.into(), dir.join("log"))).unwrap()
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn transport(address: SocketAddr) -> impl Transport + Send + 'static {
    synddb_transport_ureq::connect(&format!("http://{address}")).unwrap()
}

struct Client {
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    worker: JoinHandle<()>,
}

impl Client {
    fn start(dir: &Path, address: SocketAddr) -> Self {
        Self::over(dir, transport(address), Compression::Lz4)
    }

    fn over(
        dir: &Path,
        transport: impl Transport + Send + 'static,
        compression: Compression,
    ) -> Self {
        let path = dir.join("app.db-synddb");
        let outbox = Arc::new(Outbox::open(&path, Some(STREAM), STREAM).unwrap());
        let limits = Limits {
            buffer_size: 100,
            linger: Duration::ZERO,
            max_memory: 1 << 20,
            max_retries: 1,
        };
        let shared = Arc::new(Shared::new(limits));
        let config = SenderConfig {
            stream: STREAM,
            instance: Nonce::default(),
            batch: Default::default(),
            backoff: Default::default(),
            response_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(10),
            on_divergence: OnDivergence::Halt,
            compression,
        };
        let (its_outbox, its_shared) = (Arc::clone(&outbox), Arc::clone(&shared));
        let link =
            Link::new(Blocking(transport), config, "link".into(), None, its_outbox, its_shared)
                .unwrap();
        let worker = thread::spawn(move || link.run_here());
        Self { outbox, shared, worker }
    }

    /// A snapshot of `len` bytes as of `commit`, and the wish for an epoch that begins from it.
    fn snapshot(&self, name: u8, commit: u64, len: usize) {
        let open_id = OpenId([name; 16]);
        let wish = Wish { open_id, reason: ResyncReason::Requested };
        let generation = self.outbox.begin_next(wish, commit).unwrap();
        self.outbox.establish(generation, None).unwrap();
        self.shared.outbox_changed(Queued::default());
        let image = vec![name; len];
        self.shared.base(Base {
            generation,
            id: SnapshotId([name; 16]),
            as_of: synddb_core::SeqNo(0),
            as_of_commit: commit,
            as_of_bytes: 0,
            content_hash: None,
            len: image.len() as u64,
            sha256: Sha256::digest(&image).into(),
            image: Box::new(Bytes(image)),
        });
    }

    fn commit(&self, commit: u64, changeset: Vec<u8>) {
        let entry = NewEntry {
            kind: EntryKind::Changeset,
            first_commit: commit,
            last_commit: commit,
            time_ms: 0,
            schema_version: 1,
            payload: changeset,
        };
        self.outbox.append(&[entry], None).unwrap();
        self.shared.outbox_changed(Queued::default());
    }

    fn wait_for(&self, commit: u64) {
        let deadline = soon();
        while let Some(why) = self.refused(commit) {
            assert!(Instant::now() < deadline, "{why}");
        }
    }

    /// Why `commit` is not stored, where the link says so.
    fn refused(&self, commit: u64) -> Option<NotStored> {
        let target = self.shared.expect(commit, false, Duration::from_secs(60));
        let progress = self.shared.wait_elsewhere(&target);
        self.shared.expected();
        match progress {
            Progress::Stored(_) => None,
            Progress::GaveUp(why) if matches!(why.reason, Reason::LinkDown(_)) => Some(why),
            other => panic!("{other:?}"),
        }
    }

    fn flush(&self) {
        let _ = self.shared.expect(0, false, Duration::ZERO);
        self.shared.expected();
    }

    fn stop(self) {
        assert!(self.abandon(), "all of it is acknowledged");
    }

    /// Leaves what is queued in the outbox.
    fn abandon(self) -> bool {
        self.shared.stop_link();
        self.worker.join().unwrap();
        self.outbox.state().unwrap().entries == 0
    }
}

struct Bytes(Vec<u8>);

impl Image for Bytes {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
        Ok(())
    }
}

/// The commits that the log of the newest epoch holds, in its order.
fn stored_commits(dir: &Path) -> Vec<u64> {
    let store = SqliteStore::open_read_only(&dir.join("log")).unwrap();
    let epoch = store.receiver(STREAM).unwrap().head().epoch;
    let mut commits = Vec::new();
    let mut next = synddb_core::SeqNo::FIRST;
    loop {
        let entries = store.entries(STREAM, epoch, next, 1 << 20).unwrap();
        let Some(last) = entries.last() else { return commits };
        next = last.seq.next();
        for entry in &entries {
            let meta = synddb_core::wire::EntryMeta::decode(&entry.meta).unwrap();
            if meta.kind == EntryKind::Changeset {
                commits.push(meta.last_commit);
            }
        }
    }
}

/// A changeset of about `len` bytes.
fn changeset(len: usize) -> Vec<u8> {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    let mut session = Session::new(&db).unwrap();
    session.attach::<&str>(None).unwrap();
    db.execute("INSERT INTO t VALUES (1, randomblob(?1))", [len as i64]).unwrap();
    let mut bytes = Vec::new();
    session.changeset_strm(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_appended_is_stored_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let client = Client::start(dir.path(), server.addr());
    client.snapshot(1, 0, 3_000_000);
    for commit in 1..=50 {
        client.commit(commit, Vec::new());
    }
    client.wait_for(50);
    client.stop();
    server.shutdown();
    assert_eq!(stored_commits(dir.path()), (1..=50).collect::<Vec<_>>());
}

#[test]
fn a_restart_with_an_empty_outbox_knows_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let client = Client::start(dir.path(), server.addr());
    client.snapshot(1, 0, 10);
    client.commit(1, Vec::new());
    client.wait_for(1);
    client.stop();
    let client = Client::start(dir.path(), server.addr());
    client.wait_for(1);
    client.commit(2, Vec::new());
    client.wait_for(2);
    client.stop();
    server.shutdown();
    assert_eq!(stored_commits(dir.path()), [1, 2]);
}

#[test]
fn commits_wait_for_a_sequencer_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let address = server.addr();
    let client = Client::start(dir.path(), address);
    client.snapshot(1, 0, 10);
    client.commit(1, Vec::new());
    client.wait_for(1);
    server.shutdown();
    for commit in 2..=20 {
        client.commit(commit, Vec::new());
    }
    // Restarted in between, with the queue on disk.
    assert!(!client.abandon());
    let client = Client::start(dir.path(), address);
    client.refused(20).expect("nobody is there");
    let server = serve(dir.path(), address);
    client.wait_for(20);
    client.stop();
    server.shutdown();
    assert_eq!(stored_commits(dir.path()), (1..=20).collect::<Vec<_>>());
}

/// Wishes come while acknowledgements do: none may be overlooked, and no entry given up for an epoch
/// that was granted before.
#[test]
fn a_new_epoch_begins_however_busy_the_link_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let client = Client::start(dir.path(), server.addr());
    let mut commit = 0;
    for epoch in 1..=40 {
        client.snapshot(epoch, commit, 5000);
        for _ in 0..5 {
            commit += 1;
            client.commit(commit, Vec::new());
            client.flush();
        }
        if epoch % 3 == 0 {
            client.wait_for(commit);
        }
    }
    client.wait_for(commit);
    client.stop();
    server.shutdown();
    assert_eq!(stored_commits(dir.path()), (commit - 4..=commit).collect::<Vec<_>>());
}

#[test]
fn an_entry_larger_than_every_frame_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let client = Client::start(dir.path(), server.addr());
    client.snapshot(1, 0, 10);
    let large = changeset(20_000_000);
    client.commit(1, large.clone());
    client.commit(2, Vec::new());
    client.wait_for(2);
    client.stop();
    server.shutdown();
    let store = SqliteStore::open_read_only(&dir.path().join("log")).unwrap();
    let epoch = store.receiver(STREAM).unwrap().head().epoch;
    let entries = store.entries(STREAM, epoch, synddb_core::SeqNo::FIRST, 1 << 30).unwrap();
    assert!(entries.iter().any(|entry| entry.payload == large));
}

/// What cannot be noted in the outbox is not taken as done: the link starts over from what the
/// outbox holds.
fn loses_nothing_while_the_outbox_refuses(event: &str, new_epoch: bool) {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), any_port());
    let client = Client::start(dir.path(), server.addr());
    client.snapshot(1, 0, 10);
    client.commit(1, Vec::new());
    client.wait_for(1);
    let meddler = Connection::open(dir.path().join("app.db-synddb")).unwrap();
    meddler.busy_timeout(Duration::from_secs(10)).unwrap();
    meddler
        .execute_batch(&format!(
            "CREATE TRIGGER stuck BEFORE {event} BEGIN SELECT raise(ABORT, 'stuck'); END"
        ))
        .unwrap();
    if new_epoch {
        client.snapshot(2, 1, 10);
    }
    client.commit(2, Vec::new());
    client.flush();
    let deadline = soon();
    loop {
        let why = client.refused(2).expect("it is not noted");
        if matches!(&why.reason, Reason::LinkDown(error) if error.contains("stuck")) {
            break;
        }
        assert!(Instant::now() < deadline, "{why}");
    }
    meddler.execute_batch("DROP TRIGGER stuck").unwrap();
    client.commit(3, Vec::new());
    client.wait_for(3);
    client.stop();
    server.shutdown();
    let expected: &[u64] = if new_epoch { &[2, 3] } else { &[1, 2, 3] };
    assert_eq!(stored_commits(dir.path()), expected);
}

#[test]
fn an_outbox_that_cannot_trim_for_a_while_loses_nothing() {
    loses_nothing_while_the_outbox_refuses("DELETE ON entries", false);
}

#[test]
fn an_outbox_that_cannot_open_an_epoch_for_a_while_loses_nothing() {
    loses_nothing_while_the_outbox_refuses("UPDATE OF current ON outbox", true);
}

/// Limit of the sequencer whose frames are watched, in bytes.
const MAX_FRAME: usize = 64 << 10;

/// A frame with data as it went out: what it was, how its data was compressed, the data's length on
/// the wire and before.
type Seen = (Kind, Compression, usize, usize);

/// Notes what goes out, and may pass for a receiver that knows of no feature.
struct Wiretap<T> {
    inner: T,
    knows_features: bool,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl<T: Transport> Transport for Wiretap<T> {
    type Error = T::Error;

    fn connect(&mut self) -> Result<(), T::Error> {
        self.inner.connect()
    }

    fn close(&mut self) {
        self.inner.close();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), T::Error> {
        let seen = match Message::decode(frame, frame.len()).unwrap().1 {
            Message::Entries(entries) => {
                let (wire, raw) = (entries.region().len(), entries.raw_len);
                Some((Kind::Entries, entries.compression, wire, raw))
            }
            Message::Fragment(piece) => {
                Some((Kind::Fragment, piece.compression, piece.data.len(), piece.len))
            }
            Message::SnapshotChunk(chunk) => {
                Some((Kind::SnapshotChunk, chunk.compression, chunk.data.len(), chunk.len))
            }
            _ => None,
        };
        let seen = seen.map(|(kind, how, wire, raw)| (kind, how, wire, raw as usize));
        if let Some((.., wire, raw)) = seen {
            assert!(frame.len() - wire + raw <= MAX_FRAME, "the limit holds before compression");
        }
        self.seen.lock().unwrap().extend(seen);
        self.inner.send(frame)
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, T::Error> {
        let mut len = self.inner.recv(reply, timeout)?;
        if let Some(came) = len
            && !self.knows_features
        {
            let copy = reply[..came].to_vec();
            if let (tag, Message::HelloAck(ack)) = Message::decode(&copy, came).unwrap() {
                let ack = Message::HelloAck(HelloAck { features: 0, ..ack });
                len = Some(ack.encode(tag, reply).unwrap());
            }
        }
        Ok(len)
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

/// A changeset of one row for each of these values.
fn changeset_of(values: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    let mut session = Session::new(&db).unwrap();
    session.attach::<&str>(None).unwrap();
    for value in values {
        db.execute("INSERT INTO t(b) VALUES (?1)", [value]).unwrap();
    }
    let mut bytes = Vec::new();
    session.changeset_strm(&mut bytes).unwrap();
    bytes
}

/// Sends a snapshot, entries, and an entry in pieces; gives what was seen on the way.
fn sent_with(compression: Compression, knows_features: bool) -> Vec<Seen> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(any_port().into(), dir.path().join("log"));
    config.limits.max_frame = MAX_FRAME as u32;
    let server = Server::start(config).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = transport(server.addr());
    let tap = Wiretap { inner, knows_features, seen: seen.clone() };
    let client = Client::over(dir.path(), tap, compression);
    client.snapshot(1, 0, 3_000_000);
    let text = |row: i32| format!("order {row} of customer {}, paid", row % 7).into_bytes();
    let sent = [
        changeset_of((0..200).map(text)),
        changeset(30_000),
        changeset_of((0..100_000).map(text)),
        Vec::new(),
    ];
    for (commit, changeset) in (1..).zip(&sent) {
        client.commit(commit, changeset.clone());
        // A frame of its own for each, so that noise and text do not share one.
        client.wait_for(commit);
    }
    client.stop();
    server.shutdown();
    let store = SqliteStore::open_read_only(&dir.path().join("log")).unwrap();
    let epoch = store.receiver(STREAM).unwrap().head().epoch;
    let entries = store.entries(STREAM, epoch, synddb_core::SeqNo::FIRST, 1 << 30).unwrap();
    let stored: Vec<_> = entries
        .iter()
        .filter(|entry| {
            let meta = synddb_core::wire::EntryMeta::decode(&entry.meta).unwrap();
            meta.kind == EntryKind::Changeset
        })
        .map(|entry| &entry.payload)
        .collect();
    assert_eq!(stored, sent.iter().collect::<Vec<_>>());
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

#[test]
fn frames_are_compressed_where_that_pays() {
    let seen = sent_with(Compression::Lz4, true);
    for of in [Kind::Entries, Kind::Fragment, Kind::SnapshotChunk] {
        let smallest = seen
            .iter()
            .filter(|(kind, compression, ..)| *kind == of && *compression == Compression::Lz4)
            .map(|(_, _, wire, raw)| *wire as f64 / *raw as f64)
            .reduce(f64::min);
        assert!(smallest.is_some_and(|ratio| ratio < 0.6), "{of:?}: {smallest:?}");
    }
    for (kind, compression, wire, raw) in seen {
        match compression {
            Compression::None => {
                // The noise, what is short, and nothing else.
                assert_eq!(wire, raw);
                let is_noise = kind == Kind::Entries && (30_000..31_000).contains(&raw);
                assert!(is_noise || raw < 512, "{kind:?} of {raw} bytes");
            }
            _ => assert!(wire * 10 <= raw * 9, "{kind:?}: {raw} bytes became {wire}"),
        }
    }
}

#[test]
fn nothing_is_compressed_where_either_side_cannot_or_would_not() {
    for (compression, knows_features) in [(Compression::Lz4, false), (Compression::None, true)] {
        let seen = sent_with(compression, knows_features);
        let compressed = seen.iter().find(|(_, how, ..)| *how != Compression::None);
        assert_eq!(compressed, None, "{compression:?}, {knows_features}");
        assert!(seen.iter().any(|(kind, ..)| *kind == Kind::Fragment), "there was something to");
    }
}
