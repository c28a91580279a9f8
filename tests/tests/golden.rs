//! Golden bytes of the wire. A difference here breaks deployed peers: WIRE.md says what may change.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use lz4_flex::block::decompress_into;
use synddb_core::{
    Chain, Epoch, Nonce, OpenId, SeqNo, SnapshotId, StreamId,
    changeset::{ChangesetWriter, Value},
    content::{ContentKey, ContentSum, TableHasher, deltas},
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Message, SnapshotNote,
        message::{
            Ack, Bye, Challenge, Compression, Farewell, Fragment, Head, Hello, HelloAck, Limits,
            Nack, OpenEpoch, Refusal, ResyncReason, SnapshotBegin, SnapshotChunk, SnapshotEnd,
            SnapshotProgress, Staged,
        },
    },
};

const HEAD: Head = Head {
    epoch: Epoch(2),
    open_id: OpenId([0xAA; 16]),
    next_seq: SeqNo(300),
    chain: Chain([0xCC; 32]),
    base_complete: true,
};

const META: &[u8] = &[7, 0, 5, 6, 232, 7, 3, 0];

fn messages() -> Vec<(&'static str, Message<'static>)> {
    let id = SnapshotId([0x55; 16]);
    let staged = Staged { seq: SeqNo(7), chain_after: Chain([1; 32]), offset: 1000 };
    let limits =
        Limits { max_frame: 1 << 20, max_entry: 1 << 28, max_snapshot: 1 << 40, credit: 9 };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: 1,
                stream: StreamId::from_bytes([0x11; 16]),
                name: "orders",
                instance: Nonce([0x22; 16]),
                nonce: Nonce([0x33; 16]),
                ticket: 5,
                epoch: Epoch(2),
                next_seq: SeqNo(300),
                chain: Chain([0xCC; 32]),
                max_frame: 16384,
                token: b"token",
            }),
        ),
        (
            "hello_ack",
            Message::HelloAck(HelloAck {
                version: 1,
                features: 0,
                nonce: Nonce([0x33; 16]),
                ticket: 6,
                head: HEAD,
                genesis: Chain([0xDD; 32]),
                chain_at_next: Some(Chain([0xCC; 32])),
                staged: Some(staged),
                snapshot: None,
                limits,
                time_ms: 1_700_000_000_000,
            }),
        ),
        ("challenge", Message::Challenge(Challenge { nonce: [0x44; 32] })),
        (
            "open_epoch",
            Message::OpenEpoch(OpenEpoch {
                previous: Epoch(1),
                previous_next_seq: SeqNo(9),
                previous_chain: Chain([0xEE; 32]),
                floor: Epoch(1),
                open_id: OpenId([0xAA; 16]),
                reason: ResyncReason::SchemaChanged,
            }),
        ),
        (
            "fragment",
            Message::Fragment(Fragment {
                epoch: Epoch(2),
                seq: SeqNo(7),
                chain_before: Chain([0; 32]),
                chain_after: Chain([1; 32]),
                meta: META,
                total: 2000,
                offset: 1000,
                compression: Compression::None,
                len: 3,
                data: b"abc",
            }),
        ),
        (
            "fragment_lz4",
            Message::Fragment(Fragment {
                epoch: Epoch(2),
                seq: SeqNo(7),
                chain_before: Chain([0; 32]),
                chain_after: Chain([1; 32]),
                meta: META,
                total: 2000,
                offset: 1000,
                compression: Compression::Lz4,
                len: 500,
                data: b"\x1fx\x01\x00\xff\xdc\x50xxxxx",
            }),
        ),
        (
            "ack",
            Message::Ack(Ack {
                head: HEAD,
                staged: None,
                credit: 1 << 22,
                time_ms: 1_700_000_000_000,
                signature: b"",
            }),
        ),
        ("nack", Message::Nack(Nack { refusal: Refusal::Gap(HEAD), text: "gap" })),
        (
            "snapshot_begin",
            Message::SnapshotBegin(SnapshotBegin { epoch: Epoch(2), id, len: 4096 }),
        ),
        (
            "snapshot_chunk",
            Message::SnapshotChunk(SnapshotChunk {
                epoch: Epoch(2),
                id,
                offset: 0,
                compression: Compression::None,
                len: 3,
                data: b"abc",
            }),
        ),
        (
            "snapshot_end",
            Message::SnapshotEnd(SnapshotEnd {
                epoch: Epoch(2),
                id,
                len: 4096,
                sha256: [0x66; 32],
            }),
        ),
        ("snapshot_ack", Message::SnapshotAck(SnapshotProgress { id, offset: 3, complete: false })),
        ("ping", Message::Ping),
        ("bye", Message::Bye(Bye { farewell: Farewell::Done })),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden(name: &str) -> String {
    let found = include_str!("golden.txt")
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("golden.txt has no line {name}")).to_owned()
}

