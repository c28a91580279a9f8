//! A sender's frames against a log on disk, and once over HTTP.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

#[path = "support/payload.rs"]
mod payload;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use lz4_flex::block::compress;
use payload::carrying;
use sha2::{Digest, Sha256};
use synddb_core::{
    Chain, Epoch, Nonce, OpenId, Rng, SeqNo, SnapshotId, StreamId,
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Header, Message, SnapshotNote, header,
        message::{
            Compression, Fragment, Head, Hello, OpenEpoch, Refusal, ResyncReason, SnapshotBegin,
            SnapshotChunk, SnapshotEnd, TooLarge, feature,
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
    let fork = entry(&first, EntryKind::Changeset, &carrying(b"other"));
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
    let payload = carrying(&[b'x'; 990]);
    assert_eq!(payload.len(), 1000);
    let meta = meta(SeqNo(1), EntryKind::Changeset);
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
    let note = SnapshotNote { id, as_of: SeqNo(0), len, sha256, content_hash: None };
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

/// Schema entries with these payloads, and a block in the place of their compressed region.
fn compressed_entries(
    head: &Head,
    payloads: &[&[u8]],
    block: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 17];
    let mut writer =
        EntriesWriter::new(&mut buffer, head.epoch, head.next_seq, head.chain).unwrap();
    let mut seq = head.next_seq;
    for payload in payloads {
        writer.push(Entry { meta: &meta(seq, EntryKind::Changeset), payload }).unwrap();
        seq = seq.next();
    }
    let block = block(writer.region());
    let len = writer.finish_compressed(7, Compression::Lz4, &block).unwrap().frame_len;
    buffer.truncate(len);
    buffer
}

/// The frame with another length announced for its entries.
fn announce(mut frame: Vec<u8>, raw_len: u32) -> Vec<u8> {
    frame[24..28].copy_from_slice(&raw_len.to_le_bytes());
    let kind = Header::read(&frame, frame.len()).unwrap().kind().unwrap();
    header::seal(&mut frame, kind, 7).unwrap();
    frame
}

#[test]
fn of_what_is_offered_only_what_is_known_is_agreed_on() {
    for (offered, agreed) in
        [(0, 0), (feature::LZ4, feature::LZ4), (u32::MAX, feature::LZ4), (!feature::LZ4, 0)]
    {
        let dir = tempfile::tempdir().unwrap();
        let hello = hello(1, 0);
        let (_, Message::Hello(hello)) = Message::decode(&hello, 1 << 16).unwrap() else {
            panic!()
        };
        let hello = frame(&Message::Hello(Hello { features: offered, ..hello }));
        let Reply::Frame(reply) = connect(dir.path()).handle(&hello) else { panic!("no answer") };
        match Message::decode(&reply, 1 << 16).unwrap().1 {
            Message::HelloAck(ack) => assert_eq!(ack.features, agreed, "offered {offered}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn compressed_frames_are_stored_as_they_were_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = connect(dir.path());
    let first = begin(&mut connection);
    let payloads = [carrying(&[b'a'; 40_000]), carrying(b"b"), carrying(&[b'c'; 500])];
    let payloads = payloads.each_ref().map(|payload| &payload[..]);
    let sent = compressed_entries(&first, &payloads, compress);
    assert!(sent.len() < 1000, "{} bytes", sent.len());
    let mut chain = first.chain;
    for (seq, payload) in (1..).zip(payloads) {
        chain = chain.next(&meta(SeqNo(seq), EntryKind::Changeset), payload);
    }
    let head = answer(&mut connection, &sent).unwrap();
    assert_eq!((head.next_seq, head.chain), (SeqNo(4), chain), "the chain is over what was before");
    assert_eq!(answer(&mut connection, &sent), Ok(head), "a resend gets the same answer");

    let large: Vec<u8> = (0..2990).map(|at| b'a' + (at / 100) as u8 % 26).collect();
    let large = carrying(&large);
    let meta = meta(SeqNo(4), EntryKind::Changeset);
    let chain_after = head.chain.next(&meta, &large);
    let mut after = head;
    // The third is not compressed.
    for (at, piece) in large.chunks(1000).enumerate() {
        let block = compress(piece);
        let (compression, data) =
            if at == 2 { (Compression::None, piece) } else { (Compression::Lz4, &block[..]) };
        let fragment = Fragment {
            epoch: head.epoch,
            seq: SeqNo(4),
            chain_before: head.chain,
            chain_after,
            meta: &meta,
            total: 3000,
            offset: at as u64 * 1000,
            compression,
            len: 1000,
            data,
        };
        after = answer(&mut connection, &frame(&Message::Fragment(fragment))).unwrap();
    }
    assert_eq!((after.next_seq, after.chain), (SeqNo(5), chain_after));

    let image = [[1; 700], [2; 700]].concat();
    let (epoch, id, len) = (head.epoch, SnapshotId([3; 16]), 1400);
    let begin = frame(&Message::SnapshotBegin(SnapshotBegin { epoch, id, len }));
    answer(&mut connection, &begin).unwrap();
    for (offset, piece) in (0..).step_by(700).zip(image.chunks(700)) {
        let (compression, data) = (Compression::Lz4, &compress(piece)[..]);
        let chunk = SnapshotChunk { epoch, id, offset, compression, len: 700, data };
        answer(&mut connection, &frame(&Message::SnapshotChunk(chunk))).unwrap();
    }
    let sha256 = Sha256::digest(&image).into();
    let end = frame(&Message::SnapshotEnd(SnapshotEnd { epoch, id, len, sha256 }));
    answer(&mut connection, &end).unwrap();

    let log = SqliteStore::open_read_only(dir.path()).unwrap();
    let entries = log.entries(stream(), Epoch(1), SeqNo(1), 1 << 20).unwrap();
    let stored: Vec<_> = entries.iter().map(|entry| &entry.payload[..]).collect();
    assert_eq!(stored, [payloads[0], payloads[1], payloads[2], &large]);
}

#[test]
fn hostile_blocks_are_refused_and_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let ingest = Ingest::new(store, DEFAULT_LIMITS);
    let mut connection = Connection::new(ingest.clone());
    let head = begin(&mut connection);
    let text: Vec<u8> = (0..1990).map(|at| b'a' + (at / 7 % 26) as u8).collect();
    let text = carrying(&text);
    let good = compressed_entries(&head, &[&text], compress);
    let bad = announce(good.clone(), 1);
    let stranger = answer(&mut Connection::new(ingest), &bad);
    assert_eq!(stranger, Err(Refusal::NoHello), "nothing is decompressed for a stranger");

    let limit = DEFAULT_LIMITS.max_frame;
    let too_large = Err(Refusal::TooLarge { what: TooLarge::Frame, limit: limit.into() });
    for raw_len in [u32::MAX, 1 << 31, limit, limit - 50] {
        assert_eq!(answer(&mut connection, &announce(good.clone(), raw_len)), too_large);
    }
    // Within the limit, and not the length that comes out.
    for raw_len in [0, 1, 2000, 2100, limit - 100] {
        let sent = announce(good.clone(), raw_len);
        assert_eq!(answer(&mut connection, &sent), Err(Refusal::Corrupt), "{raw_len}");
    }
    let bomb =
        |_: &[u8]| [&[0x1f, 0, 1, 0][..], &vec![255; 16_000], &[0, 0x50, 0, 0, 0, 0, 0]].concat();
    let bomb = compressed_entries(&head, &[&text], bomb);
    assert_eq!(answer(&mut connection, &bomb), Err(Refusal::Corrupt));
    // A block that is sound, with other bytes in it than entries.
    for filler in [0, 255] {
        let sent = compressed_entries(&head, &[&text], |raw| compress(&vec![filler; raw.len()]));
        assert_eq!(answer(&mut connection, &sent), Err(Refusal::Corrupt));
    }
    for keep in 0..compress(&text).len() {
        let cut = |raw: &[u8]| compress(raw)[..keep].to_vec();
        let sent = compressed_entries(&head, &[&text], cut);
        assert_eq!(answer(&mut connection, &sent), Err(Refusal::Corrupt), "cut to {keep}");
    }

    let mut rng = Rng::new(1);
    // Where a damaged block is sound by chance, its entries are of no place in the log.
    let elsewhere = Head { next_seq: SeqNo(9), ..head };
    for round in 0..20_000 {
        let damage = |raw: &[u8]| {
            let mut block = compress(raw);
            for _ in 0..=rng.up_to(3) {
                let at = rng.up_to(block.len() as u64 - 1) as usize;
                block[at] = rng.next_u64() as u8;
            }
            block
        };
        let sent = compressed_entries(&elsewhere, &[&text], damage);
        match answer(&mut connection, &sent) {
            Err(Refusal::Corrupt | Refusal::Gap(_)) => {}
            other => panic!("round {round}: {other:?}"),
        }
    }

    let (meta, epoch) = (meta(SeqNo(1), EntryKind::Changeset), head.epoch);
    let fragment = |len, data| {
        frame(&Message::Fragment(Fragment {
            epoch,
            seq: SeqNo(1),
            chain_before: head.chain,
            chain_after: head.chain.next(&meta, &text),
            meta: &meta,
            total: 5000,
            offset: 0,
            compression: Compression::Lz4,
            len,
            data,
        }))
    };
    let id = SnapshotId([3; 16]);
    let announced = frame(&Message::SnapshotBegin(SnapshotBegin { epoch, id, len: 5000 }));
    answer(&mut connection, &announced).unwrap();
    let chunk = |len, data| {
        let compression = Compression::Lz4;
        let chunk = SnapshotChunk { epoch, id, offset: 0, compression, len, data };
        frame(&Message::SnapshotChunk(chunk))
    };
    let block = compress(&text);
    for (len, data, refusal) in [
        (2001, &block[..], Err(Refusal::Corrupt)),
        (1999, &block, Err(Refusal::Corrupt)),
        (2000, &block[..block.len() - 1], Err(Refusal::Corrupt)),
        (2000, b"", Err(Refusal::Corrupt)),
        (u32::MAX, &block, too_large),
        (limit - 20, &block, too_large),
    ] {
        assert_eq!(answer(&mut connection, &fragment(len, data)), refusal, "{len}");
        assert_eq!(answer(&mut connection, &chunk(len, data)), refusal, "{len}");
    }

    let after = answer(&mut connection, &good).unwrap();
    assert_eq!(after.next_seq, SeqNo(2), "the connection goes on");
    let log = SqliteStore::open_read_only(dir.path()).unwrap();
    let entries = log.entries(stream(), Epoch(1), SeqNo(1), 1 << 20).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].payload, text);
    assert!(log.staged(stream()).unwrap().is_empty());
}
