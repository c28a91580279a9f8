//! A sender's frames against a log on disk, and once over HTTP.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use sha2::{Digest, Sha256};
use synddb_core::{
    Chain, Epoch, Nonce, OpenId, SeqNo, SnapshotId, StreamId,
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Header, Message, SnapshotNote,
        message::{
            Compression, Fragment, Head, Hello, OpenEpoch, Refusal, ResyncReason, SnapshotBegin,
            SnapshotChunk, SnapshotEnd,
        },
    },
};
use synddb_sequencer::{
    Config, Server,
    ingest::{Connection, DEFAULT_LIMITS, Ingest, Reply},
    store::{LogStore, SqliteStore, StoreError},
};

fn stream() -> StreamId {
    StreamId::from_name("orders")
}

fn connect(dir: &Path) -> Connection {
    let store = Arc::new(SqliteStore::open(dir).unwrap());
    Connection::new(Ingest::new(store, DEFAULT_LIMITS))
}

fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let len = message.encode(7, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn hello(instance: u8, ticket: u64) -> Vec<u8> {
    frame(&Message::Hello(Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        stream: stream(),
        name: "orders",
        instance: Nonce([instance; 16]),
        nonce: Nonce([instance; 16]),
        ticket,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: 1 << 20,
        token: b"",
    }))
}

fn open(head: &Head) -> Vec<u8> {
    frame(&Message::OpenEpoch(OpenEpoch {
        previous: head.epoch,
        previous_next_seq: head.next_seq,
        previous_chain: head.chain,
        floor: Epoch(0),
        open_id: OpenId([head.epoch.0 as u8 + 1; 16]),
        reason: ResyncReason::FirstAttach,
    }))
}

fn meta(seq: SeqNo, kind: EntryKind) -> Vec<u8> {
    let meta = EntryMeta {
        seq,
        kind,
        first_commit: 1,
        last_commit: 1,
        time_ms: 0,
        schema_version: 0,
        content_hash: None,
    };
    meta.encode(&mut [0; 256]).unwrap().to_vec()
}

fn entry(head: &Head, kind: EntryKind, payload: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let mut writer =
        EntriesWriter::new(&mut buffer, head.epoch, head.next_seq, head.chain).unwrap();
    writer.push(Entry { meta: &meta(head.next_seq, kind), payload }).unwrap();
    let len = writer.finish(7).unwrap().frame_len;
    buffer.truncate(len);
    buffer
}

fn answer(connection: &mut Connection, bytes: &[u8]) -> Result<Head, Refusal> {
    let Reply::Frame(reply) = connection.handle(bytes) else { panic!("no answer") };
    match Message::decode(&reply, 1 << 16).unwrap() {
        (7, Message::Ack(ack)) => Ok(ack.head),
        (7, Message::HelloAck(ack)) => Ok(ack.head),
        (7, Message::SnapshotAck(_)) => Ok(Head::default()),
        (7, Message::Nack(nack)) => Err(nack.refusal),
        other => panic!("{other:?}"),
    }
}

fn begin(connection: &mut Connection) -> Head {
    let head = answer(connection, &hello(1, 0)).unwrap();
    answer(connection, &open(&head)).unwrap()
}