#[test]
fn messages_have_their_bytes() {
    for (name, message) in messages() {
        let mut buffer = [0; 1024];
        let len = message.encode(0x0102_0304, &mut buffer).unwrap();
        let bytes = &buffer[..len];
        assert_eq!(hex(bytes), golden(name), "{name}");
        assert_eq!(Message::decode(bytes, 1024), Ok((0x0102_0304, message)), "{name}");
    }
}

#[test]
fn farewells_have_their_bytes() {
    let farewells = [
        Farewell::Done,
        Farewell::Shutdown,
        Farewell::Busy,
        Farewell::Idle,
        Farewell::Late,
        Farewell::TlsOnly,
    ];
    for (byte, farewell) in (0..).zip(farewells) {
        let mut buffer = [0; 64];
        let len = Message::Bye(Bye { farewell }).encode(0, &mut buffer).unwrap();
        assert_eq!(buffer[20..len], [byte], "{farewell:?}");
    }
}

#[test]
fn entries_have_their_bytes() {
    let meta = EntryMeta {
        seq: SeqNo(7),
        kind: EntryKind::Changeset,
        first_commit: 5,
        last_commit: 6,
        time_ms: 1000,
        schema_version: 3,
        content_hash: None,
    };
    let mut buffer = [0; 64];
    assert_eq!(meta.encode(&mut buffer).unwrap(), META);
    let mut frame = [0; 256];
    let mut writer = EntriesWriter::new(&mut frame, Epoch(2), SeqNo(7), Chain([9; 32])).unwrap();
    writer.push(Entry { meta: META, payload: b"payload" }).unwrap();
    let written = writer.finish(1).unwrap();
    assert_eq!(hex(&frame[..written.frame_len]), golden("entries"));
    assert_eq!(hex(&written.chain.0), golden("entries_chain"));
}

/// An entry that carries the hash of what is there after it.
#[test]
fn an_entry_with_a_content_hash_has_its_bytes() {
    let key = ContentKey::of(StreamId::from_bytes([0x11; 16]));
    let mut changeset = [0; 64];
    let mut writer = ChangesetWriter::new(&mut changeset);
    writer.table("t", &[1, 0, 0]).unwrap();
    writer.insert(&[1.into(), "one".into(), 2.5.into()]).unwrap();
    let payload = writer.finish();
    let mut content = ContentSum::default();
    deltas(key, payload, |_, delta| content += delta).unwrap();
    assert_eq!(content.to_string(), golden("content_row"));
    let meta = EntryMeta {
        seq: SeqNo(7),
        kind: EntryKind::Changeset,
        first_commit: 5,
        last_commit: 6,
        time_ms: 1000,
        schema_version: 3,
        content_hash: Some(content),
    };
    let mut buffer = [0; 64];
    let meta = meta.encode(&mut buffer).unwrap();
    let mut frame = [0; 256];
    let mut writer = EntriesWriter::new(&mut frame, Epoch(2), SeqNo(7), Chain([9; 32])).unwrap();
    writer.push(Entry { meta, payload }).unwrap();
    let written = writer.finish(1).unwrap();
    assert_eq!(hex(&frame[..written.frame_len]), golden("entries_hash"));
    assert_eq!(EntryMeta::decode(meta).unwrap().content_hash, Some(content));
}

/// Computed by another implementation of what WIRE.md says.
#[test]
fn content_has_its_hash() {
    let key = ContentKey::of(StreamId::from_bytes([0x11; 16]));
    assert_eq!(key, ContentKey::from_bytes(bytes(&golden("content_key"))));
    let long = "x".repeat(200);
    let t = TableHasher::new(key, "t");
    let rows = t.row(&[1, 0, 0], [1.into(), "one".into(), 2.5.into()].into_iter())
        + t.row(&[1, 0, 0], [2.into(), Value::Null, b"\x00\xff"[..].into()].into_iter())
        + TableHasher::new(key, "plain").row(&[1, 0], [7.into(), (&*long).into()].into_iter());
    assert_eq!(rows.to_string(), golden("content_three"));
}

#[test]
fn a_note_of_a_snapshot_has_its_bytes() {
    let note = SnapshotNote {
        id: SnapshotId([0x55; 16]),
        as_of: SeqNo(300),
        len: 4096,
        sha256: [0x66; 32],
        content_hash: Some(ContentSum::from_bytes([0x77; 16])),
    };
    let mut buffer = [0; SnapshotNote::MAX_LEN];
    let encoded = note.encode(&mut buffer).unwrap();
    assert_eq!(hex(encoded), golden("snapshot_note"));
    assert_eq!(SnapshotNote::decode(encoded), Ok(note));
    // As it was written before there were hashes.
    let before = SnapshotNote::decode(&encoded[..encoded.len() - 17]);
    assert_eq!(before, Ok(SnapshotNote { content_hash: None, ..note }));
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
}

/// What is compressed has many forms, all of which decompress to the same; this one was made by hand.
#[test]
fn compressed_entries_have_their_bytes() {
    // The region: meta and payload, each with its length before it.
    let payload = [b'x'; 600];
    let raw = [&[8], META, &[0xd8, 4], &payload].concat();
    // 12 bytes as they are, then 594 more from 1 byte back on, then the last 5 as they are.
    let block = [&[0xcf], &raw[..12], &[1, 0, 255, 255, 65], &[0x50], b"xxxxx"].concat();
    let mut frame = [0; 1024];
    let mut writer = EntriesWriter::new(&mut frame, Epoch(2), SeqNo(7), Chain([9; 32])).unwrap();
    writer.push(Entry { meta: META, payload: &payload }).unwrap();
    assert_eq!(writer.region(), raw);
    let written = writer.finish_compressed(1, Compression::Lz4, &block).unwrap();
    assert_eq!(written.region_len, raw.len());
    let bytes = &frame[..written.frame_len];
    assert_eq!(hex(bytes), golden("entries_lz4"));
    assert_eq!(hex(&written.chain.0), golden("entries_lz4_chain"), "over what was before");

    let (_, Message::Entries(came)) = Message::decode(bytes, 1024).unwrap() else { panic!() };
    assert_eq!((came.compression, came.raw_len as usize), (Compression::Lz4, raw.len()));
    let mut decompressed = vec![0; raw.len()];
    assert_eq!(decompress_into(came.region(), &mut decompressed).unwrap(), raw.len());
    assert_eq!(decompressed, raw);
    let entries: Vec<_> = came
        .with_raw_region(&decompressed)
        .unwrap()
        .entries()
        .map(|entry| entry.unwrap().1)
        .collect();
    assert_eq!(entries, [Entry { meta: META, payload: &payload }]);
}

#[test]
fn compressed_pieces_decompress_to_their_length() {
    for (name, message) in messages() {
        if let Message::Fragment(Fragment { compression: Compression::Lz4, len, data, .. }) =
            message
        {
            let mut decompressed = [0; 1000];
            let decompressed_len = decompress_into(data, &mut decompressed).unwrap();
            assert_eq!(decompressed[..decompressed_len], [b'x'; 500], "{name}");
            assert_eq!(len, 500, "{name}");
            return;
        }
    }
    panic!("no message is compressed");
}

#[test]
fn what_a_newer_version_appends_is_ignored() {
    for (name, message) in messages() {
        let mut buffer = [0; 1024];
        let len = message.encode(1, &mut buffer).unwrap();
        // Three more bytes at the end of the body, and a header to match.
        let mut longer = buffer[..len].to_vec();
        longer.extend_from_slice(b"new");
        let kind = synddb_core::wire::Header::read(&longer, 1024).unwrap().kind().unwrap();
        synddb_core::wire::header::seal(&mut longer, kind, 1).unwrap();
        assert_eq!(Message::decode(&longer, 1024), Ok((1, message)), "{name}");
    }
}

#[test]
fn truncated_and_flipped_frames_never_panic_and_never_pass() {
    for (name, message) in messages() {
        let mut buffer = [0; 1024];
        let len = message.encode(1, &mut buffer).unwrap();
        let frame = &mut buffer[..len];
        for cut in 0..len {
            assert!(Message::decode(&frame[..cut], 1024).is_err(), "{name} cut to {cut}");
        }
        for bit in 0..len * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::decode(frame, 1024).is_err(), "{name} with bit {bit} flipped");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// With a checksum to match, so that the bodies themselves are attacked.
#[test]
fn bodies_of_any_bytes_never_panic() {
    let mut rng = synddb_core::Rng::new(1);
    for round in 0..200_000u32 {
        let all = messages();
        let (_, message) = &all[rng.up_to(all.len() as u64 - 1) as usize];
        let mut buffer = [0; 1024];
        let len = message.encode(1, &mut buffer).unwrap();
        let mut frame = buffer[..len].to_vec();
        let kind = synddb_core::wire::Header::read(&frame, 1024).unwrap().kind().unwrap();
        for _ in 0..=rng.up_to(4) {
            let at = 20 + rng.up_to(frame.len() as u64) as usize;
            match frame.get_mut(at) {
                Some(byte) => *byte = rng.next_u64() as u8,
                None => frame.push(rng.next_u64() as u8),
            }
        }
        if round % 7 == 0 {
            frame.truncate(20 + rng.up_to(frame.len() as u64 - 20) as usize);
        }
        synddb_core::wire::header::seal(&mut frame, kind, 1).unwrap();
        if let Ok((_, Message::Entries(entries))) = Message::decode(&frame, 2048) {
            let _ = entries.entries().count();
        }
    }
}