#[test]
fn entries_are_stored_once_and_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = connect(dir.path());
    let first = begin(&mut connection);
    assert_eq!((first.epoch, first.next_seq), (Epoch(1), SeqNo(1)));
    let sent = entry(&first, EntryKind::Changeset, b"");
    let second = answer(&mut connection, &sent).unwrap();
    assert_eq!(second.next_seq, SeqNo(2));
    drop(connection);

    let mut connection = connect(dir.path());
    assert_eq!(answer(&mut connection, &sent), Err(Refusal::NoHello));
    assert_eq!(answer(&mut connection, &hello(1, 0)), Ok(second));
    assert_eq!(answer(&mut connection, &sent), Ok(second), "a resend gets the same answer");
    let fork = entry(&first, EntryKind::Schema, b"other");
    assert_eq!(answer(&mut connection, &fork), Err(Refusal::Fork(second)));
    let gap = Head { next_seq: SeqNo(9), ..second };
    let gap = entry(&gap, EntryKind::Changeset, b"");
    assert_eq!(answer(&mut connection, &gap), Err(Refusal::Gap(second)));

    let garbage = entry(&second, EntryKind::Changeset, b"Tgarbage");
    assert_eq!(answer(&mut connection, &garbage), Err(Refusal::InvalidEntry { seq: SeqNo(2) }));

    let log = SqliteStore::open_read_only(dir.path()).unwrap();
    let entries = log.entries(stream(), Epoch(1), SeqNo(1), 1 << 20).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].chain, second.chain);
    assert_eq!(log.streams().unwrap()[0].name, "orders");
}

#[test]
fn a_newer_sender_supersedes_the_older() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn LogStore> = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let ingest = Ingest::new(store, DEFAULT_LIMITS);
    let connection = || Connection::new(ingest.clone());
    let (mut old, mut new) = (connection(), connection());
    let head = begin(&mut old);
    answer(&mut new, &hello(2, 0)).unwrap();
    let sent = entry(&head, EntryKind::Changeset, b"");
    answer(&mut new, &sent).unwrap();
    assert_eq!(answer(&mut old, &sent), Err(Refusal::Superseded));
    // Neither a repeated Hello nor a new connection gives it back.
    let _ = answer(&mut old, &hello(1, 0));
    assert_eq!(answer(&mut old, &sent), Err(Refusal::Superseded));
    assert_eq!(answer(&mut connection(), &hello(1, 0)), Err(Refusal::Superseded));
}

#[test]
fn a_large_entry_comes_in_pieces_across_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = connect(dir.path());
    let head = begin(&mut connection);
    let payload = vec![b'x'; 1000];
    let meta = meta(SeqNo(1), EntryKind::Schema);
    let chain_after = head.chain.next(&meta, &payload);
    let piece = |from: usize, to: usize| {
        frame(&Message::Fragment(Fragment {
            epoch: head.epoch,
            seq: SeqNo(1),
            chain_before: head.chain,
            chain_after,
            meta: &meta,
            total: 1000,
            offset: from as u64,
            compression: Compression::None,
            len: (to - from) as u32,
            data: &payload[from..to],
        }))
    };
    assert_eq!(answer(&mut connection, &piece(0, 400)), Ok(head));
    drop(connection);
    let mut connection = connect(dir.path());
    answer(&mut connection, &hello(1, 0)).unwrap();
    // Overlaps what is staged.
    assert_eq!(answer(&mut connection, &piece(300, 700)), Ok(head));
    let after = answer(&mut connection, &piece(700, 1000)).unwrap();
    assert_eq!((after.next_seq, after.chain), (SeqNo(2), chain_after));
    let log = SqliteStore::open_read_only(dir.path()).unwrap();
    let entries = log.entries(stream(), Epoch(1), SeqNo(1), 0).unwrap();
    assert_eq!(entries[0].payload, payload);
    assert!(log.staged(stream()).unwrap().is_empty());
}

#[test]
fn a_note_counts_only_once_its_snapshot_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = connect(dir.path());
    let head = begin(&mut connection);
    let image = b"not really a database";
    let (id, len) = (SnapshotId([3; 16]), image.len() as u64);
    let sha256: [u8; 32] = Sha256::digest(image).into();
    let mut buffer = [0; SnapshotNote::MAX_LEN];
    let note = SnapshotNote { id, as_of: SeqNo(0), len, sha256 };
    let note = entry(&head, EntryKind::Snapshot, note.encode(&mut buffer).unwrap());
    assert_eq!(answer(&mut connection, &note), Err(Refusal::InvalidEntry { seq: SeqNo(1) }));

    let epoch = head.epoch;
    let chunk = |offset: usize| {
        let data = &image[offset..];
        let (offset, len, compression) = (offset as u64, data.len() as u32, Compression::None);
        frame(&Message::SnapshotChunk(SnapshotChunk { epoch, id, offset, compression, len, data }))
    };
    let end = |sha256| frame(&Message::SnapshotEnd(SnapshotEnd { epoch, id, len, sha256 }));
    assert_eq!(answer(&mut connection, &chunk(0)), Err(Refusal::SnapshotInvalid));
    let announce = frame(&Message::SnapshotBegin(SnapshotBegin { epoch, id, len }));
    answer(&mut connection, &announce).unwrap();
    assert!(matches!(answer(&mut connection, &chunk(5)), Err(Refusal::SnapshotGap(_))));
    assert!(matches!(answer(&mut connection, &end(sha256)), Err(Refusal::SnapshotGap(_))));
    answer(&mut connection, &chunk(0)).unwrap();
    assert_eq!(answer(&mut connection, &end([0; 32])), Err(Refusal::SnapshotInvalid));
    answer(&mut connection, &chunk(0)).unwrap();
    answer(&mut connection, &end(sha256)).unwrap();
    assert!(answer(&mut connection, &note).unwrap().base_complete);
}

#[test]
fn one_process_serves_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SqliteStore::open(dir.path()).unwrap();
    assert!(matches!(SqliteStore::open(dir.path()), Err(StoreError::InUse { .. })));
}

fn post(server: &Server, content_type: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut link = TcpStream::connect(server.addr()).unwrap();
    let head = format!(
        "POST /v1/frames HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    link.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    link.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    (String::from_utf8(answer[..at].to_vec()).unwrap(), answer[at + 4..].to_vec())
}

#[test]
fn frames_travel_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new("127.0.0.1:0".parse().unwrap(), dir.path())).unwrap();
    let frames = "application/vnd.synddb.frames";
    assert!(post(&server, "text/plain", b"").0.starts_with("HTTP/1.1 415"));
    assert!(post(&server, frames, b"hello?").0.starts_with("HTTP/1.1 400"));
    let (status, body) = post(&server, frames, &hello(1, 0));
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    let (_, Message::HelloAck(ack)) = Message::decode(&body, 1 << 16).unwrap() else { panic!() };
    let body = [hello(1, ack.ticket), open(&ack.head), frame(&Message::Ping)].concat();
    let (_, body) = post(&server, frames, &body);
    let first = Header::read(&body, 1 << 16).unwrap().frame_len();
    let heads = [&body[..first], &body[first..]].map(|answer| {
        match Message::decode(answer, 1 << 16).unwrap().1 {
            Message::Ack(ack) => ack.head,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!((heads[0].epoch, heads[0]), (Epoch(1), heads[1]));
    server.shutdown();
    SqliteStore::open(dir.path()).expect("the directory is free again");
}

/// A link that repeats a Hello must not be able to give a dead connection a new ticket.
#[test]
fn a_repeated_hello_gets_the_same_ticket() {
    let ticket = |connection: &mut Connection, hello: &[u8]| {
        let Reply::Frame(reply) = connection.handle(hello) else { panic!("no answer") };
        match Message::decode(&reply, 1 << 16).unwrap().1 {
            Message::HelloAck(ack) => ack.ticket,
            other => panic!("{other:?}"),
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let mut connection = Connection::new(Ingest::new(store.clone(), DEFAULT_LIMITS));
    let first = ticket(&mut connection, &hello(1, 0));
    assert_eq!(ticket(&mut connection, &hello(1, 0)), first);
    assert!(ticket(&mut connection, &hello(2, 0)) > first, "another Hello is another session");
    let mut other = Connection::new(Ingest::new(store, DEFAULT_LIMITS));
    assert!(ticket(&mut other, &hello(1, 0)) > first, "so is the same on another connection");
}
